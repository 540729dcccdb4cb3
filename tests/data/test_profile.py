"""profile.py and near_duplicates.py: what `distill data` finds in rows of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig, ModelConfig
from distill_lab.data.near_duplicates import Duplicates
from distill_lab.data.profile import Profile, percentile, profile
from distill_lab.errors import NoData, UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_tokenizer
from distill_lab.types import Prompt

LOAVES = "A baker makes 12 loaves every morning and sells 7 of them before noon. How many loaves are left?"
TIDES = "Why do two high tides reach most coasts each day although the moon is overhead only once?"


def look(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Profile:
    write_jsonl(folder / "data.jsonl", rows)
    return profile(DataConfig(path=str(folder / "data.jsonl")), **settings)


def test_columns_adapters_and_parts(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": f"What is {n} + 1?", "answer": str(n + 1), "source": "mine", "empty": None} for n in range(4)
    ]
    rows.append(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ]
        }
    )
    found = look(tmp_path, [*rows, {"question": None}])
    assert (found.counts.rows_in, found.counts.kept) == (6, 5)
    assert len(found.invalid) == 1
    assert found.adapters == {"question": 4, "messages": 1}
    assert set(found.unused) == {"source"}
    assert "empty" not in found.columns
    assert found.columns["question"].filled == 4
    assert (found.parts["a gold answer"], found.parts["a system prompt"], found.parts["an answer to learn"]) == (
        4,
        1,
        1,
    )


def test_examples_mark_exactly_what_is_trained(tmp_path: Path) -> None:
    rows = [{"prompt": "Say cat.", "completion": "cat"}, {"question": "Say dog."}]
    plain = look(tmp_path, rows)
    assert [piece.text for piece in plain.examples[0][1] if piece.trained] == ["cat"]
    tokenizer = load_tokenizer(ModelConfig(model="tiny:student"))
    found = look(tmp_path, rows, tokenizer=tokenizer, thinking=False)
    (_, answered), (_, asked) = found.examples
    assert [piece.text for piece in answered if piece.trained] == ["cat<|im_end|>"]
    assert not any(piece.trained for piece in asked)
    text = "".join(piece.text for piece in answered)
    assert text.startswith("<|im_start|>user\nSay cat.")
    assert found.prompt_lengths[0] < found.row_lengths[0]


def test_rows_that_training_would_drop_are_counted(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(model="tiny:student"))
    rows = [{"prompt": "Say it.", "completion": "cat " * number} for number in (1, 100)]
    found = look(tmp_path, rows, tokenizer=tokenizer, max_length=64)
    assert (found.num_cut, len(found.row_lengths)) == (1, 2)


def test_control_tokens_and_thinking_tags(tmp_path: Path) -> None:
    rows = [
        {"prompt": "What does <|im_end|> mean?", "completion": "It ends a turn. <|im_end|>"},
        {"prompt": "Use [INST] here.", "completion": "Well, <think> is a tag."},
        {"prompt": "Sum?", "completion": "<think>two and two</think>four"},
    ]
    found = look(tmp_path, rows)
    assert found.control == {"<|im_end|>": 1, "[INST]": 1}
    assert found.thinking["<think>"] == 1
    assert found.parts["thinking apart from the answer"] == 1


def test_duplicates_and_overlap_with_a_test(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"question": TIDES, "answer": "2"}])
    texts = [LOAVES, LOAVES.upper(), LOAVES.replace("baker", "cook"), "Name a river.", f"{TIDES} Explain it."]
    found = look(tmp_path, [{"question": text} for text in texts], test=DataConfig(path=str(tmp_path / "test.jsonl")))
    assert found.duplicates.num_same == 1
    assert [(name, pair.test_id) for name, pair in found.duplicates.pairs] == [("train-1", "train-0")]
    assert [(name, pair.test_id) for name, pair in found.near] == [("train-2", "train-0")]
    assert (found.num_test, found.overlaps.total()) == (1, 1)
    assert [name for name, _ in found.overlap_pairs] == ["train-4"]


def test_problems_of_one_template_are_no_near_duplicates() -> None:
    found = Duplicates()
    for number in range(40):
        text = f"A train travels {number + 10} km in {number % 7 + 2} hours. How many km does it travel in one hour?"
        found.add(Prompt(str(number), [{"role": "user", "content": text}]))
    assert (found.num_same, list(found.near())) == (0, [])


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(NoData, match="no row of train can be read"):
        look(tmp_path, [{"question": None}])
    with pytest.raises(UserError, match="no such file"):
        profile(DataConfig(path=str(tmp_path / "missing.jsonl")))
    with pytest.raises(UserError, match="no such file"):
        look(tmp_path, [{"question": "a"}], test=DataConfig(path=str(tmp_path / "missing.jsonl")))


def test_percentiles_are_lengths_that_occur() -> None:
    assert [percentile([5, 1, 3, 4, 2], share) for share in (1, 50, 90, 100)] == [1, 3, 5, 5]
