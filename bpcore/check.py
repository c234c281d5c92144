"""Does a module keep its contract? Backward functions against differences, linearity in v, no array written by mistake."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from bpcore import arguments, causes
from bpcore.arguments import show
from bpcore.array import Array
from bpcore.backend import get_backend
from bpcore.causes import Host
from bpcore.context import quiet
from bpcore.expect import expect_module, expect_scalar, expect_shapes
from bpcore.library import Backend, is_array
from bpcore.mode import expect_mode
from bpcore.module import CONSTANTS, Mode, Module, expect_inputs
from bpcore.modules import Loss
from bpcore.trial import CheckReport, Trial, arrays, given, is_shape

__all__ = ["CheckReport", "check_module"]


@quiet
def check_module(
    module: Module, *shapes_or_examples: Any, seed: int = 0, mode: Mode | None = None, backend: str | Backend | None = None
) -> CheckReport:
    """Check that `module` keeps its contract; returns a report that prints.

    Raises AssertionError, naming module, variable, worst index, both numbers and, where it can be told, the cause.

    shapes_or_examples: a shape or an example for each input. For a shape, a tuple, normal numbers are drawn in float64 and moved
    away from zero by 0.1, since many functions have a kink there. A floating array is the input itself; an integer or boolean
    array holds labels, ids or a mask. seed: of what is drawn. mode: by default both evaluation and training are checked. backend:
    a name, see `get_backend`.

    The checks: B against differences along random directions, for every parameter and every input (dz may be None for an
    integer or boolean array, and for the labels of a loss); B is linear in v, and B(0) = 0; inputs, θ, v and saved arrays are not
    written; two calls agree; the gradient is overwritten, not added to; dθ is the same with need_dz=False; shapes and dtypes;
    rows are independent if `rows_independent` is True; a loss is a mean over examples, Σ w ℓ / Σ w, or refuses weights.
    """
    expect_module(module, "check_module")
    seed, on = arguments.seed(seed), get_backend(backend)
    shapes = expect_shapes("check_module", module, [given(x) for x in shapes_or_examples])
    for x in shapes:
        if 0 in (shape := tuple(getattr(x, "shape", x))):
            raise ValueError(f"check_module expected inputs with at least one entry, got {shape}: nothing would be compared")
    for name, value in vars(module).items():
        if is_array(value) and not module._own:
            repair = f"declare it: self.parameters = {{{name!r}: bp.Parameter(shape, initializer, trained=False)}}"
            raise AssertionError(f"{show(module)}: {name} is an array that no file keeps, and no backend gets; {repair}")
    report = CheckReport(show(module))
    for each in (Mode(look=True), Mode(training=True, seed=seed, look=True)) if mode is None else (expect_mode(mode),):
        check = Check(module, shapes, seed, each, on, report)
        check.run()
        check.with_more_rows(shapes, seed)
        weights = check.shape_of_weights()
        if weights is not None:
            Check(module, [*shapes, weights], seed, each, on, report).run()
        report.modes.append("training" if each.training else "evaluation")
    return report


class Check(Trial):
    """The checks of a module in one mode."""

    def run(self) -> None:
        """Run every check; raises AssertionError."""
        before = [array.copy() for array in self.host([self.vector, *self.z])]
        if isinstance(self.module, Loss) and not self.module._own and len(self.z) == 2:
            expect_inputs(self.module, self.theta, (*self.z, None))  # it gets weights too
        u, saved = self.forward()
        outputs = u if isinstance(u, tuple) else (u,)
        if isinstance(self.module, Loss):
            try:
                expect_scalar(self.module, u)
            except ValueError as error:
                self.fail(str(error))
        first = [array.copy() for array in self.host(outputs)]
        if not all(np.isfinite(array).all() for array in first):
            self.fail("the output is not finite at the inputs drawn; pass example arrays within its domain")
        saved_before = [array.copy() for array in self.host(arrays(saved))]
        v = self.random(u)
        v_before = [array.copy() for array in self.host(v if isinstance(v, tuple) else (v,))]
        dz, dtheta = self.gradient(saved, v)
        self.unwritten(before, "forward or backward", [self.vector, *self.z])
        self.unwritten(saved_before, "backward", arrays(saved), "saved")
        self.unwritten(v_before, "backward", list(v) if isinstance(v, tuple) else [v], "v")
        self.shapes(outputs, dz)
        self.repeatable(first, v, dz, dtheta, saved)
        self.linear(u, saved, v, dz, dtheta)
        self.differences(v, dz, dtheta)
        self.single_precision()
        if self.module.rows_independent:
            self.rows(first)
        if isinstance(self.module, Loss) and not self.module._own:
            self.mean()

    def with_more_rows(self, shapes: list[Any], seed: int) -> None:
        """Run the checks with three rows where the shapes have one: it cannot tell a sum over examples from a mean."""
        if not all(is_shape(x) and len(x) > 1 and x[0] == 1 for x in shapes):
            return
        check = Check(self.module, [(3, *x[1:]) for x in shapes], seed, self.mode, self.backend, self.report)
        try:
            self.module.forward(check.theta, *check.z, mode=self.mode)
        except Exception:  # its first axis is none of examples
            return
        try:
            check.run()
        except AssertionError as error:
            raise AssertionError(f"{error} (with three rows: with one, a sum over examples is their mean)") from error

    def mean(self) -> None:
        """Fail unless a user's loss is Σ w ℓ / Σ w, which a batch's parts make up: `accumulate` and evaluation split it."""
        n = min((x.shape[0] if x.ndim else 0 for x in self.z), default=0)
        if n < 2:
            return
        first, rest = ([x[part, ...] for x in self.z] for part in (slice(n // 2), slice(n // 2, n)))
        total, *parts = (self.weighed(z) for z in (self.z, first, rest))
        whole, made = float(total[0]), sum(J * w for J, w in parts) / total[1]
        if not np.isclose(whole, made, rtol=1e-6):
            found = f"J of the batch is {whole:.6g}, and {made:.6g} by its two halves"
            self.fail(f"a loss must be the mean over examples, Σ w ℓ / Σ w, but {found}; is it a sum?")

    def shape_of_weights(self) -> tuple[int, ...] | None:
        """The shape of weights for these inputs of a user's loss, None if it refuses weights. Fails if J ignores them."""
        shape = self.module.examples(self.z[1]) if isinstance(self.module, Loss) and not self.module._own else ()
        if len(self.z) != 2 or not shape or shape[0] < 2:
            return None
        host = np.ones(shape)
        host[shape[0] // 2 :] = 0
        weights = self.backend.asarray(host)
        try:
            J, _ = self.module.forward(self.theta, *self.z, weights, mode=self.mode)
        except (TypeError, ValueError, NotImplementedError):
            return None
        first, _ = self.weighed([z[: shape[0] // 2, ...] for z in self.z])
        if not np.isclose(float(self.host(J)), first, rtol=1e-6, atol=0):
            found = f"J is {float(self.host(J)):.6g} where the second half has weight 0, and {first:.6g} without that half"
            self.fail(f"{found}; compute J with weighted_mean(ℓ, weights), or raise an error unless weights is None")
        return shape

    def weighed(self, z: list[Any]) -> tuple[float, float]:
        """(J, Σ w) of a loss at these inputs: outputs, labels and perhaps weights."""
        J, _ = self.module.forward(self.theta, *z, mode=self.mode)
        total = self.module.total_weight(z[1], z[2] if len(z) > 2 else None)  # type: ignore[attr-defined]
        return float(self.backend.to_host(J)), float(self.backend.to_host(total) if is_array(total) else total)

    def unwritten(self, before: list[Host], who: str, now: list[Array], name: str = "") -> None:
        """Fail if an array has changed. name: of the arrays; by default they are θ and the inputs."""
        names = ["θ", *(f"input {i}" for i in range(len(self.z)))] if not name else [name] * len(now)
        for label, old, new in zip(names, before, self.host(now), strict=True):
            if not np.array_equal(old, new, equal_nan=True):
                buffer = ", or, for a buffer, call mode.track" if label == "θ" and who == "forward" else ""
                self.fail(f"{who} wrote to {label}; work on a fresh array{buffer}")

    def shapes(self, outputs: tuple[Array, ...], dz: list[Host | None]) -> None:
        """Fail unless u is float64, and dz has the inputs' shapes and float64."""
        for array in self.host(list(outputs)):
            if array.dtype != np.float64:
                self.fail(f"the output has dtype {array.dtype} for float64 inputs; {CONSTANTS}")
        for i, d in enumerate(dz):
            z = self.host(self.z[i])
            if d is not None and (d.shape != z.shape or d.dtype != np.float64):
                guess = causes.misshapen(d.shape, z.shape)
                self.fail(f"dz of input {i} has shape {d.shape} and dtype {d.dtype}, the input has {z.shape}, float64{guess}")

    def single_precision(self) -> None:
        """Fail unless float32 gives float32: a NumPy scalar as a constant would promote it."""
        z = [self.backend.asarray(z, "float32") if i in self.differentiable else z for i, z in enumerate(self.z)]
        theta = self.layout.windows(self.backend.asarray(self.vector, "float32"))
        u, saved = self.forward(theta, z)
        v = self.random(u)
        if isinstance(v, tuple):
            v = tuple(self.backend.asarray(part, "float32") for part in v)
        else:
            v = self.backend.asarray(v, "float32")
        gradient = self.backend.zeros(self.layout.trained, "float32")
        spare = self.backend.zeros(self.layout.spare, "float32")
        dz = self.backward(theta, saved, v, self.layout.windows(gradient, spare))
        for what, result in (("the output", u), ("dz", dz)):
            for array in result if isinstance(result, tuple) else (result,):
                if array is not None and self.host(array).dtype != np.float32:
                    self.fail(f"{what} has dtype {self.host(array).dtype} for float32 inputs; {CONSTANTS}")

    def repeatable(self, first: list[Host], v: Any, dz: list[Host | None], dtheta: Host, saved: Any) -> None:
        """Fail if calls in between, a second call, a gradient vector that was not zero, or need_dz=False change a result."""
        others = [0.5 * z if i in self.differentiable else z for i, z in enumerate(self.z)]
        self.forward(z=others)
        hidden = "forward called on other inputs before backward (return what it needs as saved, keep nothing on the module)"
        self.equal_gradients(dz, dtheta, *self.gradient(saved, v), hidden)
        again, saved_again = self.forward()
        for old, new in zip(first, self.host(again if isinstance(again, tuple) else (again,)), strict=True):
            self.equal("u", old, new, "a second call of forward gave another u; draw randomness from mode only")
        self.equal_gradients(dz, dtheta, *self.gradient(saved_again, v), "a second forward and backward")
        dz_again, dtheta_again = self.gradient(saved, v, fill := 7.0)
        for name, part, _ in self.trained():
            if guess := causes.unwritten(name.rpartition(".")[2], dtheta[part], dtheta_again[part], fill):
                self.fail(f"the gradient of {name}: {guess}")
        what = "a gradient vector that was not zero (overwrite the windows, do not add to them)"
        self.equal_gradients(dz, dtheta, dz_again, dtheta_again, what)
        self.equal_gradients([], dtheta, [], self.gradient(saved, v, need_dz=False)[1], "need_dz=False")

    def linear(self, u: Any, saved: Any, v: Any, dz: list[Host | None], dtheta: Host) -> None:
        """Fail unless B(2 v - 3 w) = 2 B(v) - 3 B(w) and B(0) = 0."""
        w = self.random(u)
        both = tuple(2 * a - 3 * b for a, b in zip(v, w, strict=True)) if isinstance(v, tuple) else 2 * v - 3 * w
        dz_w, dtheta_w = self.gradient(saved, w)
        for i, (a, b) in enumerate(zip(dz, dz_w, strict=True)):
            if a is not None and b is not None and a.any() and np.array_equal(a, b):
                self.fail(f"dz of input {i} does not depend on v; B[M, z](v) is linear in v, so multiply by it")
        dz_both, dtheta_both = self.gradient(saved, both)
        expected = [None if a is None or b is None else 2 * a - 3 * b for a, b in zip(dz, dz_w, strict=True)]
        self.equal_gradients(expected, 2 * dtheta - 3 * dtheta_w, dz_both, dtheta_both, "2 v - 3 w, so B is not linear in v")
        zero = tuple(0 * a for a in v) if isinstance(v, tuple) else 0 * v
        dz_zero, dtheta_zero = self.gradient(saved, zero)
        nothing = [None if a is None else 0 * a for a in dz]
        self.equal_gradients(nothing, 0 * dtheta, dz_zero, dtheta_zero, "v = 0, where B must give zero")

    def differences(self, v: Any, dz: list[Host | None], dtheta: Host) -> None:
        """Compare B with differences, for every input and every parameter."""
        for i in [i for i in self.differentiable if dz[i] is not None or i in self.drawn] or self.differentiable[:1]:
            d = dz[i]
            name = f"input {i}"
            B = np.zeros(self.z[i].shape) if d is None else d
            note = ", where backward returned None," if d is None else ""
            self.along(name, v, B, partial(self.moved_input, i), note)
            self.report.inputs[f"input {i}"] = B.shape
        for name, part, shape in self.trained():
            self.along(name, v, dtheta[part].reshape(shape), partial(self.moved_theta, part))
            self.report.parameters[name] = shape

    def rows(self, first: list[Host]) -> None:
        """Fail unless row 0 of u is the same if the inputs have row 0 only."""
        hosts = [self.host(z) for z in self.z]
        n = hosts[0].shape[0] if hosts and hosts[0].ndim else 0
        if n < 2 or any(z.ndim < 2 or z.shape[0] != n for z in hosts):  # rows are an axis beside the features
            return
        alone = [self.backend.asarray(z[:1].copy()) for z in hosts]
        u, _ = self.module.forward(self.theta, *alone, mode=self.mode)
        for old, new in zip(first, self.host(u if isinstance(u, tuple) else (u,)), strict=True):
            self.equal("u", old[:1], new, "row 0 of u depends on other rows, but rows_independent is True")

    def equal_gradients(
        self, dz: Sequence[Host | None], dtheta: Host, dz_again: Sequence[Host | None], dtheta_again: Host, where: str
    ) -> None:
        """Fail if a second pass gave other gradients. where: how it differed from the first, for the error."""
        for i, (old, new) in enumerate(zip(dz, dz_again, strict=True)):
            if (old is None) != (new is None):
                self.fail(f"dz of input {i}: it is None in one of two passes, with {where}; return None always or never")
            if old is not None and new is not None:
                self.equal(f"dz of input {i}", old, new, f"it differs with {where}")
        for name, part, shape in self.trained():
            path = f"the gradient of {name}"
            self.equal(path, dtheta[part].reshape(shape), dtheta_again[part].reshape(shape), f"it differs with {where}")

    def equal(self, name: str, old: Host, new: Host, problem: str) -> None:
        """Fail unless old and new are equal up to rounding. name, problem: for the error."""
        if old.shape != new.shape:
            self.fail(f"{name}: {problem}. Shapes {old.shape} and {new.shape}")
        apart = np.abs(old - new)
        if apart.size and not np.max(apart) <= 1e-9 * (1 + np.max(np.abs(old))):
            k = int(np.argmax(apart))
            index = tuple(int(i) for i in np.unravel_index(k, apart.shape))
            self.fail(f"{name}: {problem}. Worst at index {index}: {old.reshape(-1)[k]:.10g} and {new.reshape(-1)[k]:.10g}")
