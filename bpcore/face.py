"""A package as people meet it at a prompt: what its tab completion lists, and what it says of a name that it does not have."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def gathered(namespace: Mapping[str, Any], *modules: str) -> list[str]:
    """A package's `__all__`: `modules`, and the classes and functions of bpcore that its files gave it by their own `__all__`."""
    return [*modules, *(name for name, x in namespace.items() if getattr(x, "__module__", "").startswith("bpcore."))]


def listed(namespace: Mapping[str, Any]) -> Callable[[], list[str]]:
    """A package's `__dir__`: its `__all__` and its dunders, and not the files that importing them left behind."""

    def __dir__() -> list[str]:
        return sorted({*namespace["__all__"], *(name for name in namespace if name.startswith("__"))})

    return __dir__


def unknown(package: str, names: Sequence[str], moved: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """A package's `__getattr__`: an AttributeError that names what is near. moved: by old name, where its content is now."""

    def __getattr__(name: str) -> Any:
        by_lower = {known.lower(): known for known in names}
        close = difflib.get_close_matches(name.lower().replace("_", ""), by_lower, n=1)
        if name in (moved or {}):
            hint = f"; it is in {moved[name]} now"  # type: ignore[index]  # it is in it, so it is there
        else:
            hint = f"; did you mean {by_lower[close[0]]!r}?" if close and not name.startswith("_") else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}", name=name)

    return __getattr__
