"""Data of the host at the door: an array of numbers, or an error that says which data, what was found, and the repair."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Set
from datetime import date, timedelta
from numbers import Real
from typing import Any

import numpy as np

from bpcore.arguments import users_level
from bpcore.context import quiet

NUMBERS = "biuf"  # the kinds of NumPy's dtypes that hold whole numbers, booleans and floats


def as_numbers(x: Any, name: str) -> np.ndarray:
    """x as a NumPy array of numbers in this machine's byte order, or an error. name: of the data, for errors."""
    if has_mask(x):
        raise TypeError(
            f"{name} is a masked array with masked entries, and a mask would be ignored; drop these rows, or fill the entries: "
            f"{short(name) if hasattr(x, 'filled') else f'np.ma.array({short(name)})'}.filled(0)"
        )
    dense = next((method for method in ("toarray", "todense", "to_dense") if hasattr(x, method)), None)
    if dense is not None and not isinstance(x, np.ndarray):
        raise TypeError(sparse(x, name, dense))
    if isinstance(x, list) and len({part.dtype.kind for part in x if isinstance(part, np.ndarray) and part.ndim}) > 1:
        raise TypeError(
            f"{name} is a list of arrays of several kinds of numbers; several inputs are a tuple: tuple({short(name)})"
        )
    if isinstance(x, (Mapping, Set, Iterator, str, bytes)) or x is None:
        raise TypeError(f"{name} expected an array of numbers, got {type(x).__name__}; {repair_of_container(x, short(name))}")
    if type(x).__name__ == "LazyFrame":
        raise TypeError(f"{name} is a LazyFrame, which has no numbers yet; pass {short(name)}.collect()")
    try:
        named = column_names(x)
        # pandas makes objects of columns of different dtypes; other tables make numbers of dates
        host = None if named and not hasattr(x, "iloc") else np.asarray(x)
    except ValueError as error:
        several = isinstance(x, list) and any(getattr(part, "ndim", 0) > 0 for part in x)
        repair = "pad or cut the rows" + (f"; several inputs are a tuple, tuple({short(name)})" if several else "")
        raise ValueError(
            f"{name} expected rows of one length, got data that cannot become an array ({error}); {repair}"
        ) from error
    except (RuntimeError, TypeError) as error:  # of the library that x belongs to
        raise TypeError(f"{name} is a {type(x).__name__}, which cannot become an array ({error}); pass NumPy arrays") from error
    if host is None or (named and host.ndim == 2 and host.dtype.kind not in NUMBERS):
        host = from_columns(x, name)
    if host.dtype.kind not in NUMBERS:
        raise TypeError(f"{name} expected numbers, got an array of {trouble(host, as_array_of(x, short(name)))}")
    return host if host.dtype.isnative else host.astype(host.dtype.newbyteorder("="))


def repair_of_container(x: Any, name: str) -> str:
    """What to do about data in a dictionary, a set, an iterator, a text or None."""
    if name == "weights" and isinstance(x, Mapping):
        return "give one weight an example, e.g. np.asarray([weights[c] for c in y])"
    if name == "weights" and x == "balanced":
        return "give one weight an example, e.g. by scikit-learn's compute_sample_weight('balanced', y)"
    return "make an array of it" + f", e.g. np.column_stack(list({name}.values()))" * isinstance(x, Mapping)


def as_array_of(x: Any, name: str) -> str:
    """The source of x as an array that has `astype`, for a repair: a list and a column of Polars or Arrow have none."""
    return name if hasattr(x, "astype") else f"np.asarray({name})"


def sparse(x: Any, name: str, dense: str) -> str:
    """The text of the error that x is a sparse matrix. dense: its method that makes it dense."""
    return f"{name} is sparse ({type(x).__name__}), and modules take dense arrays; pass {short(name)}.{dense}()"


def short(name: str) -> str:
    """The data's name in a repair: "X" of "train: X"."""
    return name.rpartition(" ")[2]


def has_mask(x: Any) -> bool:
    """Whether x is a masked array with masked entries, or a list with such an array in it."""
    if isinstance(x, (list, tuple)):
        if x and isinstance(x[0], Real):
            return type(np.ma.masked) in map(type, x)
        return any(map(has_mask, x))
    return isinstance(x, np.ma.MaskedArray) and bool(np.ma.is_masked(x))


def is_subclass(x: Any) -> bool:
    """Whether x is an array of a subclass of NumPy's: a matrix, a masked array."""
    return isinstance(x, np.ndarray) and type(x) is not np.ndarray


def column_names(x: Any) -> list[Any]:
    """The names of the columns of a table (pandas, Polars, Arrow); [] of anything else."""
    names = getattr(x, "column_names", getattr(x, "columns", None))
    return [] if isinstance(x, np.ndarray) or names is None or not hasattr(x, "__array__") else list(names)


def check_index(name: str, parts: tuple[Any, ...]) -> None:
    """Raise a ValueError if two tables of pandas have the same index in different orders: rows go together by position.

    If they have other indices, of which neither counts the rows, warn.
    """
    indices: list[Any] = [part.index for part in parts if hasattr(getattr(part, "index", None), "equals")]
    for index in indices[1:]:
        first = indices[0]
        if len(first) == len(index) and not first.equals(index) and first.isin(index).all() and index.isin(first).all():
            raise ValueError(
                f"{name}: X and y or weights have the same index in different orders, and rows go together by position; "
                "put them in one order, e.g. y.loc[X.index], or, if the rows go together already, drop the index: np.asarray(y)"
            )
        if len(first) == len(index) and not first.equals(index) and not any(map(counts_rows, (first, index))):
            warnings.warn(
                f"{name}: X and y or weights have different indices, and rows go together by position; choose the same rows of "
                "both, or, if they go together already, drop the index: np.asarray(y)",
                UserWarning,
                stacklevel=users_level(),
            )


def counts_rows(index: Any) -> bool:
    """Whether an index of pandas is RangeIndex(n), as it is if nobody has chosen rows."""
    return type(index).__name__ == "RangeIndex" and index.start == 0 and index.step == 1


def from_columns(table: Any, name: str) -> np.ndarray:
    """The columns of a table side by side, or a TypeError that names the first one that does not hold numbers."""
    names = column_names(table)
    columns: list[np.ndarray] = []
    for i, column in enumerate(names):
        given = table.iloc[:, i] if hasattr(table, "iloc") else table[column]
        columns.append(np.asarray(given))
        if columns[-1].dtype.kind not in NUMBERS:
            dtype = getattr(given, "dtype", getattr(given, "type", columns[-1].dtype))
            of = as_array_of(given, f"{short(name)}[{column!r}]")
            raise TypeError(f"{name} expected numbers, got column {column!r} of {trouble(columns[-1], of, dtype)}")
        if columns[-1].ndim > 1:  # Polars' pl.Array and pl.Struct
            x, dtype = short(name), given.dtype
            repair = f"np.stack(list({x}[{column!r}]))"
            repair = f"np.column_stack([{x}.drop({column!r}), {repair}])" if len(names) > 1 else repair
            repair = f"{x}.unnest({column!r})" if str(dtype).startswith("Struct") else repair
            raise TypeError(f"{name} expected a number in each cell, got column {column!r} of dtype {dtype}; unpack it: {repair}")
    return np.stack(columns, axis=1)


def trouble(found: np.ndarray, name: str, dtype: Any = None) -> str:
    """An array that does not hold numbers, in words, and the repair. dtype: what its library calls its dtype."""
    kind, at, repair = found.dtype.kind, "", "pass numbers"
    rows = f"list({name.removeprefix('np.asarray(').removesuffix(')')})"
    if converts(found):
        repair = f"convert it, e.g. {name}.astype({number_dtype(found, name)!r})"
    if kind == "O" and found.size:
        odd = next((i for i, value in enumerate(found.flat) if not isinstance(value, (Real, np.bool))), None)
        value = found.flat[odd or 0]
        if odd is not None:
            place = tuple(map(int, np.unravel_index(odd, found.shape)))
            at = f" with {type(value).__name__} {str(value)[:30]!r} at {place}" if place else f" ({type(value).__name__})"
        if hasattr(value, "toarray"):
            repair = f"make one array of sparse rows: scipy.sparse.vstack({rows}).toarray()"
        elif isinstance(value, Mapping):
            repair = f"make a table of its rows: pandas.DataFrame({rows})"
        elif isinstance(value, os.PathLike):
            repair = "read the file, e.g. with np.load"
        elif hasattr(dtype, "categories") and not isinstance(value, str):
            repair = f"encode it as numbers, e.g. {name}.cat.codes"
        elif is_missing(value):
            repair = f"drop or fill what is missing, then {name}.astype('float32')"
        elif isinstance(value, date):
            kind = "M"
            name = name if hasattr(value, "tzinfo") and dtype is not None else f"np.asarray({name}, 'M8[s]')"
        elif isinstance(value, timedelta):
            kind, name = "m", f"np.asarray({name}, 'm8[s]')"
        elif (hasattr(value, "__array__") and not isinstance(value, np.generic)) or isinstance(value, (list, tuple)):
            repair = f"stack its rows: np.stack({rows})"
        elif isinstance(value, (str, bytes)):
            kind = "U"
            missing = next((i for i, one in enumerate(found.flat) if is_missing(one)), None) if is_label(name) else None
            if missing is not None:
                return (
                    f"dtype {dtype or found.dtype} with a missing label, {found.flat[missing]}, at {missing}; drop it, or fill it"
                )
            if is_label(name) and not all(isinstance(one, type(value)) for one in found.flat):
                name = f"{name}.astype(str)"
    if kind in "UST":
        text = np.asarray(found[: min(len(found), 1000)] if found.ndim else found, dtype=object)
        at = at or (f", e.g. {str(text.flat[0])[:30]!r}" if text.size else "")
        numbers = [is_text_of_number(value) for value in text.flat]
        repair = repair if all(numbers) else encoding(name)
        if sum(numbers) * 2 > len(numbers) > sum(numbers) and not is_label(name):
            odd = numbers.index(False)
            at = f" with {str(text.flat[odd])[:30]!r} at {tuple(map(int, np.unravel_index(odd, text.shape)))}"
            repair = f"make numbers of the texts, e.g. pandas.to_numeric({name}, errors='coerce'), and fill what is missing then"
    repair = {
        "c": f"give real and imaginary parts as features: {name}.real, {name}.imag",
        "M": f"count from a date: ({name} - {name}.min()) / np.timedelta64(1, 'D')",
        "m": f"count in a unit: {name} / np.timedelta64(1, 's')",
        "V": f"give its fields as columns: numpy.lib.recfunctions.structured_to_unstructured({name})",
    }.get(kind if kind != "V" or found.dtype.names else "", repair)
    return f"dtype {found.dtype if dtype is None else dtype}{at}; {repair}"


def converts(found: np.ndarray) -> bool:
    """Whether `astype('float32')` makes numbers of its first entries."""
    if found.dtype.kind not in "OSTU":
        return False
    try:
        return found.reshape(-1)[:1000].astype("float32") is not None
    except (TypeError, ValueError, OverflowError):
        return False


def is_missing(value: Any) -> bool:
    """Whether the value is None, pandas.NA, NaT or NaN. Of some objects `!=` gives no truth value."""
    try:
        return value is None or type(value).__name__.startswith("NA") or bool(value != value)
    except (TypeError, ValueError):
        return False


def is_label(name: str) -> bool:
    """Whether the data of this name in a repair are labels."""
    return name.removeprefix("np.asarray(").startswith("y")


def number_dtype(found: np.ndarray, name: str) -> str:
    """The dtype to convert to: "int64" if all entries are labels of classes, else "float32"."""
    whole = is_label(name) and all(str(value).lstrip("-").isdigit() for value in found.flat[:1000])
    return "int64" if whole else "float32"


def is_text_of_number(value: Any) -> bool:
    """Whether the text is a number, as in "1.5"."""
    try:
        return bool(float(value) or True)
    except (TypeError, ValueError):
        return False


def encoding(name: str) -> str:
    """How to make numbers of texts: classes of labels, indicator columns of features."""
    if "weights" in name:
        return "give a number for each example, e.g. by scikit-learn's compute_sample_weight('balanced', y)"
    if is_label(name):
        return f"number the classes: np.unique({name}, return_inverse=True)[1], or scikit-learn's LabelEncoder"
    return "encode it as numbers, e.g. with pandas.get_dummies or scikit-learn's OneHotEncoder"


WIDER = {"float16": "; scale the data, or leave compute_dtype out", "float32": "; scale the data, or choose dtype='float64'"}


@quiet
def converted(host: np.ndarray, dtype: str) -> np.ndarray:
    """host in another dtype; too small numbers become 0, too large ones infinite."""
    return np.asarray(host, dtype=dtype)


def cast(host: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """host in the floating dtype of this name, or a ValueError if a finite number would become infinite."""
    if host.dtype == dtype:
        return host
    try:
        with np.errstate(all="ignore", over="raise"):
            return host.astype(dtype)
    except FloatingPointError:
        raise ValueError(beyond(host, dtype, name)) from None


def beyond(host: np.ndarray, dtype: str, name: str) -> str:
    """The text of the error that numbers in host are too large for dtype."""
    largest = np.max(np.abs(host[np.isfinite(host)]))
    repair = WIDER.get(dtype, "; scale the data")
    return f"{name} has numbers up to {largest:.3g}, and the largest of {dtype} is {np.finfo(dtype).max:.3g}{repair}"
