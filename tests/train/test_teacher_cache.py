"""The teacher cache: unbiased draws, rows found by their tokens, the same bytes after a kill, foreign caches refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.train.cached_teacher import CachedTeacher, cache_identity, cached_teacher
from distill_lab.train.objectives import Draws, TopK
from distill_lab.train.packing import Row, collate
from distill_lab.train.student import train_student
from distill_lab.train.teacher_cache import TeacherCache, create
from distill_lab.train.teachers import HeadSignal
from tests.helpers import filled_cache, live_teacher_of, teacher_settings

pytestmark = pytest.mark.slow


def test_what_is_read_is_what_the_teacher_said(
    teacher: ModelConfig, rows: list[Row], tmp_path: Path, student: ModelConfig
) -> None:
    """Any subset, in any order, at any student's number of ids."""
    config = teacher_settings(teacher, size=64)
    cache = filled_cache(config, tmp_path / "cache", rows)
    batch = collate([[rows[5], rows[2]], [rows[9]]])
    for num_ids in (cache.identity.num_ids, cache.identity.num_ids - 128, 40):
        whole = live_teacher_of(teacher, cache.identity.num_ids).signal(batch).at(slice(0, 999)).softmax(-1)
        signal = CachedTeacher(cache, num_ids).signal(batch)
        size = len(batch.labels_N)
        dense = torch.zeros(size, num_ids)
        for start in range(0, size, 7):
            draws = signal.at(slice(start, start + 7))
            assert isinstance(draws, Draws)
            dense[start : start + 7].index_put_((draws.positions_M, draws.ids_M), draws.weights_M)
            assert len(draws.total_C) == len(draws.entropy_C) == len(dense[start : start + 7])
        kept = (64 * dense.sum(1)).round() / 64
        assert signal.num_ids == num_ids
        drawn = dense.sum(1) > 0
        torch.testing.assert_close(dense.sum(1)[drawn], torch.ones(int(drawn.sum())))
        assert len(kept) == size
        if num_ids == cache.identity.num_ids:
            # Each count is floor or ceiling of 64 p, at the label too.
            assert ((64 * (dense - whole)).abs() < 1 + 1e-3).all()
            assert drawn.all()
    entropy = -(whole * whole.clamp_min(1e-30).log()).sum().item()
    draws = CachedTeacher(cache, 999).signal(batch).at(slice(0, 999))
    assert isinstance(draws, Draws)
    assert draws.entropy_C.sum().item() == pytest.approx(entropy, rel=1e-4)
    found = cache.read(batch.row_ids_R)
    labels = whole.gather(1, batch.labels_N[:, None])[:, 0].log()
    assert found.log_p_R.sum() == pytest.approx(labels.sum().item(), rel=1e-4)


def test_top_k_and_hidden(teacher: ModelConfig, rows: list[Row], tmp_path: Path) -> None:
    batch = collate([[rows[5], rows[2]], [rows[9]]])
    whole = live_teacher_of(teacher).signal(batch).at(slice(0, 999)).clone()
    size = len(whole)
    top_cache = filled_cache(teacher_settings(teacher, "top_k", size=8), tmp_path / "top", rows)
    top = CachedTeacher(top_cache, 10_000).signal(batch).at(slice(0, size))
    assert isinstance(top, TopK)
    best = whole.log_softmax(-1).topk(8, -1)
    assert (top.ids_CK.sort(1).values == best.indices.sort(1).values).all()
    found = torch.zeros(size, whole.shape[1]).scatter(1, top.ids_CK, top.log_p_CB[:, :-1].exp())
    torch.testing.assert_close(found.gather(1, best.indices), best.values.exp(), rtol=0.1, atol=1e-3)
    torch.testing.assert_close(top.log_p_CB.exp().sum(1), torch.ones(size))
    hidden_config = teacher_settings(teacher, "hidden")
    filled_cache(hidden_config, tmp_path / "hidden", rows)
    exact = cached_teacher(hidden_config, tmp_path / "hidden", student_rows=whole.shape[1] - 128, rows=rows).signal(
        batch
    )
    assert isinstance(exact, HeadSignal)
    logits = torch.cat([exact.at(slice(start, start + 5)).clone() for start in range(0, size, 5)])
    assert logits.shape == (size, whole.shape[1] - 128)
    torch.testing.assert_close(logits, whole[:, :-128], rtol=0.03, atol=0.15)  # bf16 has 8 bits


def test_another_teacher_revision_tokenizer_or_way_is_refused_by_name(
    teacher: ModelConfig, student: ModelConfig, rows: list[Row], tmp_path: Path
) -> None:
    config = teacher_settings(teacher)
    filled_cache(config, tmp_path / "cache", rows[:4])
    cases = {
        "it is of another teacher, or of another revision": {"teacher": student},
        "it is of a teacher whose head has": {"teacher": student},
        "captured with size 64, not 32": {"size": 32},
        "captured as sampled, not as top_k": {"mode": "top_k"},
        r"captured at temperature 1\.0, not 2\.0": {"objective_settings": ("temperature=2",)},
        "drawn with seed 0, not 5": {"seed": 5},
    }
    for message, changes in cases.items():
        other = teacher_settings(**({"teacher": teacher} | changes))
        with pytest.raises(UserError, match=message) as caught:
            create(tmp_path / "cache", cache_identity(other), rows)
        assert "choose another folder" in str(caught.value)
    found = cache_identity(config)
    for name in ("tokenizer", "teacher"):
        with pytest.raises(UserError, match=f"of (a teacher with )?another {name}"):
            TeacherCache.open(tmp_path / "cache", dataclasses.replace(found, **{name: "other"}))
    assert (
        len(
            {
                found.digest(),
                cache_identity(teacher_settings(student)).digest(),
                cache_identity(teacher_settings(teacher, seed=1)).digest(),
            }
        )
        == 3
    )
    with pytest.raises(UserError, match="20 of 24 rows are not in this teacher cache"):
        cached_teacher(config, tmp_path / "cache", student_rows=99, rows=rows)


def test_folders_that_are_no_whole_cache_are_refused(teacher: ModelConfig, rows: list[Row], tmp_path: Path) -> None:
    config = teacher_settings(teacher)
    identity = cache_identity(config)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"mine is not a teacher cache: it holds thesis\.txt"):
        create(mine, identity, rows)
    with pytest.raises(UserError, match=r"no teacher cache \(index\.json is missing\)"):
        TeacherCache.open(mine, identity)
    cache = filled_cache(config, tmp_path / "cache", rows[:4])
    shard, index, ranks = cache.folder / "00000.kd", cache.folder / "index.json", cache.folder / "ranks.npy"
    for path, change, message in (
        (shard, lambda data: data[:-1], "is not a whole shard of a teacher cache; remove it"),
        (shard, lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:], "is not a whole shard"),
        (shard, lambda data: b"", "is not a whole shard"),
        (ranks, lambda data: data[:-4] + data[-8:-4], r"ranks\.npy is not what was written"),
        (ranks, lambda data: data[:40], r"cannot be read .*remove the folder"),
        (index, lambda data: b"{}", r"index\.json or ranks\.npy cannot be read"),
        (
            index,
            lambda data: data.replace(b'"format": 1', b'"format": 2'),
            "format 2 of a teacher cache; this version reads 1",
        ),
    ):
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        with pytest.raises(UserError, match=message):
            TeacherCache.open(cache.folder, identity)
        path.write_bytes(whole)
    assert len(TeacherCache.open(cache.folder, identity)) == 4


@pytest.mark.parametrize(("mode", "objective"), [("sampled", "forward_kl"), ("top_k", "reverse_kl"), ("hidden", "jsd")])
def test_training_from_the_cache_is_near_training_with_the_teacher(
    student: ModelConfig, rows_file: Path, tmp_path: Path, random_model: Callable[..., Path], mode: str, objective: str
) -> None:
    """With a head of the student's size: the entropy in a divergence of draws is that of all the teacher's ids."""
    folder = random_model(hidden=64, layers=1, seed=7, tie_word_embeddings=False, initializer_range=0.2)
    teacher = ModelConfig(model=str(folder), dtype="fp32")

    def train(name: str, config: TrainConfig) -> tuple[list[float], list[str]]:
        logs: list[dict[str, Any]] = []
        train_student(student, rows_file, tmp_path / name, config, on_log=logs.append)
        return (
            [row["metrics"]["kd"] for row in logs if "loss" in row],
            [row["note"] for row in logs if "note" in row],
        )

    common = {"objective": objective, "num_epochs": 2, "learning_rate": 5e-3, "logging_steps": 1}
    exact, _ = train("live", teacher_settings(teacher, "off", **common))
    size = {"top_k": 64}.get(mode, 0)
    cached, notes = train("cached", teacher_settings(teacher, mode, size=size, folder=str(tmp_path / mode), **common))
    assert any("capturing" in note for note in notes)
    assert any("bytes per loss position" in note for note in notes)
    assert len(cached) == len(exact)
    if mode == "top_k":
        # Random models spread their probabilities: most of it is in the bucket, where they are not compared.
        assert 0 < cached[-1] < cached[0] <= exact[0]
    else:
        assert cached == pytest.approx(exact, rel=0.06, abs=0.05)
    # Again, for another student: nothing is captured, and no teacher is loaded.
    _, notes = train("again", teacher_settings(teacher, mode, size=size, folder=str(tmp_path / mode), **common))
    assert not any("capturing" in note for note in notes)


def test_an_objective_that_needs_more_than_draws_is_refused_at_once(
    teacher: ModelConfig, student: ModelConfig, tmp_path: Path
) -> None:
    for objective in ("reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "entropy_aware", "acceptance"):
        config = teacher_settings(teacher, objective=objective)
        with pytest.raises(UserError, match=f"objective {objective} cannot be learned from a sampled cache"):
            train_student(student, tmp_path / "no rows", tmp_path / "student", config)
    with pytest.raises(UserError, match="reads no teacher"):
        train_student(
            student,
            tmp_path / "no rows",
            tmp_path / "student",
            teacher_settings(ModelConfig(model=""), objective="cross_entropy"),
        )
    assert not list(tmp_path.iterdir())


def test_the_place_of_a_cache_is_in_no_key(teacher: ModelConfig, student: ModelConfig, rows_file: Path) -> None:
    from distill_lab.run import fingerprint
    from distill_lab.train.student import training_inputs

    def key(config: TrainConfig) -> str:
        return fingerprint(training_inputs(student, rows_file, config, thinking=None))

    assert key(teacher_settings(teacher, folder="a")) == key(teacher_settings(teacher, folder="b"))
    keys = {
        key(teacher_settings(teacher)),
        key(teacher_settings(teacher, "off")),
        key(teacher_settings(teacher, size=8)),
        key(teacher_settings(teacher, seed=3)),
    }
    assert len(keys) == 4
    assert "teacher_cache" not in TrainConfig().model_dump()
    sent = TrainConfig(**json.loads(json.dumps(teacher_settings(teacher).model_dump())))
    assert sent.teacher_cache == teacher_settings(teacher).teacher_cache
