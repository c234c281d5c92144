"""The modules of which a network is composed, one family a file. The `__all__` of each file lists its public names."""

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
from bpcore.modules.softmax import *
from bpcore.modules.transformer import *

if not TYPE_CHECKING:  # mypy takes a name for private if `__all__` is not a literal list
    __all__ = face.gathered(globals())
    __dir__ = face.listed(globals())
