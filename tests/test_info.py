"""What `bp.backend_info()` and `python -m bpcore` tell."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from conftest import environment

import bpcore as bp


def test_it_tells_versions_backends_devices_and_twins():
    info = bp.backend_info()
    assert info["versions"]["numpy"] == np.__version__
    assert info["backends"]["numpy"].startswith("works")
    assert "cores" in info["devices"]["cpu"]
    assert {"versions", "backends", "devices", "twins"} <= set(info)
    for section, rows in info.items():
        assert section in str(info)
        assert all(name in str(info) and isinstance(text, str) for name, text in rows.items())


def test_it_says_why_twins_are_not_in_use():
    """Beside what is in use: here Numba cannot be imported."""
    code = "import sys; sys.modules['numba'] = None; import bpcore as bp; print(dict(bp.backend_info()))"
    run = {"env": environment(BPCORE_KERNELS="on"), "capture_output": True, "text": True, "timeout": 60, "check": True}
    done = subprocess.run([sys.executable, "-c", code], **run)
    info = eval(done.stdout, {})
    if "No module named 'bpcore.kernels'" not in info["twins"]["fast"]:  # kernels/ may have been deleted
        assert info["twins"]["fast"].startswith("not in use: Numba cannot be imported (")
        assert "linear_backward" in info["twins"]["numpy"]
        assert info["products"]["numpy"].startswith("NumPy's BLAS")


def test_the_command_prints_it():
    done = subprocess.run(
        [sys.executable, "-m", "bpcore"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment(BPCORE_KERNELS="off"),
    )
    assert f"numpy             {np.__version__}" in done.stdout
    assert "not in use: BPCORE_KERNELS=off" in done.stdout or "No module named 'bpcore.kernels'" in done.stdout
