"""A short version of the script fuzz.py."""

from __future__ import annotations

import fuzz


def test_a_mutated_file_loads_as_what_it_says_or_is_refused():
    tally, wrong = fuzz.fuzz(400, seed=1)
    assert wrong == []
    assert min(tally.values()) > 20
    assert len(tally) == 4
