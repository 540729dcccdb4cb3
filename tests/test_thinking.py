"""Thinking marks of every family: split from the answer, or the row is refused; an ordinary answer is left as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_lab.config import DataConfig
from distill_lab.control_tokens import THINKING_TAGS, Closing, bare_closing, split_thinking
from distill_lab.data.records import Records
from distill_lab.errors import UserError


@pytest.mark.parametrize(("opening", "closing"), THINKING_TAGS)
def test_tags_of_every_family(opening: str, closing: str) -> None:
    assert split_thinking(f"{opening}\n2+2\n{closing}\n\n4") == ("2+2", "4")
    assert split_thinking(f"{opening}2+2") == ("2+2", "")
    assert split_thinking(f"2+2\n{closing}\n\n4") == ("2+2", "4")
    ordinary = f"Write {opening} and {closing} around it."
    assert split_thinking(ordinary) == (None, ordinary)


HARMONY = [
    ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>", "hm", "4"),
    (
        "<|start|>assistant<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4",
        "hm",
        "4",
    ),
    ("<|channel|>final<|message|>4<|return|>", None, "4"),
    ("<|channel|>analysis<|message|>hm", "hm", ""),
    (
        "<|channel|>analysis<|message|>a<|end|><|channel|>commentary<|message|>b<|end|><|channel|>final<|message|>c",
        "a",
        "b\nc",
    ),
    ("analysishm, 2+2assistantfinal4", "hm, 2+2", "4"),
]


@pytest.mark.parametrize(("text", "thinking", "content"), HARMONY)
def test_channels_of_gpt_oss(text: str, thinking: str | None, content: str) -> None:
    assert split_thinking(text) == (thinking, content)


ORDINARY = [
    "The tag `</think>` closes it.",
    "Use </think> to end.",
    "It ends with </think>\n\nThen comes the answer.",
    "```\nhm\n</think>\n\n4\n```",
    "```\n<think>\nhm\n</think>\n```\nis the form.",
    "One </think> and\n</think>\n\ntwo.",
    "Use `\n</think>\n` there.",
    "analysis of the final",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_a_closing_tag_inside_of_an_ordinary_answer_does_not_split_it(tmp_path: Path, text: str) -> None:
    assert bare_closing(text) is not Closing.YES
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": text}))
    try:
        (record,) = Records(DataConfig(path=str(path)))
    except UserError as error:
        assert "closing thinking tag" in str(error)  # noqa: PT017 - a refusal has to name it
        assert bare_closing(text) is Closing.UNCLEAR
    else:
        assert record.completion == [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("text", ["hm.\n</think>\n\n4", "hm.</think>\n\n4", "\n</think>\n\n4", "hm\n</think>"])
def test_thinking_that_the_prompt_opened_is_split(text: str) -> None:
    assert bare_closing(text) is Closing.YES
    thinking, content = split_thinking(text)
    assert "think" not in f"{thinking}{content}"


def test_what_may_be_either_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"prompt": "q", "completion": "In this form the reasoning ends with\n</think>\nand so on."})
    )
    with pytest.raises(
        UserError, match="closing thinking tag on a line by itself and no opening one; add the opening tag"
    ):
        list(Records(DataConfig(path=str(path))))


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        "<|channel|>other<|message|>x",
        "<|channel|>analysis hm",
    ],
)
def test_channels_that_cannot_be_read_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": text}))
    with pytest.raises(UserError, match="its channels cannot be read"):
        list(Records(DataConfig(path=str(path))))


def test_a_model_that_writes_harmony_keeps_its_marks(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from distill_lab.generation.engines._token_io import TokenIO
    from tests.helpers import FAMILY

    tokenizer = AutoTokenizer.from_pretrained(FAMILY / "student")
    marks = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    ids = tokenizer("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>4")["input_ids"]
    assert split_thinking(TokenIO(tokenizer).text(list(ids))) == ("a", "4")
