"""The examples in the docstrings of the classes that users subclass: they run, and print what they say."""

from __future__ import annotations

import doctest

import pytest

import bpcore as bp

BASES = [bp.Module, bp.Loss]


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.__name__)
def test_the_example_runs(base):
    (example,) = [test for test in doctest.DocTestFinder(recurse=False).find(base, base.__name__) if test.examples]
    assert doctest.DocTestRunner().run(example).failed == 0
