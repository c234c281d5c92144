"""A short version of the script kill.py, and that it can tell a difference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kill
import numpy as np
import pytest
from conftest import environment
from runs import trainer

SCRIPT = Path(kill.__file__)


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_killed_run_ends_as_the_unbroken_one():
    """One kill at each point. Without compiled kernels: each process starts faster."""
    points = [point for point in kill.POINTS if point != kill.ANY]
    command = [sys.executable, str(SCRIPT), "--kills", str(len(points)), "--seed", "1"]
    done = subprocess.run(
        command, env=environment(BPCORE_KERNELS="plain"), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for point in points:
        assert f"\n   1 kills: {point}\n" in done.stdout
    assert done.stdout.endswith("resumed ends bit for bit as unbroken\n")


def test_one_bit_is_a_difference(tmp_path):
    """In θ, in a moment, in a counter."""
    run = trainer()
    run.save(tmp_path / "expected")
    assert kill.differences(tmp_path / "expected", tmp_path / "expected") == []
    run.network.theta[3] = np.nextafter(run.network.theta[3], 1)
    run.moments["v"][...] = -run.moments["v"]  # zeros: only the sign
    run.steps += 1
    run.save(tmp_path / "got")
    assert sorted(kill.differences(tmp_path / "got", tmp_path / "expected")) == ["optimizer.v", "theta", "training"]
