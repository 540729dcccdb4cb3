"""Rollouts: exactly the tokens that were sampled, every prompt in its turn, sealed on disk, and each in one step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill_lab.chat import prompt_ids
from distill_lab.config import SamplingConfig, TrainConfig
from distill_lab.errors import NoData
from distill_lab.files.jsonl import write_jsonl
from distill_lab.train import rollouts
from distill_lab.train.plan import plan_once
from distill_lab.train.rollout_file import (
    Damaged,
    Rollout,
    read_rollouts,
    remove_later,
    rollouts_path,
    write_rollouts,
)
from distill_lab.train.rollout_stats import RoundStats
from distill_lab.train.rollouts import (
    FOREIGN,
    NO_ROOM,
    NO_ROOM_FOR_TEACHER,
    NOTHING,
    AskedPrompt,
    Rollouts,
    RolloutSettings,
    RowMaker,
    TeacherView,
    read_asked,
    sample,
)
from distill_lab.train.rows import REFUSED
from distill_lab.types import Prompt
from tests.helpers import make_engine, make_prompts

SAMPLING = SamplingConfig(max_new_tokens=12, temperature=1.0)
NO_ENGINE: Any = lambda: None  # noqa: E731 - the tests that use it write themselves
STATS = RoundStats(round=3, rollouts=3, kept=2, tokens=9, truncated=1, row_tokens=20, seconds=0.5, dropped={FOREIGN: 1})
ROLLOUTS = [Rollout(0, "0/a", 0, [5, 6, 7], "stop"), Rollout(4, "1/\u2028\n", 1, [8] * 6, "length")]


@pytest.mark.parametrize("pack_rows", [True, False])
@pytest.mark.parametrize(("steps", "per_step"), [(1, 1), (4, 1), (3, 5), (7, 2)])
def test_every_row_is_in_one_step_and_steps_are_alike(steps: int, per_step: int, pack_rows: bool) -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 90).tolist()
    config = TrainConfig(tokens_per_batch=256, gradient_accumulation_steps=per_step)
    plan = plan_once(lengths, config, num_steps=steps, pack_rows=pack_rows)
    assert plan.num_steps == steps
    assert len(plan.batches) == steps * per_step
    rows = Counter(row for batch in plan.batches for bin_ in batch for row in bin_)
    assert rows == Counter(range(90))
    if not pack_rows:
        assert all(len(bin_) == 1 for batch in plan.batches for bin_ in batch)
    tokens = np.diff(plan.tokens_until)
    assert tokens.sum() == sum(lengths)
    assert tokens.max() - tokens.min() <= max(lengths)
    for step, total in enumerate(tokens):
        batches = plan.batches[step * per_step : (step + 1) * per_step]
        assert sum(lengths[row] for batch in batches for bin_ in batch for row in bin_) == total
    again = plan_once(lengths, config, num_steps=steps, pack_rows=pack_rows)
    other = plan_once(lengths, config, num_steps=steps, pack_rows=pack_rows, round_number=1)
    assert again.batches == plan.batches != other.batches


def test_few_rows_leave_micro_batches_empty_but_no_step() -> None:
    config = TrainConfig(tokens_per_batch=64, gradient_accumulation_steps=3)
    plan = plan_once([9, 30, 12], config, num_steps=3)
    for step in range(3):
        assert sum(len(bin_) for batch in plan.batches[3 * step : 3 * step + 3] for bin_ in batch) == 1
    with pytest.raises(AssertionError, match="3 rows for 4 steps"):
        plan_once([9, 30, 12], config, num_steps=4)


def test_a_round_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_rollouts(tmp_path, STATS, ROLLOUTS)
    assert read_rollouts(tmp_path, 3) == (STATS, ROLLOUTS)
    with pytest.raises(FileNotFoundError):
        read_rollouts(tmp_path, 4)
    rollouts_path(tmp_path, 3).rename(rollouts_path(tmp_path, 4))
    with pytest.raises(Damaged, match="it is round 3"):
        read_rollouts(tmp_path, 4)


def test_every_flipped_byte_and_every_cut_of_a_round_is_noticed(tmp_path: Path) -> None:
    write_rollouts(tmp_path, STATS, ROLLOUTS)
    path = rollouts_path(tmp_path, 3)
    whole = path.read_bytes()
    head = whole.index(b"\n")
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        if place > head:
            with pytest.raises(Damaged):
                read_rollouts(tmp_path, 3)
            continue
        try:  # in the first line are figures, from which nothing is trained
            _, found = read_rollouts(tmp_path, 3)
            assert found == ROLLOUTS
        except Damaged:
            pass
    for end in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:end])
        with pytest.raises(Damaged):
            read_rollouts(tmp_path, 3)


def test_rounds_that_another_student_wrote_are_removed(tmp_path: Path) -> None:
    for number in (2, 3, 10):
        write_rollouts(tmp_path, replace(STATS, round=number), ROLLOUTS)
    (tmp_path / "rollouts-mine.jsonl").write_text("")
    remove_later(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rollouts-2.jsonl", "rollouts-mine.jsonl"]


def test_tokens_are_those_that_were_sampled(random_model: Callable[..., Path]) -> None:
    engine = make_engine(random_model(hidden=32, layers=2), num_ends=300)
    prompts = make_prompts(20)
    requests = [(100 + place, prompt) for place, prompt in enumerate(prompts)]
    found, failed = sample(engine, requests, SAMPLING.model_copy(update={"num_samples": 2}))
    assert failed == 0
    assert [(each.prompt, each.id, each.sample) for each in found] == [
        (100 + place, prompt.id, number) for place, prompt in enumerate(prompts) for number in range(2)
    ]
    assert {each.finish_reason for each in found} == {"stop", "length"}
    for each in found:
        ends = [token in engine.io.end_ids for token in each.tokens]
        assert not any(ends[:-1])
        assert ends[-1] == (each.finish_reason == "stop")
        assert len(each.tokens) <= 12
        assert (len(each.tokens) == 12) or each.finish_reason == "stop"
    # Alone, a prompt gets the same tokens; and at temperature 0 those of transformers.
    alone, _ = sample(engine, requests[7:8], SAMPLING)
    assert alone == [each for each in found if each.prompt == 107 and each.sample == 0]
    [greedy], _ = sample(engine, requests[:1], SamplingConfig(max_new_tokens=12))
    import torch

    model: Any = engine.model
    ids = torch.tensor([prompt_ids(engine.tokenizer, prompts[0].messages)])
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=engine.io.end_ids,
        pad_token_id=engine.tokenizer.pad_token_id,
    )  # fmt: skip
    assert greedy.tokens == wanted[0, ids.shape[1] :].tolist()


def test_what_is_trained_of_a_rollout() -> None:
    asked = AskedPrompt(Prompt("a", []), [1, 2, 3], None)
    known = np.ones(50, dtype=bool)
    known[40] = False
    maker = RowMaker({9}, known)
    made = maker.row(asked, Rollout(0, "0/a", 0, [7, 9, 8], "stop"))
    assert not isinstance(made, str)
    row, same = made
    assert same is row
    assert row.input_ids.tolist() == [1, 2, 3, 7, 9]
    assert row.target.tolist() == [2, 3, 7, 9, 8]
    # The prompt is not trained, nor is a special token in the middle; the end is.
    assert row.loss_mask.tolist() == [False, False, True, False, True]
    for token in (40, 50, 5000):
        assert maker.row(asked, Rollout(0, "0/a", 0, [7, token], "length")) == FOREIGN
    assert maker.row(asked, Rollout(0, "0/a", 0, [9, 9], "length")) == NOTHING
    made = maker.row(replace(asked, teacher_ids=[4] * 6), Rollout(0, "0/a", 0, [7, 9, 8], "stop"))
    assert not isinstance(made, str)
    row, other = made
    assert other.input_ids.tolist() == [4] * 6 + [7, 9]
    assert other.target[other.loss_mask].tolist() == row.target[row.loss_mask].tolist() == [7, 8]


def settings(**changes: Any) -> RolloutSettings:
    given: dict[str, Any] = {"sampling": SAMPLING, "steps_per_round": 2, "rollouts_per_step": 3} | changes
    return RolloutSettings(**given)


def test_prompts_that_may_not_fit_are_left_out_and_counted(random_model: Callable[..., Path], tmp_path: Path) -> None:
    tokenizer = make_engine(random_model(hidden=32, layers=1)).tokenizer
    prompts = make_prompts(30)
    sizes = [len(prompt_ids(tokenizer, prompt.messages)) for prompt in prompts]
    limit = sorted(sizes)[20] + SAMPLING.max_new_tokens
    rows = [prompt.to_json() for prompt in prompts]
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, rows)
    asked = read_asked(path, tokenizer, settings(), max_length=limit, held_out_fraction=0.2, seed=0)
    fits = sum(size + SAMPLING.max_new_tokens <= limit for size in sizes)
    assert asked.dropped == {NO_ROOM: 30 - fits}
    assert len(asked.held_out) == round(0.2 * fits)
    ids = [each.prompt.id for each in (*asked.training, *asked.held_out)]
    assert len(set(ids)) == len(ids) == fits
    again = read_asked(path, tokenizer, settings(), max_length=limit, held_out_fraction=0.2, seed=0)
    other = read_asked(path, tokenizer, settings(), max_length=limit, held_out_fraction=0.2, seed=1)
    assert again == asked != other
    assert not read_asked(path, tokenizer, settings(), max_length=512, held_out_fraction=0, seed=0).held_out
    # A teacher with a system prompt reads more than the student.
    context = max(sizes) + 40
    view = TeacherView(tokenizer, "Answer like a pirate. " * 4, context)
    seen = read_asked(path, tokenizer, settings(), max_length=512, held_out_fraction=0, seed=0, teacher=view)
    assert seen.dropped[NO_ROOM_FOR_TEACHER] > 0
    for each in seen.training:
        assert each.teacher_ids is not None
        text = str(tokenizer.decode(each.teacher_ids))
        assert "pirate" in text
        assert text.endswith(str(tokenizer.decode(each.ids))[-20:])
    with pytest.raises(NoData, match=rf"30 prompts: {NO_ROOM}\); lower --rollout.max-new-tokens, or raise"):
        read_asked(path, tokenizer, settings(), max_length=12, held_out_fraction=0, seed=0)
    write_jsonl(path, [{**rows[0], "messages": []}])
    with pytest.raises(NoData, match=f"1 prompts: {REFUSED}"):
        read_asked(path, tokenizer, settings(), max_length=512, held_out_fraction=0, seed=0)


def test_rounds_go_through_all_prompts_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = [AskedPrompt(Prompt(f"p{place}", []), [1, 2, 3 + place], None) for place in range(10)]
    calls: list[list[str]] = []

    def write(engine: Any, requests: list[tuple[int, Prompt]], sampling: SamplingConfig) -> tuple[list[Rollout], int]:
        calls.append([prompt.id for _, prompt in requests])
        assert [asked[place].prompt.id for place, _ in requests] == [each.partition("/")[2] for each in calls[-1]]
        made = [
            Rollout(place, prompt.id, number, [7] * (1 + place), "length")
            for place, prompt in requests
            for number in range(sampling.num_samples)
        ]
        return made[1:], 1

    monkeypatch.setattr(rollouts, "sample", write)
    notes: list[str] = []

    def new(**changes: Any) -> Rollouts:
        return Rollouts(
            asked, settings(**changes), tmp_path, engine=NO_ENGINE, rows=RowMaker((), None), seed=0,
            on_note=notes.append,
        )  # fmt: skip

    first = new()
    rows = [first.rows(number) for number in range(5)]
    assert [len(each) for each in rows] == [5] * 5
    seen = [each for call in calls for each in call]
    assert len(set(seen)) == 30
    for epoch in range(3):
        part = seen[10 * epoch : 10 * epoch + 10]
        assert {each.partition("/")[2] for each in part} == {f"p{place}" for place in range(10)}
        assert {each.partition("/")[0] for each in part} == {str(epoch)}
    assert [each.partition("/")[2] for each in seen[:10]] != [each.partition("/")[2] for each in seen[10:20]]
    stats = first.stats(2)
    assert stats is not None
    assert (stats.rollouts, stats.kept, stats.dropped) == (6, 5, {rollouts.UNANSWERED: 1})
    assert stats.truncated == 5
    assert stats.row_tokens == sum(len(row) for row, _ in rows[2])
    # What is sealed is not written again; what was damaged is, and what came after it is gone.
    calls.clear()
    again = new()
    assert [[row.id for row, _ in again.rows(number)] for number in range(5)] == [
        [row.id for row, _ in r] for r in rows
    ]
    assert calls == []
    path = rollouts_path(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:-5])
    assert again.stats(3) is None
    assert [row.id for row, _ in again.rows(3)] == [row.id for row, _ in rows[3]]
    assert calls == [seen[18:24]]
    assert notes == [f"{path}: its content is not what was written; the round is generated again"]
    assert not rollouts_path(tmp_path, 4).exists()
    # Several samples of each prompt: fewer prompts to a round.
    calls.clear()
    more = new(sampling=SAMPLING.model_copy(update={"num_samples": 3}))
    path.unlink()
    more.rows(3)
    assert [len(call) for call in calls] == [2]


def test_too_few_usable_rollouts_are_said_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = [AskedPrompt(Prompt("p", []), [1, 2, 3], None)]
    monkeypatch.setattr(
        rollouts, "sample", lambda engine, requests, sampling: ([Rollout(0, "0/p", 0, [99], "stop")] * 6, 0)
    )
    made = Rollouts(
        asked, settings(), tmp_path, engine=NO_ENGINE, rows=RowMaker((), np.ones(9, dtype=bool)), seed=0,
        on_note=print,
    )  # fmt: skip
    with pytest.raises(NoData, match=rf"round 1: 0 of 6 rollouts can be learned from \(6 rollouts: {FOREIGN}\)"):
        made.rows(0)
