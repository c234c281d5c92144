"""A worker as its parent sees it: a process with one engine. Requests and answers are lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from engines import ENGINES

HERE = Path(__file__).parent
POOLS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMBA")


class LeftOut(Exception):
    """The reason why an engine is left out. failed: whether that is an error."""

    def __init__(self, reason: str, failed: bool = False):
        super().__init__(reason)
        self.failed = failed


def environment(threads: int, precision: str = "f32", engine: str | None = None) -> dict[str, str]:
    """The environment variables of a process: this clone's bpcore, the number of threads, and the engine's own."""
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    pools = {f"{pool}_NUM_THREADS": str(threads) for pool in POOLS}
    products = {"CUPY_TF32": "1"} if precision == "tf32" else {"NVIDIA_TF32_OVERRIDE": "0"}
    own = ENGINES[engine].environment if engine else {}
    return {**os.environ, **pools, **products, "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONPATH": path, **own}


class Process:
    """A worker, a script of this folder. Raises LeftOut if it cannot do its work, or ends without an answer."""

    def __init__(self, script: str, *arguments: str, variables: dict[str, str]):
        command = [sys.executable, str(HERE / script), *arguments]
        self.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
        self.ready = self.answer()

    def ask(self, **request: Any) -> Any:
        """The worker's answer to a request."""
        assert self.worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` raises then
            print(json.dumps(request), file=self.worker.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """The worker's next line, decoded."""
        assert self.worker.stdout is not None
        line = self.worker.stdout.readline()
        if not line:
            raise LeftOut(f"its process ended with status {self.worker.wait()}, see its message above", failed=True)
        got = json.loads(line)
        if isinstance(got, dict) and "skipped" in got:
            self.end()
            raise LeftOut(got["skipped"])
        return got

    def end(self) -> None:
        """Close the worker's input, and wait for its end."""
        for stream in (self.worker.stdin, self.worker.stdout):
            if stream is not None:
                stream.close()
        self.worker.wait()


def take_turns(
    workers: dict[str, Process], rounds: int, skipped: dict[str, str], what: str, **request: Any
) -> dict[str, list[Any]]:
    """Engine to its answers to a request, one a round. One whose process ends leaves `workers`, and `skipped` says why."""
    found: dict[str, list[Any]] = {engine: [] for engine in workers}
    for _ in range(rounds):
        for engine, worker in list(workers.items()):
            try:
                found[engine].append(worker.ask(**request))
            except LeftOut as reason:
                skipped[engine] = f"{what}: {reason}"
                del workers[engine], found[engine]
    return found


def finish(results: dict[str, Any], lines: Iterable[str]) -> NoReturn:
    """Print the lines, and exit: with status 1 if nothing was measured or a row failed."""
    for line in lines:
        print(line)
    measured = [its for row in results["rows"] for its in row["engines"].values()]
    raise SystemExit(not measured or any("failed" in its for its in measured))


def serve(start: Callable[[], tuple[Any, Callable[..., Any]]]) -> None:
    """Be a worker: say what `start` returns first, or why it can do nothing; what it returns second answers each request."""
    answers = os.fdopen(os.dup(1), "w")  # what a library prints must not reach it

    def say(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    with contextlib.redirect_stdout(sys.stderr):
        try:
            ready, answer = start()
        except (ImportError, RuntimeError, ValueError) as error:
            say({"skipped": str(error)})
            return
        say(ready)
        for line in sys.stdin:
            say(answer(**json.loads(line)))
