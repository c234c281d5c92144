"""Windows: views of θ, or of ∇J, by the names of the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, overload

from bpcore.arguments import nearest, show
from bpcore.array import Array


class Windows:
    """The named windows of one use of a module. A window is a view: the part of θ, or of ∇J, that is one parameter.

    A parameter's window is an attribute, `theta.W`; that of an absent parameter is None. The windows of a child are `theta[0]` or
    `theta["encoder"]`, and a path goes deeper: `theta["encoder.0.W"]`. Write into a window, `theta.W[...] = x`: assigning another
    array to the name is a TypeError. `path` names the use, for errors; `use` is its number, for the random streams; `dtype` is
    that of θ, or None if there is no θ.
    """

    seed: int | None = None  # of the values, where `initialize` has drawn them

    def __init__(
        self, path: str, use: int, arrays: Mapping[str, Array | None], children: Mapping[str, Windows], dtype: Any = None
    ):
        self.__dict__.update(path=path, use=use, dtype=dtype, names=tuple(arrays), children=tuple(children.values()))
        self.__dict__.update(arrays, _children=children)

    if TYPE_CHECKING:
        path: str
        use: int
        dtype: Any
        names: tuple[str, ...]
        children: tuple[Windows, ...]
        _children: Mapping[str, Windows]

        def __getattr__(self, name: str) -> Array: ...

    if not TYPE_CHECKING:  # for type checkers every name is an array

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name, name=name, obj=self)
            raise AttributeError(self.unknown(name), name=name, obj=self)

    def unknown(self, key: Any) -> str:
        """The sentence for a name that is not here."""
        if key in self._children:
            return f"{key!r} is a child of {self.path or 'this module'}: write theta[{key!r}]"
        known = [*self.names, *self._children]
        return f"{key!r} is not in {self.path or 'this module'}: it has {known}{nearest(key, known)}"

    @overload
    def __getitem__(self, key: int) -> Windows: ...
    @overload
    def __getitem__(self, key: str) -> Any: ...
    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, int):
            if not -len(self.children) <= key < len(self.children):
                raise IndexError(f"{key} is not in {self.path or 'this module'}: it has {len(self.children)} children")
            return self.children[key]
        if not isinstance(key, str):
            raise TypeError(f"windows are found by the number or the name of a child, or by a path, got {show(key)}")
        name, _, rest = key.partition(".")
        if not rest and name in self.names:
            return getattr(self, name)
        if name not in self._children:
            raise KeyError(self.unknown(key))
        return self._children[name][rest] if rest else self._children[name]

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[call-overload]  # a wrong key is its TypeError
        except (KeyError, IndexError):
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        """The names of the parameters, absent ones too, and of the children, as `windows[name]` takes them."""
        return iter([*self.names, *self._children])

    def __setattr__(self, name: str, value: Any) -> None:
        """Nothing where `value` is the window itself, as after `theta.W += 1`; otherwise a TypeError with the repair."""
        if name not in self.__dict__:
            raise TypeError(self.unknown(name))
        if value is not self.__dict__[name]:
            if name not in self.names:
                raise TypeError(f"{name} is no window, but describes the windows; it cannot be replaced")
            refuse(join(self.path, name), name, value)

    def __setitem__(self, key: int | str, value: Any) -> None:
        present = self[key]
        if isinstance(present, Windows):
            example = next((name for name in present.names if getattr(present, name) is not None), "W")
            at = f"[{key!r}].{example}[...] = x"
            raise TypeError(f"{join(self.path, str(key))} holds the windows of a child; write into each of them: {at}")
        if value is not present:
            refuse(join(self.path, str(key)), key, value)

    def __delattr__(self, name: str) -> None:
        raise TypeError(f"{join(self.path, name)} is a window, a view of a part of θ or ∇J; it cannot be deleted")

    def __delitem__(self, key: int | str) -> None:
        self.__delattr__(str(key))

    def items(self) -> Iterator[tuple[str, Array]]:
        """(path, window) of every parameter that is not absent, children's too, in the module's order."""
        for name in self.names:
            window = getattr(self, name)
            if window is not None:
                yield join(self.path, name), window
        for child in self.children:
            yield from child.items()

    def _ipython_key_completions_(self) -> list[str]:
        """The keys of `windows["..."]`: own parameters, children, and paths into them."""
        paths = (path.removeprefix(f"{self.path}.") for path, _ in self.items())
        return list(dict.fromkeys([*self.names, *self._children, *paths]))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names]

    def __repr__(self) -> str:
        seed = f"; seed {self.seed}" if self.seed else ""
        return f"Windows({', '.join(shapes_of(self))}{seed})"


def shapes_of(windows: Windows, most: int = 12) -> list[str]:
    """ "path shape" of every window; of more than `most`, the first and their number."""
    shapes = [f"{path} {tuple(array.shape)}" for path, array in windows.items()]
    return shapes if len(shapes) <= most else [*shapes[: most - 1], f"... of {len(shapes)}"]


RESERVED = ("path", "use", "dtype", "names", "children", "items", "seed", "unknown")
EMPTY = Windows("", 0, {}, {})  # the windows of a module without parameters, such as a loss


class Named(dict[str, Array]):
    """Path to window, to read: another array under a path is a TypeError. `named["0.W"][...] = x` writes."""

    def __missing__(self, path: Any) -> NoReturn:
        raise KeyError(f"there is no {path!r}, only {', '.join(self)}{nearest(path, self)}")

    def __setitem__(self, path: str, value: Any) -> None:
        if value is not self[path]:  # it is itself after `named["0.W"] += 1`
            refuse(path, path, value)

    def _fixed(self, *args: Any, **named: Any) -> NoReturn:
        raise TypeError('these are views of one vector, and stay as they are; write into each: parameters()["0.W"][...] = x')

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # a copy is a plain dictionary

    __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _fixed


def refuse(path: str, key: int | str, value: Any) -> NoReturn:
    """Raise the TypeError of an assignment that would replace a window by another array, and leave θ as it is."""
    target = f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"
    raise TypeError(
        f"{path} is a window, a view of a part of θ or ∇J, and another array in its place would change neither; "
        f"write into it: {target}[...] = x; got {show(value)}"
    )


def join(path: str, name: str) -> str:
    """The path of `name` inside `path`."""
    return f"{path}.{name}" if path else name
