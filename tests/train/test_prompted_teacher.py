"""A teacher with a prompt that only it reads: its logits are those of each row alone, kept beginning or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distill_lab.train.loss_module import decoder_and_head
from distill_lab.train.packing import Row, collate
from distill_lab.train.prompted_teacher import MIN_SHARED, PromptedTeacher, _shared_beginning
from distill_lab.train.teachers import LiveTeacher
from tests.train.test_packing import build

pytestmark = pytest.mark.slow


def row(prompt: list[int], tokens: list[int]) -> Row:
    ids = np.asarray([*prompt, *tokens], dtype=np.int32)
    return Row(ids[:-1], ids[1:], np.arange(1, len(ids)) >= len(prompt))


def pairs(shared: int, *, seed: int = 0) -> list[tuple[Row, Row]]:
    """Rows of 1 to 9 answer tokens; the teacher reads `shared` tokens before each prompt."""
    random = np.random.default_rng(seed)
    system = random.integers(1, 60, shared).tolist()
    found = []
    for number in range(7):
        prompt, tokens = ([5 + number, *random.integers(1, 60, size).tolist()] for size in (3 + number % 3, number))
        found.append((row(prompt, tokens), row([*system, *prompt], tokens)))
    return found


@pytest.mark.parametrize("shared", [5, 70])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma2", "granite", "cohere", "gpt2"])
def test_logits_are_those_of_each_row_alone(kind: str, shared: int) -> None:
    model: Any = build(kind).eval()
    num_ids = decoder_and_head(model)[1].linear.out_features
    teacher = PromptedTeacher(LiveTeacher(model, num_ids), tokens_per_batch=24)
    rows = pairs(shared)
    order = [[0, 3], [5], [1, 2, 6]]
    for seed in (0, 1):  # the second round has another beginning
        rows = pairs(shared, seed=seed)
        teacher.read(rows, str(seed))
        batch = collate([[rows[index][0] for index in bin_] for bin_ in order])
        signal = teacher.signal(batch)
        expected = []
        for index in (index for bin_ in order for index in bin_):
            other = rows[index][1]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor(other.input_ids[None], dtype=torch.long), use_cache=False).logits
            expected.append(logits[0, torch.from_numpy(other.loss_mask)].float())
        found = signal.at(slice(0, len(batch.labels_N)))
        torch.testing.assert_close(found, torch.cat(expected)[:, :num_ids], rtol=2e-4, atol=2e-4)
    assert (len(teacher._shared) == shared) == (shared >= MIN_SHARED and teacher._can_keep is True)
    assert teacher.signal(collate([])).hidden_NT.shape[0] == 0


def test_beginnings_are_kept_where_it_is_right() -> None:
    for kind in ("qwen2", "qwen3", "gemma2"):
        model = build(kind).eval()
        teacher = PromptedTeacher(
            LiveTeacher(model, decoder_and_head(model)[1].linear.out_features), tokens_per_batch=24
        )
        teacher.read(pairs(70), "0")
        assert teacher._can_keep, kind
        read: list[int] = []
        forward = teacher.live.decoder.forward

        def counted(*inputs: Any, forward: Any = forward, read: list[int] = read, **settings: Any) -> Any:
            read.append(settings["input_ids"].numel())
            return forward(*inputs, **settings)

        teacher.live.decoder.forward = counted
        rows = [student for student, _ in pairs(70)]
        teacher.signal(collate([[each] for each in rows]))
        assert sum(read) < 70 + 7 * 16


def test_what_rows_share_ends_before_the_first_trained_token() -> None:
    assert _shared_beginning([]) == []
    assert _shared_beginning([row([1, 2, 3], [4, 5])]) == [1, 2]
    assert _shared_beginning([row([1, 2, 3, 9], [4]), row([1, 2, 3, 8], [4])]) == [1, 2, 3]
    assert _shared_beginning([row([1, 2, 3, 9], [4]), row([7, 2, 3, 9], [4])]) == []
