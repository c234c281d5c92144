"""PyTorch's engines: eager, compiled, on a GPU."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from cells import Cell, Theta
from engines import Engine, Unable


def mlp(cell: Cell) -> Any:
    """An MLP, with bpcore's indices of layers."""
    from torch import nn

    parts = [part for n, m in pairwise(cell.sizes) for part in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def cnn(cell: Cell) -> Any:
    """The CNN, with bpcore's indices of layers, on images (n, channels, height, width)."""
    from torch import nn

    def convolution(c_in: int, c_out: int, kernel: int, **options: Any) -> Any:
        return nn.Conv2d(c_in, c_out, kernel, bias=False, **options), nn.BatchNorm2d(c_out), nn.ReLU()

    return nn.Sequential(
        *convolution(1, 24, 5, stride=2, padding=2),
        *convolution(24, 48, 3),
        nn.MaxPool2d(2),
        *convolution(48, 96, 3),
        nn.Flatten(),
        nn.Dropout(cell.dropout),
        nn.Linear(96 * 4 * 4, 10),
    )


def resnet(cell: Cell) -> Any:
    """The ResNet, with bpcore's indices of layers, on images (n, channels, height, width)."""
    from torch import nn

    class Residual(nn.Sequential):
        def forward(self, z: Any) -> Any:
            return z + super().forward(z)

    class GlobalAvgPool(nn.AdaptiveAvgPool2d):
        def forward(self, z: Any) -> Any:
            return super().forward(z).flatten(1)

    def convolution(c_in: int, c_out: int, stride: int = 1) -> Any:
        return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(c_out)

    layers: list[Any] = []
    before = cell.image[2]
    for c in cell.sizes:
        layers += [*convolution(before, c, 2 if layers else 1), nn.ReLU()]
        for _ in range(2):
            layers += [Residual(*convolution(c, c), nn.ReLU(), *convolution(c, c)), nn.ReLU()]
        before = c
    return nn.Sequential(*layers, GlobalAvgPool(1), nn.Linear(before, 10))


def transformer(cell: Cell) -> Any:
    """The transformer, with bpcore's indices of layers; the last layer shares the weight of the first."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    vocabulary, tokens, d, heads, blocks = cell.dims

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(tokens, d))

        def forward(self, z: Any) -> Any:
            return z + self.weight[: z.shape[1]]

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(d, 3 * d)
            self.out = nn.Linear(d, d)

        def forward(self, z: Any) -> Any:
            n, t, _ = z.shape
            q, k, v = self.qkv(z).view(n, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(mixed.transpose(1, 2).reshape(n, t, d))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(d)
            self.attention = Attention()
            self.feed = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

        def forward(self, z: Any) -> Any:
            z = z + self.attention(self.norm(z))
            return z + self.feed(z)

    class Unembed(nn.Module):
        def __init__(self, embedding: Any) -> None:
            super().__init__()
            self.embedding = embedding

        def forward(self, z: Any) -> Any:
            return z @ self.embedding.weight.T

    embedding = nn.Embedding(vocabulary, d)
    blocks = (Block() for _ in range(blocks))
    return nn.Sequential(embedding, Positions(), *blocks, nn.LayerNorm(d), Unembed(embedding))


NAMES = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias"}


def load(model: Any, theta: Theta) -> None:
    """Copy θ into the model. Raises an error unless each parameter of both is used once."""
    import torch

    named = dict(model.named_parameters())
    modules = dict(model.named_modules())
    for path, value in theta.items():
        head, _, last = path.replace(".body", "").rpartition(".")
        if head.endswith("attention"):
            head += ".out" if last.endswith("_o") else ".qkv"
        module = modules[head]
        x = torch.from_numpy(value)
        if isinstance(module, torch.nn.Conv2d):
            x = x.permute(3, 2, 0, 1)
        elif isinstance(module, torch.nn.Linear) and x.ndim > 1:
            if any(isinstance(part, torch.nn.Flatten) for part in model):
                x = x.view(4, 4, 96, -1).permute(2, 0, 1, 3).flatten(0, 2)  # channels come first here
            x = x.T
        with torch.no_grad():
            named.pop(f"{head}.{NAMES[last.removesuffix('_o')]}").copy_(x)
    if named:
        raise ValueError(f"θ has no values for {', '.join(named)}")


def build(
    cell: Cell,
    theta: Theta,
    device: str = "cpu",
    mode: str | None = None,
    channels_last: bool = False,
    schedule: Any = None,
    precision: str = "f32",
) -> Engine:
    """A model with its fused optimiser. mode: of torch.compile, None for eager. schedule: step -> factor on lr.

    In f16 and bf16 it computes by autocast, in f16 with a scaled loss. f32 and tf32 differ by `set_precision`.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    if device == "cuda" and not torch.cuda.is_available():
        raise Unable("PyTorch finds no CUDA GPU")
    half = {"f16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    model = {"mlp": mlp, "cnn": cnn, "resnet": resnet, "transformer": transformer}[cell.kind](cell)
    load(model, theta)
    model.to(device, memory_format=torch.channels_last) if channels_last else model.to(device)

    def in_half(X: Any) -> Any:
        with torch.autocast(device, half):
            return model(X).float()

    logits = model if half is None else in_half

    def loss_of(X: Any, y: Any) -> Any:
        return F.cross_entropy(logits(X).flatten(0, -2), y.flatten())

    objective = loss_of if mode is None else torch.compile(loss_of, mode=mode, dynamic=False)
    forward = logits if mode is None else torch.compile(logits, mode=mode, dynamic=False)
    scaler = torch.amp.GradScaler(device) if precision == "f16" else None
    if cell.decay:  # it applies to matrices, not to biases and γ, as in bpcore
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": cell.decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer: Any = torch.optim.AdamW(groups, cell.lr, fused=True)
    else:
        optimizer = torch.optim.Adam(model.parameters(), cell.lr, fused=True)
    taken = 0

    def step(X: Any, y: Any) -> Any:
        nonlocal taken
        if schedule is not None:
            for group in optimizer.param_groups:
                group["lr"] = cell.lr * schedule(taken)
            taken += 1
        optimizer.zero_grad()
        J = objective(X, y)
        (J if scaler is None else scaler.scale(J)).backward()
        if cell.clip is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), cell.clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return J

    @torch.no_grad()
    def predict(X: Any) -> Any:
        return forward(X)

    def place(x: Any) -> Any:
        x = torch.from_numpy(x)
        if x.ndim == 4:
            x = x.permute(0, 3, 1, 2)  # channels last in memory
            x = x if channels_last else x.contiguous()
        return x if device == "cpu" else x.to(device)

    def wait(result: Any) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def host(x: Any) -> np.ndarray:
        return x.detach().cpu().numpy()

    if device == "cpu":
        return Engine(step, predict, place, wait, host, model.train)

    def memory() -> float:
        return torch.cuda.max_memory_reserved() / 1e6

    return Engine(step, predict, place, wait, host, model.train, cell.block, memory)


def set_precision(tf32: bool) -> None:
    """Set whether float32 products may use TF32 on a GPU (by default cuDNN's may), and let cuDNN time its algorithms."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
