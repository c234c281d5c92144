"""The equations: each function with its backward function under it, one family a file, in pure Array API.

Functions whose twins may serve are primitives, see bpcore.primitive. A backward function takes what the forward function saved,
then v = dJ/du, then constants, and last the arrays that it writes: windows of the gradient.
"""

from typing import TYPE_CHECKING

from bpcore import face
from bpcore.functional.activations import *
from bpcore.functional.arithmetic import *
from bpcore.functional.attention import *
from bpcore.functional.batch_normalization import *
from bpcore.functional.convolution import *
from bpcore.functional.dropout import *
from bpcore.functional.embedding import *
from bpcore.functional.linear import *
from bpcore.functional.losses import *
from bpcore.functional.normalization import *
from bpcore.functional.pooling import *
from bpcore.functional.positions import *
from bpcore.functional.recurrent import *
from bpcore.functional.updates import *

__all__ = face.gathered(globals())

if not TYPE_CHECKING:  # type checkers know what there is, and report the rest themselves
    __dir__ = face.listed(globals())
    __getattr__ = face.unknown(
        __name__,
        __all__,
        moved={"primitive": "bpcore.primitive", "sequences": "bpcore.functional.attention, .embedding and .positions"},
    )
