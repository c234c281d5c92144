"""JAX's engine: one jitted step with donated buffers."""

from __future__ import annotations

from typing import Any

from cells import Cell, Theta
from engines import Engine, Unable

SCALE = 2.0**10  # of the loss in float16


def build(cell: Cell, theta: Theta, device: str = "cpu", precision: str = "f32") -> Engine:
    """JAX's engine. Parameters and moments are dictionaries by bpcore's paths.

    In f16 and bf16 all but normalisation, the loss and the update are in half precision. f32 and tf32 differ by `set_precision`.
    """
    import jax
    from jax import lax
    from jax import numpy as jnp

    if jax.default_backend() != {"cpu": "cpu", "cuda": "gpu"}[device]:
        raise Unable(f"JAX runs on {jax.default_backend()}")

    dtype = {"f16": jnp.float16, "bf16": jnp.bfloat16}.get(precision, jnp.float32)
    scale = SCALE if precision == "f16" else 1.0
    attention = "cudnn" if device == "cuda" and dtype != jnp.float32 else None

    def mlp(p: Any, stats: Any, X: Any, key: Any) -> Any:
        last = len(cell.sizes) - 2
        for i in range(last):
            X = jax.nn.relu(X @ p[f"{2 * i}.W"] + p[f"{2 * i}.b"])
        return X @ p[f"{2 * last}.W"] + p[f"{2 * last}.b"], stats

    def convolved(p: Any, z: Any, path: str, stride: int, padding: int) -> Any:
        around, dimensions = ((padding, padding),) * 2, ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(z, p[f"{path}.W"], (stride, stride), around, dimension_numbers=dimensions)

    def normalised(p: Any, stats: Any, new: Any, z: Any, path: str, training: bool) -> Any:
        """BatchNorm; `new` gets its running statistics."""
        z = z.astype("float32")
        mean, variance = stats[path]
        if training:
            mean, variance, count = z.mean((0, 1, 2)), z.var((0, 1, 2)), z.size // z.shape[-1]
            measured = mean, variance * (count / (count - 1))
            new[path] = tuple(0.9 * old + 0.1 * x for old, x in zip(stats[path], measured, strict=True))
        factor = p[f"{path}.gamma"] * lax.rsqrt(variance + 1e-5)
        return ((z - mean) * factor + p[f"{path}.beta"]).astype(dtype)

    def cnn(p: Any, stats: Any, X: Any, key: Any) -> Any:
        new: Any = {}
        for i, stride, padding in ((0, 2, 2), (3, 1, 0), (7, 1, 0)):
            z = convolved(p, X, str(i), stride, padding)
            X = jax.nn.relu(normalised(p, stats, new, z, str(i + 1), key is not None))
            if i == 3:
                X = lax.reduce_window(X, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        X = X.reshape(len(X), -1)
        if key is not None and cell.dropout:
            X = jnp.where(jax.random.bernoulli(key, 1 - cell.dropout, X.shape), X / (1 - cell.dropout), 0)
        return X @ p["12.W"] + p["12.b"], new or stats

    def resnet(p: Any, stats: Any, X: Any, key: Any) -> Any:
        new: Any = {}

        def layer(z: Any, path: str, norm: str, stride: int = 1) -> Any:
            return normalised(p, stats, new, convolved(p, z, path, stride, 1), norm, key is not None)

        for stage in range(len(cell.sizes)):
            i = 7 * stage
            X = jax.nn.relu(layer(X, f"{i}", f"{i + 1}", 2 if stage else 1))
            for body in (f"{i + 3}.body", f"{i + 5}.body"):
                z = jax.nn.relu(layer(X, f"{body}.0", f"{body}.1"))
                X = jax.nn.relu(X + layer(z, f"{body}.3", f"{body}.4"))
        last = 7 * len(cell.sizes) + 1
        return X.mean((1, 2)) @ p[f"{last}.W"] + p[f"{last}.b"], new or stats

    def norm(p: Any, path: str, z: Any) -> Any:
        z = z.astype("float32")
        centred = z - z.mean(-1, keepdims=True)
        scaled = centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        return (scaled * p[f"{path}.gamma"] + p[f"{path}.beta"]).astype(dtype)

    def transformer(p: Any, stats: Any, X: Any, key: Any) -> Any:
        _, _, d, heads, blocks = cell.dims
        n, tokens = X.shape
        z = p["0.W"][X] + p["1.W"][:tokens]
        for i in range(2, blocks + 2):
            a = f"{i}.attention"
            qkv = norm(p, f"{i}.norm", z) @ p[f"{a}.W"] + p[f"{a}.b"]
            q, k, v = (qkv[..., j * d : (j + 1) * d].reshape(n, tokens, heads, d // heads) for j in range(3))
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=attention).reshape(n, tokens, d)
            z = z + mixed @ p[f"{a}.W_o"] + p[f"{a}.b_o"]
            f = f"{i}.feed.body"
            h = jax.nn.gelu(norm(p, f"{f}.0", z) @ p[f"{f}.1.W"] + p[f"{f}.1.b"], approximate=False)
            z = z + h @ p[f"{f}.3.W"] + p[f"{f}.3.b"]
        return norm(p, f"{blocks + 2}", z) @ p["0.W"].T, stats

    network = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "transformer": transformer}[cell.kind]
    norms = {path.removesuffix(".gamma") for path in theta if path.endswith(".gamma")}

    def forward(p: Any, stats: Any, X: Any, key: Any) -> Any:
        p = {path: x if path.rpartition(".")[0] in norms else x.astype(dtype) for path, x in p.items()}
        t, stats = network(p, stats, X if X.dtype == "int32" else X.astype(dtype), key)
        return t.astype("float32"), stats

    def objective(p: Any, stats: Any, X: Any, y: Any, key: Any) -> Any:
        t, stats = forward(p, stats, X, key)
        J = -jnp.take_along_axis(jax.nn.log_softmax(t), y[..., None], -1).mean()
        return J * scale, (J, stats)

    def step(state: Any, X: Any, y: Any) -> Any:
        p, m, v, stats, taken = state
        key = jax.random.fold_in(jax.random.key(0), taken)
        (_, (J, stats)), g = jax.value_and_grad(objective, has_aux=True)(p, stats, X, y, key)
        g = {path: x / scale for path, x in g.items()} if scale != 1 else g
        if cell.clip is not None:
            length = jnp.sqrt(sum((x * x).sum() for x in g.values()))
            g = {path: x * jnp.minimum(1, cell.clip / length) for path, x in g.items()}
        taken = taken + 1
        m = {path: 0.9 * m[path] + 0.1 * x for path, x in g.items()}
        v = {path: 0.999 * v[path] + 0.001 * x * x for path, x in g.items()}
        unbias_m = 1 - 0.9**taken
        unbias_v = jnp.sqrt(1 - 0.999**taken)
        decayed = {path: x * (1 - cell.lr * cell.decay * (x.ndim > 1)) for path, x in p.items()}
        update = {path: cell.lr / unbias_m * m[path] / (jnp.sqrt(v[path]) / unbias_v + 1e-8) for path in p}
        p = {path: x - update[path] for path, x in decayed.items()}
        return J, (p, m, v, stats, taken)

    jitted = jax.jit(step, donate_argnums=0)
    evaluated = jax.jit(lambda p, stats, X: forward(p, stats, X, None)[0])
    p = {path: jnp.array(value) for path, value in theta.items()}
    m, v = ({path: jnp.zeros_like(x) for path, x in p.items()} for _ in range(2))
    batch_norms = norms if cell.kind in ("cnn", "resnet") else ()
    stats = {path: (jnp.zeros(n, "float32"), jnp.ones(n, "float32")) for path in batch_norms for n in theta[f"{path}.beta"].shape}
    state = p, m, v, stats, jnp.zeros((), "int32")

    def take(X: Any, y: Any) -> Any:
        nonlocal state
        J, state = jitted(state, X, y)
        return J

    def predict(X: Any) -> Any:
        p, _, _, stats, _ = state
        return evaluated(p, stats, X)

    def place(x: Any) -> Any:
        return jnp.array(x, "int32" if x.dtype.kind == "i" else "float32")

    def wait(result: Any) -> None:
        jax.block_until_ready((result, state))

    if device == "cpu":
        return Engine(take, predict, place, wait)

    def memory() -> float:
        return float(jax.devices()[0].memory_stats()["peak_bytes_in_use"]) / 1e6

    return Engine(take, predict, place, wait, block=cell.block, memory=memory)


def set_precision(tf32: bool) -> None:
    """Set whether float32 products may use TF32 on a GPU. By default JAX's may."""
    import jax

    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if tf32 else "highest")
