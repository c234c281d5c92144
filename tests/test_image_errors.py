"""What modules of images refuse: arguments, shapes, dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from runs import trainer, unchanged

import bpcore as bp

MAKE = {
    "groups that do not divide c_in": (lambda: bp.Conv2d(4, 6, 3, groups=3), "Conv2d's groups must divide c_in and c_out, got 3"),
    "groups that do not divide c_out": (
        lambda: bp.Conv2d(4, 6, 3, groups=4),
        "groups must divide c_in and c_out, got 4 for 4 and 6",
    ),
    "groups of a norm": (lambda: bp.GroupNorm(3, 4), "GroupNorm's groups must divide c, got 3 for 4"),
    "a kernel of three": (lambda: bp.Conv2d(1, 1, (3, 3, 3)), r"Conv2d's kernel must be a whole number or two of them, got \(3"),
    "a kernel of nothing": (lambda: bp.MaxPool2d(0), "MaxPool2d's kernel must be a whole number from 1 up, got 0"),
    "no stride": (lambda: bp.Conv2d(1, 1, 3, 0), "Conv2d's stride must be a whole number from 1 up, got 0"),
    "half a dilation": (lambda: bp.Conv1d(1, 1, 3, dilation=0.5), "Conv1d's dilation must be a whole number from 1 up, got 0.5"),
    "padding below zero": (lambda: bp.Conv2d(1, 1, 3, padding=-1), "padding must be 'same', 'valid', or .* got -1"),
    "padding of another name": (lambda: bp.AvgPool2d(3, padding="full"), "padding must be 'same', 'valid', or .* got 'full'"),
    "padding of a bool": (lambda: bp.Conv2d(1, 1, 3, padding=(1, True)), r"must be 'same', 'valid', or .* got \(1, True\)"),
    "padding that fills a place": (lambda: bp.MaxPool2d(2, padding=2), "MaxPool2d's padding must be below its kernel 2, got 2"),
    "transposed, same": (
        lambda: bp.ConvTranspose2d(1, 1, 3, padding="same"),
        "padding must be one or two whole numbers, got 'same'",
    ),
    "output padding of a stride": (
        lambda: bp.ConvTranspose2d(1, 1, 3, (1, 2), output_padding=1),
        "output_padding must be in 0 <= output_padding < stride, got 1",
    ),
    "a negative output padding": (
        lambda: bp.ConvTranspose2d(1, 1, 3, 2, output_padding=-1),
        "ConvTranspose2d's output_padding must be a whole number from 0 up, got -1",
    ),
    "a factor of nothing": (lambda: bp.Upsample(0), "Upsample's factor must be a whole number from 1 up, got 0"),
    "dropout of all": (lambda: bp.Dropout2d(1.0), "Dropout2d's p must be a number, 0 <= p < 1, got 1.0"),
    "no momentum": (lambda: bp.BatchNorm(3, 0.0), "BatchNorm's momentum must be a number, 0 < momentum <= 1, got 0.0"),
    "no channels": (lambda: bp.Conv2d(0, 3, 3), "Conv2d's c_in must be a whole number from 1 up, got 0"),
}


@pytest.mark.parametrize("name", MAKE)
def test_arguments(name):
    make, message = MAKE[name]
    with pytest.raises(ValueError, match=message):
        make()


IMAGES = (20, 6, 5, 2)
Y = np.arange(20) % 3
SHAPES = {
    "a kernel larger than the image": (
        bp.Conv2d(2, 3, 7),
        IMAGES,
        r"0: Conv2d expected .* span \(7, 7\), got \(6, 5\) .*smaller kern",
    ),
    "dilated out of the image": (
        bp.Conv2d(2, 3, 3, 1, 1, 4),
        IMAGES,
        r"0: Conv2d .* span \(9, 9\), got \(8, 7\) with its padding",
    ),
    "pooled away": (bp.MaxPool2d(6), IMAGES, r"0: MaxPool2d expected images at least as large .* padding='same'"),
    "channels": (bp.Conv2d(3, 3, 3), IMAGES, r"0: Conv2d expected features 3 in the last axis, .* pass c_in=2 or fix the data"),
    "one axis too few": (
        bp.Conv2d(2, 3, 3),
        (20, 6, 2),
        r"0: Conv2d expected images \(n, height, width, channels\), got .*reshape",
    ),
    "channels first, and a sequence": (bp.Conv1d(2, 3, 3), IMAGES, r"0: Conv1d expected sequences \(n, length, channels\), got"),
    "a sequence too short": (bp.Conv1d(2, 3, 7), (20, 6, 2), r"0: Conv1d expected images at least as large as the kernel"),
    "transposed, rank": (bp.ConvTranspose2d(2, 3, 3), (20, 2), r"0: ConvTranspose2d expected images \(n, height, width"),
    "transposed to nothing": (
        bp.ConvTranspose2d(2, 3, 1, padding=3),
        IMAGES,
        r"0: ConvTranspose2d has no output for .*less padding",
    ),
    "pooling rows": (bp.AvgPool2d(2), (20, 2), r"0: AvgPool2d expected images \(n, height, width, channels\), got .* reshape"),
    "the mean of rows": (bp.GlobalAvgPool(), (20, 2), r"0: GlobalAvgPool expected \(n, ..., channels\) with an axis between"),
    "enlarging rows": (bp.Upsample(2), (20, 2), r"0: Upsample expected images \(n, height, width, channels\), got"),
    "channels of a norm": (bp.GroupNorm(1, 3), IMAGES, r"0: GroupNorm expected features 3 in the last axis.* pass c=2"),
    "features of a batch": (bp.BatchNorm(3), IMAGES, r"0: BatchNorm expected features 3 in the last axis.* pass n=2 or fix"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    """At the call, at the door of `fit`, in `evaluate` and in `cost`; nothing has changed."""
    module, shape, message = SHAPES[name]
    module = bp.Sequential(module, bp.Flatten(), bp.Linear(1, 3))
    run, X = trainer(module), np.zeros(shape)
    with unchanged(run):
        for call in (
            lambda: run.network(X),
            lambda: run.fit((X, Y), epochs=1),
            lambda: run.evaluate((X, Y)),
            lambda: run.step(X, Y),
            lambda: bp.cost(module, shape),
        ):
            with pytest.raises(ValueError, match=message):
                call()


@pytest.mark.parametrize(
    ("module", "shape", "repair"),
    [
        (bp.Conv2d(1, 3, 3), (9, 8, 8), r"X\[\.\.\., None\] adds the axis of one channel$"),
        (bp.Conv2d(3, 3, 3), (8, 8, 3), r"X\[\.\.\., None\] adds .*, X\[None\] that of one image"),
        (bp.MaxPool2d(2), (9, 8, 8), r"X\[\.\.\., None\] adds"),
        (bp.Conv2d(3, 3, 3), (9, 3, 8, 8), r"images are \(n, height, width, channels\): X\.transpose\(0, 2, 3, 1\)"),
        (bp.BatchNorm(3), (9, 3, 8, 8), r"images are \(n, height, width, channels\): X\.transpose\(0, 2, 3, 1\)"),
        (bp.Conv1d(3, 3, 3), (9, 3, 8), r"sequences are \(n, tokens, features\): X\.transpose\(0, 2, 1\)"),
        (bp.Conv1d(1, 3, 3), (9, 8), r"X\[\.\.\., None\] adds the axis of one channel"),
        (bp.Linear(64, 3), (9, 8, 8, 1), r"put bp\.Flatten\(\) before it"),
        (bp.Linear(1, 3), (9,), r"one feature is a column: X\.reshape\(-1, 1\)"),
    ],
    ids=str,
)
def test_axes_that_others_order_otherwise(module, shape, repair):
    with pytest.raises(ValueError, match=repair):
        bp.Network(module)(np.zeros(shape))


@pytest.mark.parametrize(
    "module", [bp.Conv2d(2, 3, 3), bp.MaxPool2d(2), bp.BatchNorm(2), bp.Upsample(2), bp.GlobalAvgPool()], ids=repr
)
def test_pixels_that_are_bytes(module, backend):
    """They are taken as floats."""
    net = bp.Network(bp.Sequential(module), backend.backend)
    X = np.random.default_rng(0).integers(0, 256, IMAGES, "uint8")
    np.testing.assert_array_equal(backend.to_host(net(X)), backend.to_host(net(X.astype("float32"))))
