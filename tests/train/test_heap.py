"""Freed host memory in training: given back at first, kept only where a step's memory is spare twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_lab.train import heap
from distill_lab.train.heap import DEFAULTS, KEPT, RETURNED, TrainingHeap


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int]]:
    """What the C library is told, in order."""
    told: list[dict[int, int]] = []
    monkeypatch.setattr(heap, "_set", told.append)
    return told


@pytest.mark.parametrize(
    ("spare", "may_keep", "kept"), [(1.3, True, True), (1.2, True, False), (100.0, False, False), (0.0, True, False)]
)
def test_memory_is_kept_if_a_step_is_spare(
    spare: float,
    may_keep: bool,
    kept: bool,
    options: list[dict[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(heap, "STATUS", status)
    monkeypatch.setattr(heap, "RESET_PEAK", tmp_path / "clear_refs")
    watched = TrainingHeap(lambda: spare * 4_000_000 * 1024, may_keep=may_keep)
    with watched:
        status.write_text("VmHWM:\t 9000000 kB\nVmRSS:\t 2000000 kB\n", encoding="ascii")
        watched.on_step_end(None, None, None)
        assert options == [RETURNED]
        status.write_text("VmHWM:\t 6000000 kB\nVmRSS:\t 2500000 kB\n", encoding="ascii")
        watched.on_step_end(None, None, None)
        watched.on_step_end(None, None, None)
    assert watched.kept == kept
    assert options == [RETURNED, *([KEPT] if kept else []), DEFAULTS]
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_a_system_without_that_file_gives_memory_back(
    options: list[dict[int, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(heap, "STATUS", tmp_path / "absent")
    monkeypatch.setattr(heap, "RESET_PEAK", tmp_path / "no folder" / "absent")
    with TrainingHeap(lambda: 1e15) as watched:
        for _ in range(3):
            watched.on_step_end(None, None, None)
    assert options == [RETURNED, DEFAULTS]
