"""Pictures, drawn with matplotlib, without the global state of pyplot. A notebook shows them by itself."""

from bpcore import face
from bpcore.plots.confusions import *
from bpcore.plots.curves import *
from bpcore.plots.diagram import *
from bpcore.plots.weights import *

__all__ = face.gathered(globals())
__dir__ = face.listed(globals())
__getattr__ = face.unknown(__name__, __all__)
