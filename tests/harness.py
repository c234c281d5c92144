"""How a case of the table in cases.py is run: on a backend, and by PyTorch."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from conftest import BackendUnderTest

import bpcore as bp
from bpcore.layout import Layout
from bpcore.module import Module

MODE = {"training": True, "seed": 3, "step": 5, "micro": 1}  # of every run: dropout's masks are a function of it


@dataclass(frozen=True, eq=False)
class Case:
    """A module, its inputs, and what it is held against.

    inputs: shapes, for which normal numbers off the kinks at zero are drawn, or arrays: floating ones take the dtype of the
    run, integers stay. without_gradient: which inputs have none. torch: what PyTorch computes, `torch(F, module, theta, *z)`, θ's
    windows by path, F a PyTorch of references.py. sized: the module of size n and its inputs, whose operations are counted.
    free: the passes that move data and compute nothing. flushes: whether an activation's results are zero or normal.
    """

    id: str
    make: Callable[[], Module]
    inputs: tuple[Any, ...]
    without_gradient: tuple[int, ...] = ()
    torch: Callable[..., Any] | None = None
    sized: Callable[[int], tuple[Any, ...]] | None = None
    free: tuple[str, ...] = ()
    flushes: bool = True

    def __repr__(self) -> str:
        return self.id

    @property
    def name(self) -> str:
        """The class that the case is about stands first in its id."""
        return self.id.partition(",")[0]

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(self.id.encode()))


@dataclass
class Result:
    """What a case gave, on the host: outputs, B's dz for each input (None where there is none), dθ by path."""

    u: list[np.ndarray]
    dz: list[np.ndarray | None]
    dtheta: dict[str, np.ndarray]


def theta_of(one: Case, layout: Layout) -> np.ndarray:
    """A θ for the case, with its zeros and ones moved so that they are seen in use."""
    return layout.draw(1) + 0.1 * one.generator().standard_normal(layout.size)


def inputs_of(one: Case) -> list[np.ndarray]:
    """The case's inputs on the host."""
    generator = one.generator()
    drawn = []
    for x in one.inputs:
        if isinstance(x, tuple):
            x = generator.standard_normal(x)
            x = np.asarray(x + np.copysign(0.1, x))
        drawn.append(x)
    return drawn


def upstream(one: Case, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """v for outputs of these shapes."""
    generator = np.random.default_rng(len(one.id))
    return [np.asarray(generator.standard_normal(shape)) for shape in shapes]


def run(one: Case, on: BackendUnderTest, dtype: str) -> Result:
    """The case forward and backward on a backend, under its guard; what must not be written to is compared after."""
    module = one.make()
    layout = Layout(module)
    place = lambda x: on.asarray(x, dtype if x.dtype.kind == "f" else None)  # noqa: E731
    theta_vector, z = place(theta_of(one, layout)), [place(x) for x in inputs_of(one)]
    before = [on.to_host(x).copy() for x in (theta_vector, *z)]
    vector, spare = (on.writable(np.full(n, np.nan), dtype) for n in (layout.trained, layout.spare))
    with on.guard():
        u, saved = module.forward(layout.windows(theta_vector), *z, mode=bp.Mode(**MODE))
    outputs = u if isinstance(u, tuple) else (u,)
    v = tuple(on.asarray(x, dtype) for x in upstream(one, [tuple(x.shape) for x in outputs]))
    with on.guard():
        v_or_tuple = v if isinstance(u, tuple) else v[0]
        dz = module.backward(layout.windows(theta_vector), saved, v_or_tuple, layout.windows(vector, spare))
        layout.add_home(vector, spare)
    after = [on.to_host(x) for x in (theta_vector, *z)]
    for name, old, new in zip(("θ", *(f"input {i}" for i in range(len(z)))), before, after, strict=True):
        np.testing.assert_array_equal(new, old, err_msg=f"{one}: {name} was written to")
    named = layout.windows(vector)
    return Result(
        [on.to_host(x) for x in outputs],
        [None if x is None else on.to_host(x) for x in (dz if isinstance(dz, tuple) else (dz,))],
        {use.path: on.to_host(named[use.path]) for use in layout.homes if use.parameter.trained},
    )


def autograd(F: Any, one: Case) -> Result:
    """What PyTorch says of the case: the same θ, inputs and v."""
    module, host = one.make(), inputs_of(one)
    layout = Layout(module)
    vector = F.from_numpy(theta_of(one, layout)).requires_grad_()
    theta = {use.path: vector[use.start : use.start + use.size].reshape(use.parameter.shape) for use in layout.homes}
    z = [F.from_numpy(x.copy()) for x in host]
    differentiable = [x.requires_grad_() for i, x in enumerate(z) if i not in one.without_gradient]
    assert one.torch is not None
    u = one.torch(F, module, theta, *z)
    outputs = u if isinstance(u, tuple) else (u,)
    v = [F.from_numpy(x) for x in upstream(one, [tuple(x.shape) for x in outputs])]
    gradients = F.autograd.grad(outputs, [vector, *differentiable], v, allow_unused=True, materialize_grads=True)
    gradient, dz = gradients[0].numpy()[: layout.trained], iter(gradients[1:])
    return Result(
        [x.detach().numpy() for x in outputs],
        [None if i in one.without_gradient else next(dz).numpy() for i in range(len(z))],
        {
            use.path: gradient[use.start : use.start + use.size].reshape(use.parameter.shape)
            for use in layout.homes
            if use.parameter.trained
        },
    )


def assert_close(got: Result, expected: Result, rtol: float, dtype: str) -> None:
    """The results agree to rtol of the largest entry of each array, in shape, dtype and where there is a gradient."""
    assert len(got.u) == len(expected.u)
    assert [x is None for x in got.dz] == [x is None for x in expected.dz]
    assert list(got.dtheta) == list(expected.dtheta)
    pairs = [(f"u {i}", a, b) for i, (a, b) in enumerate(zip(got.u, expected.u, strict=True))]
    pairs += [(f"dz {i}", a, b) for i, (a, b) in enumerate(zip(got.dz, expected.dz, strict=True)) if a is not None]
    pairs += [(f"gradient of {path}", a, expected.dtheta[path]) for path, a in got.dtheta.items()]
    for name, a, b in pairs:
        assert a.shape == b.shape, f"{name}: shape {a.shape}, expected {b.shape}"
        assert str(a.dtype) == dtype, f"{name}: dtype {a.dtype} for inputs of {dtype}"
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(1, np.max(np.abs(b), initial=0)), err_msg=name)
