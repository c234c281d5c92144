"""bpcore: backpropagation written out. This file gathers the public names and holds nothing else."""

from typing import TYPE_CHECKING

from bpcore import datasets as datasets
from bpcore import face
from bpcore import functional as functional
from bpcore import initializers as initializers
from bpcore import plots as plots
from bpcore import schedules as schedules
from bpcore.array import *
from bpcore.backend import *
from bpcore.by_hand import *
from bpcore.check import *
from bpcore.checkpoint import *
from bpcore.costs import *
from bpcore.info import *
from bpcore.library import *
from bpcore.module import *
from bpcore.modules import *
from bpcore.network import *
from bpcore.optimizers import *
from bpcore.plots.confusions import *
from bpcore.plots.curves import *
from bpcore.plots.weights import *
from bpcore.training.callbacks import *
from bpcore.training.guard import *
from bpcore.training.history import *
from bpcore.training.metric import *
from bpcore.training.metrics import *
from bpcore.training.progress import *
from bpcore.training.stopping import *
from bpcore.training.tensorboard import *
from bpcore.training.trainer import *

__version__ = "0.1.0"
__all__ = face.explain(globals(), face.gathered(globals(), "datasets", "functional", "initializers", "plots", "schedules"))

if not TYPE_CHECKING:  # type checkers read the imports above, and report unknown names themselves
    __dir__ = face.listed(globals())
    __getattr__ = face.unknown(__name__, __all__)
