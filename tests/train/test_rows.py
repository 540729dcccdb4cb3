"""Training rows: what the loss mask honors, and rows that the template refuses, which never stop a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distill_lab.config import DataConfig
from distill_lab.data.records import write_prompts
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.train.packing import Row
from distill_lab.train.rows import REFUSED, UNTRAINED, Rows, read_rows
from distill_lab.training_data.training_set import write_training_set
from tests.helpers import FAMILY, toy_rows
from tests.mutations import mutations


@pytest.fixture(scope="module")
def tiny() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FAMILY / "student")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def rows_of(tokenizer: PreTrainedTokenizerBase, path: Path, *rows: dict[str, Any]) -> Rows:
    write_jsonl(path, rows)
    return read_rows(path, tokenizer, max_length=512, validation_fraction=0, seed=0)


def trained(tokenizer: PreTrainedTokenizerBase, row: Row) -> str:
    ids = [int(token) for token, flag in zip(row.input_ids, row.loss_mask, strict=True) if flag]
    return str(tokenizer.decode(ids))


def pair(*completion: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": [user("a")], "completion": list(completion)}


@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}, {"weight": 0.0}])
def test_a_turn_without_weight_is_context_and_never_trained(
    tiny: PreTrainedTokenizerBase, tmp_path: Path, off: dict[str, Any]
) -> None:
    found = rows_of(
        tiny, tmp_path / "r.jsonl", pair(answer("one"), user("b"), answer("two", **off), user("c"), answer("three"))
    )
    texts = "".join(trained(tiny, row) for row in found.training)
    assert "one" in texts
    assert "three" in texts
    assert "two" not in texts
    assert any("two" in tiny.decode(row.input_ids) for row in found.training)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_weight_goes_from_the_data_to_the_loss_mask(tiny: PreTrainedTokenizerBase, tmp_path: Path, kind: str) -> None:
    messages = [user("a"), answer("one"), user("b"), answer("two", train=False), user("c"), answer("three")]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": messages}))
    write_prompts(DataConfig(path=str(tmp_path / "data.jsonl")), tmp_path / "prompts.jsonl")
    write_training_set(tmp_path / "prompts.jsonl", tmp_path / f"train.{kind}")
    found = read_rows(tmp_path / f"train.{kind}", tiny, max_length=512, validation_fraction=0, seed=0)
    texts = "".join(trained(tiny, row) for row in found.training)
    assert [word for word in ("one", "two", "three") if word in texts] == ["one", "three"]


def test_a_row_of_which_nothing_is_trained_is_counted(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    found = rows_of(tiny, tmp_path / "r.jsonl", pair(answer("one", weight=0)), pair(answer("two")))
    assert (found.num_rows, found.dropped) == (1, {UNTRAINED: 1})


def test_a_weight_between_0_and_1_is_refused(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"r\.jsonl:1: a message's 'weight' is 0\.5; give 1"):
        rows_of(tiny, tmp_path / "r.jsonl", pair(answer("one", weight=0.5)))


REFUSALS = {
    "gemma3": [
        {"prompt": [user("a"), user("b")], "completion": [answer("c")]},
        {"prompt": [answer("hello"), user("b")], "completion": [answer("c")]},
    ],
    "qwen3": [
        pair(answer("Close it with </think> and go on.")),
        pair(answer("b", thinking="the tag </think> ends it")),
    ],
    "qwen3_5_think": [
        {"prompt": [user("a"), {"role": "system", "content": "late"}, user("b")], "completion": [answer("c")]}
    ],
}


@pytest.mark.parametrize("template", REFUSALS)
def test_a_row_that_the_template_refuses_is_dropped_and_the_first_is_named(
    shared_data: Path, tmp_path: Path, template: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen3")
    tokenizer.chat_template = (shared_data / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8")
    if template == "gemma3":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>", "<start_of_turn>"]})
    bad = REFUSALS[template]
    good = pair(answer("fine", thinking="hm") if template == "qwen3_5_think" else answer("fine"))
    path = tmp_path / "r.jsonl"
    found = rows_of(tokenizer, path, good, *bad, good)
    assert (found.num_rows, found.dropped) == (2, {REFUSED: len(bad)})
    assert found.first_refused.startswith(f"{path}:2: ")
    assert "its chat template" in found.first_refused
    with pytest.raises(NoData, match=rf"nothing to train on \({len(bad)} rows: {REFUSED}\); the first refused one is"):
        rows_of(tokenizer, path, *bad)


@pytest.mark.parametrize("damage", ["without its end", "footer", "middle", "empty", "text"])
def test_a_damaged_parquet_file_is_named(tiny: PreTrainedTokenizerBase, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame(toy_rows(200)).to_parquet(path)
    whole = path.read_bytes()
    assert len(read_rows(path, tiny, max_length=512, validation_fraction=0, seed=0).training) == 200
    half = len(whole) // 2
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    damaged = {
        "without its end": whole[:-9],
        "footer": whole[:footer] + bytes(40) + whole[footer + 40 :],
        "middle": whole[: half - 500] + b"\xff" * 1000 + whole[half + 500 :],
        "empty": b"",
        "text": b'{"prompt": []}\n',
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"rows\.parquet.*cannot be read as Parquet .*make it again"):
        read_rows(path, tiny, max_length=512, validation_fraction=0, seed=0)


def test_no_damage_of_a_parquet_file_is_a_fault_of_the_lab(tiny: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame(toy_rows(8)).to_parquet(path)
    refused = 0
    for damaged in mutations(path.read_bytes(), 300):
        path.write_bytes(damaged)
        try:
            read_rows(path, tiny, max_length=512, validation_fraction=0, seed=0)
        except UserError:
            refused += 1
    assert refused > 100


def test_half_a_surrogate_pair_is_trained_as_a_replacement_character(
    tiny: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    half, whole = (
        rows_of(tiny, tmp_path / f"{number}.jsonl", {"prompt": [user(f"a{text}")], "completion": [answer(f"b{text}c")]})
        for number, text in enumerate(("\ud83d", "\ufffd"))
    )
    assert [list(row.input_ids) for row in half.training] == [list(row.input_ids) for row in whole.training]
    assert len(half.training) == 1
