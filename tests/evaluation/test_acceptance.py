"""Acceptance of a draft's tokens: against full distributions, against speculative decoding played through, intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distill_lab.config import ModelConfig
from distill_lab.evaluation.acceptance import (
    MAX_DRAFTED,
    RowAcceptance,
    acceptance,
    best_drafted,
    compare_rows,
    difference,
    expected_accepted,
    greedy_tokens_per_pass,
    mean_of_rows,
)
from distill_lab.evaluation.answer_rows import answer_rows
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model, load_tokenizer
from distill_lab.train.loss_module import decoder_and_head
from distill_lab.train.rows import read_rows
from distill_lab.train.teachers import LiveTeacher
from distill_lab.types import Completion


def test_what_is_compared_is_what_the_whole_distributions_say(tmp_path: Path) -> None:
    target, tokenizer = load_model(ModelConfig(model="tiny:teacher", dtype="fp32"))
    draft, _ = load_model(ModelConfig(model="tiny:student", dtype="fp32"))
    answers = {"Say yes.": "Yes.", "Make this upper case: pear": "PEAR, and nothing else"}
    write_jsonl(
        tmp_path / "rows.jsonl",
        (
            {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
            for q, a in answers.items()
        ),
    )
    rows = read_rows(tmp_path / "rows.jsonl", tokenizer, max_length=256, validation_fraction=0, seed=0).training
    num_ids = decoder_and_head(target)[1].linear.out_features
    found = compare_rows(LiveTeacher(target, num_ids), {"draft": LiveTeacher(draft, num_ids)}, rows)["draft"]
    for row, each in zip(rows, found, strict=True):
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        logits = [model(ids).logits[0, row.loss_mask, :num_ids].double() for model in (target, draft)]
        p_NV, q_NV = (each.softmax(1) for each in logits)
        said_N1 = torch.from_numpy(row.target[row.loss_mask].astype(np.int64))[:, None]
        np.testing.assert_allclose(each.accepted_N, torch.minimum(p_NV, q_NV).sum(1).numpy(), atol=1e-5)
        ratio_N = (q_NV.gather(1, said_N1) / p_NV.gather(1, said_N1)).clamp(max=1)[:, 0]
        np.testing.assert_allclose(each.kept_N, ratio_N.numpy(), rtol=1e-3, atol=1e-6)
        assert (each.agrees_N == (p_NV.argmax(1) == q_NV.argmax(1)).numpy()).all()


def test_a_target_accepts_itself_always(tmp_path: Path) -> None:
    model, tokenizer = load_model(ModelConfig(model="tiny:student", dtype="fp32"))
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b c d e f"}]}
    write_jsonl(tmp_path / "rows.jsonl", [row] * 2)
    rows = read_rows(tmp_path / "rows.jsonl", tokenizer, max_length=256, validation_fraction=0, seed=0).training
    teacher = LiveTeacher(model, decoder_and_head(model)[1].linear.out_features)
    same = compare_rows(teacher, {"itself": teacher}, rows)["itself"]
    found = acceptance(same, same)
    assert found.sampled.rate == pytest.approx(1.0, abs=1e-5)
    assert found.greedy.rate == 1.0
    assert found.greedy.ci95 == (1.0, 1.0)
    assert (found.greedy.num_answers, found.greedy.num_tokens) == (2, 2 * int(rows[0].loss_mask.sum()))
    assert list(found.greedy.tokens_per_pass) == sorted(found.greedy.tokens_per_pass)


def speculative_sampling(p: np.ndarray, q: np.ndarray, drafted: int, random: np.random.Generator) -> int:
    """Drafted tokens accepted in one pass, token by token as Leviathan et al. do it."""
    for number in range(drafted):
        token = random.choice(len(q), p=q)
        if random.random() >= min(1.0, p[token] / q[token]):
            return number
    return drafted


def test_expected_lengths_are_those_of_speculative_sampling() -> None:
    random = np.random.default_rng(0)
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.3, 0.3, 0.4])
    rate = np.minimum(p, q).sum()
    text = random.choice(3, size=200_000, p=p)
    kept = np.minimum(1.0, q[text] / p[text])
    for drafted in (1, 3, MAX_DRAFTED):
        exact = sum(rate**i for i in range(1, drafted + 1))
        played = np.mean([speculative_sampling(p, q, drafted, random) for _ in range(20_000)])
        assert played == pytest.approx(exact, abs=0.03)
        assert expected_accepted([kept], drafted) == pytest.approx(exact, abs=0.02)


def test_an_answer_shorter_than_the_draft() -> None:
    assert expected_accepted([np.array([0.5, 0.5])], 8) == pytest.approx((0.5 + 0.25 + 0.5) / 2)
    assert greedy_tokens_per_pass([np.array([True])], 8) == 1.0


@pytest.mark.parametrize(
    ("agrees", "drafted", "passes"),
    [("1101", 2, 2), ("0000", 3, 4), ("1111", 4, 1), ("11111", 4, 1), ("111111", 4, 2), ("0110", 1, 3)],
)
def test_greedy_passes_are_played_through(agrees: str, drafted: int, passes: int) -> None:
    row = np.array([each == "1" for each in agrees])
    assert greedy_tokens_per_pass([row], drafted) == pytest.approx(len(agrees) / passes)
    assert greedy_tokens_per_pass([row, row], drafted) == pytest.approx(len(agrees) / passes)


def test_the_interval_covers_though_the_tokens_of_an_answer_hang_together() -> None:
    random = np.random.default_rng(1)
    covered = narrow = 0
    for _ in range(400):
        levels = random.beta(4, 2, size=20)
        rows = [random.random(random.integers(5, 40)) < level for level in levels]
        _, ci95 = mean_of_rows([row.astype(float) for row in rows])
        assert ci95 is not None
        covered += ci95[0] <= 4 / 6 <= ci95[1]
        tokens = np.concatenate(rows)
        half = 1.96 * tokens.std() / len(tokens) ** 0.5
        narrow += abs(tokens.mean() - 4 / 6) <= half
    assert covered / 400 >= 0.92
    assert narrow / 400 < 0.8  # as if tokens were independent


def test_a_difference_is_paired_and_one_answer_has_no_interval() -> None:
    random = np.random.default_rng(2)
    base = [random.random(30) for _ in range(12)]
    better = [row + 0.01 for row in base]
    mean, ci95 = difference(base, better)
    assert mean == pytest.approx(0.01)
    assert ci95 is not None
    assert ci95[0] > 0
    assert difference(base[:1], better[:1])[1] is None


def test_the_best_length_weighs_what_a_draft_costs() -> None:
    tokens = (1.8, 2.4, 2.8, 3.0, 3.1, 3.15, 3.17, 3.18)
    free, slow = best_drafted(tokens, 0.0), best_drafted(tokens, 0.5)
    assert free == (8, pytest.approx(3.18))
    assert slow == (1, pytest.approx(1.2))
    assert best_drafted(tokens, 0.1)[0] in (3, 4)


def test_figures_of_both_ways_come_from_their_own_answers() -> None:
    row = RowAcceptance(np.array([0.5, 0.7]), np.array([1.0, 1.0]), np.array([True, False]))
    other = RowAcceptance(np.array([0.1]), np.array([0.1]), np.array([True]))
    found = acceptance([row], [other])
    assert found.sampled.rate == pytest.approx(0.6)
    assert found.greedy.rate == 1.0
    assert (found.sampled.num_tokens, found.greedy.num_tokens) == (2, 1)


def test_a_cut_answer_keeps_its_text_without_an_end_that_nobody_wrote(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(model="tiny:student"))
    write_jsonl(
        tmp_path / "prompts.jsonl",
        ({"id": str(number), "messages": [{"role": "user", "content": "Say it."}]} for number in range(4)),
    )
    whole, cut = Completion("0", 0, "red green", None, "stop", 3), Completion("1", 0, "red green", None, "length", 2)
    others = [
        Completion("2", 0, "", None, "error", 0, error="no room"),
        Completion("3", 0, " ", None, "stop", 1),
        Completion("9", 0, "text", None, "stop", 1),
        Completion("3", 1, "", "so far", "length", 2),
    ]
    write_jsonl(tmp_path / "answers.jsonl", (each.to_json() for each in (whole, cut, *others)))
    files = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    rows, counts = answer_rows(*files, tokenizer, thinking=False)
    assert (counts.rows_in, counts.kept, counts.dropped) == (
        6, 2, {"error": 1, "empty": 1, "no prompt": 1, "cut inside the thinking": 1}
    )  # fmt: skip
    learned = [row.target[row.loss_mask].tolist() for row in rows]
    assert tokenizer.decode(learned[1]) == "red green"
    assert learned[0][: len(learned[1])] == learned[1]
    assert learned[0][len(learned[1]) :] == [tokenizer.eos_token_id]
