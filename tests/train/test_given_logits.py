"""Another tool's probabilities: what is read of them holds for the answer that is trained, token by token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill_lab.config import ModelConfig, TeacherCacheConfig, TrainConfig
from distill_lab.errors import DataError, UserError
from distill_lab.models.loading import load_tokenizer
from distill_lab.models.token_bytes import token_bytes
from distill_lab.train.cache_format import Vocabulary, decode_top_k, encode_top_k
from distill_lab.train.cached_teacher import CachedTeacher, check_cache
from distill_lab.train.given_logits import aligned, import_logits, read_line, write_logits
from distill_lab.train.given_teacher import given_inputs, given_teachers
from distill_lab.train.objectives import ChunkTargets, Head, SeveralTopK, TopK, load_objective
from distill_lab.train.objectives.forward_kl import chunk_loss
from distill_lab.train.packing import Row, collate
from distill_lab.train.student import train_student
from distill_lab.train.teacher_cache import TeacherCache
from tests.helpers import filled_cache, live_teacher_of, teacher_settings

pytestmark = pytest.mark.slow

NUM_IDS = 60


def row(prompt: list[int], answer: list[int]) -> Row:
    ids = np.array([*prompt, *answer], np.int32)
    return Row(ids[:-1], ids[1:], np.arange(1, len(ids)) >= len(prompt))


def line(*tokens: dict[int, float]) -> bytes:
    return json.dumps(tokens).encode() + b"\n"


def one(id: int, p: float = 0.9, other: int = 59) -> dict[int, float]:
    return {id: p, other: (1 - p) / 2}


def imported(file: Path, rows_of: dict[int, list[Row]], folder: Path, **changes: Any) -> tuple[Any, Any]:
    settings: dict[str, Any] = {"num_lines": len(rows_of), "num_ids": NUM_IDS, "names": {7: b"\n", 8: b"x"}}
    found = import_logits(file, rows_of, folder, **(settings | changes))
    return found, TeacherCache.open(folder)


def top_of(cache: TeacherCache, *rows: Row) -> TopK:
    batch = collate([list(rows)])
    found = CachedTeacher(cache, NUM_IDS).signal(batch).at(slice(0, len(batch.labels_N)))
    assert isinstance(found, TopK)
    return found


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([10, 11, 12, 2], (0, 4)),  # the answer and its end
        ([10, 11, 12, 2, 30, 31], (0, 4)),  # the teacher went on after the end
        ([7, 10, 11, 12, 2], (1, 4)),  # a line break that belongs to the prompt
        ([7, 7, 10, 11, 12, 2], (2, 4)),
        ([10, 11], (0, 2)),  # cut at the token limit
        ([10, 40, 41], (0, 2)),  # where they part both have still begun alike
        ([40, 10, 11, 12, 2], (0, 0)),  # another answer; 40 is not white space
        ([7], (0, 0)),
        ([], (0, 0)),
    ],
)
def test_text_and_answer_are_compared_token_by_token(said: list[int], expected: tuple[int, int]) -> None:
    answer = row([1, 2, 3], [10, 11, 12, 2])
    assert aligned(answer, [([id, 59], [0.9, 0.1]) for id in said], {7}) == expected
    # Whether the written or the most likely token is the answer's: a text may have been sampled.
    assert aligned(answer, [([id, 59], [0.1, 0.9]) for id in said], {7}) == expected
    assert aligned(answer, [([59, id], [0.1, 0.9]) for id in said], {7}) == expected


def test_a_second_turn_is_not_the_teachers_text() -> None:
    turns = row([1, 2], [10, 11, 2, 5, 10])
    turns.loss_mask[4] = False  # 5, which is not trained
    assert aligned(turns, [([id], [1.0]) for id in (10, 11, 2, 10)], {7}) == (0, 3)


def test_what_was_written_is_read_and_the_rest_is_unknown(tmp_path: Path) -> None:
    file, known = tmp_path / "logits.jsonl", row([1, 2], [10, 11, 2])
    begun, other, absent = row([1, 3], [10, 20, 2]), row([1, 4], [30, 2]), row([1, 5], [10, 2])
    file.write_bytes(
        line(one(7), {10: 0.75, 20: 0.125, 21: 0.0625}, one(11), one(2), one(50))
        + line(one(10), one(11))
        + line(one(10), one(11))
    )
    found, cache = imported(file, {0: [known], 1: [begun], 2: [other], 3: [absent]}, tmp_path / "cache")
    assert (found.num_rows, found.num_whole, found.num_begun) == (4, 1, 1)
    assert (found.num_positions, found.num_known) == (10, 5)
    assert "1 rows whole, 1 up to" in str(found)
    assert ", 2 without any" in str(found)
    top = top_of(cache, known, begun, other, absent)
    assert top.known_C is not None
    assert top.known_C.tolist() == [True] * 5 + [False] * 5
    first = {int(id): float(p) for id, p in zip(top.ids_CK[0], top.log_p_CB[0, :-1].exp(), strict=True)}
    for id, share in {10: 0.75, 20: 0.125, 21: 0.0625}.items():
        assert first[id] == pytest.approx(share, rel=0.06)
    assert float(top.log_p_CB[0, -1].exp()) == pytest.approx(0.0625, rel=0.06)
    # Where nothing is known the divergence and its gradient are 0, and only cross-entropy is left.
    torch.manual_seed(0)
    hidden = torch.randn(10, 4, requires_grad=True)
    linear = torch.nn.Linear(4, NUM_IDS, bias=False)

    signal = CachedTeacher(cache, NUM_IDS).signal(collate([[known, begun, other, absent]]))
    batch = replace(collate([[known, begun, other, absent]]), targets=signal)
    for name in ("forward_kl", "reverse_kl", "jsd"):
        hidden.grad = None
        load_objective(name)(hidden, Head(linear), batch).total.backward()
        assert hidden.grad is not None
        assert hidden.grad[5:].abs().max() == 0
        assert (hidden.grad[:5].abs().sum(1) > 0).all()
    # Again: the same cache, nothing to add; other rows are added.
    assert imported(file, {0: [known], 1: [begun], 2: [other], 3: [absent]}, tmp_path / "cache")[0] == found
    assert len(TeacherCache.open(tmp_path / "cache")) == 4


def test_ids_that_the_student_lacks_leave_the_rest_as_it_is(tmp_path: Path) -> None:
    file, answer = tmp_path / "logits.jsonl", row([1, 2], [10, 2])
    file.write_bytes(line({10: 0.5, NUM_IDS + 3: 0.25, 11: 0.25}, {2: 0.6, **dict.fromkeys(range(20, 40), 0.01)}))
    _, cache = imported(file, {0: [answer]}, tmp_path / "cache", max_ids=3)
    assert cache.identity.size == 3
    top = top_of(cache, answer)
    first = dict(zip(top.ids_CK[0].tolist(), top.log_p_CB[0].exp().tolist(), strict=False))
    assert first[10] == pytest.approx(2 / 3, rel=0.06)
    assert first[11] == pytest.approx(1 / 3, rel=0.06)
    # 2 is named, with two others; what they leave is one more.
    assert float(top.log_p_CB[1, -1].exp()) == pytest.approx(0.38, rel=0.06)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not JSON"),
        ("{}", "expected a list with an object for each token, found dict"),
        ("[[]]", "token 0: expected"),
        ('[{"1": 0.5}, {}]', "token 1: expected"),
        ('[{"a": 0.5}]', "'a' is not a token id"),
        ('[{"-1": 0.5}]', "'-1' is not a token id"),
        ('[{"1": -0.3}]', "-0.3 of id 1 is not a probability between 0 and 1; EasyDistill writes exp"),
        ('[{"1": NaN}]', "nan of id 1 is not a probability"),
        ('[{"1": true}]', "True of id 1 is not a probability"),
        ('[{"1": {"logprob": -1}}]', "of id 1 is not a probability"),
        ('[{"1": 0.7, "2": 0.7}]', "the probabilities sum to 1.4"),
    ],
)
def test_lines_that_are_none_are_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=r"logits\.jsonl:3: ") as caught:
        read_line(text.encode(), "logits.jsonl", 3)
    assert message in str(caught.value)


def test_files_of_other_rows_are_refused(tmp_path: Path) -> None:
    file, answer = tmp_path / "logits.jsonl", row([1, 2], [10, 2])
    file.write_bytes(line(one(40), one(41)))
    with pytest.raises(UserError, match="not one of 1 answers begins as the teacher's text does"):
        imported(file, {0: [answer]}, tmp_path / "a")
    file.write_bytes(line(one(10)) * 2)
    with pytest.raises(UserError, match=r"more lines than there are prompts \(1\); EasyDistill appends"):
        imported(file, {0: [answer]}, tmp_path / "b")
    file.write_bytes(b"[]\n")
    with pytest.raises(UserError, match="no line has a token"):
        imported(file, {0: [answer]}, tmp_path / "c")
    with pytest.raises(UserError, match="give the file with the teacher's probabilities"):
        imported(tmp_path / "absent", {0: [answer]}, tmp_path / "d")


def test_unknown_positions_survive_the_format() -> None:
    vocabulary = Vocabulary.by_frequency(np.arange(50))
    ids = np.array([[1, 2], [3, 4], [0, 1]])
    log_p = np.log(np.array([[0.5, 0.25, 0.25], [0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3]]))
    log_p[1] = np.nan
    data = np.frombuffer(encode_top_k(ids, log_p, vocabulary) + bytes(4), np.uint8)
    end = len(data) - 4
    _, back = decode_top_k(data, np.array([0]), np.array([end]), np.array([3]), 2, vocabulary)
    assert np.isnan(back).all(1).tolist() == [False, True, False]


def test_a_cache_written_and_read_again_says_the_same(teacher: ModelConfig, rows: list[Row], tmp_path: Path) -> None:
    cache = filled_cache(teacher_settings(teacher, "top_k", size=8), tmp_path / "cache", rows)
    write_logits(cache, [[each] for each in rows] + [[]], tmp_path / "logits.jsonl")
    assert (tmp_path / "logits.jsonl").read_bytes().count(b"\n") == len(rows) + 1
    names = token_bytes(load_tokenizer(teacher))
    num_ids = cache.identity.num_ids
    again = import_logits(
        tmp_path / "logits.jsonl", {place: [each] for place, each in enumerate(rows)}, tmp_path / "again",
        num_lines=len(rows) + 1, num_ids=num_ids, names=names,
    )  # fmt: skip
    assert again.num_whole == again.num_rows == len(rows)
    batch = collate([rows[:3]])
    whole = live_teacher_of(teacher, num_ids).signal(batch).at(slice(0, 999)).softmax(-1)
    top = CachedTeacher(TeacherCache.open(tmp_path / "again"), num_ids).signal(batch).at(slice(0, 999))
    assert isinstance(top, TopK)
    best = whole.topk(8, -1)
    found = torch.zeros_like(whole).scatter(1, top.ids_CK, top.log_p_CB[:, :-1].exp())
    torch.testing.assert_close(found.gather(1, best.indices), best.values, rtol=0.15, atol=2e-3)


def test_divergences_of_several_teachers_are_added(rows: list[Row], tmp_path: Path) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 30)
    tops = []
    for _ in range(2):
        p = torch.randn(5, 30).softmax(-1)
        best = p.topk(4, -1)
        rest = 1 - best.values.sum(1, keepdim=True)
        tops.append(TopK(best.indices, torch.cat([best.values, rest], 1).log(), torch.arange(5) != 2))

    labels = torch.arange(5)
    mixed = chunk_loss(logits.clone(), ChunkTargets(labels, SeveralTopK(tuple(tops))), ce_weight=0.25)
    parts = [chunk_loss(logits.clone(), ChunkTargets(labels, top)) for top in tops]
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    assert float(mixed.total) == pytest.approx(float(0.75 * sum(part.total for part in parts) + 0.25 * ce), rel=1e-5)
    slope = logits.softmax(-1) - torch.nn.functional.one_hot(labels, 30)
    expected = 0.75 * (parts[0].grad_CV + parts[1].grad_CV) + 0.25 * slope
    torch.testing.assert_close(mixed.grad_CV, expected, rtol=1e-4, atol=1e-6)


def test_training_takes_given_probabilities_and_nothing_else(
    student: ModelConfig, teacher: ModelConfig, rows: list[Row], rows_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "logits.jsonl"
    write_logits(
        filled_cache(teacher_settings(teacher, "top_k", size=8), tmp_path / "c", rows), [[r] for r in rows], file
    )
    names = token_bytes(load_tokenizer(student))
    lines = {place: [each] for place, each in enumerate(rows)}
    import_logits(file, lines, tmp_path / "g", num_lines=len(rows), num_ids=len(names), names=names)
    cache = TeacherCacheConfig(mode="given", folders=(str(tmp_path / "g"), str(tmp_path / "g")))
    config = TrainConfig(
        dtype="fp32", objective="forward_kl", teacher_cache=cache, tokens_per_batch=256, learning_rate=1e-2,
        num_epochs=2, validation_fraction=0.2,
    )  # fmt: skip
    assert len(given_inputs(config)) == 2
    result = train_student(student, rows_file, tmp_path / "student", config)
    assert result.validation_loss_after is not None
    assert result.validation_loss_before is not None
    assert result.validation_loss_after < result.validation_loss_before
    with pytest.raises(UserError, match="go together; give both or neither"):
        check_cache(config.model_copy(update={"teacher_cache": TeacherCacheConfig(mode="given")}))
    with pytest.raises(UserError, match="has the distributions already; leave out the teacher"):
        check_cache(config.model_copy(update={"teacher": teacher}))
    with pytest.raises(UserError, match="1 of 1 rows are not in this cache"):
        given_teachers(config, student_rows=50, rows=[row([1, 2], [3, 4])])
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
    assert "folders" not in TeacherCacheConfig().model_dump()
