"""Data at the door: what becomes numbers, and what is refused, by name and with the repair."""

from __future__ import annotations

import datetime
import math
import re
import sys
from decimal import Decimal

import numpy as np
import pytest
from runs import CLASSES, FEATURES, examples, trainer

import bpcore as bp

X, Y = examples()
NUMBERS = {
    "big-endian": X.astype(">f8"),
    "integers of another byte order": np.rint(X).astype(">i4"),
    "strides": X[::-1][::-1],
    "Fortran": np.asfortranarray(X),
    "half": X.astype("float16"),
    "long double": X.astype("longdouble"),
    "bytes": np.abs(X).astype("uint8"),
    "booleans": X > 0,
    "a matrix": X.view(np.matrix),
    "a mask of nothing": np.ma.masked_array(X, np.zeros(X.shape, bool)),
    "lists": X.tolist(),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name, backend):
    """Whatever their form, they are taken as floats by every call."""
    given = NUMBERS[name]
    plain = np.asarray(given, dtype="float64")
    run, other = (trainer(backend=backend.backend) for _ in range(2))
    np.testing.assert_array_equal(backend.to_host(run.network(given)), backend.to_host(run.network(plain)))
    run.fit((given, Y), epochs=1)
    other.fit((plain, Y), epochs=1)
    np.testing.assert_array_equal(backend.to_host(run.network.theta), backend.to_host(other.network.theta))
    assert run.evaluate((given, Y)) == other.evaluate((plain, Y))
    assert run.evaluate([(given, Y)]) == pytest.approx(other.evaluate([(plain, Y)]))


MASKED = np.ma.masked_array(X, X > 1)
REFUSED = {  # name: (X, what is said after "X")
    "a mask": (MASKED, r" is a masked array with masked entries, .* X\.filled\(0\)"),
    "masks in a list": (list(MASKED), " is a masked array"),
    "a mask among numbers": ([[1.0, 2.0, 3.0, 4.0, np.ma.masked]] * len(X), r" is a masked array .* np\.ma\.array\(X\)\.filled"),
    "dictionaries": ([{"a": 1.0}] * len(X), r" .* dict .*; make a table of its rows: pandas\.DataFrame\(list\(X\)\)"),
    "an object": (object(), r" .*\(object\); pass numbers"),
    "complex": (X + 1j, r" .* dtype complex128; give real and imaginary parts as features"),
    "dates": (np.full(X.shape, "2020", "M8[D]"), r" .* dtype datetime64\[D\]; count from a date"),
    "durations": (np.full(X.shape, 5, "m8[s]"), r" .* dtype timedelta64\[s\]; count in a unit"),
    "records": (np.zeros(len(X), "f8,f8"), r" .* give its fields as columns: .*structured_to_unstructured\(X\)"),
    "objects": (X.astype(object), r" .* dtype object; convert it, e\.g\. X\.astype\('float32'\)"),
    "None": (np.full(X.shape, None), r" .* NoneType 'None' at \(0, 0\); drop or fill what is missing"),
    "words": (np.full(X.shape, "a"), r" .* dtype <U1, e\.g\. 'a'; encode it as numbers"),
    "text of numbers": (X.astype(str), r" .* dtype <U32, .*; convert it, e\.g\. X\.astype\('float32'\)"),
    "a dictionary": ({"a": X}, r" expected an array of numbers, got dict; .*column_stack"),
    "a generator": ((row for row in X), " expected an array of numbers, got generator"),
    "nothing": (None, " expected an array of numbers, got NoneType"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_every_call(name):
    given, message = REFUSED[name]
    run = trainer()
    for call in (
        lambda: run.network(given),
        lambda: run.network.value_and_gradient(run.loss, given, Y),
        lambda: run.step(given, Y),
        lambda: run.evaluate((given, Y)),
        lambda: run.fit((given, Y), epochs=1),
    ):
        with pytest.raises(TypeError, match="X" + message):
            call()


def test_numbers_that_the_dtype_cannot_hold(backend):
    """1e300 would be infinite in float32."""
    run = trainer(backend=backend.backend, dtype="float32")
    for call in (run.network, lambda X: run.step(X, Y), lambda X: run.evaluate((X, Y)), lambda X: run.fit((X, Y), epochs=1)):
        with pytest.raises(ValueError, match=r"X has .*float32.*; scale the data, or choose dtype='float64'"):
            call(X * 1e300)
    with pytest.raises(ValueError, match=r"theta has numbers up to 1e\+300"):
        bp.Network(bp.Linear(1, 1), theta=[1e300, 0])


def test_tables():
    """A column is named in errors; the rows of two tables go together by position."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=list("abcde"))
    run = trainer()
    mixed = table.assign(e=table["e"] > 0)  # an array of objects, of numbers alone
    np.testing.assert_array_equal(run.network(mixed), run.network(np.column_stack([X[:, :4], X[:, 4] > 0])))
    for column, message in (("Paris", "encode it"), (pandas.Timestamp("2020"), "count from a date")):
        with pytest.raises(TypeError, match=f"X expected numbers, got column 'e' of dtype .*; {message}"):
            run.network(table.assign(e=column))
    prices = ["29.85"] * (len(X) - 1) + [" "]
    with pytest.raises(TypeError, match=rf"with ' ' at \({len(X) - 1},\); .*pandas.to_numeric\(X\['e'\], errors='coerce'\)"):
        run.network(table.assign(e=prices))
    with pytest.raises(ValueError, match=r"X has 40 values that are NaN .* at \(0, 1\), in column 'b'; drop or fill"):
        run.fit((table.assign(b=np.nan), Y), epochs=1)
    with pytest.raises(ValueError, match=r"same index in different orders, .*y\.loc\[X\.index\]"):
        run.fit((table, pandas.Series(Y).iloc[::-1]), epochs=1)
    own, other = table.index + 100, table.index + 200
    with pytest.warns(UserWarning, match=r"train: X and y or weights have different indices, and rows go together by position"):
        run.fit((table.set_index(own), pandas.Series(Y, other)), epochs=1)
    run.fit((table.set_index(own), pandas.Series(Y, own)), epochs=2)
    run.fit((table.set_index(own), pandas.Series(Y)), epochs=3)  # reset_index


def repaired(run, given):
    """The result of the repair that the error says: the source after its last "; " and ": " or "e.g. "."""
    with pytest.raises(TypeError) as caught:
        run.network(given)
    source = re.split(r"(?:: |e\.g\. )", str(caught.value))[-1]
    return np.asarray(eval(source, {"np": np, "X": given, "pandas": sys.modules.get("pandas")}), dtype="float32")


DAYS = [datetime.datetime(2020, 1, 1 + i) for i in range(3)]
COLUMNS = {  # name: (entries, what the repair makes of them)
    "dates": ([day.date() for day in DAYS], [0, 1, 2]),
    "times": (DAYS, [0, 1, 2]),
    "times of a zone": ([day.replace(tzinfo=datetime.UTC) for day in DAYS], [0, 1, 2]),
    "durations": ([day - DAYS[0] for day in DAYS], [0, 86400, 172800]),
    "decimals": ([Decimal("0.5"), Decimal(1), Decimal(2)], [0.5, 1, 2]),
    "texts": (["1", "2", "3"], [1, 2, 3]),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("library", ["numpy", "pandas", "polars", "pyarrow"])
def test_repairs_run(library, name):
    entries, expected = COLUMNS[name]
    if library == "numpy" and "zone" in name:
        pytest.skip("NumPy has no zones")
    table = {"b": entries}
    if library == "numpy":
        given = np.asarray(entries, dtype=object)
    else:
        package = pytest.importorskip(library)
        given = package.table(table) if library == "pyarrow" else package.DataFrame(table)
    np.testing.assert_array_equal(repaired(trainer(), given), expected)


def test_a_table_without_numbers_yet():
    polars = pytest.importorskip("polars")
    for given, message in ((polars.DataFrame(X).lazy(), r"X\.collect\(\)"), (polars.col("a"), r"\(Expr\); pass numbers")):
        with pytest.raises(TypeError, match=message):
            trainer().network(given)


def test_columns_of_arrays_and_of_records():
    """Polars makes arrays of more axes of them. The repair runs."""
    polars = pytest.importorskip("polars")
    rows = polars.Series(X.tolist(), dtype=polars.Array(polars.Float64, X.shape[1]))
    tables = {"e": polars.DataFrame({"e": rows}), "f": polars.DataFrame({"a": X[:, 0], "f": rows})}
    tables["s"] = polars.DataFrame(X).select(polars.struct(polars.all()).alias("s"))
    for name, table in tables.items():
        for call in (trainer().network, lambda X: trainer().fit((X, Y), epochs=1)):
            with pytest.raises(
                TypeError, match=f"X expected a number in each cell, got column '{name}' of dtype .*; unpack it: "
            ) as e:
                call(table)
        unpacked = np.asarray(eval(str(e.value).partition("unpack it: ")[2], {"np": np, "X": table}))
        np.testing.assert_array_equal(unpacked[:, -X.shape[1] :], X)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, np.asarray(["a", None] * (len(X) // 2), object)), "y .* with a missing label, None, at 1; drop it, or fill it"),
        ((X, np.asarray(["a", math.nan] * (len(X) // 2), object)), "y .* with a missing label, nan, at 1; drop it, or fill it"),
        ((X, np.asarray(["a", 1] * (len(X) // 2), object)), r"np\.unique\(y\.astype\(str\), return_inverse=True\)"),
        ((X, Y + 0.5), r"if all are whole; for other numbers take SquaredError"),
        ((X, 1), r"a scalar as y; reshape it to \(1, \.\.\.\)"),
        ((X, Y, 2.0), "a scalar as weights; give one weight an example, or leave them out"),
        ((X, Y, ["a"] * len(X)), "weights expected numbers, .* give a number for each example"),
    ],
)
def test_repairs_of_labels_and_weights(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        trainer().fit(given, epochs=1)


def test_predict_names_its_argument():
    for call in (trainer().predict, trainer().probabilities):
        with pytest.raises(TypeError, match=r"^X expected numbers"):
            call([["a", "b"]])
        with pytest.raises(TypeError, match=r"^X\[1\] expected numbers"):
            call((X, [["a", "b"]]))


def test_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"X is sparse \(csr_matrix\), .* pass X\.toarray\(\)"):
        trainer().fit((sparse.csr_matrix(X), Y), epochs=1)
    with pytest.raises(TypeError, match=r"X is sparse \(dok_array\), .* pass X\.toarray\(\)"):
        trainer().network(sparse.dok_array(X))
    with pytest.raises(TypeError, match=r"scipy\.sparse\.vstack\(list\(X\)\)\.toarray\(\)"):
        trainer().network([sparse.csr_array(row[None]) for row in X])


def test_tensors_of_torch(torch):
    """One that requires a gradient is used without it; a sparse one is refused."""
    run = trainer(backend="torch")
    tensor = torch.tensor(X, requires_grad=True)
    assert not run.network(tensor).requires_grad
    run.fit((tensor.detach().bfloat16(), Y), epochs=1)
    with pytest.raises(TypeError, match=r"X is sparse .* pass X\.to_dense\(\)"):
        run.fit((torch.tensor(X).to_sparse(), Y), epochs=1)


@pytest.mark.parametrize("loss", [bp.SquaredError(), bp.Huber(), bp.LogisticLoss()], ids=repr)
@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8"])
def test_whole_labels(loss, dtype, backend):
    y = (np.arange(3 * len(X)) % 2).reshape(-1, 3)
    run, other = (trainer(backend=backend.backend, loss=loss) for _ in range(2))
    run.fit((X, y.astype(dtype)), epochs=1)
    other.fit((X, y.astype(float)), epochs=1)
    np.testing.assert_array_equal(backend.to_host(run.network.theta), backend.to_host(other.network.theta))


def test_booleans_are_classes(backend):
    run, other = (trainer(bp.Linear(FEATURES, 2), backend=backend.backend, metrics=["accuracy", "log_loss"]) for _ in range(2))
    run.fit((X, Y == 1), epochs=1)
    other.fit((X, (Y == 1).astype(int)), epochs=1)
    np.testing.assert_array_equal(backend.to_host(run.network.theta), backend.to_host(other.network.theta))
    assert run.evaluate((X, Y == 1)) == other.evaluate((X, (Y == 1).astype(int)))


def test_ids_and_whole_features_together(backend):
    """Ids stay integers, other inputs become floats."""
    nodes = {
        "e": (bp.Embedding(CLASSES, 4), "ids"),
        "h": (bp.Linear(FEATURES, 4), "X"),
        "r": (bp.Residual(bp.Linear(FEATURES, FEATURES)), "X"),
        "u": (bp.Concatenate(), "e", "h", "r"),
    }
    net = bp.Network(bp.Circuit(["ids", "X"], nodes, "u"), backend.backend)
    whole = np.rint(X).astype("int64")
    got, expected = net((Y, whole)), net((Y, whole.astype(float)))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(backend.to_host(got), backend.to_host(expected))


def test_a_column_that_rounding_makes_constant():
    """Times in seconds: all are one number in float32."""
    seconds = np.concatenate([X[:, 1:], 1.7e9 + np.arange(len(X), dtype="float64")[:, None]], axis=1)
    with pytest.warns(UserWarning, match=r"train: X's column 4, from 1700000000 to .*, is a single number in float32; subtract"):
        trainer(dtype="float32").fit((seconds, Y), epochs=1)
    trainer(dtype="float64").fit((seconds, Y), epochs=1)
