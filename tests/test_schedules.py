"""Schedules against PyTorch's, by their ends, and as part of a run."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from runs import examples, trainer

import bpcore as bp
from bpcore import schedules

LR, T = 0.5, 57  # the last step that OneCycleLR counts to


def losses() -> list[float]:
    """A test loss that falls, stays, falls by a little, and rises."""
    falling = [1.0, 0.8, 0.8, 0.79999, 0.6, 0.7, 0.7, 0.7, 0.7, 0.59, 0.59, 0.59, 0.59, 0.59, 0.59, 0.3]
    return [*falling, *([0.3] * 10), 0.2999, math.nan, 0.4]


# name: (schedule, steps, its counterpart in torch.optim.lr_scheduler, arguments there)
TABLE = {
    "Constant": (schedules.Constant(), 20, "ConstantLR", {"factor": 1.0}),
    "Step": (schedules.Step(7, 0.3), 60, "StepLR", {"step_size": 7, "gamma": 0.3}),
    "Exponential": (schedules.Exponential(0.93), 60, "ExponentialLR", {"gamma": 0.93}),
    "Cosine": (schedules.Cosine(40), 41, "CosineAnnealingLR", {"T_max": 40}),
    "Cosine, floor": (schedules.Cosine(40, floor=0.1), 41, "CosineAnnealingLR", {"T_max": 40, "eta_min": 0.1 * LR}),
    # PyTorch's way up ends at pct_start total_steps - 1, and all at total_steps - 1
    "OneCycle": (
        schedules.OneCycle(T, warm=(0.25 * (T + 1) - 1) / T, start=0.1, end=1e-3),
        T + 1,
        "OneCycleLR",
        {
            "max_lr": LR,
            "total_steps": T + 1,
            "pct_start": 0.25,
            "div_factor": 10,
            "final_div_factor": 100,
            "cycle_momentum": False,
        },
    ),
    "WarmUp": (schedules.WarmUp(8), 20, "LinearLR", {"start_factor": 1 / 8, "total_iters": 7}),
}


@pytest.mark.parametrize("name", TABLE)
def test_equals_pytorch(name, torch):
    schedule, steps, counterpart, arguments = TABLE[name]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    oracle = getattr(torch.optim.lr_scheduler, counterpart)(optimizer, **arguments)
    for step in range(steps):
        assert LR * schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-10, abs=1e-15), f"step {step}"
        if step < steps - 1:
            optimizer.step()
            oracle.step()


@pytest.mark.parametrize(("factor", "patience", "threshold"), [(0.1, 2, 1e-4), (0.5, 0, 0.0), (0.7, 3, 0.1)])
@pytest.mark.filterwarnings("ignore:test_loss is NaN")
def test_reduce_on_plateau_equals_pytorch(factor, patience, threshold, torch):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience, threshold=threshold, eps=0)
    schedule = schedules.ReduceOnPlateau(factor, patience, threshold)
    rates = []
    for epoch, loss in enumerate(losses()):
        oracle.step(loss)
        schedule.observe({"test_loss": loss, "training_loss": 0.0})
        rates.append(schedule(epoch))
        assert LR * rates[-1] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), f"epoch {epoch}"
    assert len(set(rates)) > 2


@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        (schedules.Cosine(10, 0.2), {0: 1.0, 5: 0.6, 10: 0.2, 1000: 0.2}),
        (schedules.OneCycle(10, 0.5, 0.1, 0.01), {0: 0.1, 5: 1.0, 10: 0.01, 1000: 0.01}),
        (schedules.OneCycle(10, 0.0, 0.1, 0.0), {0: 1.0, 10: 0.0}),
        (schedules.Step(3, 0.0), {0: 1.0, 2: 1.0, 3: 0.0}),
        (schedules.Exponential(0.5 ** (1 / 1000)), {1000: 0.5}),
        (schedules.WarmUp(4, schedules.Step(2, 0.1)), {0: 0.25, 3: 1.0, 4: 1.0, 5: 1.0, 6: 0.1, 8: 0.01}),
    ],
    ids=repr,
)
def test_ends(schedule, ends):
    assert {step: schedule(step) for step in ends} == pytest.approx(ends)
    assert all(isinstance(schedule(step), float) for step in ends)


@pytest.mark.parametrize("name", [name for name in TABLE if name != "WarmUp"])
def test_warm_up_then_any(name):
    """From its own step 0 when the warm-up is over."""
    then = TABLE[name][0]
    schedule = schedules.WarmUp(5, then)
    assert [schedule(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [schedule(5 + step) for step in range(30)] == [then(step) for step in range(30)]


def test_warm_up_then_plateau_keeps_its_state():
    """What is observed, kept and restored is that of the schedule within."""
    first, second = (schedules.WarmUp(2, schedules.ReduceOnPlateau(0.5, patience=0)) for _ in range(2))
    for _ in range(3):
        first.observe({"test_loss": 1.0})
    assert first(10) == 0.25
    second.restore(first.state())
    assert second(10) == 0.25
    assert second.state() == first.state() == {"best": 1.0, "waited": 0, "current": 0.25}


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.Step(np.int64(2), np.float32(0.5)),
        schedules.Exponential(np.float32(0.5)),
        schedules.Cosine(np.int64(3), np.float32(0.5)),
        schedules.WarmUp(np.int32(3)),
        schedules.OneCycle(np.int64(5), np.float32(0.5), np.float32(0.5), np.float32(0.5)),
        schedules.ReduceOnPlateau(np.float32(0.5), np.int64(3), np.float32(0.5)),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_numbers_are_pythons(schedule):
    """NumPy's would promote."""
    assert not any(isinstance(value, np.generic) for value in vars(schedule).values())
    assert type(schedule(3)) is float


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.Step(0), "every must be a whole number from 1 up, got 0"),
        (lambda: schedules.Step(2.5), "every must be a whole number"),
        (lambda: schedules.Step(2, -1.0), "factor must be"),
        (lambda: schedules.Exponential(math.nan), "rate must be a finite number"),
        (lambda: schedules.Exponential(-0.1), "rate must be"),
        (lambda: schedules.Cosine(-3), "steps must be"),
        (lambda: schedules.Cosine(True), "steps must be"),
        (lambda: schedules.Cosine(3, math.inf), "floor must be"),
        (lambda: schedules.WarmUp(0), "steps must be"),
        (lambda: schedules.OneCycle(0), "steps must be"),
        (lambda: schedules.OneCycle(5, warm=1.0), "warm must be"),
        (lambda: schedules.OneCycle(5, start=-1.0), "start must be"),
        (lambda: schedules.OneCycle(5, end="0"), "end must be"),
        (lambda: schedules.ReduceOnPlateau(1.0), "factor must be"),
        (lambda: schedules.ReduceOnPlateau(patience=-1), "patience must be"),
        (lambda: schedules.ReduceOnPlateau(threshold=1.0), "threshold must be"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("then", [lambda step: 1.0, 0.5, None])
def test_warm_up_takes_schedules_alone(then):
    with pytest.raises(TypeError, match="then must be a schedule, got"):
        schedules.WarmUp(3, then)


@pytest.mark.parametrize("schedule", [schedules.WarmUp(3, schedules.Cosine(6)), lambda step: np.float32(1 / (1 + step))])
def test_a_run_follows_it(schedule):
    """Under SGD each step is lr times the factor times the gradient, and the history has the rate of the last step."""
    run = trainer(optimizer=bp.SGD(LR), schedule=schedule, dtype="float32")
    X, y = examples()
    for step in range(7):
        before = run.network.theta.copy()
        gradient = run.network.value_and_gradient(run.loss, X, y)[1]
        run.step(X, y)
        np.testing.assert_allclose(before - run.network.theta, LR * float(schedule(step)) * gradient, rtol=1e-3, atol=1e-7)
    run.fit((X, y), epochs=1, batch_size=20)
    assert run.history[-1]["lr"] == pytest.approx(LR * float(schedule(8)))


def test_plateau_in_a_run():
    """Told of each epoch's record, by the name that it monitors; a name that is not there says what is."""
    run = trainer(optimizer=bp.SGD(0.0), schedule=schedules.ReduceOnPlateau(0.5, patience=0, monitor="training_loss"))
    run.fit(examples(), epochs=4, batch_size=20)
    assert run.history["lr"] == [0.0] * 4
    assert [run.schedule(0), run.schedule.best] == [0.125, run.history[0]["training_loss"]]
    unmonitored = trainer(schedule=schedules.ReduceOnPlateau())
    with pytest.raises(ValueError, match=r"there is no 'test_loss' to monitor, only .*training_loss.*; choose one"):
        unmonitored.fit(examples(), epochs=1)


def test_a_schedule_must_be_a_function():
    with pytest.raises(TypeError, match=r"schedule must be a function of the step, got 0.1"):
        trainer(schedule=0.1)


def test_every_schedule_is_tested():
    own = {name for name, c in vars(schedules).items() if isinstance(c, type) and issubclass(c, schedules.Schedule)}
    tested = {name.partition(",")[0] for name in itertools.chain(TABLE, ["ReduceOnPlateau", "Schedule"])}
    assert own == tested


@pytest.mark.parametrize(
    ("values", "higher", "best", "factor"),
    [
        ((-1, -0.95, -0.9, -0.85), False, -1, 0.001),
        ((-1, -1.05, -1.2, -1.4), False, -1.4, 0.1),
        ((0.0, 0.0, -0.1), False, -0.1, 0.1),
        ((0.5, 0.54, 0.6, 0.5), True, 0.6, 0.01),
        ((math.nan, 1.0, math.nan), False, 1.0, 0.01),
    ],
)
@pytest.mark.filterwarnings("ignore:gap is NaN")
def test_a_plateau_of_any_sign(values, higher, best, factor):
    """Better by more than a tenth of the best's size."""
    schedule = schedules.ReduceOnPlateau(0.1, patience=0, threshold=0.1, monitor="gap", higher=higher)
    for value in values:
        schedule.observe({"gap": value})
    assert (schedule.best, schedule(0)) == (best, pytest.approx(factor))


def test_a_warm_up_hands_a_fresh_start_on():
    """Two warm-ups share a plateau; the trainer that has lost it takes no step."""
    plateau = schedules.ReduceOnPlateau(0.5, patience=0)
    first = trainer(schedule=schedules.WarmUp(2, plateau), optimizer=bp.SGD(1.0))
    first.fit(examples(), examples(seed=1), epochs=1)
    for _ in range(3):
        plateau.observe({"test_loss": math.inf})
    assert plateau(0) < 1
    second = trainer(schedule=schedules.WarmUp(2, plateau), optimizer=bp.SGD(1.0))
    assert (second.lr, plateau(0)) == (0.5, 1.0)
    with pytest.raises(RuntimeError, match="belongs to another trainer"):
        first.step(*examples())


@pytest.mark.parametrize(
    ("schedule", "length"),
    [(schedules.OneCycle(6), 6), (schedules.Cosine(6), 6), (schedules.WarmUp(2, schedules.OneCycle(4)), 6)],
)
def test_steps_beyond_the_end_are_said_once(schedule, length):
    run = trainer(schedule=schedule)
    with pytest.warns(RuntimeWarning, match=f"is over after {length} steps, and the run goes on to step 10 with a factor of"):
        run.fit(examples(), epochs=2, batch_size=8)
    run.fit(examples(), epochs=3, batch_size=8)
    by_hand = trainer(schedule=schedule)
    for _ in range(length):
        by_hand.step(*examples())
    with pytest.warns(RuntimeWarning, match=f"goes on to step {length + 1} "):
        by_hand.step(*examples())
    trainer(schedule=schedules.Cosine(6, floor=0.1)).fit(examples(), epochs=2, batch_size=8)


@pytest.mark.parametrize("factor", ["0.5", None, True, np.ones(2), [1.0], 1j], ids=repr)
def test_a_factor_that_is_no_number(factor):
    with pytest.raises(TypeError, match=r"the schedule gave .* at step 0; it must return a number"):
        trainer(schedule=lambda step: factor).fit(examples(), epochs=1)


def test_factors_out_of_range():
    with pytest.raises(ValueError, match=r"a learning rate of -0.01 at step 0; it must be finite and at least 0"):
        trainer(schedule=lambda step: -1.0).fit(examples(), epochs=1)
    assert schedules.Exponential(1.1)(10_000) == schedules.Step(1, 10.0)(400) == math.inf
    assert schedules.Exponential(0.5)(10_000) == 0
