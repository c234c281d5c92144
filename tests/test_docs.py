"""README, CONTRIBUTING and docs/: their links lead somewhere, their Python runs, and what they name is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_architecture import FLOORS

pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted, and the documents name its files")

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PARTS = ("bpcore", "benchmarks", "docs", "examples", "tests")
FILES = [path for part in PARTS for path in ((ROOT / part), *(ROOT / part).rglob("*"))] + list(ROOT.glob("*.*"))
NAMES = [f"/{path.relative_to(ROOT).as_posix()}" for path in FILES]
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|cu|md|toml|yml)|(?:[\w.-]+/)+)`")
of_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


def prose(document: Path) -> str:
    """The document without its blocks of code."""
    return re.sub(r"^ {4}.*$", "", FENCE.sub("", document.read_text(encoding="utf-8")), flags=re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def blocks(document: Path, language: str) -> Iterator[str]:
    """Its blocks of code in a language."""
    for indent, name, code in FENCE.findall(document.read_text(encoding="utf-8")):
        if name == language:
            yield re.sub(f"^{indent}", "", code, flags=re.MULTILINE)


@of_document
def test_links_lead_somewhere(document):
    links = [link for link in LINK.findall(prose(document)) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{document.name} links to {link}, and there is no such heading"


@of_document
def test_files_that_are_named_are_there(document):
    """By the end of their paths."""
    names = (name.rstrip("/") for name in FILE.findall(prose(document)))
    missing = [name for name in names if not any(path.endswith(f"/{name}") for path in NAMES)]
    assert not missing, f"{document.name} names {missing}"


@of_document
def test_python_runs(document, tmp_path):
    """Its blocks one after another, in a process of their own: they may define primitives."""
    code = "\n".join(blocks(document, "python"))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_floors_are_those_of_the_architecture():
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), re.MULTILINE)
    told = {name.rstrip("/"): int(number) for number, names in rows for name in re.findall(r"`([\w/]+)`", names)}
    assert told == FLOORS


def test_sessions_that_are_named_are_there():
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE))
    for document in (ROOT / "CONTRIBUTING.md", ROOT / "noxfile.py", ROOT / ".ci" / "run"):
        named = re.findall(r"(?:nox|\}\") [^`\n]*?-s ((?:\w+ ?)+)", document.read_text(encoding="utf-8"))
        assert named, document
        assert set(" ".join(named).split()) <= sessions, document


def test_linters_have_one_version_everywhere():
    """The extra `lint` pins them; what commits and CI run is what it installed."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    pinned = {re.split(r"[\[=]", requirement)[0] for requirement in extras["lint"] if "==" in requirement}
    assert len(pinned) == len(extras["lint"])
    assert any("lint" in requirement for requirement in extras["dev"] if requirement.startswith("bpcore["))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    entries = re.findall(r"^ +entry: (\w+)", hooks, re.MULTILINE)
    assert set(entries) == pinned
    assert len(re.findall(r"^ +language: system$", hooks, re.MULTILINE)) == len(entries)
    assert re.findall(r"^ +- repo: (\S+)", hooks, re.MULTILINE) == ["local"]
    assert '".[dev]"' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
