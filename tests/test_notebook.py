"""What a prompt and a notebook show: reprs of one line, tables as HTML, keys that complete. Jupyter is not needed."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

import bpcore as bp
from bpcore import tables
from bpcore.counting import CountingArray
from bpcore.training.data import as_examples


class Table(HTMLParser):
    """Reads an HTML table: `rows` of texts; `bold`, the rows of the body in bold; `caption`."""

    def __init__(self, html: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.bold: list[int] = []
        self.caption = ""
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, f"{self.open} are not closed"

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            if tag == "th" and "tbody" in self.open and len(self.rows[-1]) == 1:
                self.bold.append(len(self.rows) - 1)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "caption":
            self.caption += data
        else:
            assert self.open[-1] in ("td", "th"), f"{data!r} is in no cell"
            self.rows[-1][-1] += data


def test_tables_escape_what_they_hold():
    cells = [["<b>", "a & b"], ['"quoted"', "</table>"]]
    table = Table(tables.as_html(["<i>", "x"], cells, caption="<script>"))
    assert table.rows == [["<i>", "x"], *cells]
    assert table.caption == "<script>"
    assert "<b>" not in tables.as_html(["t"], [["<b>"]])


def test_a_network_is_a_table():
    embedding = bp.Embedding(7, 4)
    module = bp.Circuit(
        "x", {"<e>": (embedding, "x"), "norm": (bp.BatchNorm(4), "<e>"), "u": (bp.Unembed(embedding), "norm")}, "u"
    )
    net = bp.Network(module, dtype="float64")
    table = Table(net._repr_html_())
    assert table.rows == [
        ["path", "module", "windows", "trained numbers"],
        ["", "Circuit", "", "0"],
        ["<e>", "Embedding", "W (7, 4)", "28"],
        ["norm", "BatchNorm", "gamma (4,), beta (4,), mean (4,), variance (4,)", "8"],
        ["u", "Unembed", "W (7, 4)", "0"],
        ["total", "", "", "36"],
    ]
    assert table.caption == "Network on numpy, float64: 36 trained numbers"
    assert table.bold == [5]
    long = Table(bp.Network(bp.MLP([2] * 90))._repr_html_())
    assert len(long.rows) == 1 + 60 + 2
    assert ["…"] * 4 in long.rows
    assert long.rows[-1] == ["total", "", "", str(89 * 6)]


def test_a_cost_is_a_table():
    cost = bp.cost(bp.MLP([64, 128, 10]), (32, 64))
    table = Table(cost._repr_html_())
    assert table.rows[0] == ["path", "module", "output", "parameters", "forward", "backward", "saved bytes"]
    assert table.rows[2] == ["0", "Linear", "(32, 128)", "8,320", "528,384", "1,052,672", "0"]
    assert table.rows[-1] == ["total", "", "", "9,610", "614,720", "1,225,024", "16,384"]
    assert cost._ipython_key_completions_() == ["0", "1", "2"]
    with pytest.raises(KeyError, match="there is no module at '7'; there is 0, 1, 2"):
        cost["7"]


def history(n: int, best: int = 1, test: bool = True) -> bp.History:
    """n epochs, the lowest loss in epoch `best`."""
    column = "test_loss" if test else "training_loss"
    return bp.History([{"epoch": i, column: 1.23456789 + abs(i - best)} for i in range(1, n + 1)])


def test_a_history_is_a_table():
    """Numbers are rounded, the best epoch is bold, and stays when a long table is shortened."""
    table = Table(history(3, best=2)._repr_html_())
    assert table.rows == [["epoch", "test_loss"], ["1", "2.235"], ["2", "1.235"], ["3", "2.235"]]
    assert (table.bold, table.caption) == ([2], "bold: the lowest test_loss")
    assert Table(history(3, test=False)._repr_html_()).caption == "bold: the lowest training_loss"
    for best in (1, 12, 13, 50, 88, 89, 100):
        long = history(100, best)
        table = Table(long._repr_html_())
        assert [table.rows[row][0] for row in table.bold] == [str(best)]
        epochs = [row[0] for row in table.rows[1:] if row[0] != "…"]
        assert epochs == [str(i) for i in range(1, 101) if i < 13 or i > 88 or i == best]
        assert len(repr(long).splitlines()) == len(table.rows)
        assert len(str(long).splitlines()) == 101
    assert Table(bp.History()._repr_html_()).caption == "a history without epochs"
    assert repr(bp.History()) == "History([])"
    assert history(3)._ipython_key_completions_() == ["epoch", "test_loss"]


def test_the_best_record():
    """By test loss; by training loss where none was measured; values that are not finite do not count."""
    nan = float("nan")
    records = [{"training_loss": 1.0, "test_loss": nan}, {"training_loss": 3.0, "test_loss": None}, {"training_loss": 2.0}]
    assert bp.History(records).best() is records[0]
    assert bp.History([*records, {"training_loss": 9.0, "test_loss": 5.0}]).best()["test_loss"] == 5.0
    assert bp.History([{"training_loss": nan}, {"training_loss": -2.0}]).best() == {"training_loss": -2.0}
    assert bp.History([{"training_loss": nan}, {"epoch": 2}]).best() is bp.History().best() is None
    assert Table(bp.History([{"training_loss": nan}])._repr_html_()).bold == []


def test_keys_and_names_complete():
    windows = bp.Network(bp.Sequential(bp.Linear(3, 4), bp.Residual(bp.Linear(4, 4, bias=False)))).windows
    keys = windows._ipython_key_completions_()
    assert keys == ["0", "1", "0.W", "0.b", "1.body.W"]
    assert windows[1]._ipython_key_completions_() == ["body", "body.W"]
    assert windows[0]._ipython_key_completions_() == ["W", "b"]
    for key in keys:
        assert windows[key] is not None
    assert {"W", "b", "path", "items"} <= set(dir(windows[0]))


class Slow(bp.Metric):
    def __init__(self, factor, offset=0.0):
        self.factor, self.offset = factor, offset


class Closed(bp.Metric):
    def __init__(self, factor):
        self.hidden = factor


class OfArray(bp.Module):
    def __init__(self, table=None):
        self.table = table


ONE_LINE = [
    (bp.Mode(), "Mode()"),
    (bp.Mode(training=True, step=3), "Mode(training=True, step=3)"),
    (bp.Parameter((3, 2), bp.initializers.HeNormal()), "Parameter((3, 2), HeNormal())"),
    (bp.Parameter((2,), bp.initializers.Zeros(), decay=False), "Parameter((2,), Zeros(), decay=False)"),
    (bp.Parameter((2,), bp.initializers.Zeros(), trained=False), "Parameter((2,), Zeros(), trained=False)"),
    (bp.Accuracy(), "Accuracy()"),
    (bp.TopK(3), "TopK(k=3)"),
    (Slow(2), "Slow(2)"),
    (Slow(2, offset=1.0), "Slow(2, offset=1.0)"),
    (Closed(2), "Closed(...)"),
    (OfArray(np.ones(2)), "OfArray(...)"),
    (bp.CrossEntropy(smoothing=0.1), "CrossEntropy(smoothing=0.1)"),
    (bp.initializers.Normal(0.5), "Normal(scale=0.5)"),
    (bp.get_backend("numpy"), "Backend('numpy', device=None)"),
    (bp.Network(bp.Linear(3, 2)).layout, "<Layout of Linear(3, 2): 6 decayed, 8 trained, 8 in all>"),
    (as_examples((np.ones((4, 3)), np.ones(4, "int64")), "train"), "<train: X float64 (4, 3), y int64 (4,)>"),
    (as_examples([(np.ones((4, 3)), np.ones(4))], "test"), "<test: batches from list>"),
    (CountingArray((2, 3), "float32"), "<float32 array of shape (2, 3), without values: bp.cost counts operations>"),
]


@pytest.mark.parametrize(("x", "expected"), ONE_LINE, ids=[expected for _, expected in ONE_LINE])
def test_reprs_are_one_line(x, expected):
    assert repr(x) == expected


@pytest.mark.parametrize(
    "x", [bp.Mode(training=True, seed=2), bp.TopK(3), bp.Accuracy(), bp.Parameter((2,), bp.initializers.Zeros())]
)
def test_reprs_make_it_again(x):
    names = vars(bp) | vars(bp.initializers)
    assert repr(eval(repr(x), dict(names))) == repr(x)


def test_windows_say_a_dozen_shapes_at_most():
    assert repr(bp.initialize(bp.Linear(3, 2))) == "Windows(W (3, 2), b (2,))"
    long = repr(bp.initialize(bp.MLP([2] * 31)))
    assert long.startswith("Windows(0.W (2, 2), 0.b (2,), ")
    assert long.endswith("10.W (2, 2), ... of 60)")


def test_b_says_what_it_takes_and_gives():
    layer = bp.Linear(3, 2)
    _, B = bp.evaluate(layer, bp.initialize(layer), np.ones((5, 3), "float32"))
    assert repr(B) == "<B of Linear(3, 2): v (5, 2) -> (dz (5, 3), dtheta W (3, 2), b (2,))>"
    a, b = np.ones((5, 3)), np.ones((3, 2))
    _, B = bp.evaluate(bp.MatMul(), bp.initialize(bp.MatMul()), a, b)
    assert repr(B) == "<B of MatMul(): v (5, 2) -> (dz (5, 3), (3, 2), dtheta empty)>"
