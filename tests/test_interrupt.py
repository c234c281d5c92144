"""Ctrl-C: the work is kept."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from runs import Call, assert_same, become, examples, trainer


@pytest.mark.parametrize("at", [1, 4, 5, 7, 10])
def test_control_c_stops_after_the_step(at):
    """The work is kept, fit returns, and goes on; in the end nothing is different. Signals are handled as before."""

    def interrupt(trainer, J):
        if trainer.steps == at and not trainer.interrupted:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run, unbroken = trainer(dropout=0.2, callbacks=[Call(interrupt)]), trainer(dropout=0.2, callbacks=[Call(print_nothing)])
    history = run.fit(examples(), examples(seed=1), epochs=2, batch_size=8)
    assert (run.steps, run.interrupted, len(history)) == (at, True, at // 5 if at % 5 else (at - 1) // 5)
    assert signal.getsignal(signal.SIGINT) is before
    run.callbacks[0].what = print_nothing
    run.fit(examples(), examples(seed=1), epochs=2, batch_size=8)
    unbroken.fit(examples(), examples(seed=1), epochs=2, batch_size=8)
    assert not run.interrupted
    assert_same(become(run), become(unbroken))


def print_nothing(trainer, J):
    """Nothing."""


def test_a_second_control_c_stops_at_once():
    def twice(trainer, J):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = trainer(callbacks=[Call(twice)])
    with pytest.raises(KeyboardInterrupt):
        run.fit(examples(), epochs=2)
    assert signal.getsignal(signal.SIGINT) is before
    assert run.steps == 1


def test_fit_in_a_thread():
    """Where signals cannot be handled."""
    run, failures = trainer(), []

    def work():
        try:
            run.fit(examples(), epochs=2)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert (failures, run.epoch) == ([], 2)
