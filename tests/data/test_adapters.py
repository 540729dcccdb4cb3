"""Adapters: which one is chosen for a row, what record it makes, and why it refuses; then the real files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig
from distill_lab.data import adapters
from distill_lab.data.records import Records
from distill_lab.errors import UserError
from distill_lab.tiny import tasks
from distill_lab.types import Message, Record


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def answer(text: str, **more: str) -> Message:
    return {"role": "assistant", "content": text, **more}


def adapt(row: dict[str, Any]) -> tuple[str, Record]:
    name = adapters.choose(row)
    assert name is not None
    return name, adapters.load(name).record(row, "train-0")


CHOSEN = [
    ("distilqwen", {"instruction": "Hi", "output": "Hello"}, [user("Hi")], [answer("Hello")]),
    ("distilqwen", {"instruction": "Hi", "response": "Hello"}, [user("Hi")], [answer("Hello")]),
    ("distilqwen", {"instruction": "Hi"}, [user("Hi")], None),
    ("alpaca", {"instruction": "Add", "input": "1, 2", "output": "3"}, [user("Add\n\n1, 2")], [answer("3")]),
    ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}, [user("Hi")], [answer("Hello")]),
    (
        "alpaca",
        {"instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]},
        [{"role": "system", "content": "s"}, user("a"), answer("b"), user("c")],
        [answer("d")],
    ),
    (
        "sharegpt",
        {"system": "Be kind", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        [{"role": "system", "content": "Be kind"}, user("a")],
        [answer("b")],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "area?"},
                {"from": "function_call", "value": '{"name": "area", "arguments": {}}'},
                {"from": "observation", "value": "15"},
                {"from": "gpt", "value": "It is 15."},
            ]
        },
        [{"role": "system", "content": "s"}, user("area?")],
        [
            answer('<tool_call>\n{"name": "area", "arguments": {}}\n</tool_call>'),
            {"role": "tool", "content": "15"},
            answer("It is 15."),
        ],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}},
        [user("a")],
        [answer("b")],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "user", "value": "c"},
            ]
        },
        [user("a"), answer("b"), user("c")],
        None,
    ),
    (
        "messages",
        {"messages": [user("a"), answer("<think>\nhm\n</think>\n\nb"), user("c"), answer("d")], "answer": 4.0},
        [user("a")],
        [answer("b", thinking="hm"), user("c"), answer("d")],
    ),
    (
        "messages",
        {"messages": [user("a"), answer("b", reasoning_content="hm")]},
        [user("a")],
        [answer("b", thinking="hm")],
    ),
    ("messages", {"messages": [user("a"), answer("b")], "thinking": "hm"}, [user("a")], [answer("b", thinking="hm")]),
    ("messages", {"messages": [user("a")], "completion": [answer("b")]}, [user("a")], [answer("b")]),
    (
        "messages",
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "s"}]},
                {"role": "user", "content": [{"type": "text", "value": "a"}, {"type": "text", "text": "b"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "reasoning", "value": "hm"},
                        {"type": "tool_call", "value": {"name": "f", "arguments": {"x": 1}}},
                    ],
                },
            ]
        },
        [{"role": "system", "content": "s"}, user("a\nb")],
        [answer('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', thinking="hm")],
    ),
    (
        "messages",
        {
            "messages": [
                user("a"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
            ]
        },
        [user("a")],
        [answer('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>')],
    ),
    ("prompt_completion", {"prompt": "a", "completion": "b"}, [user("a")], [answer("b")]),
    ("prompt_completion", {"prompt": [user("a")], "completion": [answer("b")]}, [user("a")], [answer("b")]),
    ("prompt_completion", {"prompt": [user("a")]}, [user("a")], None),
    (
        "self_instruct",
        {"instruction": "Add", "instances": [{"input": "1, 2", "output": "3"}], "name": "add"},
        [user("Add\n\n1, 2")],
        [answer("3")],
    ),
    ("question", {"question": "1+1?", "answer": "2"}, [user("1+1?")], None),
    ("question", {"problem": "1+1?", "true_answer": 2}, [user("1+1?")], None),
    ("question", {"question": "1+1?", "cot": "One and one. 2"}, [user("1+1?")], [answer("One and one. 2")]),
    (
        "question",
        {"problem": "1+1?", "gtruth_answer": "2", "message_thinking": "hm", "message_content": "It is 2."},
        [user("1+1?")],
        [answer("It is 2.", thinking="hm")],
    ),
    (
        "math",
        {"problem": "p", "solution": r"so $\boxed{\frac{1}{2}}$", "level": "Level 2"},
        [user("p")],
        [answer(r"so $\boxed{\frac{1}{2}}$")],
    ),
    (
        "omnithought",
        {
            "question": "q",
            "reasoning": [
                {"thought": "long", "solution": "wrong", "thought_correctness_verify": False},
                {"full_response": "<think>\nhm\n</think>\n\nright", "thought_correctness_verify": True},
            ],
        },
        [user("q")],
        [answer("right", thinking="hm")],
    ),
    (
        "omnithought",
        {"instruction": "q", "input": "x", "output": "<think>a</think>b", "rv_score": 0.7, "cd_score": 0.9},
        [user("q\n\nx")],
        [answer("b", thinking="a")],
    ),
    (
        "omnithought",
        {"instruction": "q", "response": "b", "reasoning_verbosity": 3, "cognitive_difficulty": 4},
        [user("q")],
        [answer("b")],
    ),
    ("question", {"turns": ["a", "b"], "question_id": 3}, [user("a")], None),
    ("gsm8k", {"question": "q", "answer": "1+1=2\n#### 1,002"}, [user("q")], [answer("1+1=2\n#### 1,002")]),
    ("input_target", {"input": "1+1?", "target": 2.0}, [user("1+1?")], None),
]


@pytest.mark.parametrize(("name", "row", "prompt", "completion"), CHOSEN)
def test_row_becomes_record(
    name: str, row: dict[str, Any], prompt: list[Message], completion: list[Message] | None
) -> None:
    chosen, record = adapt(row)
    assert chosen == name
    assert record.prompt.messages == prompt
    assert record.completion == completion
    assert record.prompt.id == "train-0"


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"question": "q", "answer": "x = 2"}, "x = 2"),
        ({"question": "q", "answer": 43.0}, "43"),
        ({"question": "q", "answer": 0}, "0"),
        ({"question": "q", "answer": 0.5}, "0.5"),
        ({"question": "q", "answer": None}, None),
        ({"question": "q", "answer": "", "true_answer": "7"}, "7"),
        ({"question": "q", "answer": "so\n#### -1,234"}, "-1234"),
        ({"input": "q", "target": 43.0}, "43"),
        ({"messages": [user("a"), answer("b")], "answer": "4"}, "4"),
        ({"problem": "q", "solution": r"first \boxed{1}, then \boxed{\frac{1}{2}}."}, r"\frac{1}{2}"),
        ({"problem": "q", "solution": "no box"}, None),
        ({"problem": "q", "solution": r"\boxed{1}", "answer": "2"}, "2"),
        ({"problem": "q", "gtruth_answer": "98", "message_content": "98"}, "98"),
        ({"question": "q", "cot": "so 4", "answer": "4", "rv_score": 0.5}, "4"),
        ({"question": "q", "answer": "so 4", "rv_score": 0.5}, None),
    ],
)
def test_gold_answer(row: dict[str, Any], gold: str | None) -> None:
    assert adapt(row)[1].prompt.answer == gold


@pytest.mark.parametrize(
    ("row", "meta"),
    [
        ({"question": "q", "answer": "1", "level": 2, "id": "x", "none": None}, {"level": 2, "id": "x"}),
        ({"question": "q", "answer": "1", "gold_answer": "2"}, {"gold_answer": "2"}),
        ({"messages": [user("a")], "meta": {"level": 1}, "tools": "[]"}, {"level": 1, "tools": "[]"}),
        ({"turns": ["a", "b"]}, {"turns": ["a", "b"]}),
        (
            {"instruction": "i", "instances": [{"output": "1"}, {"output": "2"}]},
            {"other_instances": [{"output": "2"}]},
        ),
        (
            {
                "system": "same",
                "conversations": [{"from": "system", "value": "same"}, {"from": "human", "value": "a"}],
            },
            {"system": "same"},
        ),
    ],
)
def test_fields_not_used_stay_in_meta(row: dict[str, Any], meta: dict[str, Any]) -> None:
    assert adapt(row)[1].prompt.meta == meta


REFUSED = [
    ("distilqwen", {"output": "x"}, "'instruction' is missing"),
    ("distilqwen", {"instruction": None, "output": "x"}, "'instruction' is null"),
    ("distilqwen", {"instruction": 3, "output": "x"}, "'instruction' is int"),
    ("distilqwen", {"instruction": " \n", "output": "x"}, "prompt is empty"),
    ("distilqwen", {"instruction": "a", "output": ["x"]}, "'output' is list"),
    ("distilqwen", {"instruction": "a", "input": "b", "output": "x"}, "the field 'input', which changes what the row"),
    ("alpaca", {"instruction": "a", "input": {"b": 1}, "output": "x"}, "'input' is dict"),
    ("alpaca", {"instruction": "a", "input": "", "history": [["b"]]}, "'history'"),
    ("sharegpt", {"conversations": []}, "no turns"),
    ("sharegpt", {"conversations": "hi"}, "'conversations' is str"),
    ("sharegpt", {"conversations": ["hi"]}, r"conversations\[0\] is str"),
    ("sharegpt", {"conversations": [{"from": "martian", "value": "a"}]}, "unknown role 'martian'"),
    ("sharegpt", {"conversations": [{"from": ["human"], "value": "a"}]}, "unknown role"),
    ("sharegpt", {"conversations": [{"from": "human", "value": 3}]}, "content is int"),
    ("sharegpt", {"conversations": [{"from": "human"}]}, "content is NoneType"),
    ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}]}, "prompt is empty"),
    ("messages", {"messages": [user("a"), {"role": "system", "content": "s"}]}, "ends with a system turn"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]}, "type 'image'"),
    ("messages", {"messages": [user("a")], "thinking": "hm"}, "but no answer for it"),
    ("messages", {"messages": [user("a")], "completion": [user("b")]}, "does not start with an assistant turn"),
    ("messages", {"messages": [user("a")], "meta": 3}, "'meta' is int"),
    ("prompt_completion", {"completion": "x"}, "'prompt' is missing"),
    ("prompt_completion", {"prompt": "a", "completion": 3}, "'completion' is int"),
    ("prompt_completion", {"prompt": "a", "completion": []}, "does not start with an assistant turn"),
    ("self_instruct", {"instruction": "a", "instances": []}, "'instances' is empty"),
    ("question", {"question": ""}, "prompt is empty"),
    ("question", {"answer": "2"}, "'question' is missing"),
    ("question", {"question": "q", "answer": [1, 2]}, "'answer' is list"),
    ("question", {"question": "q", "answer": {"a": 1}}, "'answer' is an object without text"),
    ("question", {"turns": []}, "'question' is missing"),
    ("gsm8k", {"question": "q", "answer": "2"}, "does not end with ####"),
    ("gsm8k", {"question": "q", "answer": "2 ####"}, "does not end with ####"),
    ("input_target", {"input": "q", "target": [1, 2]}, "'target' is list"),
    ("math", {"problem": "q"}, "'solution' is missing"),
    ("question", {"question": "q", "message_content": 3}, "'message_content' is int"),
    ("omnithought", {"text": "q"}, r"Unexpected OmniThought schema, please inspect omni\[0\]: it has the fields text"),
    ("omnithought", {"question": "q", "reasoning": ["x"]}, r"reasoning\[0\] is str"),
    ("omnithought", {"question": "q", "reasoning": [{"thought": 3}]}, r"reasoning\[0\].thought is int"),
    ("omnithought", {"question": "q", "output": "a", "rv_score": "high"}, "'rv_score' is 'high'"),
    (
        "omnithought",
        {"question": "q", "reasoning": [{"solution": "a", "Reasoning_Verbosity": {"level": 12}}]},
        r"reasoning\[0\].Reasoning_Verbosity.level' is 12, expected a level from 0 to 9",
    ),
]


@pytest.mark.parametrize(("name", "row", "reason"), REFUSED)
def test_malformed_row_is_refused_with_its_reason(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        adapters.load(name).record(row, "train-0")


def test_no_adapter_for_unknown_fields() -> None:
    assert adapters.choose({"text": "a"}) is None
    assert adapters.choose({}) is None


def test_null_fields_do_not_decide() -> None:
    row = {"messages": None, "instances": None, "conversations": None, "instruction": "a", "input": None}
    assert adapters.choose(row) == "distilqwen"


def test_matches_raises_for_nothing_a_row_can_hold() -> None:
    fields = sorted({field for name in adapters.names() for field in adapters.load(name).FIELDS})
    values: list[Any] = [None, "", "text", 0, 1.5, True, [], [1], [None], ["a"], [{}], {}, {"a": None}]
    for field, value in itertools.product(fields, values):
        adapters.choose({field: value})
        row = dict.fromkeys(fields, value)
        name = adapters.choose(row)
        if name is not None:
            try:
                adapters.load(name).record(row, "train-0")
            except ValueError as error:
                assert str(error)  # noqa: PT017 - any other exception fails the test


def test_registry_is_the_folder() -> None:
    folder = Path(adapters.__file__).parent
    assert set(adapters.names()) == {file.stem for file in folder.glob("*.py") if not file.stem.startswith("_")}
    with pytest.raises(UserError, match="no adapter 'nothing'; choose from auto, alpaca, distilqwen"):
        adapters.load("nothing")
    with pytest.raises(UserError, match="no adapter '_row'"):
        adapters.load("_row")


def test_tiny_rows_fit_the_messages_adapter() -> None:
    row = next(tasks.rows("problems", "train"))
    name, record = adapt(row)
    assert name == "messages"
    assert record.prompt.answer == row["answer"]
    assert record.completion is not None


# file: adapter, rows, rows with a completion, with a gold answer, with thinking
REAL = {
    "instructions/easydistill_cot_eval_samples.jsonl": ("distilqwen", 3, 3, 0, 3),
    "instructions/easydistill_seed_cot_pairs.jsonl": ("question", 5, 0, 5, 0),
    "instructions/easydistill_seed_cot_problems.jsonl": ("question", 5, 0, 0, 0),
    "instructions/easydistill_seed_instructions_30.jsonl": ("distilqwen", 30, 0, 0, 0),
    "instructions/fastchat_dummy_conversation.json": ("sharegpt", 500, 500, 0, 0),
    "instructions/lf_dpo_en.json": ("sharegpt", 300, 300, 0, 0),
    "instructions/lf_glaive_toolcall_en.json": ("sharegpt", 300, 300, 0, 0),
    "instructions/lf_identity.json": ("alpaca", 91, 91, 0, 0),
    "instructions/lf_kto_en.json": ("messages", 300, 150, 0, 0),
    "instructions/self_instruct_seed_tasks.jsonl": ("self_instruct", 175, 175, 0, 0),
    "instructions/vicuna_80_question.jsonl": ("question", 80, 0, 0, 0),
    "cot/easydistill_BC_init_math.json": ("sharegpt", 1200, 1200, 0, 0),
    "cot/easydistill_math_bc_init_seed.jsonl": ("question", 1331, 0, 1331, 0),
    "cot/lf_reason_tool_use_50.jsonl": ("messages", 50, 50, 0, 50),
    "cot/r1_sample_openrouter.json": ("question", 5, 5, 5, 5),
    "cot/r1_sample_ollama.json": ("question", 5, 5, 5, 5),
    "math/cmath_test.jsonl": ("question", 600, 0, 600, 0),
    "math/gsm8k_train.jsonl": ("gsm8k", 7473, 7473, 7473, 0),
    "math/math_train_problems.json": ("question", 7474, 0, 7470, 0),
    "math/mawps_addsub.jsonl": ("input_target", 395, 0, 395, 0),
}


@pytest.mark.parametrize("file", REAL)
def test_real_file_loads_whole(shared_data: Path, file: str) -> None:
    records = Records(DataConfig(path=str(shared_data / file)))
    rows = list(records)
    assert len({row.prompt.id for row in rows}) == len(rows)
    assert all(row.completion is None or row.completion[0]["role"] == "assistant" for row in rows)
    found = (
        records.adapter,
        len(rows),
        sum(row.completion is not None for row in rows),
        sum(row.prompt.answer is not None for row in rows),
        sum(any("thinking" in message for message in row.completion or []) for row in rows),
    )
    assert found == REAL[file]


def test_trajectories_keep_every_turn(shared_data: Path) -> None:
    rows = list(Records(DataConfig(path=str(shared_data / "cot/easydistill_BC_init_math.json"))))
    assert sum(len(row.prompt.messages) + len(row.completion or []) for row in rows) == 2 * 5178
    assert all(len(row.prompt.messages) == 1 for row in rows)
