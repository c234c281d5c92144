"""The curves that TensorBoard reads: written, resumed, and what is wrong found when fit starts."""

from __future__ import annotations

import errno
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import Call, examples, trainer

import bpcore as bp


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by tag, as TensorBoard shows them: a session's start hides the points of its step and later ones."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed: the extra tensorboard")
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.*")):
        content = file.read_bytes()
        at = 0
        while at < len(content):  # a record: its length and a checksum, 12 bytes; the event; a checksum of 4 bytes
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = proto.Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.HasField("session_log"):
                found = {tag: [p for p in of if p[0] < event.step] for tag, of in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_each_column_and_step_is_a_curve(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: the extra tensorboard")
    losses = []
    keep = Call(lambda run, J: losses.append(float(J)))
    run = trainer(callbacks=[bp.TensorBoard(tmp_path / "curves", every=2), keep])
    for epochs in (2, 3):  # fit called again goes on
        run.fit(examples(), validation=examples(seed=1), epochs=epochs, batch_size=8)
    shown = points(tmp_path / "curves")
    steps = [record["steps"] for record in run.history]
    for name in ("training_loss", "test_loss", "gap", "lr", "epoch"):
        assert [step for step, _ in shown[f"epoch/{name}"]] == steps
        np.testing.assert_allclose([value for _, value in shown[f"epoch/{name}"]], run.history[name], rtol=1e-6)
    assert [step for step, _ in shown["step/J"]] == list(range(2, run.steps + 1, 2))
    np.testing.assert_allclose([value for _, value in shown["step/J"]], losses[1::2], rtol=1e-6)
    np.testing.assert_allclose([value for _, value in shown["step/lr"]], run.lr, rtol=1e-6)


def test_a_resumed_run_has_no_point_twice(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: the extra tensorboard")
    first = trainer(callbacks=[bp.TensorBoard(tmp_path / "curves", every=1)])
    first.fit(examples(), epochs=1, batch_size=8)
    first.save(tmp_path / "run.safetensors")
    first.fit(examples(), epochs=3, batch_size=8)  # goes on, and is lost
    again = trainer(callbacks=[bp.TensorBoard(tmp_path / "curves", every=1)])
    again.resume(tmp_path / "run.safetensors")
    again.fit(examples(), epochs=2, batch_size=8)
    shown = points(tmp_path / "curves")
    assert [step for step, _ in shown["step/J"]] == list(range(1, again.steps + 1))
    np.testing.assert_allclose([value for _, value in shown["epoch/training_loss"]], again.history["training_loss"], rtol=1e-6)


def test_what_is_wrong_is_found_when_fit_starts(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="every must be a whole number from 1 up, got 0"):
        bp.TensorBoard(tmp_path, every=0)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    run = trainer(callbacks=[bp.TensorBoard(tmp_path / "curves")])
    with pytest.raises(
        RuntimeError, match=r"TensorBoard needs tensorboardX, which is not installed: pip install .tensorboardX>="
    ):
        run.fit(examples(), epochs=1)
    assert run.steps == 0
    monkeypatch.undo()
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: the extra tensorboard")
    run = trainer(callbacks=[bp.TensorBoard(tmp_path / "file" / "curves")])
    with pytest.raises(OSError, match=r"cannot write to .*curves: .*; .* choose another folder"):
        run.fit(examples(), epochs=1)
    assert run.steps == 0


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    writer = pytest.importorskip("tensorboardX", reason="tensorboardX is not installed: the extra tensorboard").SummaryWriter

    def full(*args, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "add_scalar", full)
    run = trainer(callbacks=[bp.TensorBoard(tmp_path / "curves", every=1)])
    with pytest.raises(OSError, match=r"cannot write to .*curves: No space left on device; free space there"):
        run.fit(examples(), epochs=1)
    assert run.callbacks[0].writer is None
