"""Initialise and evaluate a module by hand, without a Network: the notes' B, curried."""

from __future__ import annotations

from typing import Any

from bpcore import arguments
from bpcore.arguments import show
from bpcore.array import Array, namespace
from bpcore.backend import backend_of, get_backend
from bpcore.context import quiet
from bpcore.expect import expect_labels
from bpcore.host import is_subclass
from bpcore.layout import Layout
from bpcore.library import Backend, host_data, is_array
from bpcore.mode import expect_mode
from bpcore.module import Mode, Module, Windows, fresh_lists, gradients_of, run, run_backward
from bpcore.windows import shapes_of

__all__ = ["evaluate", "initialize"]


def initialize(module: Module, seed: int | None = 0, backend: str | Backend | None = None, dtype: Any = "float32") -> Windows:
    """Make a θ for `module`, draw its initial values, and return its windows, which `evaluate` takes.

    A window is a view: the part of θ that is one parameter. seed: a whole number; the same seed gives the same values on every
    backend. None draws a seed; `theta.seed` and theta's repr show it. backend: a name, see `get_backend`. dtype: "float32" or
    "float64".
    """
    layout, on = Layout(module), get_backend(backend)
    drawn = arguments.seed(seed)
    theta = layout.windows(on.asarray(layout.draw(drawn), on.check_dtype(dtype)))
    theta.__dict__["seed"] = drawn
    return theta


@quiet
def evaluate(module: Module, theta: Windows, *z: Array, mode: Mode | None = None) -> tuple[Any, Backward]:
    """Evaluate a module: (u, B), where u = M(z; θ), and B(v) -> (dz, dtheta) is both of its backward functions.

    theta: windows, see `initialize`. z: arrays on one backend. mode: evaluation by default; `Mode(training=True, ...)` for the
    behaviour in training. dz is an array, or a tuple for several inputs, with None for an input without gradient; dtheta has
    the windows' names: `dtheta.W`. B returns fresh arrays, and may be called again, until theta or z is
    written to: what is saved may be views of them.

    (B1), (B2)
    """
    layout = Layout(module)
    if not isinstance(theta, Windows):
        raise TypeError(f"evaluate expected theta as windows, got {show(theta)}; e.g. bp.initialize(module), or net.windows")
    if not fits(module, theta):
        raise ValueError(f"evaluate expected the windows of {show(module)}, got {show(theta)}; e.g. bp.initialize(module)")
    arrays = [*(array for _, array in theta.items()), *z]
    for array in z:
        if isinstance(array, Mode):
            raise TypeError("evaluate takes the mode by name: evaluate(module, theta, z, mode=mode)")
        host_data(array, "z")  # raises for a masked array
        if not is_array(array):
            raise TypeError(f"evaluate expected arrays, got {type(array).__name__}; make one: bp.get_backend().asarray(...)")
        if is_subclass(array):
            raise TypeError(f"evaluate expected arrays, got {type(array).__name__}; pass np.asarray(z)")
        if not backend_of(arrays[0]).owns(array):
            raise TypeError(
                f"evaluate got arrays of {backend_of(arrays[0]).name} and of {backend_of(array).name}; move all to one "
                "with its asarray()"
            )
    expect_labels(module, z)
    u, saved = run(module, theta, z, Mode(look=True) if mode is None else expect_mode(mode))
    return u, Backward(layout, theta, saved, u, z)


class Backward:
    """B of one evaluation: `B(v)` is (dz, dtheta), both backward functions at v = dJ/du.

    It keeps θ and z, and no copies: write to them only when you are done with B.
    """

    def __init__(self, layout: Layout, theta: Windows, saved: Any, u: Any, z: tuple[Array, ...]):
        self.module = layout.module
        self.theta = theta
        self.layout = layout
        self._saved = saved
        self._u = u
        self._z = z

    @quiet
    def __call__(self, v: Any) -> tuple[Any, Windows]:
        v = expect_like(self._u, v)
        like = [*(array for _, array in self.theta.items()), *self._z][0]
        backend, layout = backend_of(like), self.layout
        gradient, spare = backend.zeros(layout.trained, like.dtype), backend.zeros(layout.spare, like.dtype)
        dz = run_backward(self.module, self.theta, fresh_lists(self._saved), v, layout.windows(gradient, spare))
        gradients_of(self.module, self.theta, dz, len(self._z))
        layout.add_home(gradient, spare)
        return copies(dz), layout.windows(gradient)

    def __repr__(self) -> str:
        dtheta = ", ".join(shapes_of(self.theta))
        return f"<B of {self.module!r}: v {shapes(self._u)} -> (dz {shapes(self._z)}, dtheta {dtheta or 'empty'})>"


def shapes(x: Any) -> str:
    """The shape of an array, or of each array of a tuple, as text."""
    return ", ".join(str(tuple(array.shape)) for array in (x if isinstance(x, tuple) else (x,)))


def fits(module: Module, theta: Windows) -> bool:
    """Whether theta has a window for each parameter of the module and of its children, of its shape."""
    declared = {name: parameter.shape for name, parameter in module.parameters.items() if parameter is not None}
    windows = {name: getattr(theta, name) for name in theta.names}
    shapes = {name: tuple(window.shape) for name, window in windows.items() if window is not None}
    children = tuple(module.children.values())
    return declared == shapes and len(children) == len(theta.children) and all(map(fits, children, theta.children))


def copies(dz: Any) -> Any:
    """A copy of dz, which may share its memory with v, with a saved array, or with another dz."""
    if isinstance(dz, tuple):
        return tuple(copies(array) for array in dz)
    return None if dz is None else namespace(dz).asarray(dz, copy=True)


def expect_like(u: Any, v: Any) -> Any:
    """v, or an error unless it is like u: an array of the same shape, dtype and backend, or a tuple of such arrays.

    For a scalar u, v may be a number, which is returned as an array.
    """
    if isinstance(u, tuple):
        if not isinstance(v, tuple) or len(u) != len(v):
            raise ValueError(f"B expected v as a tuple of {len(u)} arrays, one for each output; got {type(v).__name__}")
        # None: that output gets no gradient
        return tuple(None if v_i is None else expect_like(u_i, v_i) for u_i, v_i in zip(u, v, strict=True))
    if isinstance(v, (int, float)) and u.ndim == 0:
        return namespace(u).full_like(u, float(v))
    if is_array(v):
        host_data(v, "v")  # raises for a masked array
    if not is_array(v) or not backend_of(u).owns(v) or v.dtype != u.dtype:
        got = f"an array of {v.dtype} on {backend_of(v).name}" if is_array(v) else type(v).__name__
        if is_subclass(v):
            got = f"{show(v)}; pass np.asarray(v)"
        raise TypeError(f"B expected v as an array of {u.dtype} on {backend_of(u).name}, as u is; got {got}")
    if tuple(v.shape) != tuple(u.shape):
        raise ValueError(f"B expected v of the shape of u, {tuple(u.shape)}, got {tuple(v.shape)}")
    return v
