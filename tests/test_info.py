"""What `bp.backend_info()` and `python -m bpcore` tell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from conftest import NO_LIBGOMP, environment

import bpcore as bp
from bpcore.packages import EXTRAS, brief, imported, pip
from bpcore.packages import ONEDNN as ONEDNN_IS_HERE

ROOT = Path(__file__).parents[1]


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
        assert info["twins"]["fast"].startswith("not in use: compiled twins need Numba, which is not installed: pip install ")
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


TORCH = {"torch/__init__.py": "raise OSError('libtorch_cpu.so: cannot open shared object file')"}
ONEDNN = {"onednn_cpu_gomp-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: onednn-cpu-gomp\nVersion: 1\n"}
LISTED = {**ONEDNN, "onednn_cpu_gomp-1.dist-info/RECORD": "libdnnl.so.3,,\n"}
NO_NVRTC = """
def is_available(): return True
class cuda:
    class nvrtc:
        def getVersion(): raise RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: no such file")
"""
BROKEN = {  # files that come first on the path, code that runs first, variables, and what is told
    "a Numba for older NumPy": (
        {"numba/__init__.py": "raise ImportError('Numba needs NumPy 1.26 or less')"}, "", {},
        r"compiled twins need Numba, which is installed but cannot be imported \(ImportError: Numba needs NumPy 1.26 or less\); "
        r'reinstall it: pip install --force-reinstall "numba>=0.61"',
    ),
    "a broken LLVM": (
        {"llvmlite/__init__.py": "raise OSError('Could not find/load shared object file')"}, "", {},
        "compiled twins need Numba, .* cannot be imported .OSError: Could not find/load shared object file",
    ),
    "no compiler": ({}, "", {"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT=1 switches off: unset it"),
    "a Numba of another make": (
        {}, "import numba.core.dispatcher as d; del d.Dispatcher.enable_caching", {},
        "in this version or setting, raised AttributeError",
    ),
    "a broken PyTorch": (
        {}, "", {},
        "needs PyTorch, which is installed but cannot be imported .OSError: libtorch_cpu.so: .*--force-reinstall torch",
    ),
    "a broken CuPy": (
        {"cupy/__init__.py": "raise ImportError('=====\\nFailed to import CuPy.\\n\\nCause:\\n  libcublas.so.13\\n=====')"},
        "", {},
        "cannot be imported .ImportError: Failed to import CuPy. ... libcublas.so.13",
    ),
    "CuPy without NVRTC": ({"cupy/__init__.py": NO_NVRTC}, "", {}, "NVRTC, which compiles kernels .RuntimeError: .*libnvrtc.so"),
    "CuPy of another make": ({"cupy/__init__.py": ""}, "", {}, "AttributeError: module 'cupy' has no attribute 'is_available'"),
    "no libgomp": (
        {}, NO_LIBGOMP, {},
        r"in Numba's \(\w+\) pool, for loops, since libgomp.so.1 cannot be loaded .no libgomp.so.1.; install it",
    ),
    "oneDNN without its files": (ONEDNN, "", {}, "oneDNN's wheel onednn-cpu-gomp has no library; reinstall it"),
    "oneDNN without its library": (LISTED, "", {}, "oneDNN's library of onednn-cpu-gomp cannot be loaded .*reinstall it"),
    "a oneDNN that is none": ({**LISTED, "libdnnl.so.3": "\0"}, "", {}, "cannot be loaded .*: pip install --force-reinstall"),
    "an unknown backend": ({}, "", {"BPCORE_BACKEND": "cuda"}, "unknown backend 'cuda'"),
}  # fmt: skip
USE = """
import bpcore as bp, numpy as np
net = bp.Network(bp.Sequential(bp.Conv2d(2, 4, 3), bp.ReLU(), bp.Flatten(), bp.Linear(16, 3)), backend="numpy")
print(float(net.value_and_gradient(bp.CrossEntropy(), np.ones((5, 4, 4, 2)), np.zeros(5, int))[0]))
print(dict(bp.backend_info()))
"""


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_package_is_told_and_the_rest_computes(tmp_path, what):
    """In `backend_info`, which never dies of it; PyTorch is broken in all of these."""
    pytest.importorskip("bpcore.kernels", reason="bpcore/kernels was deleted")
    files, before, variables, told = BROKEN[what]
    if any(word in what for word in ("another make", "LLVM", "compiler", "oneDNN", "libgomp")):
        pytest.importorskip("numba", reason="Numba is not installed")
    if any(word in what for word in ("oneDNN", "libgomp")) and not ONEDNN_IS_HERE:
        pytest.skip("oneDNN's wheel is for Linux on x86-64")
    for name, content in {**TORCH, **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    first = environment(BPCORE_KERNELS="on", **variables)
    first["PYTHONPATH"] = os.pathsep.join([str(tmp_path), first["PYTHONPATH"]])
    done = subprocess.run([sys.executable, "-c", f"{before}\n{USE}"], env=first, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    J, _, info = done.stdout.partition("\n")
    texts = " | ".join(text for rows in eval(info, {}).values() for text in rows.values())
    assert float(J) > 0
    assert re.search(told, texts), texts


def test_the_extras_are_those_of_pyproject():
    """Errors name packages that pip finds today: `bpcore[...]` means something in a clone only."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        assert [package.partition(";")[0] for package in extras[extra]] == list(packages)
    assert pip("cuda13") == f'pip install "{extras["cuda13"][0]}"'
    assert pip("torch") == "pip install torch"
    for file in (*(ROOT / "bpcore").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        assert not re.search(r"pip install[^\n]*bpcore\[", file.read_text(encoding="utf-8")), file


def test_an_error_in_a_line():
    assert brief(OSError()) == "OSError"
    assert brief(ValueError("one\n  two\n=====\n three \n")) == "ValueError: one ... three"


def test_a_package_that_is_missing_and_one_that_lacks_another(tmp_path, monkeypatch):
    (tmp_path / "lacking_another.py").write_text("import that_is_nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"^this needs it, which is not installed: pip install it$"):
        imported("that_is_nowhere.part", "this needs it", pip("it"))
    with pytest.raises(RuntimeError, match=r"but cannot be imported .*'that_is_nowhere'.*; reinstall it: pip install --force"):
        imported("lacking_another", "this needs it", pip("it"))
