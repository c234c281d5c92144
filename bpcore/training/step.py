"""One training step on a batch: J and ∇J, the sum over replicas, the clip, the optimiser's update.

The arithmetic is the same in a Trainer, in a loop of your own, and in a recording for a GPU (see replay.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, TypeVar

from bpcore import arguments, checkpoint
from bpcore.arguments import show
from bpcore.array import Array
from bpcore.checkpoint import Header, Tensors
from bpcore.context import computing_in, quiet
from bpcore.functional.losses import relative
from bpcore.functional.losses import total as total_of
from bpcore.functional.updates import clip_factor, gathered, squared_norm, times
from bpcore.host import check_index
from bpcore.library import host_data
from bpcore.mode import Mode, new_mode
from bpcore.modules import Loss
from bpcore.modules.losses import warn_of_probabilities
from bpcore.network import Network
from bpcore.optimizers import Optimizer, first_update, has_own_update, started
from bpcore.structure import class_name, describe, expect_class, expect_structure
from bpcore.training.data import Batch, check_lengths
from bpcore.training.scaling import Scaling

FLAGS = 2  # numbers after J in the vector that replicas sum


@dataclass(slots=True)
class Outcome:
    """The result of a step, measured at θ before the update. J and square lie on the device.

    J: the loss of the batch. square: ‖∇J‖² before the clip; 0.0 on a GPU in float32 without a clip, to save the sum; not finite
    if the scaled loss overflowed in float16. mode: of the forward pass (of the first micro-batch, if there are several). outputs:
    the number of outputs of an example.
    """

    J: Array
    square: Array | float
    mode: Mode
    outputs: int


Look = Callable[[Outcome, Batch], None]
T = TypeVar("T")
ANEW = "make a new Trainer or Step"


def expected(name: str, value: Any, kind: type[T]) -> T:
    """value, or a TypeError unless it is of this kind of bpcore's objects."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a bpcore {kind.__name__}, got {show(value)}; pass network, loss, optimizer")
    return value


def going_on(step: Step, value: Any) -> Optimizer:
    """value, an optimiser that can go on with the vectors of the step's present one, if it has one. Else raises an error."""
    optimizer = expected("optimizer", value, Optimizer)
    if "moments" in step.__dict__:
        present, new = ((type(x).__name__, sorted(x.start(step.trained))) for x in (step.optimizer, optimizer))
        if present != new or type(step.optimizer) is not type(optimizer):
            raise ValueError(
                f"optimizer must be {present[0]} with vectors {present[1]}, got {new[0]} with {new[1]}; {ANEW} with it"
            )
    return optimizer


def logits_for(step: Step, loss: Loss) -> Loss:
    """loss, with a warning if it takes logits and the network gives probabilities."""
    warn_of_probabilities(step.network.module, loss)
    return loss


SETTINGS: dict[str, Callable[[Step, Any], Any]] = {  # that can be assigned: each checks the value and returns it
    "loss": lambda step, loss: logits_for(step, expected("loss", loss, Loss)),
    "optimizer": going_on,
    "clip_norm": lambda step, most: None if most is None else arguments.bounded("clip_norm", most, 1e-30),
    "accumulate": lambda step, accumulate: arguments.whole("accumulate", accumulate),
    "seed": lambda step, seed: arguments.seed(seed),
}


class Step:
    """A training step of a network, a loss and an optimiser, for a loop of your own; `bpcore.Trainer` is a ready loop.

    clip_norm: the largest norm of ∇J. accumulate: the number of micro-batches into which a batch is split; J and ∇J stay
    those of the whole batch. seed: of dropout's masks; None draws one, which `step.seed` shows. If the network computes in
    float16, the loss is scaled: see bpcore.training.scaling.

    reduce: a function that sums a vector, [∇J, J, flags], in place over replicas. Each replica has its own Step, and calls it
    with its part of the batch and with the `total` of the whole batch; reduce is called once per step, between the backward
    pass and the clip. flags: two numbers for the replicas' own use, e.g. whether a replica asks to stop, and whether it failed.
    A replica writes them to `step.flags` before a step, and they are summed too.

    >>> import numpy as np
    >>> import bpcore as bp
    >>> from bpcore.training.step import Step
    >>> X, y = np.eye(4), np.arange(4)
    >>> step = Step(bp.Network(bp.Linear(4, 4)), bp.CrossEntropy(), bp.SGD())
    >>> batch, labels = step.place(X, y)
    >>> outcomes = [step(batch, labels, number, lr=1.0) for number in range(50)]
    >>> bool(outcomes[-1].J < 0.2 * outcomes[0].J)
    True

    `vectors` holds all arrays that a step writes, by name: θ, the optimiser's `moments`, and the scaling. `gradient` is ∇J of the
    last step before the clip; an optimiser with an `update` of its own gets it, and leaves it, clipped. loss, clip_norm,
    accumulate and seed can be assigned, and an optimiser of the same class, with other hyperparameters: its vectors stay.
    """

    def __init__(
        self,
        network: Network,
        loss: Loss,
        optimizer: Optimizer,
        clip_norm: float | None = None,
        accumulate: int = 1,
        seed: int | None = 0,
        reduce: Callable[[Array], None] | None = None,
    ):
        self.network = expected("network", network, Network)
        if network.n_parameters == 0:
            raise ValueError(f"{show(network.module)} has no trained parameter; there is nothing to train")
        self.loss = loss
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.accumulate = accumulate
        self.seed = arguments.seed(seed)
        self.reduce = reduce

        self.moments = started(optimizer, network.theta[: network.n_parameters])
        self.scaling = Scaling(network.backend) if network.compute_dtype == "float16" else None
        self._bind()

    own_update: bool  # whether the optimiser's update is a user's

    def _bind(self) -> None:
        """Make the vectors of a step, and the views of θ, on the network's backend."""
        network = self.network
        backend, n, reduced = network.backend, network.n_parameters, self.reduce is not None
        self.looks = not backend.asynchronous  # whether a step looks at values: only if the host need not wait for them
        self.theta = network.theta
        self.trained = network.theta[:n]
        self.summed = backend.zeros(n + 1 + FLAGS if reduced else n, network.dtype)  # the argument of `reduce`
        self.gradient = self.summed[:n] if reduced else self.summed
        self.flags = self.summed[n + 1 :] if reduced else None
        self.vectors: dict[str, Array] = {"theta": network.theta, **self.moments}
        if self.scaling is not None:
            self.vectors["scaling"] = self.scaling.state

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: without what `_bind` makes, the optimiser's vectors on the host."""
        derived = ("looks", "theta", "trained", "summed", "gradient", "flags", "micro", "vectors")
        kept = {name: value for name, value in vars(self).items() if name not in derived}
        to_host = self.network.backend.to_host
        return kept | {"moments": {name: to_host(vector) for name, vector in self.moments.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        backend = self.network.backend
        moments = {name: backend.xp.asarray(backend.asarray(m), copy=True) for name, m in state["moments"].items()}
        vars(self)["moments"] = moments
        self._bind()

    def __setattr__(self, name: str, value: Any) -> None:
        """Settings are checked; of the optimiser, the hyperparameters can change. Nothing else can be replaced."""
        if name in SETTINGS:
            value = SETTINGS[name](self, value)
            if name == "optimizer":
                object.__setattr__(self, "own_update", has_own_update(value))
        elif name in self.__dict__:
            raise TypeError(f"{name} cannot be replaced, because the optimiser's vectors belong to it; {ANEW}")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings().items())
        return f"Step({self.network!r}, {self.loss!r}, {self.optimizer!r}{settings})"

    def settings(self) -> dict[str, Any]:
        """The other settings by name, for a repr; those at their defaults are left out."""
        defaults = {"clip_norm": None, "accumulate": 1, "seed": 0, "reduce": None}
        return {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}

    @cached_property
    def micro(self) -> Array:
        """The gradient of a micro-batch."""
        return self.network.backend.zeros(self.network.n_parameters, self.network.dtype)

    def check_bound(self) -> None:
        """Raise RuntimeError if the network was moved to another backend: the optimiser's vectors were not."""
        if self.network.theta is not self.theta:
            raise RuntimeError("the network was moved after the trainer was made; move first: Trainer(net.to(...), ...)")

    def place(self, X: Any, y: Any, weights: Any = None) -> tuple[Batch, Array | None]:
        """(batch on the device, its labels on the host, or None if y is on the device). A tuple X is several inputs."""
        self.check_bound()
        network, labels = self.network, host_data(y, "y")
        if labels is not y:
            check_index("the batch", (*(X if isinstance(X, tuple) else (X,)), y, weights))
        return (network.inputs(X), network.place(y, name="y"), network.place_weights(weights)), labels

    @quiet
    def __call__(
        self,
        batch: Batch,
        labels: Array | None,
        number: Any,
        lr: Any,
        look: Look | None = None,
        total: float | Array | None = None,
    ) -> Outcome:
        """Take step `number` (0, 1, ...) on a batch that is on the device.

        labels: y on the host, to check its values, or None. number, lr: Python numbers, or scalars on the device, int64 and
        float64. look(outcome, batch) is called before the clip and the update; if it raises, θ stays as it was. total: if this
        batch is a replica's part, Σ w of the whole batch; by default Σ w of this batch alone.
        """
        network, gradient, scaling = self.network, self.gradient, self.scaling
        if self.accumulate == 1 and total is None:
            inputs, y, weights = batch
            modes = [new_mode(True, self.seed, number, 0, self.looks)]
            evaluation = network.forward(self.loss, inputs, y, weights, modes[0], labels)
            J, outputs = evaluation.J, evaluation.outputs
            v = 1.0 if scaling is None else scaling.S
            computed = network.backward(evaluation, gradient, v, self.reduce is not None)
        else:
            count = min(self.accumulate, batch[1].shape[0])
            modes = [new_mode(True, self.seed, number, k, self.looks) for k in range(count)]
            with computing_in(network.compute_dtype):  # computing with infinities of float16 must not warn
                J, outputs = self.accumulated(batch, labels, modes, total)
            computed = gradient
        if self.reduce is not None:
            J = self.sum_over_replicas(J)
        if scaling is not None or computed is not gradient:
            square: Any = gathered(computed, 1.0 if scaling is None else scaling.S, gradient)
        else:
            square = squared_norm(gradient) if self.looks or self.clip_norm is not None else 0.0
        factor: Any = None if self.clip_norm is None else clip_factor(gradient, square, self.clip_norm)
        if scaling is not None:
            factor = scaling.adapt(square, 1.0 if factor is None else factor)
        outcome = Outcome(J, square, modes[0], outputs)
        if look is not None:
            look(outcome, batch)
        more: tuple[Any, ...] = () if factor is None else self.taken(factor)
        if self.own_update and type(number) is int and number == 0:
            first_update(self.optimizer, self.trained, gradient, self.moments, lr, network.layout.decayed)
        else:
            self.optimizer.update(self.trained, gradient, self.moments, number + 1, lr, network.layout.decayed, *more)
        for mode in modes:
            if mode.tracked:
                mode.commit()
        return outcome

    def taken(self, factor: Any) -> tuple[Any, ...]:
        """The factor of the gradient as an argument of the optimiser's update; if a user's update takes none, scale ∇J itself."""
        factor = float(factor) if self.looks else factor
        if not self.own_update:
            return (factor,)
        self.gradient[...] = times(self.gradient, factor)
        return ()

    def accumulated(
        self, batch: Batch, labels: Array | None, modes: list[Mode], total: float | Array | None
    ) -> tuple[Array, int]:
        """(J of a batch, the number of outputs of an example); writes ∇J. A micro-batch counts by its Σ w / total."""
        network, loss = self.network, self.loss
        S = None if self.scaling is None else self.scaling.S
        inputs, y, weights = batch
        n = check_lengths("a batch", inputs, y, weights)
        if n == 0:
            raise ValueError("a batch is empty: X has 0 rows; give at least one example")
        if total is None:
            weights = None if weights is None else relative(weights)  # their sum might overflow
            total = loss.total_weight(y, None) if weights is None else total_of(weights)  # at least the smallest normal number
        J: Any = 0.0
        for k, mode in enumerate(modes):
            rows = slice(k * n // len(modes), (k + 1) * n // len(modes))
            w = None if weights is None else weights[rows, ...]
            y_host = None if labels is None else labels[rows]
            evaluation = network.forward(loss, tuple(x[rows, ...] for x in inputs), y[rows, ...], w, mode, y_host)
            weight = loss.total_weight(y[rows, ...], w)
            J = J + evaluation.J * weight
            v = weight / total if S is None else S * (weight / total)
            if k == 0:
                network.backward(evaluation, self.gradient, v)
            else:
                self.gradient[...] = self.gradient + network.backward(evaluation, self.micro, v)
        return J / total, evaluation.outputs

    def sum_over_replicas(self, J: Array) -> Array:
        """Call `reduce` with the vector [∇J, J, flags]. Returns J of the whole batch."""
        assert self.reduce is not None
        at = self.network.n_parameters
        self.summed[at, ...] = J
        self.reduce(self.summed)
        copy: Array = self.network.backend.xp.asarray(self.summed[at, ...], copy=True)  # the next step overwrites the vector
        return copy

    def state(self) -> tuple[Tensors, Header]:
        """(tensors, header) of a checkpoint: the network, the optimiser with its vectors, the scaling, the seed."""
        tensors, header = self.network.state()
        to_host = self.network.backend.to_host
        tensors.update({f"optimizer.{name}": to_host(vector) for name, vector in self.moments.items()})
        if self.scaling is not None:
            tensors["scaling"] = to_host(self.scaling.state)
        optimizer = {"class": class_name(self.optimizer), "hyperparameters": asdict(self.optimizer)}
        training = {"optimizer": optimizer, "loss": describe(self.loss), "seed": self.seed}
        if self.network.compute_dtype == "bfloat16":  # of float16 the scaling tells
            training["compute_dtype"] = "bfloat16"
        return tensors, {**header, "training": training}

    def check_state(self, path: Any, tensors: Tensors, header: Header, optimizer: str, loss: str | None = None) -> Tensors:
        """The values of `vectors` in a checkpoint. Raises CheckpointError if it does not fit this step. Assigns nothing.

        optimizer, loss: the names of their classes in the checkpoint; a file of format 1 names no loss.
        """
        network = self.network
        vectors = {"theta": network.check_state(path, tensors, header)}
        checkpoint.expect(path, "dtype", network.dtype, header["network"].get("dtype"))
        expect_structure(path, network.module, header["network"].get("structure"))
        expect_class(path, "optimiser", self.optimizer, optimizer)
        if loss is not None:
            expect_class(path, "loss", self.loss, loss)
        names = sorted(name.removeprefix("optimizer.") for name in tensors if name.startswith("optimizer."))
        checkpoint.expect(path, "the optimiser's vectors", sorted(self.moments), names)
        for name in self.moments:
            vectors[name] = checkpoint.tensor(path, tensors, f"optimizer.{name}", network.n_parameters, network.dtype)
        computed = "float16" if "scaling" in tensors else header.get("training", {}).get("compute_dtype")
        checkpoint.expect(path, "computing in", precision(network.compute_dtype), precision(computed))
        if self.scaling is not None:
            vectors["scaling"] = checkpoint.tensor(path, tensors, "scaling", 2, "float32")
        return vectors

    def restore(self, vectors: Tensors) -> None:
        """Write the result of `check_state` to `vectors`."""
        for name, vector in self.vectors.items():
            vector[...] = self.network.backend.asarray(vectors[name])


def precision(compute_dtype: str | None) -> str:
    """The dtype that a run computes in, for errors."""
    return {"float16": "float16, its loss scaled", "bfloat16": "bfloat16"}.get(compute_dtype or "", "its own dtype")
