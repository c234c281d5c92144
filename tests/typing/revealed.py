"""What an editor shows of bpcore's names; test_typing.py asks pyright and compares it with the comments."""

from typing import reveal_type

import bpcore as bp


def body(theta: bp.Windows, trainer: bp.Trainer) -> None:
    reveal_type(bp.functional.linear)  # (z: Array, W: Array, b: Array | None) -> Array
    reveal_type(bp.functional.relu_backward)  # (u: Array, v: Array) -> Array
    reveal_type(theta.W)  # Array
    reveal_type(theta[0].W)  # Array
    reveal_type(bp.functional.gelu(theta.W))  # Array
    reveal_type(trainer.steps)  # int
    reveal_type(trainer.network.theta)  # Array
