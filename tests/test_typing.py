"""Typical user code runs; and what an editor shows of bpcore's names. (`nox -s types` checks the types of both.)"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TYPING = Path(__file__).parent / "typing"


def test_typical_user_code_runs():
    runpy.run_path(str(TYPING / "user_code.py"), run_name="__main__")["by_hand"]()


def test_what_an_editor_shows():
    """`reveal_type(expression)  # type` in revealed.py, line by line."""
    if find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install '.[lint]'")
    lines = (TYPING / "revealed.py").read_text(encoding="utf-8").splitlines()
    expected = {
        number: line.partition("  # ")[2] for number, line in enumerate(lines) if line.lstrip().startswith("reveal_type(")
    }
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(TYPING / "revealed.py")]
    quiet = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(command, cwd=TYPING.parents[1], capture_output=True, text=True, timeout=120, env=quiet, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    messages = json.loads(done.stdout)["generalDiagnostics"]
    got = {one["range"]["start"]["line"]: one["message"].partition(' is "')[2].removesuffix('"') for one in messages}
    assert expected
    assert got == expected
