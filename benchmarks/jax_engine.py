"""JAX's engine: one jitted step with donated buffers."""

from __future__ import annotations

from typing import Any

from cells import BLOCKS, HEADS, Cell, D, Theta
from engines import GPU_BLOCK, Engine, Unable

CONVOLUTIONS = ((0, 2, ((2, 2), (2, 2))), (3, 1, "VALID"), (7, 1, "VALID"))  # path, stride, padding


def build(cell: Cell, theta: Theta, device: str = "cpu") -> Engine:
    """JAX's engine. Parameters and moments are dictionaries by bpcore's paths."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    if jax.default_backend() != {"cpu": "cpu", "cuda": "gpu"}[device]:
        raise Unable(f"JAX runs on {jax.default_backend()}")

    def mlp(p: Any, stats: Any, X: Any, key: Any) -> Any:
        last = len(cell.sizes) - 2
        for i in range(last):
            X = jax.nn.relu(X @ p[f"{2 * i}.W"] + p[f"{2 * i}.b"])
        return X @ p[f"{2 * last}.W"] + p[f"{2 * last}.b"], stats

    def cnn(p: Any, stats: Any, X: Any, key: Any) -> Any:
        new = {}
        for i, stride, padding in CONVOLUTIONS:
            dimensions = ("NHWC", "HWIO", "NHWC")
            z = lax.conv_general_dilated(X, p[f"{i}.W"], (stride, stride), padding, dimension_numbers=dimensions)
            mean, variance = stats[i]
            if key is not None:
                mean, variance, count = z.mean((0, 1, 2)), z.var((0, 1, 2)), z.size // z.shape[-1]
                measured = mean, variance * (count / (count - 1))
                new[i] = tuple(0.9 * old + 0.1 * x for old, x in zip(stats[i], measured, strict=True))
            scale = p[f"{i + 1}.gamma"] * lax.rsqrt(variance + 1e-5)
            X = jax.nn.relu((z - mean) * scale + p[f"{i + 1}.beta"])
            if i == 3:
                X = lax.reduce_window(X, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        X = X.reshape(len(X), -1)
        if key is not None and cell.dropout:
            X = jnp.where(jax.random.bernoulli(key, 1 - cell.dropout, X.shape), X / (1 - cell.dropout), 0)
        return X @ p["12.W"] + p["12.b"], new or stats

    def norm(p: Any, path: str, z: Any) -> Any:
        centred = z - z.mean(-1, keepdims=True)
        scaled = centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        return scaled * p[f"{path}.gamma"] + p[f"{path}.beta"]

    def transformer(p: Any, stats: Any, X: Any, key: Any) -> Any:
        n, tokens = X.shape
        z = p["0.W"][X] + p["1.W"][:tokens]
        for i in range(2, BLOCKS + 2):
            a = f"{i}.attention"
            qkv = norm(p, f"{i}.norm", z) @ p[f"{a}.W"] + p[f"{a}.b"]
            q, k, v = (qkv[..., j * D : (j + 1) * D].reshape(n, tokens, HEADS, D // HEADS) for j in range(3))
            mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(n, tokens, D)
            z = z + mixed @ p[f"{a}.W_o"] + p[f"{a}.b_o"]
            f = f"{i}.feed.body"
            h = jax.nn.gelu(norm(p, f"{f}.0", z) @ p[f"{f}.1.W"] + p[f"{f}.1.b"], approximate=False)
            z = z + h @ p[f"{f}.3.W"] + p[f"{f}.3.b"]
        return norm(p, f"{BLOCKS + 2}", z) @ p["0.W"].T, stats

    forward = {"mlp": mlp, "cnn": cnn, "transformer": transformer}[cell.kind]

    def objective(p: Any, stats: Any, X: Any, y: Any, key: Any) -> Any:
        t, stats = forward(p, stats, X, key)
        return -jnp.take_along_axis(jax.nn.log_softmax(t), y[..., None], -1).mean(), stats

    def step(state: Any, X: Any, y: Any) -> Any:
        p, m, v, stats, taken = state
        key = jax.random.fold_in(jax.random.key(0), taken)
        (J, stats), g = jax.value_and_grad(objective, has_aux=True)(p, stats, X, y, key)
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
    channels = {i: theta[f"{i}.W"].shape[-1] for i, *_ in CONVOLUTIONS} if cell.kind == "cnn" else {}
    stats = {i: (jnp.zeros(c, "float32"), jnp.ones(c, "float32")) for i, c in channels.items()}
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

    return Engine(take, predict, place, wait, block=GPU_BLOCK if device == "cuda" else 1)


def set_precision(tf32: bool) -> None:
    """Set whether float32 products may use TF32 on a GPU. By default JAX's may."""
    import jax

    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if tf32 else "highest")
