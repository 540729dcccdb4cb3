"""Capturing a teacher: unbiased draws, the same bytes after a kill, only what is missing, less memory if there is little."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill_lab.config import ModelConfig
from distill_lab.errors import UserError
from distill_lab.files.locks import take_lock
from distill_lab.models.loading import load_tokenizer
from distill_lab.train import capture as capturing
from distill_lab.train.cache_format import decode_draws
from distill_lab.train.cached_teacher import cache_identity, fill
from distill_lab.train.capture import capture, shards, systematic, uniform
from distill_lab.train.packing import Row
from distill_lab.train.teacher_cache import TeacherCache, create
from distill_lab.train.teachers import LiveTeacher
from tests.helpers import filled_cache, live_teacher_of, teacher_settings

pytestmark = pytest.mark.slow


def assert_alike(left: TeacherCache, right: TeacherCache, rows: list[Row]) -> None:
    """The same draws of each row, but for the few that rounding moves when a row is computed in another batch."""
    for row in rows:
        drawn = []
        for cache in (left, right):
            found = cache.read([row.id])
            counts = decode_draws(found.data, found.starts_R, found.positions_R, cache.vocabulary)
            places = np.repeat(np.arange(len(counts.sizes_P)), counts.sizes_P)
            drawn.append(Counter())
            for place, id, count in zip(places, counts.ids_M, counts.counts_M, strict=True):
                drawn[-1][int(place), int(id)] = int(count)
        assert (drawn[0] & drawn[1]).total() > 0.98 * drawn[0].total()


def test_draws_are_floor_or_ceiling_and_their_mean_is_p() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.softmax(3 * torch.randn(4, 1500, generator=generator), -1)
    p[0] = 0
    p[0, [0, 511, 512, 1499]] = torch.tensor([0.5, 0.25, 0.125, 0.125])
    p[1] = 0
    p[1, 700] = 1
    labels, num_draws, trials = torch.full((4,), 1499), 16, 400
    total = np.zeros((4, 1500))
    for trial in range(trials):
        # All u at equal distances: the mean is then exact but for 1 / trials.
        found = systematic(p, torch.full((4,), (trial + 0.5) / trials, dtype=torch.float64), num_draws, labels)
        counts = np.zeros((4, 1500))
        counts[np.repeat(np.arange(4), found.sizes_P), found.ids_M] = found.counts_M
        assert (counts[:, 1499] == 0).all()
        exact = num_draws * p.double().numpy()
        away = np.arange(1500) != 1499
        assert (np.abs(counts - exact)[:, away] < 1 + 1e-4).all()
        assert counts[1, 700] == num_draws
        total += counts
    np.testing.assert_allclose(total[:, :1499] / trials, num_draws * p.numpy()[:, :1499], atol=2 / trials)


def test_no_rounding_draws_an_id_without_probability() -> None:
    p = torch.zeros(2, 1024)
    p[0, :3] = torch.tensor([0.0, 1e-9, 1.0])
    p[1, [300, 1023]] = torch.tensor([0.7, 0.3])
    for u in (0.0, 1 - 2**-53, 0.5, 1e-300):
        found = systematic(p, torch.full((2,), u, dtype=torch.float64), 64, torch.tensor([5, 5]))
        places = np.repeat(np.arange(2), found.sizes_P)
        assert (p.numpy()[places, found.ids_M] > 0).all()
        assert found.counts_M.sum() == 128


def test_a_rows_numbers_are_its_own(rows: list[Row]) -> None:
    first = uniform(rows[0], 0)
    assert (uniform(rows[0], 0) == first).all()
    assert len(first) == rows[0].loss_mask.sum()
    assert not (uniform(rows[0], 1) == first).any()
    assert not (uniform(rows[1], 0)[:3] == first[:3]).any()
    assert ((first >= 0) & (first < 1)).all()


def test_a_second_capture_adds_what_is_missing(teacher: ModelConfig, rows: list[Row], tmp_path: Path) -> None:
    config = teacher_settings(teacher)
    cache = filled_cache(config, tmp_path / "cache", rows[:10])
    before = {path.name: path.read_bytes() for path in cache.folder.iterdir()}
    assert [row.id for row in cache.missing([*rows[:12], *rows[:12]])] == [rows[10].id, rows[11].id]
    found = capture(live_teacher_of(teacher), rows, cache, tokens_per_batch=256)
    assert (found.num_rows, found.num_known) == (14, 10)
    assert found.num_positions == sum(int(row.loss_mask.sum()) for row in rows[10:])
    assert {name: (cache.folder / name).read_bytes() for name in before} == before
    again = TeacherCache.open(cache.folder, cache_identity(config))
    assert len(again) == len(rows)
    assert not again.missing(rows)
    assert capture(live_teacher_of(teacher), rows, again, tokens_per_batch=256).num_rows == 0
    with pytest.raises(
        UserError, match=r"1 of 2 rows are not in this teacher cache, the first of them 6e6f6e6e6f6e6e6f"
    ):
        again.read([rows[0].id, b"nonnonno"])
    # A row's bytes do not depend on what was captured with it.
    whole = filled_cache(config, tmp_path / "whole", rows)
    assert_alike(whole, again, rows)


def die_at(place: str) -> None:
    """Let this process be killed in the middle of writing its n-th file ("half:3"), or right before or after it appears."""
    when, number = place.split(":")
    replace, fsync, count = Path.replace, os.fsync, [0]

    def die(point: str) -> None:
        count[0] += point == when
        if count[0] >= int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_replace(self: Path, target: Any) -> Path:
        die("before")
        found = replace(self, target)
        die("after")
        return found

    def dying_fsync(descriptor: int) -> None:
        if when == "half" and count[0] + 1 >= int(number):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        die("half")
        fsync(descriptor)

    Path.replace, os.fsync = dying_replace, dying_fsync


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_anywhere_and_run_again_gives_the_same_bytes(
    teacher: ModelConfig, student: ModelConfig, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capturing, "SHARD_POSITIONS", 60)
    config, tokenizer = teacher_settings(teacher), load_tokenizer(student)
    threads = torch.get_num_threads()

    def run(folder: Path) -> None:
        fill(rows, config, folder, student=tokenizer, on_log=lambda row: None)

    def run_and_die(folder: Path, place: str) -> int:
        """In a copy of this process, which is killed."""
        child = os.fork()
        if child == 0:
            try:
                die_at(place)
                run(folder)
            finally:
                os._exit(1)
        return os.waitpid(child, 0)[1]

    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}

    torch.set_num_threads(1)  # a copied process has none of the others
    try:
        run(tmp_path / "whole")
        wanted = content(tmp_path / "whole")
        assert len(wanted) > 5
        killed = tmp_path / "killed"
        for place in ("half:1", "before:2", "after:2", "half:2", "before:1", "after:2"):
            assert run_and_die(killed, place) == signal.SIGKILL, place
            assert content(killed) != wanted, place
            assert all(wanted[name] == data for name, data in content(killed).items()), place
        run(killed)
        assert content(killed) == wanted
        assert not list(killed.glob(".*.kd"))
        # A shard that is damaged or gone is captured again, the same.
        victim = sorted(killed.glob("*.kd"))[1]
        data = bytearray(victim.read_bytes())
        data[-3] ^= 1
        victim.write_bytes(data)
        [damage] = TeacherCache.open(killed).check()
        assert f"{victim} is not what was written; remove it" in damage
        victim.unlink()
        run(killed)
        assert content(killed) == wanted
    finally:
        torch.set_num_threads(threads)


def test_only_one_process_adds(teacher: ModelConfig, rows: list[Row], tmp_path: Path) -> None:
    cache = create(tmp_path / "cache", cache_identity(teacher_settings(teacher)), rows)
    lock = take_lock(cache.folder / ".lock", busy="")
    with pytest.raises(UserError, match="cache is in use by another process"):
        capture(live_teacher_of(teacher), rows, cache, tokens_per_batch=256)
    lock.close()


def test_memory_that_runs_out_in_a_capture_only_makes_it_slower(
    teacher: ModelConfig, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = filled_cache(teacher_settings(teacher), tmp_path / "whole", rows)
    once = capturing._captured
    calls: list[int] = []

    def limited(teacher: LiveTeacher, bins: list[list[Row]], cache: TeacherCache) -> Any:
        calls.append(sum(map(len, bins)))
        if calls[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return once(teacher, bins, cache)

    monkeypatch.setattr(capturing, "_captured", limited)
    found = filled_cache(teacher_settings(teacher), tmp_path / "halved", rows)
    assert max(calls) > 2
    assert_alike(found, wanted, rows)


def test_rows_are_dealt_to_shards_in_their_order(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "SHARD_POSITIONS", 60)
    whole = list(shards(rows))
    assert [row.id for shard in whole for row in shard] == [row.id for row in rows]
    assert len(whole) > 2
    # What is left after two of them is dealt as it would have been.
    rest = list(shards(rows[len(whole[0]) + len(whole[1]) :]))
    assert [[row.id for row in shard] for shard in rest] == [[row.id for row in shard] for shard in whole[2:]]


def test_it_decodes_while_it_is_written(teacher: ModelConfig, rows: list[Row], tmp_path: Path) -> None:
    """A reader that opened the cache before finds what it knew; one that opens it now finds the new shard too."""
    config = teacher_settings(teacher)
    early = filled_cache(config, tmp_path / "cache", rows[:4])
    capture(live_teacher_of(teacher), rows, TeacherCache.open(tmp_path / "cache"), tokens_per_batch=256)
    assert len(early) == 4
    early.read([rows[3].id])
    assert len(TeacherCache.open(tmp_path / "cache")) == len(rows)
