"""Every primitive on inputs with infinities, NaN, -0, huge and tiny numbers: each twin against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import missing
from primitive_cases import TABLE, Draw
from twins import place, twins

import bpcore as bp
from bpcore import primitive
from bpcore.functional.convolution import Placement
from bpcore.primitive import PRIMITIVES
from bpcore.verify import verified

pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted: definitions run, and need no such test")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow and of infinity less infinity

VALUES = {
    "inf": [math.inf],
    "-inf": [-math.inf],
    "nan": [math.nan],
    "-0": [-0.0],
    "huge": [1e30, -1e30],
    "tiny": [1e-38, -1e-42],
    "all": [math.inf, -math.inf, math.nan, -0.0, 1e-42],
}


class Planted(Draw):
    """Arguments with some of their numbers replaced by `values`, each time in other places."""

    def __init__(self, rows: int, columns: int, dtype: str, values: list[float]):
        super().__init__(rows, columns, dtype)
        self.values = values

    def planted(self, x: np.ndarray) -> np.ndarray:
        x = x.copy()
        for value in self.values if x.size else ():
            x.flat[self.generator.integers(0, x.size, 1 + x.size // 60)] = value
        return x

    def z(self, *shape: int, scale: float = 2.0) -> np.ndarray:
        return self.planted(super().z(*shape, scale=scale))

    def vector(self, scale: float = 1.0) -> np.ndarray:
        return self.planted(super().vector(scale))

    def out(self, *shape: int) -> np.ndarray:
        return np.full(shape, 7.0, self.dtype)


def multiplies_padding(name: str, row: tuple) -> bool:
    """Whether a convolution multiplies zeros of the padding. 0 times an infinite weight is NaN in the definition; twins skip it."""
    return "conv" in name and any(isinstance(x, Placement) and x.padding != ((0, 0), (0, 0)) for x in row)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("library", "of", "name"), twins())
def test_twin_equals_its_definition(library, of, name, values, dtype):
    if not name:
        extra = of.removeprefix("kernels.") if library == "numpy" else library
        missing(extra, f"the twins of {of} cannot be imported here: {primitive.load(of)[1]}")
    try:
        backend = bp.get_backend(library)
    except RuntimeError as error:
        missing(library, str(error))
    definition, twin = PRIMITIVES[name].definition, PRIMITIVES[name].twins[of]
    checked = verified(twin.call, of, definition)
    for shape in ((13, 7), (40, 33)):
        for row in TABLE[name](Planted(*shape, dtype, VALUES[values])):
            arguments = place(row, backend)
            if multiplies_padding(name, row) and not np.isfinite(VALUES[values]).all():
                continue
            if twin.serves is None or twin.serves(*arguments):
                checked(*arguments)  # raises ArithmeticError where they differ
