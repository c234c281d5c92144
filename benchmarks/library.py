"""The costs of a library before it runs: the time of its import, and the bytes of it and its dependencies on disk."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

IMPORTS = {
    "bpcore": "import bpcore",
    "torch": "import torch",
    "jax": "import jax, jax.numpy",
    "sklearn": "from sklearn.neural_network import MLPClassifier",
    "thinc": "import thinc.api",
    "mygrad": "import mygrad",
}
DISTRIBUTIONS = ("bpcore", "bpcore[fast]", "torch", "jax", "scikit-learn", "thinc", "mygrad")


def import_times(rounds: int, environment: dict[str, str]) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(seconds of an import in each round, in a fresh process, without those of bare Python; reasons why an import failed)."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    skipped: dict[str, str] = {}
    for i in range(rounds + 1):
        bare = fresh("pass", environment)[0]
        for name, code in IMPORTS.items():
            if name not in skipped:
                seconds, error = fresh(code, environment)
                if error:
                    skipped[name] = error.strip().splitlines()[-1]
                elif i:  # the first round warms the disk's cache
                    times[name].append(seconds - bare)
    return {name: rounds for name, rounds in times.items() if rounds}, skipped


def fresh(code: str, environment: dict[str, str]) -> tuple[float, str]:
    """(seconds that a new process takes to run the code; its error message, or "")."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    return time.perf_counter() - started, done.stderr if done.returncode else ""


def installed_sizes() -> tuple[dict[str, int], dict[str, str]]:
    """(bytes of each distribution with its dependencies, as installed; reasons why a size is missing)."""
    sizes: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            sizes[name] = sum(size(required) for required in closure(name))
        except (ImportError, PackageNotFoundError) as error:
            skipped[name] = f"not installed: {error}"
    return sizes, skipped


def closure(name: str) -> Iterator[Distribution]:
    """The distribution and its dependencies, direct or not, each once. Raises PackageNotFoundError if one is missing."""
    from packaging.requirements import Requirement

    pending = [Requirement(name)]
    seen: set[tuple[str, str]] = set()
    while pending:
        wanted = pending.pop()
        installed = distribution(wanted.name)
        key = installed.metadata["Name"].lower().replace("_", "-")
        for extra in ("", *wanted.extras):
            if (key, extra) in seen:
                continue
            if extra and extra not in (installed.metadata.get_all("Provides-Extra") or []):
                raise PackageNotFoundError(f"{wanted.name} as installed has no extra {extra}")
            seen.add((key, extra))
            if not extra:
                yield installed
            for required in map(Requirement, installed.requires or []):
                if required.marker is None or required.marker.evaluate({"extra": extra}):
                    pending.append(required)


def size(installed: Distribution) -> int:
    """Bytes of the files of a distribution, those of its package too if it is installed in editable form."""
    files = {Path(str(file.locate())).resolve() for file in installed.files or []}
    if "editable" in (installed.read_text("direct_url.json") or ""):
        package = Path(__file__).parents[1] / installed.metadata["Name"]
        files |= {file.resolve() for file in package.rglob("*")}
    return sum(file.stat().st_size for file in files if file.is_file())
