"""A network: a module with its θ on a backend."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from bpcore import arguments, checkpoint, tables
from bpcore.arguments import show
from bpcore.array import Array, is_floating
from bpcore.backend import get_backend
from bpcore.checkpoint import Header, Tensors
from bpcore.context import computing_in, quiet
from bpcore.costs import MOST_ROWS, Cost, cost
from bpcore.expect import expect_module, expect_scalar, expect_shapes
from bpcore.host import cast, check_index
from bpcore.layout import Layout
from bpcore.library import Backend, host_data, is_array
from bpcore.mode import expect_mode, new_mode
from bpcore.module import EMPTY, Mode, Module, Observed, Parameter, Windows, run, run_backward, walk
from bpcore.modules import Loss
from bpcore.modules.losses import warn_of_probabilities
from bpcore.prediction import by_batches, expect_loss
from bpcore.recordings import checked, recordings_for
from bpcore.structure import arranged, describe, expect_structure, rebuild, saved_network, saved_theta
from bpcore.windows import join

__all__ = ["Network"]

# attributes that belong together, each with the repair of an assignment
FIXED = {
    "theta": "write into it: net.theta[...] = x",
    "windows": "write into a window: net.windows[0].W[...] = x",
    "n_parameters": "it is the length of ∇J",
    "backend": "move the network: net.to(backend)",
    "seed": "it tells how θ was drawn; make another network: bp.Network(module, seed=...)",
    **dict.fromkeys(("module", "layout", "dtype", "compute_dtype"), "make another network: bp.Network(module, ...)"),
}


class OnTheClass(classmethod):  # type: ignore[type-arg]  # type checkers see a plain classmethod
    """A class method that makes an object. Called on an instance, which it would not change, it raises TypeError."""

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return super().__get__(instance, owner)

        def refuse(*args: Any, **named: Any) -> NoReturn:
            name = f"{type(instance).__name__}.{self.__func__.__name__}"
            raise TypeError(
                f"{name} makes a new network and leaves this one as it is: net = bp.{name}(path), or, to set θ of this one, "
                f"net.theta[...] = bp.{name}(path).theta"
            )

        return refuse


class Network:
    """A module with its parameters: one vector θ, on one backend.

    module: evaluated by `net(X)`. backend: a name, see `get_backend`; "auto" takes a GPU that works. dtype: "float32" or
    "float64". seed: of the initial values, which are the same on every backend; None draws a seed, which `net.seed` then shows.
    theta: the initial values, a vector on the host in θ's order; by default they are drawn.

    compute_dtype: the dtype in which the module computes, by default `dtype`. With the other three, θ and ∇J stay float32:
    "float16": the module computes from a copy of θ. Inputs are cast to float16 and outputs back, so that a loss is float32;
    buffers, such as running statistics, stay float32. On NumPy the numbers are the same, but it is slow: NumPy has no fast
    float16 on any CPU. A Trainer scales the loss (see bpcore.training.scaling); `value_and_gradient` does not, and entries of ∇J
    below 6e-8 become zero.
    "bfloat16", on CuPy: as float16, with 8 bits of precision and the range of float32, so that no loss is scaled. It needs NumPy
    from 2.1.2 and the package ml_dtypes. On NumPy there is none: see docs/design.md.
    "tf32": a GPU multiplies matrices of float32 with 10 bits after the point, in bpcore's own kernels (in CuPy's products only if
    CUPY_TF32=1).

    replay: "auto", True or False. On a GPU, evaluation in batches of one shape becomes one launch after a few normal runs, with
    the same results bit for bit; "auto" says why it cannot, once, and True says so on a CPU too. It can be assigned later; see
    Trainer for steps, and bpcore/recordings.py.
    """

    replay: bool | str

    def __init__(
        self,
        module: Module,
        backend: str | Backend | None = None,
        dtype: Any = "float32",
        seed: int | None = 0,
        compute_dtype: Any = None,
        theta: Any = None,
        replay: bool | str = "auto",
    ):
        expect_module(module, "Network")
        if isinstance(backend, Module):
            raise TypeError(f"Network takes one module, got also {show(backend)}; join them: bp.Sequential(a, b)")
        self.module = module
        self._warned: Loss | None = None  # the loss for which a wrong last layer was looked for
        self.layout = Layout(module)
        self.backend = get_backend(backend)
        self.dtype = self.backend.check_dtype(dtype)
        self.compute_dtype = self.backend.check_compute(compute_dtype, self.dtype)
        vars(self)["replay"] = checked(replay)
        self.seed = arguments.seed(seed) if theta is None else None
        values = self.layout.draw(self.seed) if self.seed is not None else host_data(theta, "theta")
        if values is None or values.shape != (self.layout.size,):
            got = type(theta).__name__ if values is None else f"shape {values.shape}"
            raise ValueError(f"theta must be a vector on the host (NumPy) of length {self.layout.size}, got {got}")
        self._bind(cast(values, self.dtype, "theta"))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in FIXED and not name.startswith("_") and hasattr(type(self), name):
            raise TypeError(f"{name} is a method of networks; call it, net.{name}(...), or choose another name for the attribute")
        if name not in FIXED or name not in self.__dict__.keys() | {"theta", "windows", "n_parameters"}:
            object.__setattr__(self, name, checked(value) if name == "replay" else value)
            if name == "replay":
                self._recordings = recordings_for("Evaluations", self.backend, self.replay)
        elif value is not getattr(self, name):  # it is itself after `net.theta += 1`
            raise TypeError(f"a network's {name} cannot be replaced, since θ and its windows depend on it; {FIXED[name]}")

    def __delattr__(self, name: str) -> None:
        if name in FIXED:
            raise TypeError(f"a network's {name} cannot be deleted, since θ and its windows depend on it")
        object.__delattr__(self, name)

    def _bind(self, host: Any) -> None:
        """Put θ, with these values, and its windows on the backend."""
        self._changes = -1  # the first evaluation looks at the layout
        theta: Array = self.backend.zeros(self.layout.size, self.dtype)
        theta[...] = self.backend.asarray(host, self.dtype)
        self._theta = theta
        self._windows = self.layout.windows(theta)
        self._dtype = theta.dtype
        half = self.compute_dtype in ("float16", "bfloat16")
        # θ without buffers in compute_dtype, if that has 16 bits
        self._half: Array | None = self.backend.zeros(self.layout.computed, self.compute_dtype) if half else None
        self._computed = self._windows if self._half is None else self.layout.windows(self._half, theta=theta)
        # (out, the vector that backward writes: out or one of 16 bits, its windows, the spare vector): reused for the same out
        self._gradient: tuple[Any, Any, Any, Any] = (None, None, None, None)
        self.replay = self.replay  # without recordings yet: they would read the old θ

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: θ as one vector on the host, without what `_bind` makes of it."""
        derived = ("_windows", "_dtype", "_half", "_computed", "_gradient", "_recordings")
        kept = {name: value for name, value in vars(self).items() if name not in derived}
        return kept | {"_theta": self.backend.to_host(self._theta)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._bind(state["_theta"])

    def copy(self) -> Network:
        """An independent network with the same modules, θ and backend: to train one of the two leaves the other as it is."""
        return copy.deepcopy(self)

    @property
    def theta(self) -> Array:
        """θ, the vector itself: decayed | not decayed | buffers. Assign in place, `net.theta[...] = x`."""
        return self._theta

    @property
    def scratch(self) -> tuple[Any, ...]:
        """The arrays that a step reads and writes beside θ: a recording of a step holds them."""
        return self._half, self._gradient

    @property
    def windows(self) -> Windows:
        """The named windows of θ, as `evaluate` takes them."""
        return self._windows

    def parameters(self) -> dict[str, Array]:
        """Path to window of θ, each parameter once: `parameters()["0.W"]`. To write: `parameters()["0.W"][...] = x`."""
        return self.layout.named(self._windows)

    def named(self, vector: Array) -> dict[str, Array]:
        """Path to window of a vector in θ's order, as ∇J is: `net.named(gradient)["0.W"]`. Buffers only if it has θ's length."""
        lengths = (self.n_parameters, self.layout.size)
        if not self.backend.owns(vector) or vector.dtype != self._dtype or vector.shape not in [(n,) for n in lengths]:
            if is_array(vector):
                host_data(vector, "vector")  # raises for a masked array
            wanted = f"of length {' or '.join(map(str, dict.fromkeys(lengths)))} and dtype {self.dtype} on {self.backend.name}"
            repair = (
                "take its entry [1]: value_and_gradient returns (J, ∇J)" if isinstance(vector, tuple) else "move or convert it"
            )
            raise ValueError(f"named expected a vector {wanted}, such as ∇J, got {show(vector)}; {repair}")
        return self.layout.named(self.layout.windows(vector))

    @property
    def n_parameters(self) -> int:
        """The number of trained numbers in θ: the length of ∇J."""
        return self.layout.trained

    def place(self, x: Any, floating: bool = False, half: bool = False, name: str = "X") -> Array:
        """x (host data, or an array of this backend) on this backend; floating numbers in this network's dtype.

        half: in its compute_dtype, which has 16 bits.

        Integers stay integers, unless `floating`. name: of the data, for errors. Raises TypeError for data that are not numbers,
        and for an array of another backend or device; ValueError for numbers that the dtype cannot hold.
        """
        if type(x) is type(self._theta) and self.backend.device is None and not half:
            dtype = x.dtype  # of this backend's arrays: nothing to move
            if dtype == self._dtype or (dtype == "int64" and not floating):
                return x
        host = host_data(x, name)
        dtype = self.compute_dtype if half else self.dtype
        if host is not None:
            if not floating and host.dtype.kind != "f":
                return self.backend.asarray(host)
            if dtype != "bfloat16":
                return self.backend.asarray(cast(host, dtype, name))
            return self.backend.asarray(cast(host, self.dtype, name), dtype)
        placed = self.backend.asarray(x, name=name)
        return self.backend.asarray(placed, dtype) if floating or is_floating(placed) else placed

    def place_weights(self, weights: Any) -> Array | None:
        """weights on this backend, in this network's dtype. ValueError if one is negative, unless the host would have to wait."""
        if weights is None:
            return None
        placed = self.place(weights, floating=True, name="weights")
        host = host_data(weights) if self.backend.asynchronous else self.backend.to_host(placed)
        if host is not None and host.size and not host.min() >= 0:
            raise ValueError(f"weights must be >= 0, got {host.min()}; fix the weights")
        return placed

    def inputs(self, X: Any) -> tuple[Array, ...]:
        """The inputs of X on this backend, in the dtype that the module computes in. A tuple X is several inputs."""
        half = self._half is not None
        if not isinstance(X, tuple):
            return (self.place(X, False, half),)
        if len(X) == 1:
            return (self.place(X[0], half=half),)
        return tuple(self.place(x, half=half, name=f"X[{i}]") for i, x in enumerate(X))

    @quiet
    def __call__(self, X: Any, *, mode: Mode | None = None, batch_size: int | None = None) -> Any:
        """Evaluate at X, whose rows are examples; a tuple X is several inputs. mode: by default evaluation.

        batch_size: evaluate so many rows at a time, which needs less memory; X may be a memmap, or on the host. The result is the
        same up to rounding: an array of this backend with a row for each row of X, or a tuple of several outputs.
        """
        if mode is None:
            mode = new_mode(False, 0, 0, 0, True, False)  # it looks, and saves nothing
        else:
            expect_mode(mode)
        if batch_size is not None:
            return by_batches(lambda rows: self(rows, mode=mode), X, batch_size, mode, self.backend)
        inputs = self.inputs(X)
        if self._recordings is None or mode.training:
            return self._run(self.module, inputs, mode)[0]
        self.expect_layout()
        return self._recordings.evaluate(lambda mode, X: self._run(self.module, tuple(X), mode)[0], inputs, mode, self.module)

    def predict(self, X: Any, loss: Loss | None = None, *, batch_size: int | None = None) -> Array:
        """The labels at X, an array of this backend: `loss.predict` of the outputs, e.g. class indices. See `__call__`."""
        return self._predicting(loss, "predict").predict(self(X, batch_size=batch_size))

    def probabilities(self, X: Any, loss: Loss | None = None, *, batch_size: int | None = None) -> Array:
        """The probabilities of labels at X, an array of this backend: `loss.probabilities` of the outputs. See `__call__`."""
        return self._predicting(loss, "probabilities").probabilities(self(X, batch_size=batch_size))

    def _predicting(self, loss: Loss | None, method: str) -> Loss:
        """The loss, with a warning if it takes logits and the network gives probabilities."""
        found = expect_loss(loss, method)
        warn_of_probabilities(self.module, found, training=False)
        return found

    def _run(self, module: Module, X: tuple[Array, ...], mode: Mode) -> tuple[Any, Any]:
        """(u, saved): evaluate the module in compute_dtype at the present θ; u has θ's dtype."""
        if Parameter.changes != self._changes:
            self.expect_layout()
        if self.compute_dtype == self.dtype:
            return run(module, self._windows, X, mode)
        with computing_in(self.compute_dtype):
            if self._half is not None:
                self._half[...] = self._theta[: self.layout.computed]
            u, saved = run(module, self._computed, X, mode)
        if isinstance(u, tuple):
            return tuple(self.backend.asarray(output, self.dtype) for output in u), saved
        return self.backend.asarray(u, self.dtype), saved

    def expect_layout(self) -> None:
        """Raise a ValueError unless the module's parameters are declared as they were when θ was laid out."""
        if Parameter.changes == self._changes:
            return
        path = self.layout.changed()
        if path is not None:
            raise ValueError(f"{path} was changed after this network was made; make another: bp.Network(module)")
        self._changes = Parameter.changes

    @quiet
    def value_and_gradient(
        self, loss: Loss, X: Any, y: Any, weights: Any = None, *, mode: Mode | None = None, out: Array | None = None
    ) -> tuple[Array, Array]:
        """J(θ) and ∇J(θ) by back-propagation.

        loss: a Loss. X, y, weights: host data or arrays of this backend; a tuple X is several inputs. mode: by default
        evaluation, so that J is the loss of `net(X)`; `Mode(training=True, ...)` draws dropout's masks. Returns J, a scalar on
        the device, and ∇J, a vector of length n_parameters in θ's order: `out`, or a fresh one.

        Algorithm 3
        """
        if not isinstance(loss, Loss):
            repair = "e.g. bp.CrossEntropy(), or a subclass of bp.Loss, as the first argument"
            raise TypeError(f"expected a loss, got {show(loss)}; {repair}")
        if out is not None and (not self.backend.owns(out) or out.shape != (self.n_parameters,) or out.dtype != self._dtype):
            raise ValueError(f"out must be a vector of length {self.n_parameters} and dtype {self.dtype} on {self.backend.name}")
        if loss is not self._warned:
            self._warned = loss
            warn_of_probabilities(self.module, loss)
        if type(y) is not type(self._theta):
            check_index("value_and_gradient", (*(X if isinstance(X, tuple) else (X,)), y, weights))
        weights = self.place_weights(weights)
        mode = Mode(look=True) if mode is None else expect_mode(mode)
        inputs, labels = self.inputs(X), self.place(y, name="y")
        evaluation = self.forward(loss, inputs, labels, weights, mode, host_data(y))
        if inputs[0].ndim == labels.ndim == 1 and is_floating(inputs[0]) and inputs[0].shape != labels.shape:
            n = labels.shape[0]
            raise ValueError(
                f"X of shape {tuple(inputs[0].shape)} is one example, and its {n} outputs would count as {n} examples of one "
                "output; pass X[None] and y[None]"
            )
        return evaluation.J, self.backward(evaluation, out)

    def forward(
        self, loss: Loss, X: tuple[Array, ...], y: Array, weights: Array | None, mode: Mode, labels: Array | None = None
    ) -> Evaluation:
        """The forward pass of Algorithm 3, on arrays of this backend. labels: y on the host, to check its values, or None."""
        u, saved = self._run(self.module, X, mode)
        if isinstance(u, tuple):
            raise TypeError(f"{show(self.module)} has {len(u)} outputs, and a loss takes one; join them in a module")
        if labels is not None:
            try:
                loss.check_labels(labels, u.shape[-1] if u.ndim else 1)
            except Exception:  # a wrong shape or dtype is the better reason
                loss.expect(EMPTY, u, y, weights)
                raise
        if loss._own:
            J, of_loss = loss.forward(EMPTY, u, y, weights, mode=mode)
        else:
            J, of_loss = run(loss, EMPTY, (u, y, weights), mode)
            expect_scalar(loss, J)
        return Evaluation(loss, J, saved, of_loss, u.shape[-1] if u.ndim else 1)

    def backward(self, evaluation: Evaluation, out: Array | None = None, v: float | Array = 1.0, cast: bool = True) -> Array:
        """The backward pass of Algorithm 3: v ∇J, in `out` or a fresh vector. It uses the evaluation up: call it once.

        cast: if the module computes in another dtype than θ's, cast v ∇J from it to `out`; else it is returned in that dtype, and
        the next call with this `out` overwrites it.
        """
        target, written, windows, spare = self._gradient
        if out is None or out is not target:
            target = self.backend.zeros(self.layout.trained, self.dtype) if out is None else out
            dtype = self.dtype if self._half is None else self.compute_dtype
            written = target if self._half is None else self.backend.zeros(self.layout.trained, dtype)
            spare = self.backend.zeros(self.layout.spare, dtype) if self.layout.spare else None
            windows = self.layout.windows(written, spare)
            if out is not None:
                self._gradient = (out, written, windows, spare)
        try:
            of_loss, evaluation.of_loss = evaluation.of_loss, None
        except AttributeError:
            repair = "for a gradient call net.value_and_gradient(loss, X, y)"
            raise TypeError(f"Network.backward takes what Network.forward returned, got {show(evaluation)}; {repair}") from None
        loss = evaluation.loss
        if not loss._own and isinstance(v, float):  # a user's loss gets an array, as every other module does
            number, v = v, self.backend.zeros((), self.dtype)
            v[...] = number
        dz = (loss.backward if loss._own else partial(run_backward, loss))(EMPTY, of_loss, v, EMPTY)[0]  # (7.76)
        of_loss = None  # release what the loss saved
        if self.compute_dtype == self.dtype:
            run_backward(self.module, self._windows, evaluation.saved, dz, windows, False)
        else:
            with computing_in(self.compute_dtype):
                dz = dz if self._half is None else self.backend.asarray(dz, self.compute_dtype)
                run_backward(self.module, self._computed, evaluation.saved, dz, windows, False)
        if spare is not None:
            self.layout.add_home(written, spare)
        gradient: Array = written
        if cast and written is not target:
            target[...] = written
            gradient = target
        return gradient

    @quiet
    def first_not_finite(self, X: Any, mode: Mode) -> str | None:
        """The path and the class of the first module whose output at X is not finite, or None."""
        xp = self.backend.xp
        names: list[str] = []

        def around(module: Module, theta: Windows, what: str, call: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
            u, saved = call()
            for output in u if isinstance(u, tuple) else (u,):
                if not names and not bool(self.backend.to_host(xp.all(xp.isfinite(output)))):
                    names.append(module.name(theta))
            return u, saved

        self._run(Observed(self.module, around), self.inputs(X), mode)
        return names[0] if names else None

    def to(self, backend: str | Backend) -> Network:
        """Move θ to another backend, in place; returns this network."""
        host = self.backend.to_host(self._theta)
        target = get_backend(backend)
        target.check_compute(self.compute_dtype, target.check_dtype(self.dtype))
        self.__dict__["backend"] = target
        self._bind(host)
        return self

    def state(self) -> tuple[Tensors, Header]:
        """(tensors, header) of a checkpoint of this network."""
        self.expect_layout()
        header = {"structure": describe(self.module), "parameters": self.layout.manifest(), "dtype": self.dtype}
        if self.layout.computed > self.layout.trained:
            header["frozen"] = self.layout.frozen()
        return {"theta": self.backend.to_host(self._theta)}, {"network": header}

    def check_state(self, path: Any, tensors: Tensors, header: Header) -> Any:
        """The θ of a checkpoint, on the host. Raises CheckpointError if it does not fit this network. Assigns nothing."""
        tensors, header = arranged(tensors, header, self.layout)
        return saved_theta(path, tensors, saved_network(path, header), self.layout)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write structure and θ to `path`, a safetensors file, atomically."""
        checkpoint.write(path, *self.state())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        module: Module | None = None,
        backend: str | Backend | None = None,
        compute_dtype: Any = None,
    ) -> Network:
        """The network in a checkpoint that `save` or `Trainer.save` wrote, on any backend and with any compute_dtype.

        compute_dtype: as for `Network`; a file does not keep it, so by default the network computes in θ's dtype. module: needed
        only if modules or initialisers are not bpcore's own, or were changed after they were made. It must be the module that
        was saved: the same classes with the same arguments, initialisers aside. A class that is not bpcore's may come from a
        module of another name: "__main__.Net" is "train.Net" once it is imported. To put θ into another module:
        `net.theta[...] = bp.Network.load(path).theta`. Raises CheckpointError if the file is damaged, has a newer format, or does
        not fit the module.
        """
        if isinstance(module, str):
            raise TypeError(
                f"the second argument of Network.load is a module, got {module!r}; a backend goes by name: backend={module!r}"
            )
        tensors, header = checkpoint.read(path)
        described = saved_network(path, header)
        given = module is not None
        if module is None:
            module = rebuild(described.get("structure"), path)
            Layout(module).freeze(described.get("frozen", ()))
        layout = Layout(module)
        tensors, header = arranged(tensors, header, layout)
        theta = saved_theta(path, tensors, saved_network(path, header), layout)
        if given:
            expect_structure(path, module, described.get("structure"), initializers=False)
        return cls(module, backend, described["dtype"], compute_dtype=compute_dtype, theta=theta)

    if not TYPE_CHECKING:
        load = OnTheClass(load.__func__)

    def summary(self, *input_shapes: Any) -> Cost:
        """A table of the modules with output shapes, parameters and costs, for inputs of these shapes: see `cost`."""
        expect_shapes("net.summary", self.module, input_shapes)
        return cost(self.module, *input_shapes, dtype=self.dtype)

    def __repr__(self) -> str:
        compute = "" if self.compute_dtype == self.dtype else f"compute_dtype={self.compute_dtype!r}, "
        dtypes = f"backend={self.backend.name!r}, dtype={self.dtype!r}, {compute}"
        dtypes += f"seed={self.seed}, " if self.seed else ""
        return f"Network({self.module!r}, {dtypes}n_parameters={self.n_parameters})"

    def _repr_html_(self) -> str:
        """The modules with their own parameters; a parameter used again is counted at its first use."""
        at_home = {use.path: use.size for use in self.layout.homes if use.parameter.trained}
        rows = [
            (
                path,
                type(module).__name__,
                ", ".join(f"{name} {p.shape}" for name, p in module.parameters.items() if p is not None),
                f"{sum(at_home.get(join(path, name), 0) for name in module.parameters):,}",
            )
            for path, module in walk(self.module)
        ]
        body = [*tables.ends(rows, MOST_ROWS), ("total", "", "", f"{self.n_parameters:,}")]
        compute = "" if self.compute_dtype == self.dtype else f", computing in {self.compute_dtype}"
        caption = f"Network on {self.backend.name}, {self.dtype}{compute}: {self.n_parameters:,} trained numbers"
        return tables.as_html(("path", "module", "windows", "trained numbers"), body, 3, caption, [len(body) - 1])


class Evaluation:
    """A forward pass, for the backward pass that follows.

    J: the loss. saved, of_loss: what the module and the loss saved for it. outputs: the number of outputs of an example.
    """

    __slots__ = ("J", "loss", "of_loss", "outputs", "saved")

    def __init__(self, loss: Loss, J: Array, saved: Any, of_loss: Any, outputs: int):
        self.loss = loss
        self.J = J
        self.saved = saved
        self.of_loss = of_loss
        self.outputs = outputs
