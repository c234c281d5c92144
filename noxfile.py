"""A command for each check: `nox -s lint`, `types`, `docs`, `tests`, `definitions`, `benchmark`; `nox` alone runs the first four.

What follows `--` goes to the tool: `nox -s tests -- tests/test_modules.py -k Linear`. Each session makes a virtual environment,
and uses it again the next time. `nox --no-venv --no-install` runs in the environment that is active, as .ci/run does.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "docs", "tests"]
nox.options.reuse_venv = "yes"

HERE = Path(__file__).parent


@nox.session
def lint(session: nox.Session) -> None:
    """The format, and what ruff finds; `nox -s lint -- --fix` mends what it can."""
    session.install(".[lint]")
    fix = "--fix" in session.posargs
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict on the library, the examples and user code; pyright on the latter two; what an editor shows."""
    session.install(".[test,lint]")
    session.run("mypy")
    session.run("pyright")
    session.run("python", "-m", "pytest", "-q", "tests/test_typing.py")


@nox.session
def docs(session: nox.Session) -> None:
    """README, CONTRIBUTING and docs/: links lead somewhere, Python blocks run, files and versions that they name are there."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", "-q", "tests/test_docs.py")


@nox.session
def tests(session: nox.Session) -> None:
    """All tests. Those that compare with PyTorch are skipped, since nothing here installs it."""
    session.install(".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def definitions(session: nox.Session) -> None:
    """The tests without twins: from a copy without the folder kernels/, and some with BPCORE_KERNELS=off."""
    session.install(".[test]")
    bare = Path(session.create_tmp()) / "bare"
    shutil.rmtree(bare, ignore_errors=True)
    shutil.copytree(HERE, bare, ignore=shutil.ignore_patterns(".*", "kernels", "runs", "build", "*.egg-info", "__pycache__"))
    editable = "bpcore.kernels is found elsewhere: bpcore is installed with -e here, run `nox -s definitions`"
    with session.chdir(bare):
        session.run("python", "-c", f"from importlib.util import find_spec as f; exit(f('bpcore.kernels') and {editable!r})")
        session.run("python", "-m", "pytest", "-q", *session.posargs)
    some = [f"tests/test_{name}.py" for name in ("modules", "network", "optimizers", "trainer", "info")]
    session.run("python", "-m", "pytest", "-q", *some, env={"BPCORE_KERNELS": "off"})


@nox.session
def benchmark(session: nox.Session) -> None:
    """benchmarks/run.py, by default a smoke run; `nox -s benchmark -- --check` is the whole, an hour long."""
    session.install(".[bench]")
    session.run("python", "benchmarks/run.py", *(session.posargs or ["--quick"]))
