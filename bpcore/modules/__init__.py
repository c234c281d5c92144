"""The modules that a network is composed of, one family a file; each file says in `__all__` which names are public."""

from typing import TYPE_CHECKING

from bpcore import face
from bpcore.modules.activations import *
from bpcore.modules.arithmetic import *
from bpcore.modules.attention import *
from bpcore.modules.batch_normalization import *
from bpcore.modules.circuit import *
from bpcore.modules.containers import *
from bpcore.modules.convolution import *
from bpcore.modules.dropout import *
from bpcore.modules.embedding import *
from bpcore.modules.linear import *
from bpcore.modules.losses import *
from bpcore.modules.mlp import *
from bpcore.modules.normalization import *
from bpcore.modules.pooling import *
from bpcore.modules.positions import *
from bpcore.modules.recurrent import *
from bpcore.modules.transformer import *

if not TYPE_CHECKING:  # mypy would take the names that no literal list has for private
    __all__ = face.gathered(globals())
