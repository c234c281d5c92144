"""Every case on every backend: forward and backward as defined, nothing written that should not be."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import CASES
from conftest import BackendUnderTest, missing
from harness import MODE, Case, Result, assert_close, inputs_of, run, theta_of, upstream

import bpcore as bp
from bpcore import modules
from bpcore.functional.linear import linear, linear_backward
from bpcore.layout import Layout
from bpcore.modules import activations
from bpcore.structure import describe, rebuild

TOLERANCE = {"float64": 1e-12, "float32": 1e-4}
ids = [one.id for one in CASES]


@functools.cache
def definition(one: Case) -> Result:
    """What the definitions give in float64: array_api_strict computes with NumPy and has no twins."""
    try:
        return run(one, BackendUnderTest("array_api_strict", bp.get_backend("array_api_strict")), "float64")
    except RuntimeError as error:
        return missing("array_api_strict", str(error))


def test_every_module_is_in_the_table():
    """First in an id stands the class that the case is about."""
    assert len(set(ids)) == len(ids), "an id is there twice"
    assert set(modules.__all__) - {"Loss"} == {id.partition(",")[0] for id in ids} - {"Tied"}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("one", CASES, ids=ids)
def test_forward_and_backward(one, backend, dtype):
    got = run(one, backend, dtype)
    assert tuple(i for i, dz in enumerate(got.dz) if dz is None) == one.without_gradient
    assert_close(got, definition(one), TOLERANCE[dtype], dtype)


@pytest.mark.parametrize("one", CASES, ids=ids)
def test_check_module(one):
    bp.check_module(one.make(), *one.inputs)


@pytest.mark.parametrize("one", [one for one in CASES if one.make().rows_independent], ids=str)
def test_rows_alone_add_up(one):
    """Where rows are independent, u is the rows' u, and dθ the sum of the rows' dθ; no rows at all give zero."""
    module, z = one.make(), inputs_of(one)
    layout = Layout(module)
    theta = layout.windows(theta_of(one, layout))
    if min(x.ndim for x in z) < 2 or len({x.shape[0] for x in z}) > 1:
        pytest.skip("the inputs have no axis of rows in common")

    def dtheta(B, v):
        named = B(v)[1]
        return np.concatenate([np.zeros(0), *(np.reshape(named[use.path], -1) for use in layout.homes)])

    u, B = bp.evaluate(module, theta, *z, mode=bp.Mode(**MODE))
    (v,) = upstream(one, [u.shape])
    total = np.zeros(layout.trained)
    for i in range(len(u)):
        u_row, B_row = bp.evaluate(module, theta, *(x[i : i + 1] for x in z), mode=bp.Mode(**MODE))
        np.testing.assert_allclose(u_row, u[i : i + 1], rtol=1e-12, atol=1e-14)
        total += dtheta(B_row, v[i : i + 1])
    np.testing.assert_allclose(dtheta(B, v), total, rtol=1e-11, atol=1e-13)
    if "left open" not in one.id and one.id != "Flatten":
        u_none, B_none = bp.evaluate(module, theta, *(x[:0] for x in z))
        assert u_none.shape == (0, *u.shape[1:])
        assert not np.any(dtheta(B_none, u_none))


def with_numbers(value: Any, number: Callable[[Any], Any]) -> Any:
    """Arguments as `describe` gives them, each number in them as `number` gives it."""
    if isinstance(value, list):
        return [with_numbers(v, number) for v in value]
    if isinstance(value, dict):
        return {k: with_numbers(v, number) for k, v in value.items()} if "mapping" in value else value
    return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def rebuilt(one: Case, number: Callable[[Any], Any]) -> bp.Module:
    """The module of a case, from other numbers for its constructors' arguments."""
    entries = describe(one.make())
    return rebuild([{**e, **{k: with_numbers(e[k], number) for k in ("positional", "named")}} for e in entries], "a test")


def has_numbers(one: Case) -> bool:
    """Whether a constructor was given a number, and all of them are the library's own."""
    entries = describe(one.make())
    seen: list[Any] = []
    with_numbers([[e["positional"], e["named"]] for e in entries], seen.append)
    return bool(seen) and all(e["class"] in modules.__all__ for e in entries)


@pytest.mark.parametrize(("real", "whole"), [(np.float64, np.int64), (np.float32, np.int8)], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("one", [one for one in CASES if has_numbers(one)], ids=str)
def test_numpy_scalars_are_numbers(one, real, whole, backend, tmp_path):
    """A NumPy scalar for a number: the same results, of float32 from float32, and the same in a file."""

    def plain(x: Any) -> Any:
        return x if isinstance(x, int) else float(np.float32(x))

    def scalar(x: Any) -> Any:
        return real(plain(x)) if isinstance(x, float) else whole(x) if abs(x) < 100 else np.int64(x)

    got, expected = (run(replace(one, make=lambda n=n: rebuilt(one, n)), backend, "float32") for n in (scalar, plain))
    module = rebuilt(one, scalar)
    products = any(len(use.parameter.shape) > 1 for use in Layout(module).uses)  # a BLAS rounds by where arrays lie in memory
    assert_close(got, expected, 1e-6 if products else 0.0, "float32")
    assert repr(module) == repr(rebuilt(one, plain))
    bp.Network(module, backend.backend).save(tmp_path / "net")
    assert repr(bp.Network.load(tmp_path / "net").module) == repr(module)


def test_vectorisation_in_both_conventions():
    """Columns, Z = W X + b broadcast over examples (7.81-7.83), and rows, Z = X W + b (7.84), are transposes."""
    generator = np.random.default_rng(0)
    X, W, b, V = (generator.standard_normal(shape) for shape in ((4, 7), (3, 4), (3, 1), (3, 7)))  # an example a column
    u_columns = W @ X + b
    dW_columns, db_columns, dX_columns = V @ X.T, V.sum(axis=1, keepdims=True), W.T @ V  # (7.65), (7.66), (7.63) summed
    dW, db = np.empty((4, 3)), np.empty(3)
    np.testing.assert_allclose(linear(X.T.copy(), W.T.copy(), b[:, 0].copy()), u_columns.T, rtol=1e-13)
    dz = linear_backward(X.T.copy(), W.T.copy(), V.T.copy(), dW, db, True)
    for rows, columns in ((dW, dW_columns), (db, db_columns[:, 0]), (dz, dX_columns)):
        np.testing.assert_allclose(rows, columns.T, rtol=1e-12)


ACTIVATIONS = [one.make() for one in CASES if one.flushes and one.name in activations.__all__]
SATURATING = list({repr(module): module for module in ACTIVATIONS}.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("module", SATURATING, ids=repr)
def test_saturating_activations_give_no_subnormals(module, dtype, backend):
    """What comes back is zero, or so large that the product of two such numbers is normal."""
    smallest = float(np.finfo(dtype).smallest_normal)
    z, v = np.meshgrid(np.linspace(-90, 90, 13), np.geomspace(smallest * 2**-5, 1, 30))
    v = v * np.linspace(1, 2, 13)  # of a v that is the same along a row, softmax's dz is zero
    z, v = backend.asarray(z, dtype), backend.asarray(v, dtype)
    u, saved = module.forward(bp.initialize(module), z, mode=bp.Mode())
    for name, array in (("u", u), ("dz", module.backward(None, saved, v, None))):
        host = np.abs(backend.to_host(array).astype("float64"))
        assert np.all(np.isfinite(host))
        assert np.any(host > 0), f"{name} is all zero"
        assert np.all((host == 0) | (host >= np.sqrt(smallest))), f"{name} has {host[host > 0].min()}"
