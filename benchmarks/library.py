"""What a library costs before it runs: the time of its import, and the bytes that it and its dependencies take on disk."""

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
    """(seconds of an import in a fresh process beyond bare Python's, by round; why there are none)."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    skipped: dict[str, str] = {}
    for i in range(rounds + 1):
        bare = fresh("pass", environment)[0]
        for name, code in IMPORTS.items():
            if name not in skipped:
                seconds, error = fresh(code, environment)
                if error:
                    skipped[name] = error.strip().splitlines()[-1]
                elif i:  # the first one warms the disk's cache
                    times[name].append(seconds - bare)
    return {name: found for name, found in times.items() if found}, skipped


def fresh(code: str, environment: dict[str, str]) -> tuple[float, str]:
    """Seconds that a new process takes to run the code, and its complaint."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    return time.perf_counter() - started, done.stderr if done.returncode else ""


def installed_sizes() -> tuple[dict[str, int], dict[str, str]]:
    """(bytes of a distribution with all it needs, as installed here; why there are none)."""
    sizes: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for name in DISTRIBUTIONS:
        try:
            sizes[name] = sum(size(one) for one in closure(name))
        except (ImportError, PackageNotFoundError) as error:
            skipped[name] = f"not installed: {error}"
    return sizes, skipped


def closure(name: str) -> Iterator[Distribution]:
    """The distribution and what it requires, directly or not, each once. Raises PackageNotFoundError where one is missing."""
    from packaging.requirements import Requirement

    pending, seen = [Requirement(name)], set()
    while pending:
        wanted = pending.pop()
        found = distribution(wanted.name)
        key = found.metadata["Name"].lower().replace("_", "-")
        for extra in ("", *wanted.extras):
            if (key, extra) in seen:
                continue
            if extra and extra not in (found.metadata.get_all("Provides-Extra") or []):
                raise PackageNotFoundError(f"{wanted.name} as installed has no extra {extra}")
            seen.add((key, extra))
            if not extra:
                yield found
            for required in map(Requirement, found.requires or []):
                if required.marker is None or required.marker.evaluate({"extra": extra}):
                    pending.append(required)


def size(found: Distribution) -> int:
    """Bytes of the files of a distribution; of one installed in editable form, those of its package."""
    files = {Path(str(file.locate())).resolve() for file in found.files or []}
    if "editable" in (found.read_text("direct_url.json") or ""):
        package = Path(__file__).parents[1] / found.metadata["Name"]
        files |= {file.resolve() for file in package.rglob("*")}
    return sum(file.stat().st_size for file in files if file.is_file())
