"""The process of one engine of modules.py. Each line of JSON on its input names a row; it answers with what it measured.

python module_worker.py ENGINE COPIED
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Any

from module_rows import Row, rows
from modules import TORCH
from primitive_draw import SIZES, Draw
from primitive_worker import Clock
from process import serve

import bpcore as bp
from bpcore.array import is_floating
from bpcore.context import quiet
from bpcore.layout import Layout
from bpcore.module import fresh_lists
from bpcore.primitive import load

Passes = dict[str, Callable[[], Any]]  # by name: "forward", "backward", an optimiser's "update"


def of_bpcore(row: Row, draw: Draw) -> Passes:
    """In training mode; what was saved serves every backward pass."""
    module, z = row.module(bp), row.draw(draw)
    if isinstance(module, bp.Optimizer):
        theta, g = z
        state = module.start(theta)
        return {"update": lambda: module.update(theta, g, state, 3, module.lr, len(theta))}
    layout = Layout(module)
    theta = layout.windows(layout.draw(0).astype("float32"))
    gradient = layout.windows(draw.out(layout.trained), draw.out(layout.spare))
    u, saved = module.forward(theta, *z, mode=bp.Mode(True))
    v = draw.z(*u.shape) if u.ndim else 1.0
    return {
        "forward": lambda: module.forward(theta, *z, mode=bp.Mode(True)),
        "backward": lambda: module.backward(theta, fresh_lists(saved), v, gradient, is_floating(z[0])),
    }


def torch_of(row: Row, draw: Draw, channels_last: bool) -> tuple[Any, list[Any]]:
    """PyTorch's module or function, and its inputs: images and sequences in its order, or as a view in bpcore's order."""
    import torch

    module = row.torch(torch) if row.torch else row.module(torch.nn)
    z = [torch.from_numpy(x) for x in row.draw(draw)]
    if row.first:
        z[0] = z[0].movedim(-1, 1)
        if not channels_last:
            z[0] = z[0].contiguous()
        elif isinstance(module, torch.nn.Module) and z[0].ndim == 4:
            module.to(memory_format=torch.channels_last)
    return module, z


def of_torch(row: Row, draw: Draw, channels_last: bool) -> Passes:
    """The backward pass on a graph that is kept. Nothing where an engine would repeat another one, or PyTorch has nothing."""
    import torch

    its = row.module(bp)
    if (isinstance(its, bp.Optimizer) and row.torch is None) or (channels_last and not row.first):
        return {}
    module, z = torch_of(row, draw, channels_last)
    if isinstance(its, bp.Optimizer):
        theta = torch.nn.Parameter(z[0])
        theta.grad = z[1]
        return {"update": module([theta]).step}
    wanted = [x.requires_grad_() for x in (z[:1] if isinstance(its, bp.Loss) else z) if x.is_floating_point()]
    wanted += module.parameters() if hasattr(module, "parameters") else ()
    u = module(*z)
    u = u[0] if isinstance(u, tuple) else u  # the outputs of all tokens, before the last state
    v = torch.randn_like(u) if u.ndim else None
    return {"forward": lambda: module(*z), "backward": lambda: torch.autograd.grad(u, wanted, v, retain_graph=True)}


class Worker:
    """An engine with the passes of its last row."""

    def __init__(self, engine: str, copied: int):
        self.engine, self.clock = engine, Clock(copied)
        if engine == "fast" and load("kernels.fast")[0] is None:
            raise ImportError(load("kernels.fast")[1])
        if engine in TORCH:
            import torch

            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.drawn: tuple[str, str] | None = None
        self.passes: Passes = {}

    def copies(self) -> dict[str, float]:
        """Bytes a second of a copy, read plus written."""
        return {"bytes": 2 * self.clock.source.nbytes / min(self.clock.seconds(self.clock.copy, 0.1) for _ in range(3))}

    @quiet
    def answer(self, name: str, size: str, seconds: float) -> dict[str, Any]:
        """The seconds of each pass, or why they cannot be measured."""
        try:
            if self.drawn != (name, size):
                self.drawn, self.passes = None, {}
                gc.collect()
                row, draw = rows(SIZES[size])[name], Draw(bp.get_backend("numpy"), "float32", SIZES[size])
                self.passes = of_torch(row, draw, self.engine == TORCH[1]) if self.engine in TORCH else of_bpcore(row, draw)
                for call in self.passes.values():
                    call()  # compiles
                self.drawn = name, size
            return {name: self.clock.seconds(call, seconds) for name, call in self.passes.items()}
        except Exception as error:  # where one fails, the other rows are still measured
            return {"failed": f"{type(error).__name__}: {error}"}


def start() -> tuple[dict[str, float], Callable[..., dict[str, Any]]]:
    """What a copy reaches, and what answers."""
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    return worker.copies(), worker.answer


if __name__ == "__main__":
    serve(start)
