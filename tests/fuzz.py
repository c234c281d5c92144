"""Mutate checkpoints at random: each loads as what it says, or is refused by CheckpointError with everything as it was.

    python tests/fuzz.py --mutations 5000

A run with all that a checkpoint can hold is saved in the middle of an epoch. Half of the mutations damage the bytes: bits and
bytes flipped, in the whole file and in its header, blocks cleared or exchanged, the file cut or made longer. What loads then is
equal to what was saved, bit for bit. The others change what is said, with checksums that fit: entries of the header removed,
renamed or given another type, tensors removed, added, renamed, reshaped, converted, filled with NaN. A trainer in the middle of
another run resumes from each, and Network.load reads each. Exit status 1 where anything else happens.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from runs import Call, assert_same, become, examples, trainer

import bpcore as bp
from bpcore import checkpoint, schedules
from bpcore.training import state

Tensors = dict[str, np.ndarray]
VALUES = [None, True, -1, 0, 3.5, 10**30, float("nan"), "text", "", [], {}, [1, 2], {"class": "text"}, [[]], "bpcore.Linear"]


def run(stop: int, seed: int) -> bp.Trainer:
    """A run with all that a checkpoint can hold, stopped after a step in the middle of an epoch."""
    made = trainer(
        bp.Sequential(bp.Linear(5, 8), bp.BatchNorm(8), bp.ReLU(), bp.Dropout(0.3), bp.Linear(8, 3)),
        dtype="float32",
        compute_dtype="float16",
        optimizer=bp.NAdam(0.05),
        schedule=schedules.WarmUp(3, schedules.ReduceOnPlateau(0.5, patience=0, threshold=0.5)),
        metrics=["accuracy"],
        callbacks=[
            bp.EarlyStopping(patience=100),
            bp.Checkpoint(os.devnull, best="test_loss", every=10**6),
            bp.Progress(lines=False),
            Call(lambda trainer, J: setattr(trainer, "interrupted", trainer.steps == stop)),
        ],
        seed=seed,
    )
    X, y = examples()
    made.fit((X.astype("float32"), y), (X.astype("float32"), y), epochs=9, batch_size=8)
    return made


def damage(generator: np.random.Generator, content: bytes) -> tuple[str, bytes]:
    """(what was done, the content of a file after it)."""
    data, end = bytearray(content), 8 + int.from_bytes(content[:8], "little")
    kind = str(generator.choice(["bit", "bytes", "header's bytes", "a block", "two blocks", "cut", "longer"]))
    at, other = (int(i) for i in generator.integers(0, len(data), 2))
    if kind == "bit":
        data[at] ^= 1 << int(generator.integers(8))
    elif kind == "cut":
        del data[at:]
    elif kind == "longer":
        data[at:at] = generator.bytes(int(generator.integers(1, 20)))
    elif kind == "a block":
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    elif kind == "two blocks":
        at, other = min(at, len(data) - 32), min(other, len(data) - 32)
        data[at : at + 32], data[other : other + 32] = data[other : other + 32], data[at : at + 32]
    else:
        for i in generator.integers(0, len(data) if kind == "bytes" else end, int(generator.integers(1, 5))):
            data[i] = int(generator.integers(256 if kind == "bytes" else 127))
    return f"{kind} at {at}", bytes(data)


def places(value: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """(path, container, key) of every entry of a header, at any depth."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [p for key in keys for p in ((f"{path}/{key}", value, key), *places(value[key], f"{path}/{key}"))]


def change(generator: np.random.Generator, tensors: Tensors, header: dict[str, Any]) -> tuple[str, bytes]:
    """(what was done, the content of a file that says something else), with checksums that fit."""
    tensors, header = dict(tensors), copy.deepcopy(header)
    found = places(header)
    path, container, key = found[int(generator.integers(len(found)))]
    name = str(generator.choice(sorted(tensors)))
    of_tensors: dict[str, Callable[[np.ndarray], Any]] = {
        "reshape": lambda x: x.reshape(1, *x.shape),
        "cut": lambda x: x[:-1],
        "float64": lambda x: x.astype("float64"),
        "int32": lambda x: x.astype("int32"),
        "NaN": lambda x: np.full_like(x, np.nan),
        "empty": lambda x: x[:0],
        "scalar": lambda x: np.asarray(1.0, x.dtype),
    }
    kind = str(generator.choice(["remove", "retype", "rename", "remove tensor", "add tensor", "rename tensor", *of_tensors]))
    if kind == "remove":
        del container[key]
    elif kind == "retype":
        value = VALUES[int(generator.integers(len(VALUES)))]
        container[key] = value
        kind += f" to {value!r}"
    elif kind == "rename":
        if isinstance(container, dict):
            container[f"{key}s"] = container.pop(key)
        else:
            container.append(copy.deepcopy(container[key]))
    elif kind == "remove tensor":
        del tensors[name]
    elif kind == "add tensor":
        tensors[f"{name}.more"] = np.ones(3)
    elif kind == "rename tensor":
        tensors[f"{name}s"] = tensors.pop(name)
    else:
        tensors[name] = of_tensors[kind](tensors[name])
    where = name if "tensor" in kind or kind in of_tensors else path
    return f"{kind}: {where}", checkpoint.pack(tensors, header)


def fuzz(mutations: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """(how many were loaded and refused, what went wrong otherwise)."""
    generator, tally, wrong = np.random.default_rng(seed), Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        saved, other = run(12, seed=1), run(7, seed=2)
        saved.save(path)
        content, (tensors, header) = path.read_bytes(), checkpoint.read(path)
        whole, before, expected = *copy.deepcopy((become(saved), become(other))), kinds(saved)
        for number in range(mutations):
            damaged = number % 2 == 0
            what, mutated = damage(generator, content) if damaged else change(generator, tensors, header)
            path.write_bytes(mutated)
            for reader in ("resume", "load"):
                try:
                    if reader == "resume":
                        other.resume(path)
                    else:
                        net = bp.Network.load(path, backend="numpy")
                    tally[f"{reader}: loaded"] += 1
                    if damaged:
                        theta = net.theta if reader == "load" else other.network.theta
                        assert theta.tobytes() == saved.network.theta.tobytes(), "another θ was loaded"
                        assert reader == "load" or same(become(other), whole), "something else was loaded"
                    elif reader == "resume":
                        got = kinds(other)
                        assert got == {name: expected.get(name, got[name]) for name in got}, "arrays of other shapes were loaded"
                except bp.CheckpointError:
                    tally[f"{reader}: refused"] += 1
                    if not same(become(other), before):
                        wrong.append(f"{what}: {reader} refused it, and something had changed")
                except Exception as error:
                    wrong.append(f"{what}: {reader} gave {type(error).__name__}: {error}"[:300])
                if not same(become(other), before):
                    other = run(7, seed=2)
    return tally, wrong


def kinds(run: bp.Trainer) -> dict[str, Any]:
    """Shape and dtype of each array in a run's state."""
    return {name: (array.shape, array.dtype) for name, array in state.of(run)[0].items()}


def same(got: Any, expected: Any) -> bool:
    """Whether two results of `become` are equal, bit for bit."""
    try:
        assert_same(got, expected)
    except AssertionError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=5000, help="how many (5000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (0)")
    arguments = parser.parse_args()
    tally, wrong = fuzz(arguments.mutations, arguments.seed)
    print("\n".join(wrong))
    print(json.dumps(tally), f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
