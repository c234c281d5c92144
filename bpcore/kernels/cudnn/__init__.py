"""Twins for CuPy's arrays: convolution and attention by cuDNN, the extra `cudnn`. What they do not serve, kernels.cuda does."""

from __future__ import annotations

from bpcore.packages import CUDA, imported, pip

try:
    cupy = imported("cupy", "cuDNN's twins need CuPy", CUDA)
    cudnn = imported("cudnn", "cuDNN's twins need its front end", pip("cudnn"))
except RuntimeError as _error:
    raise ImportError(str(_error)) from _error
try:
    _version = cudnn.backend_version()
except RuntimeError as _error:
    raise ImportError(f"cuDNN's front end finds no cuDNN ({_error}): {pip('cudnn')}") from _error
VERSIONS = f"cuDNN {cudnn.backend_version_string()}, front end {cudnn.__version__}"
if _version < 91900 or [*map(int, cudnn.__version__.split(".")[:2])] < [1, 28]:  # older ones fail, or were not tried
    raise ImportError(f"cuDNN's twins need cuDNN 9.19 and its front end 1.28, or newer ones, got {VERSIONS}: {pip('cudnn')}")

from bpcore.kernels.cudnn import attention, convolution  # noqa: E402, F401  importing them registers their twins
from bpcore.kernels.cudnn.engine import plans  # noqa: E402

ARRAY = cupy.ndarray


def report() -> dict[str, str]:
    """For `bp.backend_info()`: the versions, and what cuDNN refused so far."""
    refused = [f"{len(plans.refused)} shapes refused, such as {what} ({why})" for what, why in [*plans.refused.items()][:1]]
    return {"products": "; ".join([f"convolutions and attention by {VERSIONS}", *refused])}
