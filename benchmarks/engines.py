"""The engines that are measured. Each builds a cell's network from an initial θ, and returns its step and its evaluation.

PyTorch's and JAX's engines are in torch_engine.py and jax_engine.py. A worker imports what its engine needs, and nothing else.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell, Product, Theta, batches, in_turn, products, shapes


class Unable(Exception):
    """The reason why an engine cannot do a cell."""


@dataclass
class Engine:
    """The functions that a worker calls. Results may lie on a device, and be unfinished: `wait` waits for them."""

    step: Callable[[Any, Any], Any]  # a batch -> J
    predict: Callable[[Any], Any]  # X -> logits, or probabilities
    place: Callable[[Any], Any] = lambda x: x  # a host array -> an array of the engine, not timed
    wait: Callable[[Any], Any] = lambda result: None
    host: Callable[[Any], Any] = np.asarray
    training: Callable[[bool], Any] = lambda on: None  # called between training and evaluation, not timed
    block: int = 1  # calls between two waits: on a GPU the host runs ahead
    memory: Callable[[], float] | None = None  # the peak MB on the device; None if it is the process's

    def ring(self, cell: Cell) -> Iterator[tuple[Any, Any]]:
        """The cell's batches, placed, without end."""
        return in_turn([(self.place(X), [self.place(y) for y in labels]) for X, labels in batches(cell)])


@dataclass(frozen=True)
class Spec:
    """An engine: the library that it needs, the function that builds it, its kinds of cell, its options and environment."""

    library: str
    build: str
    kinds: tuple[str, ...] = ("mlp", "cnn", "resnet", "transformer")
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    gpu: bool = False


MLP, IMAGES = ("mlp",), ("cnn", "resnet")
PLAIN = {"BPCORE_KERNELS": "plain"}
CUDA = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # engines share the GPU's memory
ENGINES = {
    "gemms-plain": Spec("numpy", "engines:bare_gemms", options={"plain": True}, environment=PLAIN),
    "gemms": Spec("numpy", "engines:bare_gemms"),
    "bpcore-plain": Spec("bpcore", "engines:bpcore", environment=PLAIN),
    "bpcore": Spec("bpcore", "engines:bpcore", options={"extra": "fast"}),
    "torch": Spec("torch", "torch_engine:build"),
    "torch-cl": Spec("torch", "torch_engine:build", IMAGES, {"channels_last": True}),
    "torch-compile": Spec("torch", "torch_engine:build", options={"mode": "default"}),
    "jax": Spec("jax.numpy", "jax_engine:build", environment={"JAX_PLATFORMS": "cpu"}),
    "sklearn": Spec("sklearn.neural_network", "engines:scikit_learn", MLP),
    "thinc": Spec("thinc.api", "engines:thinc", MLP),
    "mygrad": Spec("mygrad", "engines:mygrad", MLP),
    "bpcore-cupy": Spec("bpcore", "engines:bpcore", options={"backend": "cupy"}, gpu=True),
    "bpcore-cupy-graph": Spec("bpcore", "engines:bpcore", options={"backend": "cupy", "replay": True}, gpu=True),
    "torch-cuda": Spec("torch", "torch_engine:build", options={"device": "cuda"}, gpu=True),
    "torch-cuda-cl": Spec("torch", "torch_engine:build", IMAGES, {"device": "cuda", "channels_last": True}, gpu=True),
    "torch-cuda-compile": Spec("torch", "torch_engine:build", options={"device": "cuda", "mode": "default"}, gpu=True),
    "torch-cuda-reduce-overhead": Spec(
        "torch", "torch_engine:build", options={"device": "cuda", "mode": "reduce-overhead"}, gpu=True
    ),
    "jax-cuda": Spec(
        "jax.numpy", "jax_engine:build", options={"device": "cuda"}, environment={"JAX_PLATFORMS": "cuda", **CUDA}, gpu=True
    ),
}
COMPUTE = {"f32": "float32", "tf32": "tf32", "f16": "float16", "bf16": "bfloat16"}  # a precision, and bpcore's compute_dtype


def build(name: str, cell: Cell, theta: Theta, precision: str = "f32") -> Engine:
    """The engine of that name. Raises ImportError or Unable if it cannot be built."""
    spec = ENGINES[name]
    module, function = spec.build.split(":")
    more = {} if precision == "f32" else {"precision": precision}
    return getattr(import_module(module), function)(cell, theta, **spec.options, **more)


def bpcore_module(cell: Cell) -> Any:
    """The network, as bpcore's examples build theirs."""
    import bpcore as bp

    if cell.kind == "mlp":
        return bp.MLP(cell.sizes)
    if cell.kind == "transformer":
        vocabulary, tokens, d, heads, blocks = cell.dims
        embedding = bp.Embedding(vocabulary, d)
        of_blocks = (bp.TransformerBlock(d, heads, causal=True) for _ in range(blocks))
        return bp.Sequential(embedding, bp.PositionalEmbedding(tokens, d), *of_blocks, bp.LayerNorm(d), bp.Unembed(embedding))
    if cell.kind == "resnet":
        return resnet(cell)
    sys.path.append(str(Path(__file__).parents[1] / "examples"))
    module = import_module("train_mnist").cnn()
    for child in module.modules:
        if isinstance(child, bp.Dropout):
            child.p = cell.dropout
    return module


def resnet(cell: Cell) -> Any:
    """A ResNet for small images: see `cells.convolutions`."""
    import bpcore as bp

    def convolution(c_in: int, c_out: int, stride: int = 1) -> tuple[Any, Any]:
        return bp.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False), bp.BatchNorm(c_out)

    layers: list[Any] = []
    before = cell.image[2]
    for c in cell.sizes:
        layers += [*convolution(before, c, 2 if layers else 1), bp.ReLU()]
        for _ in range(2):
            layers += [bp.Residual(bp.Sequential(*convolution(c, c), bp.ReLU(), *convolution(c, c))), bp.ReLU()]
        before = c
    return bp.Sequential(*layers, bp.GlobalAvgPool(), bp.Linear(before, 10))


def bpcore(
    cell: Cell,
    theta: Theta,
    backend: str = "numpy",
    replay: bool = False,
    extra: str | None = None,
    schedule: Any = None,
    precision: str = "f32",
) -> Engine:
    """bpcore's Trainer. extra: a set of twins, without which the engine cannot be built."""
    import bpcore as bp
    from bpcore.backend import get_backend

    if extra is not None:
        import_module(f"bpcore.kernels.{extra}")
    try:
        get_backend(backend).check_compute(COMPUTE[precision], "float32")
    except (RuntimeError, ValueError) as error:
        raise Unable(str(error)) from error
    net = bp.Network(bpcore_module(cell), backend=backend, compute_dtype=COMPUTE[precision], replay=replay)
    parameters = net.parameters()
    got = {path: tuple(window.shape) for path, window in parameters.items() if not path.endswith((".mean", ".variance"))}
    if got != shapes(cell):
        raise ValueError(f"the network has other parameters than cells.py: {set(got.items()) ^ set(shapes(cell).items())}")
    for path, value in theta.items():
        parameters[path][...] = net.backend.asarray(value)
    optimizer = bp.AdamW(cell.lr, weight_decay=cell.decay) if cell.decay else bp.Adam(cell.lr)
    trainer = bp.Trainer(net, bp.CrossEntropy(), optimizer, schedule, clip_norm=cell.clip, replay=replay)
    if backend != "cupy":
        return Engine(trainer.step, net, host=net.backend.to_host)
    import cupy

    def wait(result: Any) -> None:
        cupy.cuda.Device().synchronize()  # all streams

    def memory() -> float:
        """Of the default pool, and of those of recorded steps."""
        pools = [x for x in gc.get_objects() if isinstance(x, cupy.cuda.MemoryPool)]
        default = cupy.get_default_memory_pool()
        return float(default.total_bytes() + sum(x.total_bytes() for x in pools if x is not default)) / 1e6

    return Engine(trainer.step, net, net.backend.asarray, wait, net.backend.to_host, block=cell.block, memory=memory)


def numpy_gemm(A: Any, B: Any, out: Any) -> Any:
    """out = A @ B."""
    return np.matmul(A, B, out=out)


def bare_gemm() -> Callable[[Any, Any, Any], Any]:
    """The function gemm(A, B, out), out = A @ B, of bpcore's Linear; A and B may be transposed views."""
    try:
        from bpcore.kernels.fast.engine.onednn import gemm
    except ImportError:
        return numpy_gemm
    return gemm


def bare_gemms(cell: Cell, theta: Theta, plain: bool = False) -> Engine:
    """Only the products of a step, each on its own arrays, as a physical limit. NumPy always computes the stacked ones."""
    gemm = numpy_gemm if plain else bare_gemm()
    if gemm is numpy_gemm and not plain:
        raise Unable("bpcore.kernels.fast has no GEMM of its own here; gemms-plain is NumPy's")

    def arrays(p: Product) -> Any:
        stack = (p.stack,) if p.stack > 1 else ()
        shapes = [(*stack, *shape) for shape in ((p.n, p.k), (p.k, p.m), (p.n, p.m))]  # of A, B, C, and of dA, dB, dC
        return [generator.standard_normal(shape, "float32") for shape in (*shapes, *shapes)]

    generator = np.random.default_rng(0)
    work = [(numpy_gemm if p.stack > 1 else gemm, p.need_left, *arrays(p)) for p in products(cell)]

    def predict(X: Any) -> Any:
        for product, _, A, B, C, *_ in work:
            product(A, B, C)
        return work[-1][4]

    def step(X: Any, y: Any) -> Any:
        predict(X)
        for product, need_left, A, B, _, dA, dB, dC in reversed(work):
            product(A.mT, dC, dB)
            if need_left:
                product(dC, B.mT, dA)
        return np.float32(0)

    return Engine(step, predict)


def layers(cell: Cell, theta: Theta) -> list[tuple[Any, Any]]:
    """(W, b) of each layer of an mlp, W as (n_in, n_out)."""
    return [(theta[f"{2 * i}.W"], theta[f"{2 * i}.b"]) for i in range(len(cell.sizes) - 1)]


def scikit_learn(cell: Cell, theta: Theta) -> Engine:
    """MLPClassifier.partial_fit, a batch for each call."""
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier(cell.sizes[1:-1], alpha=0, batch_size=cell.batch, learning_rate_init=cell.lr, shuffle=False)
    X, y = np.zeros((cell.batch, cell.sizes[0]), "float32"), np.zeros(cell.batch, "int64")
    network.partial_fit(X, y, classes=np.arange(cell.sizes[-1]))
    for i, (W, b) in enumerate(layers(cell, theta)):
        network.coefs_[i][...] = W
        network.intercepts_[i][...] = b
    del network._optimizer  # the next call makes a fresh one
    return Engine(lambda X, y: network.partial_fit(X, y).loss_, network.predict_proba)


def thinc(cell: Cell, theta: Theta) -> Engine:
    """thinc's chain of Relu layers and a Softmax, with Adam's settings as in the other engines."""
    from thinc.api import Adam, CategoricalCrossentropy, Relu, Softmax, chain

    sizes = list(pairwise(cell.sizes))
    parts = [(Softmax if i == len(sizes) - 1 else Relu)(nO=m, nI=n) for i, (n, m) in enumerate(sizes)]
    model = chain(*parts)
    model.initialize()
    for part, (W, b) in zip(parts, layers(cell, theta), strict=True):
        part.set_param("W", np.ascontiguousarray(W.T))
        part.set_param("b", b.copy())
    optimizer = Adam(cell.lr, L2=0.0, grad_clip=0.0, use_averages=False)
    loss = CategoricalCrossentropy()

    def step(X: Any, y: Any) -> Any:
        phi, backward = model.begin_update(X)
        backward(loss.get_grad(phi, y))
        model.finish_update(optimizer)
        return -np.log(phi[np.arange(len(y)), y]).mean()

    return Engine(step, model.predict)


def mygrad(cell: Cell, theta: Theta) -> Engine:
    """MyGrad's tensors. It has no optimiser, so Adam is written here with NumPy, in place."""
    import mygrad as mg
    from mygrad.nnet.activations import relu
    from mygrad.nnet.losses import softmax_crossentropy

    parameters = [(mg.tensor(W.copy()), mg.tensor(b.copy())) for W, b in layers(cell, theta)]
    moments = [(x, np.zeros_like(x.data), np.zeros_like(x.data)) for pair in parameters for x in pair]
    t = 0

    def forward(X: Any) -> Any:
        for W, b in parameters[:-1]:
            X = relu(mg.matmul(X, W) + b)
        return mg.matmul(X, parameters[-1][0]) + parameters[-1][1]

    def step(X: Any, y: Any) -> Any:
        nonlocal t
        t += 1
        J = softmax_crossentropy(forward(X), y)
        J.backward()
        for x, m, v in moments:
            m += 0.1 * (x.grad - m)
            v += 0.001 * (x.grad * x.grad - v)
            x.data -= cell.lr / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            x.null_grad()
        return J.item()

    def predict(X: Any) -> Any:
        with mg.no_autodiff:
            return forward(X).data

    return Engine(step, predict)
