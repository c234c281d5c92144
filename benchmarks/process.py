"""The parent's side of a worker: a process with one engine in one cell, asked and answering by lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from engines import ENGINES

HERE = Path(__file__).parent
POOLS = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMBA")


class LeftOut(Exception):
    """An engine that cannot take part, and why; `failed` where it should have."""

    def __init__(self, reason: str, failed: bool = False):
        super().__init__(reason)
        self.failed = failed


def environment(threads: int, tf32: bool, engine: str | None = None) -> dict[str, str]:
    """Of a process: this clone's bpcore, so many threads, and what the engine wants."""
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    pools = {f"{pool}_NUM_THREADS": str(threads) for pool in POOLS}
    precision = {"CUPY_TF32": "1"} if tf32 else {"NVIDIA_TF32_OVERRIDE": "0"}
    wanted = ENGINES[engine].environment if engine else {}
    return {**os.environ, **pools, **precision, "TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONPATH": path, **wanted}


class Process:
    """A worker. Raises LeftOut where it says that it cannot do the cell, and where it ends without an answer."""

    def __init__(self, engine: str, cell: str, threads: int, tf32: bool):
        command = [sys.executable, str(HERE / "worker.py"), engine, cell, str(threads), "on" if tf32 else "off"]
        pipe, given = subprocess.PIPE, environment(threads, tf32, engine)
        self.worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=given)
        self.ready = self.answer()

    def ask(self, **request: Any) -> Any:
        """Its answer."""
        assert self.worker.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # there will be no answer either
            print(json.dumps(request), file=self.worker.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """Its next line."""
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
        """Let it go."""
        for stream in (self.worker.stdin, self.worker.stdout):
            if stream is not None:
                stream.close()
        self.worker.wait()
