"""Random configurations of each module: how many, and what each is held to.

BPCORE_EXAMPLES=200 is a full run, each of them through bp.check_module too; otherwise 20 are drawn, and a part is checked.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

from cases import ORACLES
from conftest import BackendUnderTest
from harness import Case, assert_close, autograd, run
from hypothesis import settings
from hypothesis import strategies as st
from references import PyTorch

import bpcore as bp

TOLERANCE = 1e-9
COUNT = int(os.environ.get("BPCORE_EXAMPLES", "20"))
examples = settings(max_examples=COUNT, deadline=None, derandomize=True, database=None, print_blob=True)
small = st.integers(1, 3)
check = st.just(True) if COUNT >= 200 else st.integers(0, 4).map(lambda n: n == 4)  # whether bp.check_module too


def one_or_two(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    """A number, or a pair of them."""
    return numbers | st.tuples(numbers, numbers)


def both(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def agrees(torch: Any, module: bp.Module, *inputs: Any, check: bool = False) -> None:
    """Forward, dz and every dθ are PyTorch's, in float64; `check`: and the module keeps its contract."""
    without = tuple(i for i, x in enumerate(inputs) if not isinstance(x, tuple) and x.dtype.kind in "biu")
    id = f"{module!r} at {[x if isinstance(x, tuple) else x.shape for x in inputs]}"
    one = Case(id, lambda: module, inputs, without, torch=ORACLES[type(module).__name__])
    got = run(one, BackendUnderTest("numpy", bp.get_backend("numpy")), "float64")
    assert_close(got, autograd(PyTorch(torch), one), TOLERANCE, "float64")
    if check:
        bp.check_module(module, *inputs, seed=zlib.crc32(one.id.encode()))
