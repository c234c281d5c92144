"""Pictures besides the learning curve: what is drawn, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import bpcore as bp

pytest.importorskip("matplotlib")


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
    ("y", "predicted"), [([0.0], [0]), ([0], [[0.1, 0.9]]), ([0, 1], [0]), (np.array([], int), np.array([], int))]
)
def test_confusion_refuses(y, predicted):
    with pytest.raises(ValueError, match=r"expected two vectors of class indices, got .*pass scores.argmax\(axis=1\)"):
        bp.confusion(y, predicted)


@pytest.mark.parametrize("y", [[0, 3], [-1, 0]])
def test_confusion_refuses_classes_out_of_range(y):
    with pytest.raises(ValueError, match=r"confusion expected classes from 0 to 1, got .*names"):
        bp.confusion(y, [0, 1], names=["cat", "dog"])


@pytest.mark.parametrize(
    ("n", "most", "drawn", "columns"), [(1, 64, 1, 1), (11, 64, 11, 4), (24, 64, 24, 6), (70, 64, 64, 8), (70, 9, 9, 3)]
)
def test_filters(n, most, drawn, columns, tmp_path):
    """Each on its own scale, in its own place; of too many those with the largest norm, in their order."""
    W = np.random.default_rng(0).standard_normal((4, 3, n)) * np.arange(1, n + 1)
    figure = bp.filters(W, tmp_path / "filters.png", most=most)
    assert (tmp_path / "filters.png").read_bytes().startswith(b"\x89PNG")
    mosaic = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    chosen = np.sort(np.argsort(-np.linalg.norm(W, axis=(0, 1)))[:drawn])
    for place, k in enumerate(chosen):
        top, left = place // columns * 5, place % columns * 4
        np.testing.assert_allclose(mosaic[top : top + 4, left : left + 3], W[..., k] / np.abs(W[..., k]).max())
    assert np.isfinite(mosaic).sum() == 12 * drawn
    assert figure.axes[0].get_title().startswith(f"{n} filters" if drawn == n else f"{drawn} of {n} filters")


def test_filters_of_zeros_and_what_is_refused():
    bp.filters(np.zeros((3, 3, 2)))
    for shape in ((5, 5, 1, 24), (784, 800), (3, 3, 0)):
        with pytest.raises(ValueError, match=r"expected pictures \(height, width, n\), got shape .*; reshape them"):
            bp.filters(np.zeros(shape))
