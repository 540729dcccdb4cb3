"""The helper module: the requirements' signatures, texts, messages and paths, and its example as it is written."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import distill_app
from distill_lab.easydistill.job import run
from distill_lab.errors import DataError, UserError

pytestmark = pytest.mark.slow

ROOT = Path(distill_app.__file__).parent
STEPS = "Please think step by step and explain your reasoning before giving the final answer."
SIGNATURES = {
    "save_json": "path data",
    "read_json": "path",
    "load_teacher": "model_name",
    "format_prompt": "instruction input_text='' mode='system1'",
    "label_with_teacher": "teacher_model tokenizer items batch_size=2 max_new_tokens=256 temperature=0.8 top_p=0.9 "
    "mode='system1'",
    "prepare_system1_dataset": "slice_str='train[:1000]' teacher_model=None teacher_tokenizer=None "
    "relabel_with_teacher=False out_instructions='data/train_instructions.json' out_labeled='data/train_labeled.json'",
    "write_system1_config": "teacher_model student_model labeled_path out_dir num_train_epochs=1 "
    "config_path='configs/kd_black_box_qwen_0_5b.json'",
    "prepare_system2_dataset": "slice_str='train[:2000]' rv_min=0.6 cd_min=0.6 out_cot='data/omnithought_cot.json'",
    "write_system2_config": "student_model cot_path out_dir num_train_epochs=1 "
    "config_path='configs/kd_cot_qwen_1_5b.json'",
    "run_easy_distill": "config_path",
    "load_student": "model_path",
    "infer_student": "model tokenizer prompt mode='system1' max_new_tokens=256",
    "distill_system1": "config",
    "distill_system2": "config",
    "compare_models": "prompts",
}
TINY = {
    "teacher_model": "tiny:teacher",
    "student_model": "tiny:student",
    "dataset": "tiny:instructions",
    "dataset_slice": "distill[:40]",
    "learning_rate": 4e-3,
    "out_dir": "./small",
}
TINY_SYS2 = {
    "student_model": "tiny:student",
    "dataset": "tiny:problems",
    "dataset_slice": "distill[:40]",
    "learning_rate": 4e-3,
    "out_dir": "./steps",
}
OMNI = [
    {
        "question": f"What is {n} + 1?",
        "reasoning": [
            {"full_response": f"<think>\nadd\n</think>\n\nIt is {n + 1}.", "thought_correctness_verify": verified,
             "Reasoning_Verbosity": {"level": 6}, "Cognitive_Difficulty": {"level": level}}
            for level, verified in ((5, True), (9, False), (7 if n else 5, True))
        ],
    }
    for n in range(4)
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in a folder of its own: all paths are relative, as in the requirements."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_begin_as_the_skeletons(name: str) -> None:
    parameters = inspect.signature(getattr(distill_app, name)).parameters.values()
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    wanted = SIGNATURES[name].split()
    assert shown[: len(wanted)] == wanted
    assert all(p.default is not p.empty for p in list(parameters)[len(wanted) :])


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, distill_app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "datasets", "huggingface_hub"} & set(loaded.split())


def test_prompt_text() -> None:
    assert distill_app.format_prompt("Add", "1 2") == "User: Add\nInput: 1 2\nAssistant:"
    assert distill_app.format_prompt("Add") == "User: Add\nAssistant:"
    assert distill_app.format_prompt("Add", mode="system2") == f"User: Add\n{STEPS}\nAssistant:"
    assert distill_app.format_prompt("Add", "1 2", "system2") == f"User: Add\nInput: 1 2\n{STEPS}\nAssistant:"


def test_json_files(capsys: pytest.CaptureFixture[str]) -> None:
    distill_app.save_json("a/b/c.json", {"text": "grün"})
    assert "grün" in Path("a/b/c.json").read_text(encoding="utf-8")
    assert distill_app.read_json("a/b/c.json") == {"text": "grün"}
    Path("torn.json").write_text('{"text":\n')
    with pytest.raises(DataError, match=r"torn\.json:2: not JSON"):
        distill_app.read_json("torn.json")
    assert capsys.readouterr().out == ""


def test_preparing_keeps_inputs_and_answers_whatever_the_rows_form(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"instruction": "Add the numbers.", "input": "1 2", "output": "3"},
        {"instruction": "Say yes.", "output": "Yes"},
        {"messages": [{"role": "user", "content": "Say no."}, {"role": "assistant", "content": "No"}]},
        {"instruction": "Nobody has answered this."},
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    distill_app.prepare_system1_dataset("train[:4]", dataset="rows.jsonl")
    made = [tuple(row.values()) for row in distill_app.read_json("data/train_instructions.json")]
    assert made == [
        ("Add the numbers.\n\n1 2", "", "3"),
        ("Say yes.", "", "Yes"),
        ("Say no.", "", "No"),
        ("Nobody has answered this.", "", ""),
    ]
    assert distill_app.read_json("data/train_labeled.json") == distill_app.read_json("data/train_instructions.json")
    assert distill_app.read_json("data/train_labeled.json")[0].keys() == {"instruction", "input", "output"}
    printed = capsys.readouterr().out
    assert "Saved System 1 instructions to data/train_instructions.json\n" in printed
    assert "Saved System 1 labeled data to data/train_labeled.json\n" in printed
    Path("rows.jsonl").write_text('{"instruction": "a"}\n{"instruction": 1}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        distill_app.prepare_system1_dataset("train", dataset="rows.jsonl")
    with pytest.raises(ValueError, match="Teacher model/tokenizer required for relabeling"):
        distill_app.prepare_system1_dataset(relabel_with_teacher=True)


def write_omni(rows: list[dict[str, Any]]) -> str:
    Path("omni.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "omni.jsonl"


def test_preparing_traces(capsys: pytest.CaptureFixture[str]) -> None:
    distill_app.prepare_system2_dataset("train", dataset=write_omni(OMNI))
    rows = distill_app.read_json("data/omnithought_cot.json")
    assert rows[0] == {
        "instruction": f"What is 1 + 1?\n{STEPS}",
        "input": "",
        "output": "<think>\nadd\n</think>\n\nIt is 2.",
    }
    printed = capsys.readouterr().out
    assert len(rows) == 3
    assert "Loaded 4 rows: omni.jsonl, train\n" in printed
    assert "-> level 6 of 9), remaining samples: 3 (traces: 12 in, 3 kept" in printed
    assert printed.endswith("Saved System 2 CoT data to data/omnithought_cot.json\n")
    distill_app.prepare_system2_dataset("train", out_cot="all.json", rv_min=0, cd_min=0, dataset="omni.jsonl")
    assert len(distill_app.read_json("all.json")) == 4
    flat = [{"instruction": "q", "input": "", "output": "steps", "rv_score": s, "cd_score": 1.0} for s in (0.5, 0.6)]
    distill_app.prepare_system2_dataset("train", out_cot="flat.json", dataset=write_omni(flat))
    assert [row["output"] for row in distill_app.read_json("flat.json")] == ["steps"]
    distill_app.prepare_system2_dataset("distill[:5]", out_cot="tiny.json", dataset="tiny:problems")
    assert "RV/CD scores not found, using raw slice: 5\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="invalid threshold 10"):
        distill_app.prepare_system2_dataset("train", rv_min=10, dataset="omni.jsonl")


@pytest.mark.parametrize("row", [{"text": "q", "label": 3}, {"question": "q", "level": 2}, {"output": "a"}])
def test_ac3_an_unexpected_schema_is_shown_and_nothing_trained(
    row: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill_app.distill_system2(TINY_SYS2 | {"dataset": write_omni([row]), "dataset_slice": "train"}) is None
    shown = ["Unexpected OmniThought schema, please inspect omni[0]", json.dumps(row)]
    assert capsys.readouterr().out.splitlines() == shown
    assert [path.name for path in Path.cwd().iterdir()] == ["omni.jsonl"]


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({"dataset_slice": "train[:0]"}, "No data for System 2 distillation"),
        ({"rv_min": 7}, "No data for System 2 distillation after filtering."),
        ({"rv_min": 12}, "invalid threshold 12.0; use a fraction from 0 to 1 or a level up to 9"),
    ],
)
def test_no_traces_run_nothing_and_leave_nothing(
    changes: dict[str, Any], last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TINY_SYS2 | {"dataset": write_omni(OMNI), "dataset_slice": "train"} | changes
    assert distill_app.distill_system2(config) is None
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert [path.name for path in Path.cwd().iterdir()] == ["omni.jsonl"]


def test_no_data_runs_nothing_and_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill_app.distill_system1(TINY | {"dataset_slice": "distill[:0]"}) is None
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "No data for System 1 distillation"
    assert not any(line.startswith("Running:") for line in printed)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["Qwen/Qwen9-nothing", "no such model", "./absent", ""])
def test_invalid_student(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill_app.distill_system1(TINY | {"student_model": name}) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"Invalid student model: {name}", "Example: Qwen/Qwen2.5-0.5B-Instruct"]
    assert list(folder.iterdir()) == []


def test_invalid_system2_student_and_keys(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill_app.distill_system2(TINY_SYS2 | {"student_model": "no such model"}) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Invalid student model: no such model", "Example: Qwen/Qwen2.5-1.5B-Instruct"]
    assert distill_app.distill_system2({"rv": 1}) is None
    assert "config key 'rv'" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_wrong_keys_and_values_of_the_config_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert distill_app.distill_system1({"student": "x", "num_epochs": "many"}) is None
    printed = capsys.readouterr().out
    assert "config key 'student': no such key" in printed
    assert "config key 'num_epochs'" in printed
    assert "Known keys: teacher_model, student_model, dataset" in printed


def test_the_config_is_the_requirements_one(capsys: pytest.CaptureFixture[str]) -> None:
    path = distill_app.write_system1_config("T", "S", "data/train_labeled.json", "./out", 3)
    assert path == "configs/kd_black_box_qwen_0_5b.json"
    config = distill_app.read_json(path)
    assert config["job_type"] == "kd_black_box_local"
    assert config["dataset"]["instruction_path"] == "data/train_instructions.json"
    assert config["models"] == {"teacher": "T", "student": "S"}
    wanted = {"output_dir": "./out", "num_train_epochs": 3, "learning_rate": 2e-5, "max_length": 512, "fp16": True}
    assert wanted.items() <= config["training"].items()
    assert capsys.readouterr().out == f"Wrote System 1 KD config to {path}\n"


def test_the_system2_config_is_the_requirements_one(capsys: pytest.CaptureFixture[str]) -> None:
    path = distill_app.write_system2_config("S", "data/omnithought_cot.json", "./out")
    assert path == "configs/kd_cot_qwen_1_5b.json"
    config = distill_app.read_json(path)
    training = config.pop("training")
    assert config == {
        "job_type": "kd_sft",
        "dataset": {"labeled_path": "data/omnithought_cot.json", "seed": 123},
        "models": {"student": "S"},
    }
    assert {"output_dir": "./out", "num_train_epochs": 1, "learning_rate": 1e-5}.items() <= training.items()
    assert capsys.readouterr().out == f"Wrote System 2 KD config to {path}\n"


def test_easydistill_itself_is_called_where_it_is_installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = folder / "bin" / "easydistill"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "called with $*"\necho trouble >&2\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert distill_app.run_easy_distill("some config.json") == 3
    *said, took, failed = capsys.readouterr().out.splitlines()
    assert said == [
        "Running: easydistill --config some config.json",
        "called with --config some config.json",
        "trouble",
    ]
    assert "GB of memory" in took
    assert failed == "EasyDistill run failed with code: 3"
    # Its exit code is 0 where training failed: then there is no student to be announced.
    program.write_text("#!/bin/sh\nexit 0\n")
    assert distill_app.distill_system1(TINY) is None
    assert "The run ended, but there is no model in ./small" in capsys.readouterr().out


def test_the_config_by_itself_gives_the_same_student(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill_app.distill_system1(TINY) == "./small"
    printed = capsys.readouterr().out
    assert "EasyDistill run completed successfully.\nSystem 1: 40 rows" in printed
    assert printed.rstrip().endswith("System 1 student saved to ./small")
    first = (folder / "small" / "model.safetensors").read_bytes()
    other = folder / "other"
    shutil.copytree(folder / "data", other / "data")
    shutil.copytree(folder / "configs", other / "configs")
    monkeypatch.chdir(other)
    run("configs/kd_black_box_qwen_0_5b.json")
    assert (other / "small" / "model.safetensors").read_bytes() == first


def test_data_that_is_there_is_used_unless_it_was_made_of_something_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distill_app, "run_easy_distill", lambda path, relabel=False: 1)

    def num_rows(**changes: Any) -> int:
        assert distill_app.distill_system1(TINY | changes) is None
        return len(distill_app.read_json("data/train_labeled.json"))

    assert num_rows() == 40
    relabelled = [{**row, "output": "paid for"} for row in distill_app.read_json("data/train_labeled.json")]
    distill_app.save_json("data/train_labeled.json", relabelled)
    assert num_rows() == 40
    assert ": 40 rows\n" in capsys.readouterr().out
    assert distill_app.read_json("data/train_labeled.json") == relabelled
    assert num_rows(dataset_slice="distill[:30]") == 30
    mine = [{"instruction": "Mine", "input": "", "output": "alone"}]
    distill_app.save_json("data/train_instructions.json", mine)
    distill_app.save_json("data/train_labeled.json", mine)
    assert num_rows(dataset_slice="distill[:20]") == 1
    assert ": 1 rows, yours; without these files the lab prepares the slice" in capsys.readouterr().out


def test_system2_trains_a_student_and_prepares_again_when_a_threshold_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distill_app.distill_system2(TINY_SYS2) == "./steps"
    printed = capsys.readouterr().out
    assert "EasyDistill run completed successfully.\nSystem 2: 40 rows" in printed
    assert printed.rstrip().endswith("System 2 student saved to ./steps")
    assert (folder / "steps" / "config.json").is_file()
    before = distill_app.read_json("data/omnithought_cot.source.json")
    assert (before["rv_min"], before["slice"]) == (0.6, "distill[:40]")
    monkeypatch.setattr(distill_app, "run_easy_distill", lambda path: 0)
    assert distill_app.distill_system2(TINY_SYS2) == "./steps"
    assert "Using data/omnithought_cot.json: 40 rows\n" in capsys.readouterr().out
    assert distill_app.distill_system2(TINY_SYS2 | {"rv_min": 0.5}) == "./steps"
    assert distill_app.read_json("data/omnithought_cot.source.json")["rv_min"] == 0.5


def test_the_example_runs_as_it_is_written(folder: Path) -> None:
    lines = (distill_app.__doc__ or "").splitlines()
    example = textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))
    assert "distill_system1" in example
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-i"], input=f"{example}\n", env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "System 1 student saved to ./distilled-tiny" in done.stdout
    assert "System 1:\n  PEAR, CAT" in done.stdout
    assert "System 2 student saved to ./distilled-tiny-cot" in done.stdout
    assert "System 2:\n" in done.stdout
    assert (
        distill_app.read_json("data/train_labeled.json")[0]["output"]
        == "coat purple coat purple coat purple coat purple"
    )
    before, after = (
        distill_app.read_json("distilled-tiny.run/training.json")[f"validation_loss_{when}"]
        for when in ("before", "after")
    )
    assert after < 0.8 * before
