"""Containers: modules one after another, with a residual connection, or evaluated again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bpcore.arguments import show
from bpcore.array import Array, is_floating
from bpcore.expect import expect_floats
from bpcore.functional.arithmetic import add
from bpcore.library import is_array
from bpcore.module import (
    Fixed,
    Mode,
    Module,
    Windows,
    expect_backward,
    expect_further,
    expect_inputs,
    expect_known,
    run,
    run_backward,
    run_backward_plus,
    run_plus,
    wrong_inputs,
    wrong_result,
)
from bpcore.modules.activations import GELU, ReLU
from bpcore.modules.dropout import Dropout
from bpcore.modules.linear import GELULinear, Linear, LinearGELU, LinearReLU
from bpcore.modules.pooling import MaxPool2d, ReLUMaxPool

__all__ = ["Recompute", "Residual", "Sequential"]

# By the classes of two neighbours, the step that both make; None for settings for which there is none.
FUSED: dict[tuple[type[Module], type[Module]], Callable[[Any, Any], Module | None]] = {
    (Linear, ReLU): lambda linear, relu: LinearReLU(linear),
    (Linear, GELU): lambda linear, gelu: LinearGELU(linear) if gelu.approximate == "none" else None,
    (GELU, Linear): lambda gelu, linear: GELULinear(linear) if gelu.approximate == "none" else None,
    (ReLU, MaxPool2d): lambda relu, pool: ReLUMaxPool(pool),
}


def fused(modules: Sequence[Module]) -> list[tuple[int, Module]]:
    """(index, module) of the steps that a Sequential of these modules runs.

    Two neighbours whose classes are exactly a pair of FUSED run as one step, with the index of the Linear or of the pool: one
    primitive, or several that save less than the two would. Of three that make two pairs, the last two are one step. A subclass
    is not fused. Nor is an observed module, so `cost` and `first_not_finite` see each module by itself: the operations and the
    saved arrays of the step, each in the row of its module; a GELU that is evaluated again counts once. What a user's module
    returns is checked.
    """
    steps: list[tuple[int, Module]] = []
    after: Module | None = None
    for i in reversed(range(len(modules))):
        module = modules[i]
        make = None if after is None else FUSED.get((type(module), type(after)))
        step = None if make is None else make(module, after)
        if step is None:
            steps.append((i, module if module._own else Checked(module)))
            after = module
        else:
            steps[-1] = (i if isinstance(module, Linear) else i + 1, step)
            after = None
    return steps[::-1]


class Container(Module):
    """Base of the modules that are made of others: what they were made of stays. fixed: names of such attributes."""

    fixed: tuple[str, ...] = ("modules", "nodes", "children")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.fixed and name in self.__dict__:
            raise TypeError(f"{type(self).__name__}'s {name} cannot be replaced, it was made of them; make another one")
        super().__setattr__(name, Fixed(value) if name in self.fixed and isinstance(value, dict) else value)


class Checked(Module):
    """A step that is not bpcore's own module: what its functions return is checked, see `run` and `run_backward`."""

    def __init__(self, module: Module):
        self.module = module
        self.further = module.further

    def forward(self, theta: Windows, *z: Any, mode: Mode) -> tuple[Any, Any]:
        return run(self.module, theta, z, mode)

    def backward(self, theta: Windows, saved: Any, v: Any, gradient: Windows, need_dz: bool = True) -> Any:
        return run_backward(self.module, theta, saved, v, gradient, need_dz)

    def name(self, theta: Windows) -> str:
        return self.module.name(theta)


class Sequential(Container):
    """u = M_k(... M_2(M_1(z))): the composition u[i] = M_i(u[i-1]; θ[i]). Children are "0", "1", ...

    A Linear and a ReLU or a GELU beside it run as one step, with the same values, and so do a ReLU and a MaxPool2d. Further
    inputs, such as a mask, go by name to the children that declare them in `further`: `Sequential(Embedding(...),
    TransformerBlock(...))` takes (ids, mask). The backward pass then returns a tuple: dz, and for each further input the sum of
    the children's gradients, or None. A module that takes no mask sees the padding: GlobalAvgPool, Mean or Conv1d over tokens,
    BatchNorm.

    Section 7.4.2
    """

    def __init__(self, *modules: Module):
        for module in modules:
            if not isinstance(module, Module):
                raise TypeError(f"Sequential expected modules, got {show(module)}; pass them one by one: Sequential(a, b)")
        self.modules = modules
        self.children = {str(i): module for i, module in enumerate(modules)}
        self.rows_independent = all(module.rows_independent for module in modules)
        self.further = tuple(dict.fromkeys(name for module in modules for name in module.further))
        for module in modules if self.further else ():
            expect_further(module, self.further)
        # With need_dz=False, the backward pass ends at the first module that has a parameter.
        self.first = next((i for i, module in enumerate(modules) if module.trained), len(modules))
        self.steps = fused(modules)

    def with_children(self, children: Mapping[str, Module]) -> Any:
        other = super().with_children(children)
        other.steps = fused([*children.values()])
        return other

    def _adds(self, mode: Mode | None) -> bool:
        return self.adding(mode) is not None

    def adding(self, mode: Mode | None) -> int | None:
        """The index of the step that adds `plus`: the last one, before dropout that does nothing; in backward the first one."""
        for i, module in self.steps if mode is None else reversed(self.steps):
            if mode is None or not (isinstance(module, Dropout) and module.idle(mode)):
                return i if module._adds(mode) else None
        return None

    def forward(self, theta: Windows, z: Array, *further: Array | None, mode: Mode, plus: Array | None = None) -> tuple[Any, Any]:
        if further or plus is not None:
            return self.forward_more(theta, z, further, mode, plus)
        saved: list[Any] = []
        try:
            for i, module in self.steps:
                result = module.forward(theta.children[i], z, mode=mode)
                if type(result) is not tuple or len(result) != 2:
                    raise wrong_result(module, theta.children[i], result)
                z, for_backward = result
                saved.append(for_backward if mode.saving else None)
                result = for_backward = None  # release it before the next module needs memory
        except (TypeError, AttributeError) as error:
            expect_inputs(module, theta.children[i], (z,))
            expect_known(module, theta.children[i], error)
            raise
        return z, saved

    def backward(
        self, theta: Windows, saved: Any, v: Any, gradient: Windows, need_dz: bool = True, plus: Array | None = None
    ) -> Any:
        if type(saved) is tuple:
            return self.backward_further(theta, saved, v, gradient, need_dz, plus)
        first = 0 if need_dz else self.first
        # dJ/dθ[i] as soon as dJ/du[i] is known (7.74, 7.75); then what module i saved is released
        try:
            for i, module in reversed(self.steps):
                if i < first:
                    break
                if plus is None or i > 0:
                    v = module.backward(theta.children[i], saved.pop(), v, gradient.children[i], need_dz or i > first)
                else:
                    v = run_backward(module, theta.children[i], saved.pop(), v, gradient.children[i], need_dz, plus)
        except (TypeError, AttributeError) as error:
            expect_backward(module, theta.children[i], v, gradient.children[i])
            expect_known(module, theta.children[i], error)
            raise
        return v if need_dz else None

    def forward_more(
        self, theta: Windows, z: Array, further: tuple[Array | None, ...], mode: Mode, plus: Array | None
    ) -> tuple[Any, Any]:
        """`forward` with further inputs or an array to add. With further inputs, saved is (what modules saved, their number)."""
        if len(further) > len(self.further):
            raise wrong_inputs(self, theta, ("z", *self.further), 1 + len(further))
        named = dict(zip(self.further, further, strict=False))
        saved: list[Any] = []
        adding = None if plus is None else self.adding(mode)
        for i, module in self.steps:
            to_it = {"plus": plus} if i == adding else {}
            z, for_backward = run(module, theta.children[i], (z, *chosen(module, named)), mode, **to_it)
            saved.append(for_backward if mode.saving else None)
            for_backward = None  # release it before the next module needs memory
        return z, (saved, len(further)) if further else saved

    def backward_further(
        self, theta: Windows, saved: tuple[list[Any], int], v: Any, gradient: Windows, need_dz: bool, plus: Array | None
    ) -> Any:
        """`backward` with further inputs: (dz, the gradient of each further input or None)."""
        of_children, n_further = saved
        first = 0 if need_dz else self.first
        arriving: dict[str, Any] = {}
        for i, module in reversed(self.steps):
            if i < first:
                break
            to_it = (need_dz or i > first,) if plus is None or i > 0 else (need_dz, plus)
            v = run_backward(module, theta.children[i], of_children.pop(), v, gradient.children[i], *to_it)
            if isinstance(v, tuple):
                v, *of_further = v
                for name, d in zip(module.further, of_further, strict=False):
                    add_gradient(arriving, name, d)
        return (v, *(arriving.get(name) for name in self.further[:n_further])) if need_dz else None


class Residual(Container):
    """u = z + M(z), for a module M whose output has z's shape. The child is "body"; it gets the further inputs too.

    He et al., 2016
    """

    fixed = ("body",)

    def __init__(self, body: Module):
        if not isinstance(body, Module):
            raise TypeError(f"Residual expected a module, got {show(body)}; e.g. Residual(Linear(4, 4))")
        self.body = body
        self.children = {"body": body}
        self.rows_independent = body.rows_independent
        self.further = body.further

    def forward(self, theta: Windows, z: Array, *further: Array | None, mode: Mode) -> tuple[Array, list[Any]]:
        body, windows = self.children["body"], theta.children[0]
        floating, inputs = is_array(z) and is_floating(z), (z, *further)
        u, saved = run_plus(body, windows, inputs, mode, z) if floating else run(body, windows, inputs, mode)
        if tuple(u.shape) != tuple(z.shape):
            got = f"{tuple(z.shape)} to {tuple(u.shape)}"
            raise ValueError(f"{self.name(theta)} expected a body that keeps the shape, got {got}; make its sizes agree")
        if not floating:
            u = add(z if z.dtype == u.dtype else expect_floats(self, theta, z), u)
        return u, [saved]

    def backward(self, theta: Windows, saved: list[Any], v: Array, gradient: Windows, need_dz: bool = True) -> Any:
        return run_backward_plus(self.children["body"], theta.children[0], saved, v, gradient.children[0], need_dz, v)


class Recompute(Container):
    """u = M(z), but only z is saved: the backward pass evaluates M again. The child is "body"; it gets the further inputs too.

    Random numbers are a function of the mode, so the masks are the same. Only the first evaluation updates buffers.

    Chen et al., 2016
    """

    fixed = ("body",)

    def __init__(self, body: Module):
        if not isinstance(body, Module):
            raise TypeError(f"Recompute expected a module, got {show(body)}; e.g. Recompute(TransformerBlock(64, 4))")
        self.body = body
        self.children = {"body": body}
        self.rows_independent = body.rows_independent
        self.further = body.further

    def forward(self, theta: Windows, *z: Any, mode: Mode) -> tuple[Any, tuple[Any, Mode]]:
        u, _ = run(self.children["body"], theta.children[0], z, mode.forgetting())
        return u, (z, mode)

    def backward(self, theta: Windows, saved: tuple[Any, Mode], v: Any, gradient: Windows, need_dz: bool = True) -> Any:
        z, mode = saved
        body = self.children["body"]
        _, again = run(body, theta.children[0], z, mode.again())
        return run_backward(body, theta.children[0], again, v, gradient.children[0], need_dz)


def chosen(module: Module, named: Mapping[str, Array | None]) -> list[Array | None]:
    """The further inputs among `named` that the module takes, in its order, without None at the end."""
    inputs = [named.get(name) for name in module.further]
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def add_gradient(arriving: dict[str, Any], name: str, v: Array | None) -> None:
    """Add v to the gradient of a value that has several uses. It writes to no array: v may be shared."""
    if v is not None:
        arriving[name] = add(arriving[name], v) if name in arriving else v
