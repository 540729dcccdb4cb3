"""CoT with LoRA on 4 bits: the recipe, its four files, and each stage alone with the requirements' flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab import cli
from distill_lab.config import DataConfig, SamplingConfig, TrainConfig
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.recipes import cot
from distill_lab.training_data.cot_files import final_answer, write_cot_dataset, write_predictions

pytestmark = pytest.mark.slow

SHORT = SamplingConfig(max_new_tokens=96, thinking=False)
QUESTIONS = [
    {"question": "Tom has 5 apples. Tom buys 3 more. How many apples does Tom have now?", "answer": "8"},
    {"question": "A bus travels 7 km in one hour. How many km does it travel in 3 hours?", "answer": "21"},
]


def tiny(**changes: Any) -> cot.Config:
    """A run of the tiny preset cut down to seconds."""
    settings: dict[str, Any] = {
        "data": DataConfig(path="tiny:problems", split="distill[:12]"),
        "test": DataConfig(path="tiny:problems", split="test[:4]"),
        "sampling": SHORT,
        "test_sampling": SHORT,
        "train": TrainConfig(learning_rate=1e-2, tokens_per_batch=1024, lora=cot.LORA),
        "measure": False,
    }
    return cot.PRESETS["tiny"].model_copy(update=settings | changes)


def test_the_defaults_are_the_documents() -> None:
    config = cot.Config()
    assert config.student.quantization == "4bit"
    lora = config.train.lora
    assert (lora.r, lora.alpha, lora.dropout) == (8, 16, 0.05)
    assert lora.targets == ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    assert (config.train.num_epochs, config.train.learning_rate, config.train.max_length) == (3, 2e-4, 1024)
    assert config.train.gradient_accumulation_steps == 4
    assert (config.sampling.max_new_tokens, config.sampling.temperature) == (512, 0)
    assert all(preset.train.lora == cot.LORA for preset in cot.PRESETS.values())
    assert all(preset.student.quantization == "4bit" for preset in cot.PRESETS.values())


def test_the_whole_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary: Any = cot.run(tiny(), run)
    assert summary == read_summary(run / "summary.json")
    assert summary.recipe == "cot"
    assert set(summary.models) == {"teacher", "base", "student"}
    raw, pairs, test = (
        list(read_jsonl(run / name)) for name in ("raw_questions.jsonl", "cot_dataset.jsonl", "test_questions.jsonl")
    )
    assert len(raw) == 12
    assert all(list(row) == ["question"] for row in raw)
    assert all(list(row) == ["question", "cot"] for row in pairs)
    assert {row["question"] for row in pairs} <= {row["question"] for row in raw}
    assert all(list(row) == ["question", "answer"] for row in test)
    assert (run / "student" / "adapter_model.safetensors").is_file()
    assert (
        json.loads((run / "student" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny:student"
    )
    for name, file in (("student", "predictions.jsonl"), ("base", "predictions_base.jsonl")):
        predictions = list(read_jsonl(run / file))
        assert all(list(row) == ["question", "generated_text", "prediction", "gold_answer"] for row in predictions)
        assert [row["question"] for row in predictions] == [row["question"] for row in test]
        assert [row["gold_answer"] for row in predictions] == [row["answer"] for row in test]
        right = sum(row["prediction"] == row["gold_answer"] for row in predictions)
        assert right == round(4 * summary.models[name].score)
    training = json.loads((run / "training.json").read_text())
    assert training["validation_loss_after"] < training["validation_loss_before"]


def test_the_documents_own_files_with_and_without_gold(tmp_path: Path) -> None:
    raw, test, run = tmp_path / "raw_questions.jsonl", tmp_path / "test_questions.jsonl", tmp_path / "run"
    write_jsonl(raw, [{"question": f"Tom has {n} apples. Tom buys 2 more. How many?"} for n in range(3, 15)])
    write_jsonl(test, [QUESTIONS[0], {"question": QUESTIONS[1]["question"]}])
    summary: Any = cot.run(tiny(data=DataConfig(path=str(raw)), test=DataConfig(path=str(test))), run)
    assert summary.n == 1
    golds = {row["question"]: row["gold_answer"] for row in read_jsonl(run / "predictions.jsonl")}
    assert golds == {QUESTIONS[0]["question"]: "8", QUESTIONS[1]["question"]: None}

    write_jsonl(test, [{"question": each["question"]} for each in QUESTIONS])
    summary: Any = cot.run(tiny(data=DataConfig(path=str(raw)), test=DataConfig(path=str(test))), run)
    assert summary.models == {}
    predictions = list(read_jsonl(run / "predictions.jsonl"))
    assert [row["gold_answer"] for row in predictions] == [None, None]
    assert all(row["prediction"] for row in predictions if "Final Answer" in row["generated_text"])


def test_no_questions_and_four_bits_without_adapters(tmp_path: Path) -> None:
    with pytest.raises(NoData, match=r"^No data for CoT distillation$"):
        cot.run(tiny(data=DataConfig(path="tiny:problems", split="distill[:0]")), tmp_path / "none")
    with pytest.raises(UserError, match="4bit weights cannot be trained"):
        cot.run(tiny(train=TrainConfig(), num_test=0, test=DataConfig(path="")), tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Step 1: 15% of 240 is 36.\nFinal Answer: 36", "36"),
        ("**Final Answer:** 36 apples\n", "36 apples"),
        ("final answer: 3\nNo, wait.\nFinal Answer: 4", "4"),
        (r"So \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("Half of it\nis 18\n\n", "is 18"),
        ("<think>\nFinal Answer: 3\n</think>\n\nit is 5", "it is 5"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_the_final_answer_with_its_fallback(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def completion(key: str, content: str, **more: Any) -> dict[str, Any]:
    row = {"id": key, "sample": 0, "content": content, "thinking": None, "finish_reason": "stop", "num_tokens": 5}
    return row | more


def test_what_cannot_be_learned_from_is_counted_and_thinking_stays(tmp_path: Path) -> None:
    prompts, completions = tmp_path / "prompts.jsonl", tmp_path / "completions.jsonl"
    write_jsonl(prompts, [{"id": key, "messages": [{"role": "user", "content": f"{key}?"}]} for key in "abcd"])
    write_jsonl(
        completions,
        [
            completion("a", "Final Answer: 1", thinking="one"),
            completion("b", "Final Ans", finish_reason="length"),
            completion("c", "", finish_reason="error"),
            completion("d", " "),
        ],
    )
    counts = write_cot_dataset(prompts, completions, tmp_path / "cot.jsonl")
    assert (counts.kept, counts.dropped) == (1, {"cut at the token limit": 1, "error": 1, "empty": 1})
    text = "<think>\none\n</think>\n\nFinal Answer: 1"
    assert list(read_jsonl(tmp_path / "cot.jsonl")) == [{"question": "a?", "cot": text}]
    write_predictions(prompts, completions, tmp_path / "predictions.jsonl")
    assert [row["prediction"] for row in read_jsonl(tmp_path / "predictions.jsonl")] == ["1", "", "", ""]
    write_jsonl(completions, [completion("x", "1")])
    with pytest.raises(DataError, match="'x'"):
        write_predictions(prompts, completions, tmp_path / "predictions.jsonl")


def test_each_stage_alone_with_the_documents_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("raw_questions.jsonl"), [{"question": row["question"]} for row in QUESTIONS])
    write_jsonl(Path("test_questions.jsonl"), QUESTIONS)
    files = ("--input_file", "raw_questions.jsonl", "--output_file", "cot_dataset.jsonl")
    assert cli.main(["generate", "--teacher_model", "tiny:teacher", *files]) == 0
    pairs = list(read_jsonl(Path("cot_dataset.jsonl")))
    assert sorted(row["question"] for row in pairs) == sorted(row["question"] for row in QUESTIONS)
    assert all("Final Answer:" in row["cot"] for row in pairs)

    files = ("--cot_dataset", "cot_dataset.jsonl", "--output_dir", "adapters")
    assert cli.main(["train", "--student_model", "tiny:student", *files, "--train.lora.r", "4"]) == 0
    adapter = json.loads(Path("adapters/adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (4, 16, 0.05)
    assert sorted(adapter["target_modules"]) == sorted(cot.LORA.targets)

    capsys.readouterr()
    files = ("--test_file", "test_questions.jsonl", "--output_file=predictions.jsonl")
    assert cli.main(["eval", "--base_model", "tiny:student", "--lora_model", "adapters", *files]) == 0
    assert "gain over tiny:student" in capsys.readouterr().out
    predictions = list(read_jsonl(Path("predictions.jsonl")))
    assert {row["question"]: row["gold_answer"] for row in predictions} == {
        row["question"]: row["answer"] for row in QUESTIONS
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("generate --model tiny:teacher --data q.jsonl", "--out"),
        ("generate --model tiny:teacher --input-file q.jsonl --cot q.jsonl", "another output name"),
        ("train --student tiny:student --out x", "--rows"),
    ],
)
def test_commands_say_what_they_lack(
    arguments: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("q.jsonl"), QUESTIONS)
    assert cli.main(arguments.split()) == 2
    assert said in capsys.readouterr().err
    assert list(read_jsonl(Path("q.jsonl"))) == QUESTIONS
