"""The modules that a network is composed of, one family a file; each file says in `__all__` which names are public."""

from typing import TYPE_CHECKING

from bpcore.modules import (
    activations,
    arithmetic,
    attention,
    batch_normalization,
    circuit,
    containers,
    convolution,
    dropout,
    embedding,
    linear,
    losses,
    mlp,
    normalization,
    pooling,
    positions,
    recurrent,
    transformer,
)
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

NAMES: list[str] = [
    *activations.__all__,
    *arithmetic.__all__,
    *attention.__all__,
    *batch_normalization.__all__,
    *circuit.__all__,
    *containers.__all__,
    *convolution.__all__,
    *dropout.__all__,
    *embedding.__all__,
    *linear.__all__,
    *losses.__all__,
    *mlp.__all__,
    *normalization.__all__,
    *pooling.__all__,
    *positions.__all__,
    *recurrent.__all__,
    *transformer.__all__,
]

if not TYPE_CHECKING:  # mypy reads literal names only, and would take all others for private
    __all__ = NAMES
