"""The learnability gap: the student's nats less the teacher's, exactly those of a plain pass over each row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill_lab.config import ModelConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.models.loading import load_model, load_tokenizer
from distill_lab.train.learnability import write_learnability
from distill_lab.train.packing import Row
from distill_lab.train.rows import encoded_rows
from tests.helpers import filled_cache, teacher_settings

pytestmark = pytest.mark.slow


def nats(model: ModelConfig, row: Row) -> float:
    """Mean of -log p over the row's loss positions, of a plain pass."""
    loaded = load_model(model)[0]
    with torch.no_grad():
        logits = loaded(torch.from_numpy(row.input_ids).long()[None]).logits[0].float()
    log_p = logits.log_softmax(-1).gather(1, torch.from_numpy(row.target).long()[:, None])[:, 0]
    return -log_p[torch.from_numpy(row.loss_mask)].mean().item()


@pytest.mark.parametrize("mode", ["sampled", "hidden"])
def test_a_rows_gap_is_what_two_plain_passes_give(
    mode: str, teacher: ModelConfig, student: ModelConfig, rows: list[Row], rows_file: Path, tmp_path: Path
) -> None:
    config = teacher_settings(teacher, mode, folder=str(tmp_path / "cache"))
    filled_cache(config, tmp_path / "cache", rows)
    out = tmp_path / "learnability.jsonl"
    write_learnability(student, rows_file, tmp_path / "student", config, out, thinking=None)
    found = list(read_jsonl(out))
    encoded = list(encoded_rows(rows_file, load_tokenizer(student), max_length=1024))
    assert len(found) == len(encoded) == 24
    for place in (0, 7, 23):
        [row] = encoded[place].sequences
        assert found[place]["tokens"] == row.loss_mask.sum()
        assert found[place]["student"] == pytest.approx(nats(student, row), abs=2e-4)
        assert found[place]["teacher"] == pytest.approx(nats(teacher, row), abs=2e-4)
        assert found[place]["gap"] == pytest.approx(found[place]["student"] - found[place]["teacher"], abs=2e-6)


def test_what_training_drops_has_no_gap_and_the_cache_must_have_the_rest(
    teacher: ModelConfig, student: ModelConfig, rows: list[Row], rows_file: Path, tmp_path: Path
) -> None:
    config = teacher_settings(teacher, folder=str(tmp_path / "cache"))
    filled_cache(config, tmp_path / "cache", rows[:4])
    out = tmp_path / "learnability.jsonl"
    with pytest.raises(UserError, match="rows are not in this teacher cache"):
        write_learnability(student, rows_file, tmp_path / "student", config, out, thinking=None)
    lengths = [len(each.sequences[0]) + 1 for each in encoded_rows(rows_file, load_tokenizer(student), max_length=1024)]
    middle = sorted(lengths)[12]
    config = config.model_copy(update={"max_length": middle})
    write_learnability(student, rows_file, tmp_path / "student", config, out, thinking=None, measure=False)
    found = list(read_jsonl(out))
    assert [("dropped" in line) for line in found] == [length > middle for length in lengths]
    assert all("gap" not in line for line in found)
