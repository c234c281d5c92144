"""Compositions in the table of cases: a user's own containers, circuits, stacks; below them what PyTorch computes for each."""

from __future__ import annotations

from references import affine, attention, dropped, normalized, transformer_block, under

import bpcore as bp
from bpcore.module import Module, Parameter


class Tied(Module):
    """A module of a user's own, u = (z W) Wᵀ: two children hold the same Parameter, one of them transposed."""

    def __init__(self, n: int, m: int):
        self.children = {"encode": bp.Linear(n, m, bias=False), "decode": TransposedLinear(n, m)}
        self.children["decode"].parameters = {"W": self.children["encode"].parameters["W"]}

    def forward(self, theta, z, mode):
        h, first = self.children["encode"].forward(theta["encode"], z, mode=mode)
        u, second = self.children["decode"].forward(theta["decode"], h, mode=mode)
        return u, [first, second]

    def backward(self, theta, saved, v, gradient, need_dz=True):
        second, first = saved.pop(), saved.pop()
        v = self.children["decode"].backward(theta["decode"], second, v, gradient["decode"])
        return self.children["encode"].backward(theta["encode"], first, v, gradient["encode"], need_dz)


class TransposedLinear(Module):
    """u = z Wᵀ."""

    def __init__(self, n: int, m: int):
        self.parameters = {"W": Parameter((n, m), bp.initializers.HeNormal())}

    def forward(self, theta, z, mode):
        return z @ theta.W.T, z

    def backward(self, theta, saved, v, gradient, need_dz=True):
        gradient.W[...] = v.T @ saved
        return v @ theta.W if need_dz else None


class SideBySide(Module):
    """A container of a user's own, u = a(z) + b(z): what its children saved comes back as a tuple of their lists."""

    def __init__(self, a: Module, b: Module):
        self.a, self.b = a, b
        self.children = {"a": a, "b": b}

    def forward(self, theta, z, mode):
        u, s = self.children["a"].forward(theta["a"], z, mode=mode)
        w, t = self.children["b"].forward(theta["b"], z, mode=mode)
        return u + w, (s, t)

    def backward(self, theta, saved, v, gradient, need_dz=True):
        s, t = saved
        dz = self.children["a"].backward(theta["a"], s, v, gradient["a"], need_dz)
        dw = self.children["b"].backward(theta["b"], t, v, gradient["b"], need_dz)
        return dz + dw if need_dz else None


def side_by_side() -> Module:
    return SideBySide(bp.MLP([4, 5, 3]), bp.Sequential(bp.Linear(4, 3), bp.Tanh()))


def twice() -> Module:
    """One Linear, used twice."""
    linear = bp.Linear(4, 4)
    return bp.Sequential(linear, bp.Tanh(), linear)


def fan_out() -> Module:
    return bp.Circuit(
        "x",
        {
            "h": (bp.Linear(4, 4), "x"),
            "s": (bp.Tanh(), "h"),
            "p": (bp.Multiply(), "h", "s"),
            "u": (bp.Add(), "p", "x"),
        },
        "u",
    )


def circuit(n: int) -> bp.Module:
    """Fan-out, two inputs, two outputs, an operand."""
    nodes = {
        "W": (bp.Weight((n, n)),),
        "h": (bp.MatMul(), "x", "W"),
        "s": (bp.Sigmoid(), "h"),
        "p": (bp.Multiply(), "s", "y"),
        "u": (bp.Add(), "p", "h"),
    }
    return bp.Circuit(["x", "y"], nodes, ["u", "s"])


def two_inputs() -> Module:
    return bp.Circuit(
        ["a", "b"],
        {"ha": (bp.Linear(3, 5), "a"), "hb": (bp.Linear(2, 5, bias=False), "b"), "u": (bp.Multiply(), "ha", "hb")},
        "u",
    )


def two_outputs() -> Module:
    return bp.Circuit("x", {"h": (bp.Linear(4, 3), "x"), "e": (bp.Exp(), "h")}, ["h", "e", "x"])


def atomic_linear() -> Module:
    """z W + b of atomic modules, W and b being operands."""
    return bp.Circuit(
        "z",
        {
            "W": (bp.Weight((4, 3)),),
            "b": (bp.Weight((3,), decay=False),),
            "zW": (bp.MatMul(), "z", "W"),
            "u": (bp.Add(), "zW", "b"),
        },
        "u",
    )


def with_loss() -> Module:
    """A network and its loss in one circuit; the labels are an input that has no gradient."""
    return bp.Circuit(["x", "y"], {"t": (bp.Linear(4, 3), "x"), "J": (bp.CrossEntropy(), "t", "y")}, "J")


def nested() -> Module:
    inner = bp.Sequential(bp.Residual(bp.Sequential(bp.RMSNorm(4), bp.Linear(4, 4))), bp.SiLU())
    return bp.Sequential(bp.Reshape((2, 4)), inner, fan_out(), bp.Flatten(), bp.Dropout(0.3), bp.Linear(8, 2))


def unembedded() -> Module:
    """Ids to logits, the embedding's parameter used at both ends: its gradients add."""
    embedding = bp.Embedding(7, 4)
    return bp.Sequential(embedding, bp.Tanh(), bp.Unembed(embedding))


def masked_stack() -> Module:
    """Ids and a mask to features: the mask passes the modules that do not take it, one of them between the blocks."""
    blocks = bp.TransformerBlock(4, 2, dropout=0.2), bp.LayerNorm(4), bp.Recompute(bp.TransformerBlock(4, 2, True))
    return bp.Sequential(bp.Embedding(7, 4), bp.PositionalEmbedding(5, 4), bp.Sequential(*blocks), bp.Linear(4, 3), bp.ReLU())


# the same in PyTorch's words, see references.py


def torch_sequential(F, m, theta, z):
    return affine(theta, "2.", F.tanh(affine(theta, "0.", z)))


def torch_twice(F, m, theta, z):
    return affine(theta, "0.", F.tanh(affine(theta, "0.", z)))


def torch_nested(F, m, theta, z):
    z = z.reshape(-1, 2, 4)
    z = z + affine(theta, "1.0.body.1.", F.rms_norm(z, z.shape[-1:], theta["1.0.body.0.gamma"], 1e-6))
    z = torch_fan_out(F, m, under(theta, "2."), F.silu(z)).reshape(z.shape[0], -1)
    return affine(theta, "5.", dropped(F, z, 0.3, 14))


def torch_side_by_side(F, m, theta, z):
    first = affine(theta, "a.2.", F.relu(affine(theta, "a.0.", z)))
    return first + F.tanh(affine(theta, "b.0.", z))


def torch_masked_stack(F, m, theta, ids, mask):
    """The blocks are uses 4 and 17."""
    z = theta["0.W"][ids] + theta["1.W"]
    z = transformer_block(F, bp.TransformerBlock(4, 2, dropout=0.2), under(theta, "2.0."), z, mask, 4)
    z = normalized(F, theta, "2.1.", z)
    z = transformer_block(F, bp.TransformerBlock(4, 2, True), under(theta, "2.2.body."), z, mask, 17)
    return F.relu(affine(theta, "3.", z))


def torch_residual_attention(F, m, theta, z, mask):
    h = normalized(F, theta, "body.0.", z)
    return z + attention(F, bp.MultiHeadAttention(4, 2), under(theta, "body.1."), h, mask)


def torch_fan_out(F, m, theta, x):
    h = affine(theta, "h.", x)
    return h * F.tanh(h) + x


def torch_two_outputs(F, m, theta, x):
    h = affine(theta, "h.", x)
    return h, F.exp(h), x


def torch_mlp(F, m, theta, z):
    z = F.relu(affine(theta, "0.", z))
    return affine(theta, "4.", F.relu(affine(theta, "2.", z)))


def torch_gelu_network(F, m, theta, z):
    """Linear, LayerNorm, GELU, Dropout, twice; module i is use i + 1, the MLP itself being use 0."""
    for i in (0, 4):
        z = F.gelu(normalized(F, theta, f"{i + 1}.", affine(theta, f"{i}.", z)))
        z = dropped(F, z, 0.2, i + 4)
    return affine(theta, "8.", z)


def torch_tanh_network(F, m, theta, z):
    h = F.rms_norm(affine(theta, "0.", z), (6,), theta["1.gamma"], 1e-6)
    return affine(theta, "3.", F.tanh(h))


def torch_leaky_network(F, m, theta, z):
    z = F.leaky_relu(affine(theta, "0.", z), 0.2)
    return affine(theta, "4.", F.leaky_relu(affine(theta, "2.", z), 0.2))


def torch_recomputed(F, m, theta, z):
    z = F.gelu(normalized(F, theta, "body.1.", affine(theta, "body.0.", z)))
    return affine(theta, "body.4.", dropped(F, z, 0.3, 5))


def torch_recomputed_block(F, m, theta, z, mask):
    """The body of Recompute is use 1."""
    return transformer_block(F, bp.TransformerBlock(4, 2, dropout=0.2), under(theta, "body."), z, mask, 1)


def torch_recomputed_stack(F, m, theta, z, mask):
    """The first block is use 2."""
    z = transformer_block(F, bp.TransformerBlock(4, 2, dropout=0.2), under(theta, "body.0."), z, mask, 2)
    z = F.rms_norm(z, z.shape[-1:], theta["body.1.gamma"], 1e-6)
    return transformer_block(F, bp.TransformerBlock(4, 2), under(theta, "body.2."), z, mask)
