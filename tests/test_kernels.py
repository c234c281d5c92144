"""Every twin against its definition, and a run with every twin off.

The arguments of a primitive are in TABLE of primitive_cases.py, and one without a row fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import environment, missing
from primitive_cases import TABLE, Draw, family
from twins import FLOAT32_ONLY, LARGE_ONLY, MANY, SHAPES, TOLERANCE, assert_close, cancelled, place, results, twins

import bpcore as bp
from bpcore import functional, primitive
from bpcore.primitive import PRIMITIVES, definition, twin

pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted: definitions run, and need no such test")


def test_every_primitive_has_a_row():
    assert set(TABLE) == set(PRIMITIVES)


def test_there_are_twins():
    """They register when their set is imported: an import that went missing would leave nothing to test."""
    numpy = {name for _, of, name in twins() if of == "kernels.numpy"}
    assert {"linear", "linear_backward", "adam", "cross_entropy"} <= numpy


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("library", "of", "name"), twins())
def test_twin_equals_its_definition(library, of, name, shape, strided, dtype, monkeypatch):
    if not name:
        extra = of.removeprefix("kernels.") if of in primitive.EXTRAS else library
        missing(extra, f"the twins of {of} cannot be imported here: {primitive.load(of)[1]}")
    if shape == "empty" and family(name) == "losses":
        pytest.skip("a mean over no rows")
    try:
        backend = bp.get_backend(library)
    except RuntimeError as error:
        missing(library, str(error))
    if of == "kernels.fast":
        monkeypatch.setattr(MANY, 0)
    of_equations, twin = PRIMITIVES[name].definition, PRIMITIVES[name].twins[of]
    rows = [TABLE[name](Draw(*SHAPES[shape], dtype, strided)) for _ in range(2)]  # the same numbers, in arrays of their own
    served, row = 0, -1
    for row, (first, second) in enumerate(zip(*rows, strict=True)):
        first, second = place(first, backend), place(second, backend)
        if twin.serves is not None and not twin.serves(*first):
            continue
        served += 1
        size = cancelled(name, [backend.to_host(x) if hasattr(x, "dtype") else x for x in second])
        pairs = zip(results(twin.call, first), results(of_equations, second), strict=True)
        for i, pair in enumerate(pairs):
            got, expected = (backend.to_host(x) if hasattr(x, "dtype") else x for x in pair)
            assert_close(got, expected, TOLERANCE[dtype], f"row {row}, result {i}", size if i == 0 else 0.0)
    none = row < 0 or of in LARGE_ONLY or (dtype == "float64" and name in FLOAT32_ONLY)
    assert served or strided or shape != "odd" or none


RUN = """
import json
import numpy as np
import bpcore as bp
from bpcore import primitive
from runs import Call, examples, trainer

losses = []
keep = Call(lambda trainer, J: losses.append(float(J)))
module = bp.Sequential(bp.Linear(5, 8), bp.LayerNorm(8), bp.ReLU(), bp.Dropout(0.2), bp.Linear(8, 3))
run = trainer(module, optimizer=bp.AdamW(0.01), clip_norm=1.0, accumulate=2, callbacks=[keep])
run.fit(examples(weights=True), validation=examples(seed=1), epochs=20, batch_size=8)
adam = primitive.PRIMITIVES['adam']
_, chosen, _ = adam.pick(np.ndarray)
print(json.dumps({"twins": chosen is not adam.definition, "losses": losses, "test": run.history["test_loss"]}))
"""


def run(code: str, setting: str) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own."""
    variables = environment(BPCORE_KERNELS=setting)
    return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60)


def test_a_run_without_twins():
    """The same loss curve from all twins, from NumPy's, with definitions beside them, from these alone, without the folder."""
    curves = {}
    for setting in ("on", "plain", "verify", "off", "deleted"):
        deleted = setting == "deleted"
        done = run("import sys; sys.modules['bpcore.kernels'] = None\n" * deleted + RUN, "on" if deleted else setting)
        assert done.returncode == 0, done.stderr
        curves[setting] = json.loads(done.stdout)
    assert [curve["twins"] for curve in curves.values()] == [True, True, True, False, False]
    assert len(curves["on"]["losses"]) == 100
    for curve in curves.values():
        for name in ("losses", "test"):
            np.testing.assert_allclose(curve[name], curves["on"][name], rtol=2e-6)
    assert curves["on"]["test"][-1] < curves["on"]["test"][0]


WRONG = """
import numpy as np
from bpcore import primitive
from bpcore.functional.linear import linear, linear_backward

def wrong(z, W, b):
    return np.asarray(z @ W + 1e-3 * b)

def wrong_backward(z, W, v, dW, db, need_dz):
    dW.fill(0)

for of in ("kernels.fast", "kernels.numpy"):
    primitive.load(of)
    for name, call in (("linear", wrong), ("linear_backward", wrong_backward)):
        known = primitive.PRIMITIVES[name]
        if of in known.twins:
            known.twins[of] = known.twins[of]._replace(call=call)
z = np.ones((4, 3), "float32")
{call}
"""
FAULTS = {  # by what a faulty twin returns or writes, a call of it
    "result 0": "linear(z, z.T.copy(), np.ones(4, 'float32'))",
    "argument 3": "linear_backward(z, z.T.copy(), np.ones((4, 4), 'float32'), np.ones((3, 4), 'float32'), None, False)",
}


@pytest.mark.parametrize("what", FAULTS)
def test_verify_catches_a_wrong_twin(what):
    code = WRONG.format(call=FAULTS[what])
    done = run(code, "verify")
    assert done.returncode != 0
    assert re.search(
        rf"ArithmeticError: the twin of linear\w* in kernels/\w+ differs from its definition in {what} by", done.stderr
    )
    assert run(code, "off").returncode == run(code, "on").returncode == 0


def test_an_unknown_setting_is_an_error():
    assert "BPCORE_KERNELS must be one of on, plain, off, verify; got 'fast'" in run("import bpcore", "fast").stderr


@pytest.fixture
def double(monkeypatch):
    """A primitive of the test's own, which notes what ran, and no sets of twins but those that the test adds."""
    monkeypatch.setattr(primitive, "SETTING", "on")
    monkeypatch.setattr(primitive, "SETS", {"numpy": ("first", "second")})
    monkeypatch.setattr(primitive, "load", lambda name: (SimpleNamespace(ARRAY=np.ndarray), ""))
    calls = []

    @primitive.primitive()
    def double(z, out=None):
        calls.append("definition")
        return z + z

    yield double, calls
    del PRIMITIVES["double"]


def in_set(of: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as if it stood in a file of the set."""
    function.__module__ = f"bpcore.{of}.family"
    return function


def test_a_twin_serves_or_leaves_it_to_the_next(double):
    """Conditions are asked in the order of the sets, and the definition comes last."""
    double, calls = double
    double(np.ones(1))
    for of, least in (("second", 10), ("first", 100)):

        def run(z, out, of=of):
            calls.append(of)
            return 2 * z

        def serves(z, /, *others, least=least):
            return z.size >= least

        twin(double, serves=serves)(in_set(of, lambda z, /, *others, run=run: run(z, None)))
    for size in (1, 10, 100):
        np.testing.assert_array_equal(double(np.ones(size)), np.full(size, 2.0))
    assert calls == ["definition", "definition", "second", "first"]


def test_arguments_are_given_by_name_too(double):
    double, _ = double
    np.testing.assert_array_equal(double(out=None, z=np.ones(2)), np.full(2, 2.0))
    z, W = np.ones((2, 3)), np.ones((3, 4))
    np.testing.assert_array_equal(functional.linear(b=None, W=W, z=z), functional.linear(z, W, None))
    wrong = [((z, W), {"c": None}), ((), {}), ((), {"z": z, "W": W}), ((z, W), {}), ((z, W, None, None), {})]
    for args, named in wrong:
        with pytest.raises(TypeError, match=r"linear\(z: .Array., W: .Array., b: .Array | None.\) -> .Array.: "):
            functional.linear(*args, **named)


def test_too_many_arguments_are_an_error_in_every_activation():
    for name in functional.__all__:
        if PRIMITIVES.get(name) and len(PRIMITIVES[name].signature.parameters) == 1:
            with pytest.raises(TypeError, match=rf"{name}\(.*too many positional arguments"):
                PRIMITIVES[name].call(np.ones((2, 3), "float32"), 1.0)


FAULTY = {
    "another name": (lambda z, o: z, None, "the twin of double(z, out=None) in first takes (z, o); use the same names and order"),
    "another order": (lambda out, z: z, None, "takes (out, z)"),
    "too few": (lambda z: z, None, "takes (z)"),
    "too many": (lambda z, out, more: z, None, "takes (z, out, more)"),
    "a condition's": (
        lambda z, out: z,
        lambda z: True,
        "the condition of double(z, out=None) in first takes (z); use the same names and order",
    ),
}


@pytest.mark.parametrize("what", FAULTY)
def test_a_twin_with_other_parameters_is_an_error(double, what):
    double, _ = double
    function, serves, message = FAULTY[what]
    with pytest.raises(TypeError, match=re.escape(message)):
        twin(double, serves=serves)(in_set("first", function))


def test_a_twin_outside_of_the_sets_is_an_error(double):
    double, _ = double
    with pytest.raises(TypeError, match=r"is defined in bpcore\.elsewhere\.family, which is in no set of twins"):
        twin(double)(in_set("elsewhere", lambda z, out: z))


def test_a_second_twin_in_a_set_is_an_error(double):
    double, _ = double
    twin(double)(in_set("first", lambda z, out: z))
    with pytest.raises(TypeError, match=r"double has a twin in first already, from bpcore\.first\.family"):
        twin(double)(in_set("first", lambda z, out: z))


def test_a_function_that_is_not_a_primitive_has_no_twin():
    with pytest.raises(TypeError, match=r"is not a primitive; decorate its definition with @primitive\(\)"):
        twin(np.exp)


def test_a_primitive_of_a_user_does_not_take_the_place_of_bpcore_s():
    @primitive.primitive()
    def relu(z):
        return 7 + 0 * z

    assert relu(np.ones(1)) == 7
    assert functional.relu(np.ones(1)) == 1
    assert PRIMITIVES["relu"].call is functional.relu
    assert definition(relu)(np.ones(1)) == 7


@pytest.mark.parametrize(
    ("name", "raised"), [("bpcore.kernels.conditions", True), ("bpcore.kernels", False), ("numba", False), (None, False)]
)
def test_a_fault_in_a_set_is_raised(monkeypatch, name, raised):
    """A missing package leaves a set out; a wrong import inside of it must not."""

    def fail(module):
        raise ImportError("no", name=name)

    monkeypatch.setattr(primitive.importlib, "import_module", fail)
    load = primitive.load.__wrapped__
    if raised:
        with pytest.raises(ImportError):
            load("kernels.numpy")
    else:
        assert load("kernels.numpy") == (None, "no")


def test_what_is_written_must_be_a_parameter():
    with pytest.raises(TypeError, match=r"double writes \['dW'\], which are not parameters of it \(z, db\)"):

        @primitive.primitive(writes=("dW", "db"))
        def double(z, db):
            return z


def test_labels_out_of_range_are_an_error_in_compiled_code():
    """They would be read and written outside of the arrays."""
    if primitive.load("kernels.fast")[0] is None or not primitive.in_use("kernels.fast"):
        pytest.skip("compiled code is not in use here")
    t = np.full((3, 4), 0.25, "float32")
    for y in ([0, 1, 4], [0, -1, 2]):
        with pytest.raises(IndexError):
            functional.cross_entropy(t, np.array(y), None, 0.0)
