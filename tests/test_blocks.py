"""NumPy's twins in blocks so small that small arrays have many, each against its definition."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import numpy as np
import pytest
from primitive_cases import TABLE, Draw
from test_infinities import VALUES, Planted, multiplies_padding
from twins import TOLERANCE, assert_close, cancelled, results, twins

from bpcore.primitive import PRIMITIVES
from bpcore.verify import verified

kernels = pytest.importorskip("bpcore.kernels.numpy", reason="bpcore/kernels was deleted: definitions run, and need no such test")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of overflow and of infinity less infinity

SIZES = {"SMALL": 0, "BLOCK": 100, "PIECE": 100, "IMAGES": 100, "LARGE": 0, "WIDE": 40, "PART": 8}
NAMES = [name for _, of, name in twins() if of == "kernels.numpy"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> Iterator[None]:
    """All sizes of blocks, and all limits below which an array is not divided."""
    modules = [importlib.import_module(found.name) for found in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}.")]
    caches = {x for module in modules for x in vars(module).values() if hasattr(x, "cache_clear")}
    for module in modules:
        for name in SIZES.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, SIZES[name])
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("name", NAMES)
def test_twin_equals_its_definition(name, strided, dtype):
    of_equations, twin = PRIMITIVES[name].definition, PRIMITIVES[name].twins["kernels.numpy"]
    for shape in ((13, 7), (40, 33)):
        rows = [TABLE[name](Draw(*shape, dtype, strided)) for _ in range(2)]
        for row, (first, second) in enumerate(zip(*rows, strict=True)):
            if twin.serves is None or twin.serves(*first):
                size = cancelled(name, second)
                pairs = zip(results(twin.call, first), results(of_equations, second), strict=True)
                for i, (got, expected) in enumerate(pairs):
                    assert_close(got, expected, TOLERANCE[dtype], f"row {row}, result {i}", size if i == 0 else 0.0)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite(name, values):
    twin = PRIMITIVES[name].twins["kernels.numpy"]
    checked = verified(twin.call, "kernels.numpy", PRIMITIVES[name].definition)
    for row in TABLE[name](Planted(13, 7, "float32", VALUES[values])):
        if not (multiplies_padding(name, row) and not np.isfinite(VALUES[values]).all()) and (
            twin.serves is None or twin.serves(*row)
        ):
            checked(*row)  # raises ArithmeticError where they differ
