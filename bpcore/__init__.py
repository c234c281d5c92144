"""bpcore: backpropagation written out. Names, and nothing else."""

from typing import TYPE_CHECKING

from bpcore import datasets, face, functional, initializers, modules, optimizers, plots, schedules
from bpcore.array import Array
from bpcore.backend import backend_of, get_backend, use_backend
from bpcore.by_hand import evaluate, initialize
from bpcore.check import check_module
from bpcore.checkpoint import CheckpointError
from bpcore.costs import Cost, cost
from bpcore.info import backend_info
from bpcore.library import Backend
from bpcore.module import Mode, Module, Parameter, Windows
from bpcore.modules import *
from bpcore.network import Network
from bpcore.optimizers import *
from bpcore.plots import *
from bpcore.training import callbacks, metrics
from bpcore.training.callbacks import *
from bpcore.training.guard import NonFiniteLoss
from bpcore.training.history import History
from bpcore.training.metrics import *
from bpcore.training.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "Array",
    "Backend",
    "CheckpointError",
    "Cost",
    "History",
    "Mode",
    "Module",
    "Network",
    "NonFiniteLoss",
    "Parameter",
    "Trainer",
    "Windows",
    "backend_info",
    "backend_of",
    "check_module",
    "cost",
    "datasets",
    "evaluate",
    "functional",
    "get_backend",
    "initialize",
    "initializers",
    "schedules",
    "use_backend",
]
__all__ += modules.__all__
__all__ += optimizers.__all__
__all__ += plots.__all__
__all__ += callbacks.__all__
__all__ += metrics.__all__

if not TYPE_CHECKING:  # type checkers know what there is, and report the rest themselves
    __dir__ = face.listed(globals())
    __getattr__ = face.unknown(__name__, __all__)
