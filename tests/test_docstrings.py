"""The examples in the docstrings of classes that users subclass run, and show what they say."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import bpcore as bp

CLASSES = [bp.Module, bp.Loss, bp.Optimizer, bp.schedules.Schedule, bp.Metric, bp.Callback]


@pytest.mark.parametrize("of", CLASSES, ids=lambda of: of.__name__)
def test_examples_in_docstrings(of):
    (example,) = doctest.DocTestFinder(recurse=False).find(of, of.__name__, globs={"bp": bp, "np": np})
    assert example.examples
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert not report, "".join(report)
