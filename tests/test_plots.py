"""Pictures: what is drawn, what is refused, and that no text lies on another."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

import bpcore as bp
from bpcore import plots
from bpcore.costs import counted
from bpcore.plots.nodes import Graph, lanes

pytest.importorskip("matplotlib")


def drawn(figure):
    """The figure, drawn as for a file. No text may lie on another or leave the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    ticks = [label for axes in figure.axes if axes.axison for axis in (axes.xaxis, axes.yaxis) for label in shown_labels(axis)]
    written = [*ticks, *(t for axes in figure.axes for t in (*axes.texts, axes.title))]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in written if t.get_text()]
    low, high = figure.bbox.get_points()
    for i, (text, box) in enumerate(boxes):
        assert (box.min >= low - 1).all(), f"{text!r} leaves the figure"
        assert (box.max <= high + 1).all(), f"{text!r} leaves the figure"
        for other, there in boxes[:i]:
            assert not box.overlaps(there), f"{text!r} lies on {other!r}"
    return figure


def shown_labels(axis) -> list:
    """The labels of ticks within the axis; matplotlib has others, which it does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [label for at, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True) if low <= at <= high]


def texts(figure) -> dict[tuple[int, int], str]:
    """(row, column) -> what is written there."""
    return {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in figure.axes[0].texts}


def test_confusion(tmp_path):
    """Counts by class and what it was taken for, nothing where there are none; colour for mistakes alone."""
    y, predicted = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 2, 1, 0, 1])
    path = tmp_path / "confusion.png"
    figure = bp.confusion(y, predicted, path)
    assert texts(figure) == {(0, 0): "2", (0, 2): "1", (1, 1): "1", (2, 0): "1", (2, 1): "1"}
    mistakes = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(mistakes, [[0, 0, 1], [0, 0, 0], [1, 1, 0]])
    assert figure.axes[0].get_title() == "3 of 6 wrong (50.00%)"
    assert path.read_bytes().startswith(b"\x89PNG")
    named = bp.confusion([0], [0], names=["cat", "dog"])
    assert [label.get_text() for label in named.axes[0].get_xticklabels()] == ["cat", "dog"]
    assert named.axes[0].get_title() == "0 of 1 wrong (0.00%)"


@pytest.mark.parametrize(
    ("y", "predicted"), [([0.5], [0]), ([0], [[0.1, 0.9]]), ([0, 1], [0]), (np.array([], int), np.array([], int))]
)
def test_confusion_refuses(y, predicted):
    with pytest.raises(ValueError, match=r"expected two vectors of class indices, got .*pass scores.argmax\(axis=1\)"):
        bp.confusion(y, predicted)


@pytest.mark.parametrize("y", [[0, 3], [-1, 0]])
def test_confusion_refuses_classes_out_of_range(y):
    with pytest.raises(ValueError, match=r"confusion expected classes from 0 to 1, got .*names"):
        bp.confusion(y, [0, 1], names=["cat", "dog"])


def classes(k: int, n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """(y, predicted) of n examples of k classes, a quarter wrong."""
    generator = np.random.default_rng(k)
    y = generator.integers(0, k, n)
    return y, np.where(generator.random(n) < 0.75, y, generator.integers(0, k, n))


LONG = "a name that is longer than any picture is wide, of class {}".format


@pytest.mark.parametrize("k", [1, 2, 3, 10, 40, 130])
@pytest.mark.parametrize("name", [None, str, "class {}".format, LONG, "$x_{}$ and $y$".format])
def test_confusion_of_any_number_of_classes(k, name):
    """Square, no label on another, shortened names differ, as the names do."""
    figure = drawn(bp.confusion(*classes(k), names=None if name is None else [name(i) for i in range(k)]))
    axes, bar = figure.axes
    width, height = axes.get_position().size * figure.get_size_inches()
    assert width == pytest.approx(height)
    assert bar.get_ylabel() == "mistakes"
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == len(labels) == len(axes.get_yticks())
    assert len(labels) == k if k <= 40 else 10 < len(labels) < k
    if name is LONG:
        assert all(label.startswith("a name") and "…" in label and label.split()[-1].isdecimal() for label in labels)
    elif name is not None:
        assert labels == [name(i) for i in axes.get_yticks()]


def test_confusion_shortens_names_that_differ_in_the_middle():
    names = [f"{'very ' * 9}{animal}{' small' * 9}" for animal in ("cat", "dog")]
    labels = [label.get_text() for label in bp.confusion([0, 1], [1, 1], names=names).axes[0].get_yticklabels()]
    assert [label[0] for label in labels] == ["0", "1"]


@pytest.mark.parametrize(
    ("k", "n", "expected"), [(3, 10**6, "1,000,000"), (30, 10**6, "1.0M"), (40, 12, "12"), (60, 10**5, None)]
)
def test_confusion_writes_counts_that_fit(k, n, expected):
    y = np.concatenate([np.zeros(n, int), np.arange(k)])
    figure = drawn(bp.confusion(y, np.concatenate([np.full(n, k - 1), np.arange(k)])))
    assert texts(figure).get((0, k - 1)) == expected


def test_confusion_takes_what_a_loss_takes(backend):
    """Probability rows, booleans, arrays of every backend. A class that is never predicted has an empty column."""
    y, predicted = np.array([0, 1, 2, 2]), np.array([0, 1, 1, 0])
    expected = texts(bp.confusion(y, predicted))
    assert {j for _, j in expected} == {0, 1}
    assert texts(bp.confusion(np.eye(3)[y], predicted)) == expected
    assert texts(bp.confusion(backend.asarray(y), backend.asarray(predicted))) == expected
    assert texts(bp.confusion(y == 1, predicted == 1)) == {(0, 0): "2", (0, 1): "1", (1, 1): "1"}
    assert len(bp.confusion(np.eye(5)[y], predicted).axes[0].get_yticks()) == 5


REFUSED_BY_CONFUSION = [
    ((["cat", "dog"], [0, 1]), {}, TypeError, r"number the classes: np\.unique\(np\.asarray\(y\), return_inverse=True\)"),
    (([0, 1], np.ones((2, 2))), {}, ValueError, r"got int64 \(2,\) and float64 \(2, 2\); pass scores.argmax\(axis=1\)"),
    ((np.full((2, 2), np.nan), [0, 1]), {}, ValueError, "expected two vectors of class indices, got float64"),
    ((np.ones((2, 2)), [0, 1]), {}, ValueError, "expected two vectors of class indices, got float64"),  # no probabilities
    ((None, [0, 1]), {}, TypeError, "confusion's y expected an array of numbers, got NoneType"),
    (([0, 1], [[0], [0, 1]]), {}, ValueError, "confusion's predicted expected rows of one length"),
    (
        (np.ma.array([0, 1], mask=[0, 1]), [0, 1]),
        {},
        TypeError,
        "y is a masked array with masked entries, .*drop",
    ),
    (
        ([0, 1], [0, 1], ["cat", "dog"]),
        {},
        TypeError,
        r"path must be the name of a file, .*, got \['cat', 'dog'\]; give .* by name",
    ),
    (([0, 1], [0, 1]), {"names": "ab"}, TypeError, r"names must be a list .*, got 'ab'; e.g. \['cat', 'dog'\]"),
    (([0, 1], [0, 1]), {"names": {0: "a", 1: "b"}}, TypeError, "names must be a list with the name of each class"),
    (([0, 1], [0, 1]), {"names": {"cat", "dog"}}, TypeError, "names must be a list with the name of each class"),  # no order
    (([0.0, 1.0], [0, 1]), {}, ValueError, r"got float64 .*; convert the labels: np\.asarray\(y\)\.astype\('int64'\)"),
    (([0, 1], [0, 1]), {"names": 2}, TypeError, "names must be a list with the name of each class, got 2"),
    (([0, 10**6], [0, 1]), {}, ValueError, "draws at most 1,000 classes, got 1,000,001; put classes together"),
]


@pytest.mark.parametrize(("arguments", "named", "error", "message"), REFUSED_BY_CONFUSION)
def test_confusion_refuses_in_a_sentence(arguments, named, error, message):
    with pytest.raises(error, match=message):
        bp.confusion(*arguments, **named)


@pytest.mark.parametrize(
    ("n", "most", "shown", "columns"), [(1, 64, 1, 1), (11, 64, 11, 4), (24, 64, 24, 6), (70, 64, 64, 8), (70, 9, 9, 3)]
)
def test_filters(n, most, shown, columns, tmp_path):
    """Each on its own scale, in its own place; of too many those with the largest norm, in their order."""
    W = np.random.default_rng(0).standard_normal((4, 3, n)) * np.arange(1, n + 1)
    figure = bp.filters(W, tmp_path / "filters.png", most=most)
    assert (tmp_path / "filters.png").read_bytes().startswith(b"\x89PNG")
    mosaic = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    chosen = np.sort(np.argsort(-np.linalg.norm(W, axis=(0, 1)))[:shown])
    for place, k in enumerate(chosen):
        top, left = place // columns * 5, place % columns * 4
        np.testing.assert_allclose(mosaic[top : top + 4, left : left + 3], W[..., k] / np.abs(W[..., k]).max())
    assert np.isfinite(mosaic).sum() == 12 * shown
    title = "1 filter" if n == 1 else f"{n} filters" if shown == n else f"{shown} of {n} filters, those of the largest norm"
    assert drawn(figure).axes[0].get_title() == title
    assert figure.axes[0].images[0].get_clim() == (-1, 1)
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["-max", "0", "max"]


def test_filters_of_three_channels_are_colours():
    """Grey is zero, and a hole is white."""
    W = np.random.default_rng(0).standard_normal((5, 4, 3, 7))
    (axes,) = drawn(bp.filters(W)).axes
    mosaic = axes.images[0].get_array()
    np.testing.assert_allclose(mosaic[:5, :4], (1 + W[..., 0] / np.abs(W[..., 0]).max()) / 2)
    assert mosaic.shape == (3 * 6 - 1, 3 * 5 - 1, 3)
    assert (mosaic[-5:, -4:] == 1).all()
    np.testing.assert_array_equal(bp.filters(W[:, :, :1]).axes[0].images[0].get_array(), plain(W[:, :, 0]))


def plain(W) -> np.ndarray:
    return bp.filters(W).axes[0].images[0].get_array()


def test_filters_of_a_linear_layer(backend):
    """The columns of its W are images of a given side, with one channel or three."""
    W = np.random.default_rng(0).standard_normal((48, 5)).astype("float32")
    np.testing.assert_array_equal(bp.filters(W, side=(6, 8)).axes[0].images[0].get_array(), plain(W.reshape(6, 8, 5)))
    of_backend = bp.filters(backend.asarray(W), side=(6, 8)).axes[0].images[0].get_array()
    np.testing.assert_array_equal(of_backend, plain(W.reshape(6, 8, 5)))
    np.testing.assert_array_equal(bp.filters(W, side=4).axes[0].images[0].get_array(), plain(W.reshape(4, 4, 3, 5)))


@pytest.mark.parametrize("shape", [(5, 5, 1000), (1, 1, 3), (100, 1, 7), (1, 100, 7), (28, 28, 1), (3, 9, 3, 50)])
def test_filters_of_any_shape(shape):
    figure = drawn(bp.filters(np.random.default_rng(0).standard_normal(shape), most=1000))
    assert (figure.get_size_inches() < 12).all()


@pytest.mark.parametrize("scale", [0.0, 1e-310, 1e300, np.int8(-128)])
def test_filters_of_any_scale(scale):
    figure = bp.filters(np.full((3, 3, 2), scale))
    assert np.nanmax(np.abs(figure.axes[0].images[0].get_array())) == (scale != 0)


REFUSED_BY_FILTERS = [
    (np.zeros((784, 800)), {}, ValueError, r"expected pictures \(height, width, n\), got shape .*; pass side=28 or reshape them"),
    (np.zeros((780, 800)), {}, ValueError, r"expected pictures \(height, width, n\), got shape .*; reshape them"),
    (np.zeros((3, 3, 0)), {}, ValueError, r"expected pictures \(height, width, n\), got shape .*; reshape them"),
    (np.zeros(()), {}, ValueError, r"expected pictures \(height, width, n\), got shape \(\); reshape them"),
    (np.zeros((5, 5, 24, 48)), {}, ValueError, r"draws 1 or 3 channels, got shape .* with 24; choose one: W\[:, :, i\]"),
    (
        np.zeros((784, 8)),
        {"side": 27},
        ValueError,
        r"729 inputs, or 2187 .* with side 27 x 27, got 784; give side=\(height, width\)",
    ),
    (np.zeros((784, 8)), {"side": 28.0}, ValueError, "side must be a whole number from 1 up, got 28.0"),
    (np.zeros((784, 8)), {"side": (28, "a")}, ValueError, "side must be a whole number from 1 up, got 'a'"),
    (np.zeros((7, 7, 8)), {"side": 7}, ValueError, r"with side expected Linear's W \(inputs, n\), got shape .*; leave side out"),
    (np.full((3, 3, 2), np.inf), {}, ValueError, "finite numbers, got 18 of 18 .*; train again with a smaller learning rate"),
    (np.array([["a"]]), {}, TypeError, "filters' W expected numbers, got an array of dtype <U1"),
    (None, {}, TypeError, "filters' W expected an array of numbers, got NoneType"),
    (np.zeros((3, 3, 2)), {"most": 0}, ValueError, "most must be a whole number from 1 up, got 0"),
]


@pytest.mark.parametrize(("W", "named", "error", "message"), REFUSED_BY_FILTERS)
def test_filters_refuse_in_a_sentence(W, named, error, message):
    with pytest.raises(error, match=message):
        bp.filters(W, **named)


# ---- learning curves ----


def history(n: int = 30, **columns) -> bp.History:
    """n epochs; columns: name to a function of the epoch."""
    return bp.History([{"epoch": i} | {name: column(i) for name, column in columns.items()} for i in range(1, n + 1)])


def best_of(axes) -> list[float]:
    """Where the circle of the best epoch is."""
    return [float(x) for dots in axes.collections if dots.get_facecolor().size == 0 for x in dots.get_offsets()[0]]


NAN = float("nan")
CURVES = {  # name: (history, the scale of the loss)
    "one epoch": (history(1, training_loss=lambda i: 0.5, test_loss=lambda i: 0.6), "log"),
    "less than a decade": (history(training_loss=lambda i: 0.7 - 0.003 * i, test_loss=lambda i: 0.7 - 0.002 * i), "log"),
    "a decade": (history(training_loss=lambda i: 0.9**i), "log"),
    "many decades": (history(1000, training_loss=lambda i: 0.9**i), "log"),
    "as far as float64 goes": (history(62, training_loss=lambda i: 10.0 ** (300 - 10 * i)), "log"),
    "only training": (history(training_loss=lambda i: 1 / i, training_r2=lambda i: -1 / i), "log"),
    "negative": (history(training_loss=lambda i: -i, test_loss=lambda i: 1 - i), "linear"),
    "constant": (history(training_loss=lambda i: 0.5, test_loss=lambda i: 0.5), "linear"),
    "zeros": (history(training_loss=lambda i: 0.0), "linear"),
    "gaps": (
        history(training_loss=lambda i: NAN if i % 7 == 0 else 1 / i, test_loss=lambda i: 1 / i if i % 5 == 1 else None),
        "log",
    ),
    "nothing finite": (history(training_loss=lambda i: math.inf, test_loss=lambda i: None), "linear"),
    "tiny": (history(training_loss=lambda i: 5e-324 * i), "log"),
}


@pytest.mark.parametrize("name", CURVES)
def test_learning_curves_have_numbers_at_their_ticks(name):
    measured, scale = CURVES[name]
    figure = bp.learning_curve(measured)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(figure)
    for axes in figure.axes:
        shown = [label.get_text() for label in shown_labels(axes.yaxis)]
        assert len(set(filter(None, shown))) == len(shown) >= 2, (axes.get_title(), shown)
        assert axes.get_ylabel()
    assert figure.axes[0].get_yscale() == scale
    best = measured.best()
    assert best_of(figure.axes[0]) == ([] if best is None else [best["epoch"], best.get("test_loss") or best["training_loss"]])


def test_learning_curve_of_one_epoch_shows_points():
    (axes,) = bp.learning_curve(CURVES["one epoch"][0]).axes
    assert [line.get_marker() for line in axes.get_lines()] == ["o", "o"]
    assert list(axes.get_xticks()) == [1]


def test_learning_curve_shows_a_value_between_gaps():
    (axes,) = bp.learning_curve(CURVES["gaps"][0]).axes
    alone = [
        x for dots in axes.collections if dots.get_facecolor().size and len(dots.get_offsets()) > 1 for x, _ in dots.get_offsets()
    ]
    assert alone[-6:] == [1, 6, 11, 16, 21, 26]


def test_learning_curve_has_two_columns_at_most():
    """The loss first; every metric that was measured has a panel, on whichever set."""
    value = lambda i: 1 / i  # noqa: E731
    names = ("test_r2", "training_accuracy", "test_accuracy", "training_loss", "test_top_5")
    figure = drawn(bp.learning_curve(history(9, **dict.fromkeys(names, value))))
    assert [axes.get_title() for axes in figure.axes] == ["loss", "r2", "accuracy", "top 5"]
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 1, 2, 1]
    assert len({round(axes.get_position().x0, 2) for axes in figure.axes}) == 2
    assert figure.axes[0].get_title(loc="right") == "lowest in epoch 9: 0.1111"


def test_learning_curve_marks_the_epoch_whose_theta_came_back():
    of = history(9, training_loss=lambda i: 1 / i)
    of.theta_epoch = 4
    assert drawn(bp.learning_curve(of)).axes[0].get_title(loc="right") == "θ of epoch 4: 0.25"


REFUSED_BY_CURVES = [
    ([{"epoch": 1}], TypeError, r"expected a History, got list; pass trainer.history, or bp.History\(a list of records\)"),
    ("curve.png", TypeError, "expected a History, got str"),
    (bp.History(), ValueError, "the history is empty: it has no epoch to draw; call fit first"),
    (bp.History([{"epoch": 1}]), ValueError, "expected columns training_... or test_..., got epoch; pass the history of a fit"),
    (bp.History([{"training_loss": "a"}]), TypeError, "expected numbers in training_loss, got 'a'; convert the column"),
]


@pytest.mark.parametrize(("measured", "error", "message"), REFUSED_BY_CURVES)
def test_learning_curve_refuses_in_a_sentence(measured, error, message):
    with pytest.raises(error, match=message):
        bp.learning_curve(measured)


# ---- all pictures ----

PICTURES = {
    "confusion": lambda path: bp.confusion([0, 1], [1, 1], path),
    "filters": lambda path: bp.filters(np.ones((3, 3, 2)), path),
    "learning_curve": lambda path: bp.learning_curve(CURVES["gaps"][0], path),
    "network": lambda path: plots.network(bp.MLP([3, 4, 2]), (5, 3), path=path),
}
of_picture = pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)


def test_every_picture_is_here():
    assert set(PICTURES) | {"LearningCurve"} == set(plots.__all__)
    assert not hasattr(bp.network, "__call__"), "bp.network is the file"  # noqa: B004


@of_picture
@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("a.txt", ValueError, "path must end in .png, .svg, .pdf or another of matplotlib's formats, got .*a.txt'; rename it"),
        ("a", ValueError, "path must end in .png"),
        ("missing/a.png", FileNotFoundError, "there is no folder .*missing; make it first"),
        ("", IsADirectoryError, "it is a folder; name a file in it"),
    ],
)
def test_no_picture_without_a_place(picture, path, error, message, tmp_path):
    with pytest.raises(error, match=message):
        picture(tmp_path / path)
    with pytest.raises(TypeError, match="path must be the name of a file"):
        picture(3)
    assert list(tmp_path.iterdir()) == []


@of_picture
def test_pictures_are_files(picture, tmp_path):
    for name, head in (("a.png", b"\x89PNG"), ("b.SVG", b"<?xml"), ("c.pdf", b"%PDF")):
        picture(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head)


@of_picture
def test_a_notebook_shows_a_picture_once(picture):
    """As a PNG, which is what IPython looks for; nothing is left with pyplot, and no window opens."""
    from matplotlib import _pylab_helpers

    figure = picture(None)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert not figure._repr_html_()
    assert not _pylab_helpers.Gcf.figs
    with pytest.raises(RuntimeError, match="a picture opens no window: make it the last line of a notebook's cell, or write it"):
        figure.show()


def test_the_callback_says_a_wrong_ending_before_the_first_step(tmp_path):
    trainer = bp.Trainer(
        bp.Network(bp.Linear(2, 1)), bp.SquaredError(), bp.SGD(), callbacks=[bp.LearningCurve(tmp_path / "a.txt")]
    )
    with pytest.raises(ValueError, match=r"path must end in \.png"):
        trainer.fit((np.ones((3, 2)), np.ones((3, 1))), epochs=1)
    assert len(trainer.history) == 0


# ---- a network ----


def residual() -> bp.Module:
    return bp.Residual(bp.Sequential(bp.LayerNorm(8), bp.Linear(8, 16), bp.GELU(), bp.Linear(16, 8)))


def gated() -> bp.Module:
    """A graph with two inputs, a value used twice, and a weight of its own."""
    nodes = {
        "h": (bp.Linear(8, 4), "x"),
        "g": (bp.Linear(3, 4), "c"),
        "s": (bp.Sigmoid(), "g"),
        "p": (bp.Multiply(), "h", "s"),
        "t": (bp.Tanh(), "h"),
        "b": (bp.Weight((4,)),),
        "a": (bp.Add(), "p", "t"),
        "o": (bp.Add(), "a", "b"),
    }
    return bp.Circuit(("x", "c"), nodes, "o")


IDS = np.zeros((4, 6), "int64")
EMBEDDING = bp.Embedding(7, 8)
NETWORKS = {
    "MLP": (bp.MLP([8, 16, 16, 3]), (4, 8)),
    "one module": (bp.Linear(8, 3), (4, 8)),
    "nothing to train": (bp.Sequential(bp.ReLU(), bp.Flatten()), (4, 3, 3)),
    "no module": (bp.Sequential(), (4, 8)),
    "no input": (bp.Weight((3, 4)),),
    "30 layers": (bp.MLP([8] * 31), (4, 8)),
    "30 modules": (bp.Sequential(*(m for i in range(15) for m in (bp.Linear(8 + i, 9 + i), bp.Tanh()))), (4, 8)),
    "90 modules": (bp.Sequential(*(m for i in range(45) for m in (bp.Linear(8 + i, 9 + i), bp.Tanh()))), (4, 8)),
    "nested": (bp.Sequential(*(bp.MLP([8 + i, 9, 9, 9 + i]) for i in range(20))), (4, 8)),
    "residual": (bp.Sequential(bp.Linear(8, 8), residual(), residual(), bp.Linear(8, 3)), (4, 8)),
    "many residual": (bp.Sequential(bp.Linear(8, 8), *(residual() for _ in range(9)), bp.Linear(8, 3)), (4, 8)),
    "circuit": (gated(), (4, 8), (4, 3)),
    "outputs": (bp.Circuit("x", {"a": (bp.Linear(8, 3), "x"), "b": (bp.Linear(8, 2), "x")}, ("a", "b")), (4, 8)),
    "LSTM": (bp.Sequential(bp.Embedding(7, 8), bp.LSTM(8, 5), bp.Linear(5, 7)), IDS),
    "images": (bp.Sequential(bp.Conv2d(1, 4, 3), bp.BatchNorm(4), bp.ReLU(), bp.MaxPool2d(2), bp.Flatten()), (4, 8, 8, 1)),
    "transformer": (
        bp.Sequential(EMBEDDING, *(bp.TransformerBlock(8, 2) for _ in range(6)), bp.LayerNorm(8), bp.Unembed(EMBEDDING)),
        IDS,
        np.ones((4, 6), bool),
    ),
    "recomputed": (bp.Sequential(bp.Linear(8, 8), bp.Recompute(residual()), bp.Linear(8, 3)), (4, 8)),
    "long names": (bp.Circuit("x" * 90, {"n" * 90: (bp.MLP([8, *[9] * 60, 3]), "x" * 90)}, "n" * 90), (4, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    """Its bytes and parameters are those of `cost`, and no text lies on another."""
    module, *shapes = NETWORKS[name]
    figure = drawn(plots.network(bp.Network(module), *shapes))
    width, height = figure.get_size_inches()
    assert width == 10
    assert height < 30
    passes = counted(module, shapes, "float32")
    nodes = Graph(module, passes, depth=1000).nodes
    assert sum(node.stored + node.besides for node in nodes) == passes.cost.saved
    assert sum(node.parameters for node in nodes) == passes.cost.parameters
    order = [row.path for row in passes.cost.rows]
    paths = [node.path for node in nodes if node.module is not None and node.title != "+"]
    assert paths == [path for path in order if path in paths], "the summary's order"


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def test_network_tells_what_runs_and_what_is_stored():
    """Figure 7.5 of an MLP: B[M, θ] where there is θ; no B[M, z] for dJ/dx; J's gradient comes first."""
    said = words(plots.network(bp.MLP([8, 16, 3]), (4, 8)))
    assert said[0] == "MLP: 195 trained numbers, 256 bytes stored between the passes"
    for text in (
        "M1  Linear(8, 16)",
        "at 0   W (8, 16), b (16,), 144 trained numbers",
        "the input, read again",
        "u[2]  (4, 16)",
        "stored 256 bytes",
        "B[M1, θ]",
        "→ ∂J/∂θ[1]",
        "B[M2, z]  →  ∂J/∂u[1]",
        "B[M3, θ]",
        "B[M3, z]",
        "∂J/∂x: not needed",
        "the loss J(u[3], y)",
        "B[J, u](1)  →  ∂J/∂u[3]",
    ):
        assert said.count(text) == 1, (text, said)
    assert said.count("not stored") == 2
    assert not any("B[M1, z]" in text for text in said)


def test_network_folds_what_repeats():
    """As often as it repeats, and gradients go to the last of them."""
    said = words(plots.network(NETWORKS["transformer"][0], IDS))
    assert "× 6  (M2 to M7)" in said
    assert sum("TransformerBlock" in text for text in said) == 1
    assert "→ ∂J/∂u[7]" in said
    said = words(plots.network(NETWORKS["many residual"][0], (4, 8)))
    assert "× 9  (M2 to M46)" in said
    assert "v goes both ways  →  ∂J/∂u[1], ∂J/∂u[5]" in said
    said = words(plots.network(NETWORKS["90 modules"][0], (4, 8)))
    assert any("M19–" in text for text in said)


def test_network_draws_the_wires_of_a_circuit():
    """Every value goes where the circuit says, and its gradient comes back from there."""
    module = gated()
    nodes = {node.path or node.title: node for node in Graph(module, counted(module, [(4, 8), (4, 3)], "float32"), 9).nodes}
    for name, (_, *sources) in module.nodes.items():
        assert [source.path or source.title for source in nodes[name].sources] == sources
    assert {name for name, node in nodes.items() if node.trains} == {"h", "g", "b"}
    assert {name for name, node in nodes.items() if node.passes} == {"s", "p", "t", "a", "o"}
    assert nodes["p"].gives == [nodes["h"].u, nodes["s"].u]
    assert nodes["p"].keeps == [nodes["h"], nodes["s"]]


def test_lanes_do_not_overlap():
    """Edges that start in one row share a lane; others in a lane do not meet."""
    edges = [(0, 5), (0, 3), (1, 4), (2, 6), (5, 9), (7, 9)]
    taken = lanes(edges)
    assert taken[0, 5] == taken[0, 3]
    for (a, b), lane in taken.items():
        for (c, d), other in taken.items():
            assert lane != other or a == c or b < c or d < a


REFUSED_BY_NETWORK = [
    ((None, (4, 8)), r"expected a Network or a module, got NoneType; e.g. network\(net, \(32, 64\)\)"),
    ((bp.Linear, (4, 8)), "expected a Network or a module, got type"),
    ((bp.Linear(8, 3), 4, 8), r"expected a shape for each input, got 4; e.g. network\(net, \(32, 64\)\), batch included"),
    ((bp.Linear(8, 3), (None, 8)), r"expected a shape for each input, got \(None, 8\)"),
    ((bp.Linear(8, 3), (-1, 8)), r"expected a shape for each input, got \(-1, 8\)"),
    ((bp.Linear(8, 3), (4.0, 8)), r"expected a shape for each input, got \(4.0, 8\)"),
    ((bp.Linear(8, 3), (4, 8), "a.png"), "got 'a.png'; name a file: path="),
    ((bp.Linear(8, 3),), r"got none; e"),
    ((bp.Embedding(7, 8), (4, 6)), "expected ids .*; here ids are given as an array"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED_BY_NETWORK)
def test_network_refuses_in_a_sentence(arguments, message):
    with pytest.raises(TypeError, match=message):
        plots.network(*arguments)
    with pytest.raises(ValueError, match="Linear expected features 8 in the last axis"):
        plots.network(bp.Linear(8, 3), (4, 7))


LONG_NAMED = type("AModuleWithAVeryLongNameThatSomebodyWroteOnTheirOwnForATest", (bp.Linear,), {})


@pytest.mark.parametrize("dpi", [72, 100, 150])
@pytest.mark.parametrize(
    ("module", "shape"), [(bp.Sequential(bp.Flatten(), bp.Linear(12, 2)), (4, 3, 4)), (bp.Sequential(LONG_NAMED(3, 4)), (5, 3))]
)
def test_text_stays_inside_its_box(module, shape, dpi):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = bp.plots.network(module, shape)
    figure.set_dpi(dpi)
    ends = []  # of the texts, as they are drawn
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    draw = renderer.draw_text
    renderer.draw_text = lambda *a, mtext, **named: (
        ends.append(mtext.get_window_extent(renderer)),
        draw(*a, mtext=mtext, **named),
    )
    figure.draw(renderer)
    boxes = [patch.get_window_extent(renderer) for patch in figure.axes[0].patches]
    inside = [(text, box) for text in ends for box in boxes if box.x0 < text.x0 < box.x1 and box.y0 < text.y0 < box.y1]
    assert len(inside) > 6
    assert all(text.x1 < box.x1 - 0.05 * dpi for text, box in inside)


def test_a_loss_is_drawn_once():
    figure = bp.plots.network(bp.CrossEntropy(), (3, 2), np.asarray([0, 1, 1]))
    assert not any("the loss" in text.get_text() for text in figure.axes[0].texts)


def test_filters_of_one_weight_and_confusion_of_some_examples():
    net = bp.Network(bp.Linear(4, 2))
    for W in (net, net.module, net.windows, net.parameters()):
        with pytest.raises(TypeError, match=r"(?s)expected the array of one weight, got .*; e\.g\. net\.windows\[0\]\.W"):
            bp.plots.filters(W)
    with pytest.raises(ValueError, match="got no example"):
        bp.plots.confusion([], [])


def test_confusion_of_labels_with_an_axis_of_one():
    y, p = np.array([[0], [1], [1]]), np.array([[0], [1], [0]])
    assert bp.plots.confusion(y, p) is not None
    with pytest.raises(ValueError, match=r"pass scores\[:, 0\] > 0 of the same examples"):
        bp.plots.confusion(y[:, 0], np.array([[0.1], [2.0], [-1.0]]))
