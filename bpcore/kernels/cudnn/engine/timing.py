"""The fastest of several plans, timed once for a shape.

Times vary, and another plan gives other bits. So the choice is remembered in a file beside CuPy's compiled kernels, by GPU and by
version of cuDNN, and later runs on this machine make the same choice.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import cudnn
import cupy

from bpcore import files

TRIED = 16  # plans, at most
RUNS = 3  # of each, after one that is not timed


def build_fastest(graph: Any, handle: Any, what: str, sizes: dict[int, int]) -> None:
    """Build and select the fastest plan of a graph.

    what: names the graph in the file. sizes: the bytes of each array, by uid.
    """
    names = [graph.get_plan_name_at_index(i) for i in range(graph.get_execution_plan_count())]
    what = f"{device()}, {what}"
    known = remembered().get(what)
    if known in names:
        graph.build_plan_at_index(names.index(known))
        return
    times = measured(graph, handle, len(names), sizes)
    if not times:  # no memory to try them
        graph.build_plans()
        return
    best = min(times, key=times.__getitem__)
    graph.build_plan_at_index(best)
    remember(what, names[best])


def measured(graph: Any, handle: Any, count: int, sizes: dict[int, int]) -> dict[int, float]:
    """The milliseconds of plans, by index: of the first TRIED that can be built, as far as there is memory for their arrays."""
    times: dict[int, float] = {}
    pool = cupy.cuda.MemoryPool()  # of its own, so that a captured graph's pool does not grow
    with suppress(MemoryError), cupy.cuda.using_allocator(pool.malloc):
        arrays = {uid: cupy.zeros(size, "u1") for uid, size in sizes.items()}
        addresses = {uid: x.data.ptr for uid, x in arrays.items()}
        for i in range(count):
            try:
                graph.build_plan_at_index(i)
            except (cudnn.cudnnGraphNotSupportedError, RuntimeError):
                continue
            workspace = cupy.empty(max(1, graph.get_workspace_size()), "u1")
            times[i] = timed(lambda at=workspace.data.ptr: graph.execute(addresses, at, handle=handle))
            if len(times) == TRIED:
                break
    return times


def timed(run: Any) -> float:
    """The milliseconds of RUNS runs on the current stream."""
    stream = cupy.cuda.get_current_stream()
    run()
    start = stream.record()
    for _ in range(RUNS):
        run()
    end = stream.record()
    cupy.cuda.runtime.eventSynchronize(end.ptr)  # the one wait for the device; it happens once for a shape
    return float(cupy.cuda.get_elapsed_time(start, end))


def device() -> str:
    """The GPU and the version of cuDNN, on which a choice depends."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return f"{properties['name'].decode()}, cuDNN {cudnn.backend_version_string()}"


def file() -> Path:
    """Where choices are remembered."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")) / "bpcore_cudnn_plans.json"


def remembered() -> dict[str, str]:
    """The names of the plans that were chosen on this machine. A file that is missing or damaged has none."""
    try:
        names = json.loads(file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return names if isinstance(names, dict) else {}


def remember(what: str, name: str) -> None:
    """Add a choice to the file. Where it cannot be written, the choice is this process's alone."""
    with suppress(OSError):
        file().parent.mkdir(parents=True, exist_ok=True)
        files.write(file(), json.dumps({**remembered(), what: name}, indent=1).encode())
