"""bpcore: backpropagation written out. Names, and nothing else."""

from bpcore import functional
from bpcore.backend import Backend, backend_of, get_backend, use_backend
from bpcore.check import check_module
from bpcore.cost import Cost, cost
from bpcore.layout import evaluate, initialize
from bpcore.module import Mode, Module, Parameter
from bpcore.modules import *
from bpcore.network import Network
