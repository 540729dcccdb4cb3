"""Every field that means something is used, or the row is refused by name: context, choices, tools, system, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_lab.config import DataConfig
from distill_lab.data import adapters
from distill_lab.data.records import Records
from distill_lab.types import Message, Record


def read(tmp_path: Path, row: dict[str, Any], **config: Any) -> Record:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (record,) = Records(DataConfig(path=str(path), **config))
    return record


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


SQUAD = {"text": ["Rome", "the city of Rome"], "answer_start": [3, 3]}
CONTEXT = [
    ({"instruction": "Who?", "context": "Ada did.", "response": "Ada", "category": "qa"}, "Who?\n\nAda did."),
    ({"context": "It is in Rome.", "question": "Where?", "answers": SQUAD}, "It is in Rome.\n\nWhere?"),
    ({"passage": "It is in Rome.", "question": "Where?", "answer": True}, "It is in Rome.\n\nWhere?"),
    ({"Context": "It is in Rome.", "Question": "Where?", "Answer": "Rome"}, "It is in Rome.\n\nWhere?"),
    ({"documents": ["One.", "Two."], "query": "Where?", "response": "Rome"}, "One.\n\nTwo.\n\nWhere?"),
    ({"prompt": "Where?", "completion": "Rome", "article": "It is in Rome."}, "It is in Rome.\n\nWhere?"),
    ({"context": "in Rome", "question": "It is in Rome. Where?", "answer": "Rome"}, "It is in Rome. Where?"),
    ({"body": "Ann has 2 pens.", "question": "How many?", "answer": 2}, "Ann has 2 pens.\n\nHow many?"),
    ({"problem": "Add.", "context": "1 and 2", "solution": "3"}, "1 and 2\n\nAdd."),
    ({"question": "Add.", "context": "1 and 2", "answer": "1+2\n#### 3"}, "1 and 2\n\nAdd."),
    ({"input": "Add.", "context": "1 and 2", "target": 3}, "1 and 2\n\nAdd."),
]


@pytest.mark.parametrize(("row", "prompt"), CONTEXT)
def test_context_is_in_the_prompt(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    record = read(tmp_path, row)
    content = record.prompt.messages[-1]["content"]
    if "instruction" in row:
        assert sorted(content.split("\n\n")) == sorted(prompt.split("\n\n"))
    else:
        assert content == prompt
    assert not {"context", "passage", "documents", "article", "body"} & set(record.prompt.meta)


def test_the_first_of_several_accepted_answers_is_gold(tmp_path: Path) -> None:
    record = read(tmp_path, {"context": "It is in Rome.", "question": "Where?", "answers": SQUAD})
    assert record.prompt.answer == "Rome"
    unanswerable = read(tmp_path, {"context": "c", "question": "Where?", "answers": {"text": [], "answer_start": []}})
    assert unanswerable.prompt.answer is None


REFUSED = [
    (
        {"question": "What is this?", "image": {"path": "a.png"}, "answer": "a cat"},
        "'image', which the lab cannot read",
    ),
    ({"context": {"title": ["a"], "sentences": [["b"]]}, "question": "q", "answer": "a"}, "'context' is dict"),
    ({"messages": [user("a"), answer("b")], "context": "c"}, "'context', which changes what the row means"),
    ({"conversations": [{"from": "human", "value": "a"}], "choices": ["x", "y"]}, "'choices', which changes"),
    ({"question": "q", "answer": "a", "input": "other text"}, "'input', which changes"),
    ({"instruction": "Answer.", "question": "other text", "answer": "a"}, "'(question|instruction)', which changes"),
    (
        {"question": "q", "generations": ["a"], "level": 1, "correctness_math_verify": [True, False]},
        "one value for each",
    ),
    ({"question": "q", "solution": {"a": 1}}, "'solution'"),
    ({"Question": "q", "Correct Answer": "a", "Incorrect Answer 1": "b"}, "'incorrect_answer_1', which changes"),
    ({"question": "q", "starter_code": "def f():", "answer": "x"}, "'starter_code', which changes"),
    ({"system": "one", "messages": [{"role": "system", "content": "two"}, user("a")]}, "'system', which changes"),
    ({"messages": [user("a"), answer("b")], "tools": "the tools are great"}, "'tools' must be a list"),
    ({"messages": [user("a"), answer("b")], "tools": [{"description": "no name"}]}, "tool without a name"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED)
def test_a_field_that_is_not_used_is_refused_by_name(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, row)


def test_a_field_is_left_out_only_by_name(tmp_path: Path) -> None:
    row = {"question": "What is 1+1?", "image": {"path": "a.png"}, "answer": "2"}
    assert read(tmp_path, row, columns="ignore=image").prompt.answer == "2"


def test_a_copy_of_the_question_is_not_another_one(tmp_path: Path) -> None:
    row = {"prompt": "a?", "messages": [user("a?"), answer("b")], "prompt_id": "x"}
    assert read(tmp_path, row).completion == [answer("b")]
    row = {"problem": "a?", "solution": "b", "answer": "b", "messages": [user("a?"), answer("b")]}
    assert read(tmp_path, row).prompt.messages == [user("a?")]


SYSTEMS = [
    {"system_prompt": "Be kind.", "question": "a?", "response": "b"},
    {"system": "Be kind.", "question": "a?", "answer": "b"},
    {"system": "Be kind.", "problem": "a?", "solution": "b"},
    {"system": "Be kind.", "instruction": "a?", "output": "b"},
    {"system_prompt": "Be kind.", "prompt": "a?", "completion": "b"},
    {"system": "Be kind.", "messages": [user("a?"), answer("b")]},
    {"system": "Be kind.", "conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]},
    {"system": "Be kind.", "question": "a?", "chosen": "b", "rejected": "c"},
]


@pytest.mark.parametrize("row", SYSTEMS)
def test_system_prompt_of_any_row(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(tmp_path, row).prompt.messages == [{"role": "system", "content": "Be kind."}, user("a?")]


COMPLETIONS = [
    ({"question": "q", "response": "b"}, "b", None),
    ({"system_prompt": "", "question": "q", "response": "b", "id": "x"}, "b", None),
    ({"query": "q", "response": "b", "original_question": "x"}, "b", None),
    ({"input": "q", "output": "b"}, "b", None),
    ({"prompt": "q", "chosen": "b", "rejected": "c"}, "b", None),
    ({"prompt": "q", "chosen": [user("q"), answer("b")], "rejected": [user("q"), answer("c")]}, "b", None),
    ({"prompt": [user("q")], "chosen": [answer("b")], "rejected": [answer("c")]}, "b", None),
    ({"chosen": [user("q"), answer("b")], "rejected": [user("q"), answer("c")]}, "b", None),
    ({"chosen": "\n\nHuman: q\n\nAssistant: b", "rejected": "\n\nHuman: q\n\nAssistant: c"}, "b", None),
    ({"input": [user("q")], "output": "b", "reasoning": "off"}, "b", None),
    ({"Question": "q", "Complex_CoT": "hm", "Response": "b"}, "b", "hm"),
    ({"prompt": "q", "messages": [user("q"), answer("b")], "prompt_id": "x"}, "b", None),
    ({"instruction": "q", "input": "<noinput>", "output": "b"}, "b", None),
    ({"instruction": "q", "input": "", "chosen": "b", "rejected": "c"}, "b", None),
    ({"text": "### Human: q### Assistant: b"}, "b", None),
    ({"text": "### Human: q\n### Assistant: b\n"}, "b", None),
    ({"text": "Human: q\nAssistant: b"}, "b", None),
    ({"text": "USER: q\nASSISTANT: b"}, "b", None),
    ({"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"}, "b", None),
    ({"question": "q", "reasoning": "hm", "answer": "b"}, "b", "hm"),
    ({"prompt": "q", "response": "b", "reasoning_content": "hm"}, "b", "hm"),
    ({"messages": [user("q"), answer("b", reasoning="hm")]}, "b", "hm"),
    ({"instruction": "q", "output": "b", "thinking": "hm"}, "b", "hm"),
]


@pytest.mark.parametrize(("row", "content", "thinking"), COMPLETIONS)
def test_completion_of_a_row(tmp_path: Path, row: dict[str, Any], content: str, thinking: str | None) -> None:
    record = read(tmp_path, row)
    assert record.prompt.messages == [user("q")]
    assert record.completion == [answer(content, **({"thinking": thinking} if thinking else {}))]
    assert record.prompt.meta.get("rejected") in (None, "c", row.get("rejected"))


def test_a_text_that_is_no_conversation_lists_its_fields(tmp_path: Path) -> None:
    for text in ("A page about Human: rights", "### Human: no answer", "Assistant: b\nHuman: q"):
        with pytest.raises(ValueError, match="no adapter reads the fields text; choose from"):
            read(tmp_path, {"text": text})


def test_an_alpaca_text_keeps_its_preamble_and_input(tmp_path: Path) -> None:
    result = "3\n\n### Output\nas a heading"
    text = f"Below is a task.\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n{result}"
    record = read(tmp_path, {"text": text})
    assert record.prompt.messages == [{"role": "system", "content": "Below is a task."}, user("Add.\n\n1, 2")]
    assert record.completion == [answer(result)]


def test_the_last_turn_of_a_chosen_conversation_is_what_was_chosen(tmp_path: Path) -> None:
    turns = [user("a"), answer("b"), user("c"), answer("d")]
    record = read(tmp_path, {"chosen": turns, "rejected": [*turns[:3], answer("e")]})
    assert (record.prompt.messages, record.completion) == (turns[:3], turns[3:])


def test_an_unwanted_completion_is_not_trained(tmp_path: Path) -> None:
    for row in (
        {"prompt": "q", "completion": "b", "label": False},
        {"messages": [user("q"), answer("b")], "label": False},
    ):
        record = read(tmp_path, row)
        assert record.completion is None
        assert record.prompt.meta["rejected"] == [answer("b")]
    assert read(tmp_path, {"prompt": "q", "completion": "b", "label": True}).completion == [answer("b")]


def test_only_correct_generations_are_trained(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "problem": "1+1?",
        "solution": "short",
        "answer": "2",
        "generations": ["<think>\na\n</think>\n\n3", "<think>\nb\n</think>\n\n2", "<think>\nc"],
        "correctness_math_verify": [False, True, True],
        "is_reasoning_complete": [True, True, False],
        "messages": [user("1+1?"), answer("<think>\na\n</think>\n\n3")],
    }
    record = read(tmp_path, row)
    assert record.prompt.messages == [user("1+1?")]
    assert record.completion == [answer("2", thinking="b")]
    assert [trace["verified"] for trace in record.prompt.meta["traces"]] == [False, True, False]
    assert read(tmp_path, row | {"correctness_math_verify": [False, False, False]}).completion is None
    judged = row | {"correctness_math_verify": None, "correctness_llama": [True, False, False]}
    assert read(tmp_path, judged).completion == [answer("3", thinking="a")]


TOOL = {"name": "area", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}}
CALL = {"type": "function", "function": {"name": "area", "arguments": '{"x": 1}'}}


@pytest.mark.parametrize("tools", [[TOOL], [{"type": "function", "function": TOOL}], json.dumps([TOOL])])
@pytest.mark.parametrize("system", [None, "Be kind."])
def test_tools_are_in_the_prompt_of_a_trained_call(tmp_path: Path, tools: Any, system: str | None) -> None:
    messages = [user("area?"), {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    messages = [{"role": "system", "content": system}, *messages] if system else messages
    record = read(tmp_path, {"messages": messages, "tools": tools})
    first = record.prompt.messages[0]
    assert first["role"] == "system"
    assert first["content"].startswith("Be kind.\n\n# Tools" if system else "# Tools")
    assert json.dumps(TOOL) in first["content"]
    assert record.completion == [answer('<tool_call>\n{"name": "area", "arguments": {"x": 1}}\n</tool_call>')]


def test_tools_read_as_qwens_template_writes_them(tmp_path: Path, shared_data: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen3")
    tools: Any = [{"type": "function", "function": TOOL}]
    record = read(tmp_path, {"messages": [{"role": "system", "content": "Be kind."}, user("area?")], "tools": tools})
    asked: Any = [{"role": "system", "content": "Be kind."}, user("area?")]
    wanted = tokenizer.apply_chat_template(asked, tools=tools, tokenize=False, add_generation_prompt=True)
    ours = tokenizer.apply_chat_template(record.prompt.messages, tokenize=False, add_generation_prompt=True)
    assert ours == wanted


def test_nulls_that_only_fill_up_a_parquet_column_are_not_trained(tmp_path: Path) -> None:
    calls = [{"name": "area", "arguments": {"x": 1}}, {"name": "go", "arguments": {"to": "Rome"}}]
    rows = [{"messages": [user("a"), {"role": "assistant", "content": "", "tool_calls": [call]}]} for call in calls]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    records = list(Records(DataConfig(path=str(tmp_path / "rows.parquet"))))
    for record, call in zip(records, calls, strict=True):
        assert record.completion == [answer(f"<tool_call>\n{json.dumps(call)}\n</tool_call>")]
    # In a JSON file, a null was written on purpose.
    record = read(tmp_path, {"messages": [user("a"), answer("", tool_calls=[{"name": "f", "arguments": {"x": None}}])]})
    assert record.completion == [answer('<tool_call>\n{"name": "f", "arguments": {"x": null}}\n</tool_call>')]


@pytest.mark.parametrize("off", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"train": "false"}])
def test_a_turn_that_is_not_trained_keeps_its_weight(tmp_path: Path, off: dict[str, Any]) -> None:
    messages = [user("a"), answer("b"), user("c"), answer("d", **off), user("e"), answer("f", weight=1)]
    record = read(tmp_path, {"messages": messages})
    assert record.prompt.messages == [user("a")]
    assert record.completion == [answer("b"), user("c"), answer("d", weight=0), user("e"), answer("f")]
    record = read(
        tmp_path, {"messages": [user("a"), answer("b", **off), user("c"), answer("d"), user("x"), answer("y", **off)]}
    )
    assert record.prompt.messages == [user("a"), answer("b"), user("c")]
    assert record.completion == [answer("d")]
    with pytest.raises(ValueError, match="no turn of the conversation is trained"):
        read(tmp_path, {"messages": [user("a"), answer("b", **off)]})


def test_a_weight_that_is_not_0_or_1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'weight' is 0\.5; the lab trains a turn \(1\) or does not \(0\)"):
        read(tmp_path, {"messages": [user("a"), answer("b", weight=0.5)]})
    with pytest.raises(ValueError, match="the row's 'weight' is 0, so it is not to be trained; remove the row"):
        read(tmp_path, {"messages": [user("a"), answer("b")], "weight": 0})
    with pytest.raises(ValueError, match="train_detail"):
        read(tmp_path, {"messages": [user("a"), answer("b", train_detail=[{"begin_offset": 0}])]})


CONVERSATIONS = [
    {"conversations": [{"from": "Human", "value": "a"}, {"from": "GPT", "value": "b"}]},
    {"conversations": [{"from": "user", "value": "a"}, {"from": "bing", "value": "b"}]},
    {"conversation": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"conversation": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"conversation": [{"human": "a", "assistant": "b"}]},
    {"messages": [{"role": "User", "content": "a"}, {"role": "ASSISTANT", "content": "b"}]},
    {"messages": json.dumps([user("a"), answer("b")])},
    {"conversations": str([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}])},
]


@pytest.mark.parametrize("row", CONVERSATIONS)
def test_spellings_of_conversations(tmp_path: Path, row: dict[str, Any]) -> None:
    record = read(tmp_path, row)
    assert (record.prompt.messages, record.completion) == ([user("a")], [answer("b")])


def test_a_conversation_that_starts_with_the_assistant_keeps_its_greeting(tmp_path: Path) -> None:
    turns = [("gpt", "Hello!"), ("human", "a"), ("gpt", "b")]
    record = read(tmp_path, {"conversations": [{"from": name, "value": text} for name, text in turns]})
    assert record.prompt.messages == [answer("Hello!"), user("a")]
    assert record.completion == [answer("b")]


def test_every_meaningful_field_of_every_adapter_is_used_or_refused(tmp_path: Path) -> None:
    """Whatever the form of the row: a passage is in the prompt, or the row is refused and the field named."""
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    forms: list[dict[str, Any]] = [
        {"question": "q", "answer": "a"}, {"problem": "q", "solution": "a"}, {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "i", "output": "a"}, {"prompt": "q", "completion": "a"},
        {"query": "q", "response": "a"}, {"prompt": "q", "chosen": "a", "rejected": "b"}, {"input": "q", "target": "a"},
        {"question": "q", "answer": "x\n#### 4"}, {"messages": [user("q"), answer("a")]}, {"conversations": turns},
        {"question": "q", "reasoning": [{"solution": "a"}]}, {"problem": "q", "generations": ["a"]},
        {"sentence": "q", "label": "a"}, {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
        {"text": "### Human: q\n### Assistant: a"}, {"instruction": "q", "output": "a", "rv_score": 0.5},
    ]  # fmt: skip
    marked = {
        "system_prompt": "MARK s",
        "context": "MARK c",
        "tools": [{"name": "MARK t"}],
        "choices": ["MARK x", "MARK y"],
    }
    seen = set()
    for form in forms:
        seen.add(adapters.choose(form))
        for field, value in marked.items():
            row = dict(form)
            row[field] = value
            if field == "choices" and "answer" in row:
                row["answer"] = 0
            text = field
            try:
                record = read(tmp_path, row)
            except ValueError as error:
                text = str(error)
                wanted, found = True, field in text
            else:
                text = "\n".join(message["content"] for message in record.prompt.messages)
                wanted, found = (2 if field == "choices" else 1), text.count("MARK")
            assert found == wanted, (form, field, text)
    assert seen == set(adapters.names())
