"""The System 2 recipe: its acceptance criteria, traces of every form, what --thinking does, its line on the tiny family."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill_lab.activity import ProgressReporter
from distill_lab.config import STEP_BY_STEP, DataConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.grading.choose_grader import final_answer_grader
from distill_lab.recipes import system2
from distill_lab.training_data.reasoning import reasoning_data, threshold_note

pytestmark = pytest.mark.slow

SHORT = SamplingConfig(max_new_tokens=120)
SCHEMA = "Unexpected OmniThought schema, please inspect omni[0]"


class Notes(ProgressReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def tiny(**changes: Any) -> system2.Config:
    """A run of the tiny preset cut down to seconds."""
    settings: dict[str, Any] = {
        "data": DataConfig(path="tiny:problems", split="distill[:30]"),
        "test": DataConfig(path="tiny:problems", split="test[:10]"),
        "test_sampling": SHORT,
        "train": TrainConfig(num_epochs=2, learning_rate=1e-3, tokens_per_batch=1024, save_steps=0.5),
        "measure": False,
    }
    return system2.PRESETS["tiny"].model_copy(update=settings | changes)


def omni(number: int) -> dict[str, Any]:
    """A row as OmniThought has them: three traces, of which one passes 0.6 and was found right."""

    def trace(name: str, rv: int, cd: int, *, verified: bool) -> dict[str, Any]:
        thought, solution = (
            f"{name} thinks.\n{number} + 1 = {number + 1}.",
            f"So it is \\boxed{{{number + 1}}} ({name}).",
        )
        return {
            "thought": thought, "solution": solution, "teacher": "DeepSeek-R1", "thought_correctness_verify": verified,
            "full_response": f"<think>\n{thought}\n</think>\n\n{solution}",
            "Reasoning_Verbosity": {"level": rv, "judge": "QwQ-32B"},
            "Cognitive_Difficulty": {"level": cd, "judge": "QwQ-32B"},
        }  # fmt: skip

    traces = [
        trace("low", 3, 3, verified=True),
        trace("good", 7, 6, verified=True),
        trace("wrong", 6, 6, verified=False),
    ]
    return {"question": f"What is {number} + 1?", "reasoning": traces}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> DataConfig:
    write_jsonl(path, rows)
    return DataConfig(path=str(path))


def traces(data: DataConfig, **changes: Any) -> system2.Config:
    """A run on the data set's own traces, without scores."""
    settings: dict[str, Any] = {"relabel": False, "thinking": "keep", "test": DataConfig(path=""), "num_test": 0}
    return tiny(data=data, **(settings | changes))


def test_the_whole_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary: Any = system2.run(tiny(), run)
    manifest = json.loads((run / "run.json").read_text())
    for name, stage in manifest["stages"].items():
        assert stage["status"] == "done", name
        if stage["counts"]:
            counts = stage["counts"]
            assert counts["rows_in"] == counts["kept"] + sum(counts["dropped"].values()), name
    for file in ("train.jsonl", "eval/teacher.jsonl", "eval/base.jsonl", "eval/student.jsonl"):
        for row in read_jsonl(run / file):
            assert row["prompt"][-1]["content"].endswith(f"\n{STEP_BY_STEP}")
            assert row["prompt"][-1]["content"].count(STEP_BY_STEP) == 1
    assert summary == read_summary(run / "summary.json")
    assert (summary.recipe, summary.n) == ("system2", 10)
    assert summary.kpis.keys() == {"retention >= 0.9", ">= 0.8 reason in several steps"}
    teacher = summary.models["teacher"]
    assert teacher.score > 0.8
    assert teacher.several_steps > 0.8
    assert 0 < teacher.several_steps_n < 10
    kpi = summary.kpis[">= 0.8 reason in several steps"]
    assert kpi.value == summary.models["student"].several_steps
    assert (kpi.ci95, kpi.n) == (summary.models["student"].several_steps_ci95, teacher.several_steps_n)
    assert "In several steps" in (run / "report.html").read_text()
    system2.run(tiny(), run)
    assert json.loads((run / "run.json").read_text())["stages"] == manifest["stages"]


def test_traces_are_filtered_and_the_best_one_is_learned(tmp_path: Path) -> None:
    notes = Notes()
    config = traces(
        write_rows(tmp_path / "omni.jsonl", [omni(n) for n in range(20)]), export=str(tmp_path / "cot.json")
    )
    system2.run(config, tmp_path / "run", watch=notes)
    assert "RV at least 0.6 -> level 6 of 9, CD at least 0.6 -> level 6 of 9" in notes.notes
    stage = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["traces"]
    assert stage["counts"] == {"rows_in": 60, "kept": 20, "dropped": {"RV below 6": 20, "not verified": 20}}
    rows = list(read_jsonl(tmp_path / "run" / "train.jsonl"))
    assert rows[3]["completion"] == [
        {"role": "assistant", "content": "So it is \\boxed{4} (good).", "thinking": "good thinks.\n3 + 1 = 4."}
    ]
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    assert training["validation_loss_after"] < training["validation_loss_before"] - 0.5
    exported = json.loads((tmp_path / "cot.json").read_text())
    assert exported[3] == {
        "instruction": f"What is 3 + 1?\n{STEP_BY_STEP}",
        "input": "",
        "output": "<think>\ngood thinks.\n3 + 1 = 4.\n</think>\n\nSo it is \\boxed{4} (good).",
    }
    assert len(exported) == 20


def test_what_the_student_learns_of_the_thinking(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "omni.jsonl", [omni(n) for n in range(12)])
    learned = {}
    for thinking in ("drop", "summarise"):
        run = tmp_path / thinking
        short = SamplingConfig(max_new_tokens=200)
        system2.run(traces(data, thinking=thinking, sampling=short, verified_only=False, per_question=0), run)
        learned[thinking] = [row["completion"][0] for row in read_jsonl(system2_rows(run))]
        assert json.loads((run / "run.json").read_text())["stages"]["training set"]["counts"]["kept"] == 24
    assert learned["drop"][0] == {"role": "assistant", "content": "So it is \\boxed{1} (good)."}
    summaries = {row["id"]: row for row in read_jsonl(tmp_path / "summarise" / "summaries.jsonl")}
    assert len(summaries) == 24
    whole = [row["content"].strip() for _, row in sorted(summaries.items(), key=lambda item: int(item[0]))
             if row["finish_reason"] == "stop" and row["content"].strip()]  # fmt: skip
    assert [row["thinking"] for row in learned["summarise"]] == whole
    assert all(row["content"].startswith("So it is") for row in learned["summarise"])
    asked = next(read_jsonl(tmp_path / "summarise" / "thinking.jsonl"))["messages"][0]["content"]
    assert "What is 0 + 1?" in asked
    assert asked.endswith("good thinks.\n0 + 1 = 1.")


def system2_rows(run: Path) -> Path:
    """What the student was trained on."""
    return next(path for path in (run / "train_summarised.jsonl", run / "train.jsonl") if path.exists())


def test_held_out_traces_are_graded_by_the_answer_in_their_box(tmp_path: Path) -> None:
    notes = Notes()
    config = traces(write_rows(tmp_path / "omni.jsonl", [omni(n) for n in range(40)]), num_test=4)
    summary: Any = system2.run(config, tmp_path / "run", watch=notes)
    assert summary.n == 4
    assert "graded by: numeric" in notes.notes
    tested = {row["id"] for row in read_jsonl(tmp_path / "run" / "test_questions.jsonl")}
    assert tested.isdisjoint(row["id"] for row in read_jsonl(tmp_path / "run" / "questions.jsonl"))


@pytest.mark.parametrize(
    ("rows", "grader"),
    [
        ([{"answer": "42"}, {"answer": "1/2"}], "numeric"),
        ([{"answer": "42"}, {"answer": "2\\pi"}], "math"),
        ([{"completion": "4 + 4 = 8\n#### 8"}], "numeric"),
        ([{"completion": "So \\boxed{x^2}."}, {"answer": "3"}], "math"),
        ([{"completion": "A long tale."}, {"answer": "3"}], "overlap"),
    ],
)
def test_the_grader_fits_the_answers(tmp_path: Path, rows: list[dict[str, Any]], grader: str) -> None:
    for number, row in enumerate(rows):
        row |= {"id": str(number), "messages": [{"role": "user", "content": "q"}]}
        if "completion" in row:
            row["completion"] = [{"role": "assistant", "content": row["completion"]}]
    write_jsonl(tmp_path / "prompts.jsonl", rows)
    assert final_answer_grader(tmp_path / "prompts.jsonl") == grader


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "output": "<think>a</think>b", "rv_score": 0.6, "cd_score": 0.9},
        {"question": "q", "cot": "b"},
        {"instruction": "q", "cot": "b"},
        {"input": "q", "output": "b"},
        {"question": "q", "answer": "b"},
        {"instruction": "q", "response": "b"},
        {"problem": "q", "message_thinking": "a", "message_content": "b"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]},
    ],
)
def test_flat_forms_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    data = reasoning_data(write_rows(tmp_path / "rows.jsonl", [row] * 3), answered=True)
    system2.run(traces(data), tmp_path / "run")
    (learned, *_) = read_jsonl(tmp_path / "run" / "train.jsonl")
    assert learned["prompt"] == [{"role": "user", "content": f"q\n{STEP_BY_STEP}"}]
    assert learned["completion"][0]["content"] == "b"
    assert learned["completion"][0].get("thinking") in (None, "a")


@pytest.mark.parametrize(
    "row", [{"text": "q", "label": 3}, {"question": "q", "level": 2}, {"output": "b"}, {"instruction": "q"}, {}]
)
def test_ac3_schema_mismatch(tmp_path: Path, row: dict[str, Any]) -> None:
    write_rows(tmp_path / "rows.jsonl", [row, {"question": "q", "cot": "b"}])
    command = [sys.executable, "-m", "distill_lab.cli", "system2", "--preset", "tiny", "--no-relabel", "--run"]
    data = ["--data", str(tmp_path / "rows.jsonl"), "--data.split", "train"]
    done = subprocess.run([*command, str(tmp_path / "run"), *data], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [SCHEMA, json.dumps(row)]
    assert not (tmp_path / "run").exists()


def test_questions_alone_are_enough_where_the_teacher_solves_them(tmp_path: Path) -> None:
    assert reasoning_data(write_rows(tmp_path / "rows.jsonl", [{"question": "q"}]), answered=False)
    with pytest.raises(UserError, match=r"please inspect omni\[0\]\n\{\"text\""):
        reasoning_data(write_rows(tmp_path / "rows.jsonl", [{"text": "q"}]), answered=False)


def test_malformed_rows_are_named(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [omni(1), {"question": 5, "cot": "b"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        system2.run(traces(data), tmp_path / "run")


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [omni(n) for n in range(3)])
    with pytest.raises(NoData, match=r"^No data for System 2 distillation$"):
        system2.run(traces(data.model_copy(update={"split": "train[:0]"})), tmp_path / "empty")
    with pytest.raises(NoData, match=r"^No data for System 2 distillation after filtering \(9 in, 0 kept"):
        system2.run(traces(data, rv_min=8), tmp_path / "high")
    with pytest.raises(UserError, match="Invalid student model: no/such"):
        system2.run(traces(data, student=ModelConfig(model="no/such")), tmp_path / "invalid")
    assert not list(tmp_path.glob("*/student"))


def test_thresholds_are_told_as_levels() -> None:
    assert threshold_note(0.4, 7) == "RV at least 0.4 -> level 4 of 9, CD at least 7 -> level 7 of 9"
    with pytest.raises(ValueError, match="less than or equal to 9"):
        system2.Config(rv_min=10)


def test_the_qwen_presets_are_the_requirements() -> None:
    config = system2.PRESETS["qwen2.5"]
    assert config.student.model == "Qwen/Qwen2.5-1.5B-Instruct"
    assert config.data == DataConfig(path="alibaba-pai/OmniThought", split="train[:2000]")
    assert (config.rv_min, config.cd_min, config.train.num_epochs) == (0.6, 0.6, 1)
    assert config.out == "distilled-qwen2.5-1.5b-cot"
    assert config.instruction == STEP_BY_STEP


def test_real_traces_of_r1_train_a_student(shared_data: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(shared_data / "cot" / "r1_sample_ollama.json"))
    # The tiny tokenizer needs up to 8,000 tokens for a trace; the longest are left out, and counted.
    train = TrainConfig(num_epochs=1, max_length=3000, tokens_per_batch=3000)
    summary: Any = system2.run(traces(data, train=train), tmp_path / "run")
    assert summary.models == {}
    assert all(row["completion"][0]["thinking"] for row in read_jsonl(tmp_path / "run" / "train.jsonl"))
    assert len(list(read_jsonl(tmp_path / "run" / "train.jsonl"))) == 5
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    assert training["num_rows"] + sum(training["dropped"].values()) == 5
    assert training["num_rows"] >= 2
