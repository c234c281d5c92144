"""The benchmark runs, its engines do the same job, and its arithmetic is right. No time is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from conftest import environment
from emulator import cupy as emulator

import bpcore as bp
from bpcore.layout import Layout
from bpcore.primitive import PRIMITIVES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import cells  # noqa: E402
import engines  # noqa: E402
import figures  # noqa: E402
import library  # noqa: E402
import linear_cost  # noqa: E402
import module_rows  # noqa: E402
import module_worker  # noqa: E402
import modules  # noqa: E402
import primitive_draw  # noqa: E402
import primitive_rows  # noqa: E402
import primitives  # noqa: E402

TWO = ("--quick", "--measures", "cells", "--engines", "mygrad", "gemms-plain")


def run(*arguments: str, path: Path = BENCHMARKS, code: int = 0, script: str = "run.py") -> tuple[str, str]:
    """What the command prints, and complains of; path: where it looks for modules first."""
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    variables = environment()
    variables["PYTHONPATH"] = os.pathsep.join([str(path), variables["PYTHONPATH"]])
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_the_command(tmp_path):
    """A smoke run: a row for each engine, JSON with each round's figures, and the same table from the file."""
    path = tmp_path / "quick.json"
    chosen = ["--quick", "--measures", "cells", "epoch", "--engines", "gemms-plain", "bpcore-plain", "--json", str(path)]
    printed, _ = run(*chosen)
    results = json.loads(path.read_text())
    assert {"machine", "settings", "skipped", "cells", "epoch"} == set(results)
    assert {"cpu", "gpu", "python", "versions", "date"} <= set(results["machine"])
    its = results["cells"]["tiny"]["bpcore-plain"]
    assert len(its["step"]) == len(its["inference"]) == results["settings"]["rounds"] == 2
    assert all(seconds > 0 for seconds in (*its["step"], *its["inference"], its["first"]))
    assert len(results["epoch"]["bpcore-plain"]["fit"]) == 2
    (row,) = (line for line in printed.splitlines() if line.startswith("tiny") and " bpcore-plain " in line)
    assert f"{1e3 * np.median(its['step']):.3f}" in row.split()
    assert f"{figures.ratio(its['step'], results['cells']['tiny']['gemms-plain']['step']).median:.2f}" in row.split()
    assert row in run("--show", str(path))[0]
    checked, _ = run("--show", str(path), "--check", code=1)  # a check of nothing does not pass
    assert "not measured 1. step, tiny: bpcore at most 0.9" in checked


def test_an_engine_that_is_not_there_is_left_out_with_the_reason(tmp_path):
    (tmp_path / "mygrad.py").write_text("raise ImportError('MyGrad is not here')")
    printed, _ = run(*TWO, path=tmp_path)
    assert "left out of tiny: mygrad: MyGrad is not here" in printed
    assert "tiny        gemms-plain" in printed


def test_half_precision_is_for_a_gpu():
    """What computes on a CPU is left out."""
    printed, _ = run(*TWO, "--precision", "f16")
    assert "left out of all: a CPU: f16 is measured on a GPU" in printed
    assert "gemms-plain" not in printed


def test_an_engine_that_fails_is_left_out_and_fails_the_run(tmp_path):
    (tmp_path / "mygrad.py").write_text("raise ZeroDivisionError('a fault')")
    printed, complaints = run(*TWO, path=tmp_path, code=1)
    assert "left out of tiny: mygrad: its process ended with status 1" in printed
    assert "ZeroDivisionError: a fault" in complaints
    assert "tiny        gemms-plain" in printed


def test_ratios_are_of_the_same_round():
    assert figures.ratio([1.0, 2.0, 9.0], [2.0, 2.0, 3.0]) == (1.0, 0.5, 3.0)
    rounds = {"torch": [2.0, 2.0, 8.0], "jax": [1.0, 4.0, 4.0], "bpcore": [1.0, 1.0, 1.0], "gemms": []}
    assert figures.best(rounds, ("torch", "jax", "torch-compile")) == "torch"
    assert figures.best(rounds, ("gemms",)) is None
    assert figures.against(rounds, "bpcore", ("torch", "jax")) == (0.5, 0.125, 0.5)
    assert figures.against(rounds, "gemms", ("torch",)) is None


def results(bpcore: float, fit: float, r2: float, memory: float) -> dict:
    """Figures of one cell, PyTorch's being 1."""
    step = {"bpcore": [bpcore] * 3, "torch": [1.0] * 3, "jax": [2.0] * 3}
    found = {name: {"step": its, "memory": [memory if name == "bpcore" else 1.0]} for name, its in step.items()}
    return {
        "cells": {"tiny": found},
        "epoch": {"bpcore": {"fit": [fit] * 3, "bare": [1.0] * 3}},
        "linear": {"batch": {"r2": r2}},
    }


@pytest.mark.parametrize(("got", "holds"), [((0.9, 1.3, 0.991, 1.0), True), ((0.91, 1.31, 0.99, 1.01), False)])
def test_what_must_hold(got, holds):
    """At the limit, and beyond it; what was not measured is neither."""
    measured = {line: verdict for verdict, line in figures.verdicts(results(*got)) if verdict is not None}
    assert [line[:2] for line in measured] == ["1.", "4.", "4.", "5."]
    assert set(measured.values()) == {holds}


@pytest.mark.parametrize(("precision", "held"), [("f32", [True]), ("tf32", [False]), ("f16", [False]), ("bf16", [])])
def test_limits_at_a_precision(precision, held):
    """A ResNet at 1.05 of the best of PyTorch's: that holds in float32, in bfloat16 nothing is asked for."""
    step = {"bpcore-cupy-graph": 1.05, "torch-cuda": 2.0, "torch-cuda-cl": 1.0, "torch-cuda-reduce-overhead": 1.5}
    resnet = {name: {"step": [seconds] * 3} for name, seconds in step.items()}
    verdicts = figures.verdicts({"settings": {"precision": precision}, "cells": {"resnet": resnet}})
    assert [holds for holds, line in verdicts if "resnet" in line] == held


@pytest.mark.parametrize(("seconds", "holds"), [(1.0, True), (1.01, False)])
def test_limits_on_inference_on_a_gpu(seconds, holds):
    """Against the best of PyTorch's."""
    rounds = {"bpcore-cupy-graph": seconds, "torch-cuda": 2.0, "torch-cuda-compile": 1.0}
    deep = {name: {"inference": [its] * 3} for name, its in rounds.items()}
    assert [got for got, line in figures.verdicts({"cells": {"deep": deep}}) if got is not None] == [holds]


@pytest.mark.parametrize(("mean", "holds"), [(0.99, True), (1.03, False), (math.nan, False)])
def test_limits_on_losses(mean, holds):
    """Of the last steps, against float32's; a precision that was not measured is neither."""
    losses = {"f32": [9.0, *[1.0] * 10], "f16": [1.0, *[mean - 0.1, mean + 0.1] * 5]}
    verdicts = {line.partition(" within")[0]: got for got, line in figures.verdicts({"cells": {}, "losses": losses})}
    assert verdicts["7. losses, transformer: f16"] is holds
    assert verdicts["7. losses, transformer: bf16"] is None


def test_losses(tmp_path):
    path = tmp_path / "losses.json"
    run("--quick", "--measures", "losses", "--engines", "bpcore-plain", "--json", str(path))
    found = json.loads(path.read_text())["losses"]
    assert set(found) == {"f32"}  # on a CPU
    assert len(set(found["f32"])) == 2


def test_r2_of_a_line():
    fit = linear_cost.line([1, 2, 3, 4], [3, 5, 7, 9])
    np.testing.assert_allclose([fit["slope"], fit["intercept"], fit["r2"]], [2, 1, 1])
    x, y = np.arange(6.0), np.array([0.0, 3.0, 1.0, 5.0, 4.0, 9.0])
    assert linear_cost.line(x, y)["r2"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert all(len(points) >= 6 for points in linear_cost.PANELS.values())


@pytest.mark.parametrize("name", ["small", "deep", "cnn", "transformer", "gpt", "resnet"])
def test_gemms_are_those_of_the_step(name):
    """They are nearly all of the operations that bpcore counts forward, and it needs twice as many backward."""
    cell = replace(cells.CELLS[name], batch=2)
    counted = bp.cost(engines.bpcore_module(cell), next(cells.batches(cell))[0])
    products = cells.products(cell)
    assert 0.9 < 2 * sum(p.stack * p.n * p.k * p.m for p in products) / counted.forward < 1
    embedded = name in ("transformer", "gpt")  # embeddings have θ before
    assert [p.need_left for p in products] == [embedded, *[True] * (len(products) - 1)]


def test_bare_gemms_compute_products():
    cell = replace(cells.CELLS["small"], batch=2)
    engine = engines.bare_gemms(cell, {}, plain=True)
    first = engine.predict(None).copy()
    engine.step(None, None)
    assert np.all(first)
    np.testing.assert_array_equal(engine.predict(None), first)  # a step writes no operand of the forward pass


def test_sizes_on_disk():
    """NumPy alone, and what needs it."""
    alone = sum(map(library.size, library.closure("numpy")))
    assert 1e7 < alone < sum(map(library.size, library.closure("safetensors[numpy]"))) < 1e9
    with pytest.raises(library.PackageNotFoundError, match="no extra nonsense"):
        list(library.closure("numpy[nonsense]"))


KINDS = {
    "mlp": cells.CELLS["tiny"],
    "cnn": replace(cells.CELLS["cnn"], batch=8, dropout=0.0),  # masks differ
    "transformer": replace(cells.CELLS["transformer"], batch=2),
    "gpt": replace(cells.CELLS["gpt"], batch=2, dims=cells.Transformer(32, 8, 16, 2, 2)),
    "resnet": replace(cells.CELLS["resnet"], batch=8, sizes=(8, 16), image=(8, 8, 3)),
}
STEPS = """
import contextlib, json, sys
import test_benchmarks as test
with contextlib.redirect_stdout(sys.stderr):
    found = test.losses(*sys.argv[1:])
print(json.dumps(found))
"""


def losses(name: str, kind: str, precision: str = "f32") -> list[float]:
    """J of some steps, and the mean of what the network then answers."""
    cell = KINDS[kind]
    engine = engines.build(name, cell, cells.theta(cell), precision)
    ring = [(engine.place(X), engine.place(labels[0])) for X, labels in islice(cells.batches(cell), 4)]
    found = [float(engine.host(engine.step(X, y))) for _ in range(4) for X, y in ring]
    engine.training(False)
    return [*found, float(np.square(engine.host(engine.predict(ring[0][0]))).mean())]


def losses_of(name: str, *arguments: str) -> list[float]:
    """`losses` in a process of the engine's own."""
    root = engines.ENGINES[name].library.partition(".")[0]
    if find_spec(root) is None:
        pytest.skip(f"{root} is not installed")
    variables = environment(**engines.ENGINES[name].environment)
    command = [sys.executable, "-c", STEPS, name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("torch", kind) for kind in KINDS),
        *(("jax", kind) for kind in KINDS),
        *(("torch-cl", kind) for kind in ("cnn", "resnet")),
        *((name, "mlp") for name in ("mygrad", "sklearn", "thinc")),
    ],
)
def test_engines_do_the_same_job(name, kind):
    """From one θ, on the same batches, they have the losses that bpcore has, and they fall."""
    got, expected = losses_of(name, kind), losses("bpcore-plain", kind)
    probabilities = name in ("sklearn", "thinc")  # they have no logits
    np.testing.assert_allclose(got[: -1 if probabilities else None], expected[: -1 if probabilities else None], rtol=2e-3)
    assert sum(got[12:16]) < sum(got[:4])


@pytest.mark.parametrize(
    ("name", "kind", "precision"),
    [
        *((name, kind, "bf16") for name in ("torch", "jax") for kind in ("gpt", "resnet")),
        *((name, kind, "f16") for name in ("torch", "bpcore-plain") for kind in ("gpt", "resnet")),
        ("jax", "resnet", "f16"),  # its attention in float16 is for GPUs
    ],
)
def test_half_precision_does_the_same_job(name, kind, precision):
    """The losses are close to those of float32, and not the same: something is computed in half precision."""
    got, exact = (losses_of if name != "bpcore-plain" else losses)(name, kind, precision), losses("bpcore-plain", kind)
    np.testing.assert_allclose(got[:16], exact[:16], rtol=5e-3 if precision == "f16" else 4e-2)
    assert max(abs(a / b - 1) for a, b in zip(got[:16], exact[:16], strict=True)) > 1e-5


def test_a_precision_that_bpcore_does_not_have_leaves_it_out():
    cell = KINDS["gpt"]
    with pytest.raises(engines.Unable, match="tf32"):
        engines.build("bpcore-plain", cell, cells.theta(cell), "tf32")


def test_sizes_of_the_cells_of_a_gpu():
    """20 convolutions and 14 million parameters; 12 blocks and 92 million."""
    resnet, gpt = cells.CELLS["resnet"], cells.CELLS["gpt"]
    assert len(cells.convolutions(resnet)) == 20
    count = {name: sum(map(math.prod, cells.shapes(cells.CELLS[name]).values())) for name in ("resnet", "gpt", "gpt-2048")}
    assert 13e6 < count["resnet"] < 15e6
    assert 91e6 < count["gpt"] < 93e6
    assert count["gpt-2048"] - count["gpt"] == (2048 - 512) * gpt.dims.d


SMALL = primitive_draw.SIZES["small"]


def test_every_primitive_has_a_row():
    assert set(primitive_rows.rows()) == set(PRIMITIVES)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_rows_of_primitives(name):
    """Each takes its arguments; it moves something; and those with products have operations."""
    draw, known = primitive_draw.Draw(bp.get_backend("numpy"), "float32", SMALL), PRIMITIVES[name]
    for row in primitive_rows.rows(SMALL)[name]:
        arguments = row.draw(draw)
        results = known.call(*arguments)
        assert all(np.isfinite(x).all() for x in primitive_rows.arrays(tuple(arguments)))
        assert primitive_rows.moved(known, row, arguments, results) > 0
        counted = primitive_rows.operations(known, row, arguments)
        assert (counted > 0) == (primitive_rows.family(known) in primitive_rows.PRODUCTS and name != "joined")  # which moves data


@pytest.mark.parametrize(
    ("name", "numbers", "counted"),
    [
        ("gelu_backward", 3 * 16 * 64, 0),
        ("linear", 16 * 16 + 16 * 64 + 64 + 16 * 64, 2 * 16 * 16 * 64 + 16 * 64),
        ("attention", 2 * 8 * (48 + 16) + 2 * 2 * 8, None),
        ("batch_norm_backward", 2 * 8 * 8 * 8 * 5 + 5 * 8, 0),
        ("embedding", 2 * 2 * 8 * 16 + 2 * 16, 0),  # ids are twice as large as numbers
        ("keep_mask", 16 * 64 / 4, 0),
        ("adam", 7 * 1000, 0),
        ("gathered", 2 * 1000, 0),
    ],
)
def test_what_a_primitive_must_do(name, numbers, counted):
    """Bytes by hand, in numbers of float32, and operations."""
    draw, known = primitive_draw.Draw(bp.get_backend("numpy"), "float32", SMALL), PRIMITIVES[name]
    row = primitive_rows.rows(SMALL)[name][0]
    arguments = row.draw(draw)
    got = primitive_rows.moved(known, row, arguments, known.call(*arguments))
    assert got == pytest.approx(4 * numbers, abs=8)  # a sum of squares is a number more
    if counted is not None:
        assert primitive_rows.operations(known, row, arguments) == counted


def test_the_command_for_primitives(tmp_path):
    """A smoke run: each engine's figures in a file, and the same table from it."""
    pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted: definitions compute")
    path = tmp_path / "quick.json"
    chosen = ("--only", "matmul", "gelu", "--engines", "cpu-plain", "cpu-off", "gpu")
    printed, _ = run("--quick", *chosen, "--json", str(path), script="primitives.py")
    results = json.loads(path.read_text())
    assert {"machine", "settings", "skipped", "ceilings", "rows"} == set(results)
    assert [row["primitive"] for row in results["rows"]] == ["matmul", "matmul", "gelu"]
    gelu = results["rows"][-1]["engines"]
    assert (gelu["cpu-plain"]["set"], gelu["cpu-off"]["set"]) == ("numpy", "definition")
    assert "gpu" in gelu or "CuPy" in results["skipped"]["gpu"]
    (line,) = (
        line for line in printed.splitlines() if line.startswith("gelu ") and "ms lost" not in line and "cpu-plain" in line
    )
    ms = np.median(gelu["cpu-plain"]["seconds"]) * 1e3
    assert f"{ms:.3f}" in line.split()
    assert line in run("--show", str(path), script="primitives.py")[0]


def test_fractions_of_the_ceiling():
    """A floor is the longer of both, at the device's highest figures; what is below half is listed, the largest loss first."""

    def row(name: str, seconds: float, bytes: float, operations: float, **more: float) -> dict:
        its = {"bytes": bytes, "operations": operations, "set": "fast"}
        others = {engine: its | {"seconds": [slower] * 3} for engine, slower in more.items()}
        return {"primitive": name, "label": "", "engines": {"cpu": its | {"seconds": [seconds, seconds, 9.0]}, **others}}

    ceilings = {"cpu": {"bytes": 50.0, "operations": 10.0}, "cpu-off": {"bytes": 100.0, "operations": 5.0}}
    rows = [row("a", 2.0, 100.0, 5.0, **{"cpu-off": 4.0}), row("b", 4.0, 100.0, 15.0), row("c", 3.0, 90.0, 0.0)]
    rows.append({"primitive": "d", "label": "", "engines": {"cpu": {"failed": "MemoryError: "}}})
    *_, a, b, c, failed, count, first, second = primitives.lines({"skipped": {}, "ceilings": ceilings, "rows": rows})
    assert [line.split()[6] for line in (a, b, c)] == ["0.50", "0.38", "0.30"]
    assert "failed: MemoryError" in failed
    assert count.endswith(": 2")
    assert (first[0], second[0]) == ("b", "c")
    assert "2.500 ms lost" not in first
    assert "2500.000 ms lost" in first


ROWS = module_rows.rows(SMALL)
RANDOM = ("Dropout", "Dropout2d")  # masks differ


def test_every_module_and_optimiser_has_a_row():
    of = {name.split()[0] for name in ROWS} | set(module_rows.WITHOUT)
    assert of == {*bp.modules.__all__, *bp.optimizers.__all__} - {"Loss", "Module", "Optimizer"}


@pytest.mark.parametrize("name", ROWS)
def test_modules_of_pytorch_do_the_same_job(name):
    """Outputs and gradients have bpcore's shapes; without parameters and masks, outputs have its values."""
    pytest.importorskip("torch")
    row = ROWS[name]

    def draw() -> primitive_draw.Draw:
        return primitive_draw.Draw(bp.get_backend("numpy"), "float32", SMALL)

    ours = module_worker.of_bpcore(row, draw())
    for channels_last in (False, True):
        theirs = module_worker.of_torch(row, draw(), channels_last)
        if not theirs:
            assert channels_last or name == "Lion"
            continue
        assert list(ours) == list(theirs)
        if "update" in ours:
            theirs["update"]()
            continue
        (expected, _), gradient = ours["forward"](), ours["backward"]()
        u, dz = theirs["forward"](), theirs["backward"]()[0]
        u, dz = (x.movedim(1, -1) if row.first and x.ndim > 2 else x for x in (u[0] if isinstance(u, tuple) else u, dz))
        gradient = gradient[0] if isinstance(gradient, tuple) else gradient
        assert gradient is None or gradient.shape == dz.shape
        assert expected.shape == u.shape
        if not Layout(row.module(bp)).size and name not in RANDOM:
            np.testing.assert_allclose(u.detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_command_for_modules(tmp_path):
    """A smoke run: each engine's figures in a file, and the same table from it."""
    path = tmp_path / "quick.json"
    chosen = ("--only", "AvgPool2d", "Lion", "--engines", "plain", "off", "torch-cl")
    printed, _ = run("--quick", *chosen, "--json", str(path), script="modules.py")
    results = json.loads(path.read_text())
    assert {"machine", "settings", "skipped", "copies", "rows"} == set(results)
    assert [(row["module"], row["size"]) for row in results["rows"]] == [("AvgPool2d", "small"), ("Lion", "small")]
    pool, lion = (row["engines"] for row in results["rows"])
    assert set(pool["plain"]) == {"forward", "backward"}
    assert set(lion["off"]) == {"update"}
    assert not lion.get("torch-cl")  # PyTorch has no such optimiser
    assert "torch-cl" in pool or "torch" in results["skipped"]["torch-cl"]
    line = next(line for line in printed.splitlines() if line.startswith("AvgPool2d") and " forward " in line)
    assert f"{np.median(pool['off']['forward']) * 1e3:.3f}" in line.split()
    assert line in run("--show", str(path), script="modules.py")[0]


def test_modules_past_their_limit():
    """The quicker of PyTorch's layouts is the reference of a pass; without PyTorch it is the last engine, and nothing is past."""
    torch = {"torch": {"forward": [2.0] * 3, "backward": [1.0] * 3}, "torch-cl": {"forward": [1.0] * 3, "backward": [2.0] * 3}}
    ours = {"fast": {"forward": [1.2, 1.1, 9.0], "backward": [1.5] * 3}, "plain": {"forward": [7.0] * 3, "backward": [6.0] * 3}}
    update = {"fast": {"update": [0.1]}, "off": {"update": [0.2]}}
    rows = [
        {"module": "GRU", "size": "usual", "engines": ours | torch},
        {"module": "Exp", "size": "usual", "engines": ours},
        {"module": "Adam", "size": "small", "engines": update},
        {"module": "Log", "size": "small", "engines": {"fast": {"failed": "MemoryError: "}}},
    ]
    _, _, *printed = modules.lines({"skipped": {}, "copies": {"fast": 28e5}, "rows": rows})
    assert [line.split()[3] for line in printed[:2]] == ["torch-cl", "torch"]
    assert "0.10 of the bandwidth" in printed[4]
    assert "failed: MemoryError" in printed[5]
    assert [line.split()[:3] for line in printed[6:]] == [
        ["fast", "past", "1.2"],
        ["GRU", "usual", "backward"],
        ["plain", "past", "6.0"],
        ["GRU", "usual", "forward"],
    ]


ON_A_GPU = """
import sys, time, emulator.cupy, cupy
class Event:
    def record(self): self.at = time.perf_counter()
    def synchronize(self): pass
cupy.cuda.Event, cupy.cuda.get_elapsed_time = Event, lambda start, end: 1e3 * (end.at - start.at)
sys.path.append(sys.argv[1])
import primitive_worker
primitive_worker.HEAD_START = primitive_worker.CALLS = 2
for precision in ("f32", "tf32", "f16"):
    worker = primitive_worker.Worker("gpu", precision, "small")
    assert min(worker.ceilings(0).values()) > 0
    for name, its in worker.rows.items():
        for i in range(len(its)):
            got = worker.answer(name, i, 0)
            assert got.get("seconds", 0) > 0, (precision, name, got)
            print(name, got["set"])
"""


def test_primitives_on_an_emulated_gpu():
    """Every row in each precision, on a stand-in for CuPy without times; kernels serve."""
    pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted: definitions compute")
    if why := emulator.why_not():
        pytest.skip(why)
    command = [sys.executable, "-c", ON_A_GPU, str(BENCHMARKS)]
    variables = environment(**{emulator.SWITCH: "1", "OMP_NUM_THREADS": "1"})
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert {"gelu cuda", "batch_norm_backward cuda", "adam cuda"} <= set(done.stdout.splitlines())
