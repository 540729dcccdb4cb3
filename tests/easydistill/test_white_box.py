"""EasyDistill's white-box jobs: what is refused and told, files written and read, and the authors' own configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.chat import encode_turns
from distill_lab.config import ModelConfig
from distill_lab.easydistill.job import run, run_directory
from distill_lab.easydistill.white_box import read_white_box
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import read_jsonl
from distill_lab.models.loading import load_tokenizer
from distill_lab.train.packing import Row
from tests.easydistill.jobs import FEW, Log, authors_config, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def instructions(folder: Path) -> None:
    """FEW in `in.json`."""
    (folder / "in.json").write_text(json.dumps(FEW))


def config(job_type: str = "kd_white_box", /, **changes: Any) -> Path:
    """A config of 16 instructions for the tiny family, with changes."""
    data: dict[str, Any] = {
        "job_type": job_type,
        "dataset": {
            "instruction_path": "in.json",
            "labeled_path": "out.json",
            "logits_path": "logits.jsonl",
            "seed": 42,
        },
        "inference": {"temperature": 0, "seed": 7, "max_new_tokens": 24, "top_logits_num": 6},
        "distillation": {"kd_ratio": 0.25, "max_seq_length": 128, "distillation_type": "forward_kld"},
        "models": {"teacher": "tiny:teacher", "student": "tiny:student"},
        "training": {"output_dir": "student", "num_train_epochs": 2, "learning_rate": 1e-3, "max_length": 128},
    }
    return write_config(data, changes)


def steps(out: str = "student") -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run_directory(out) / "training_log.jsonl") if "loss" in row]


def inputs_of(out: str = "student") -> dict[str, Any]:
    stages = json.loads((run_directory(out) / "run.json").read_text())["stages"]
    return stages["student"]["inputs"]["train"]


@pytest.mark.parametrize(
    ("job_type", "changes", "message"),
    [
        ("kd_white_box", {"dataset__logits_path": None}, "dataset.logits_path: missing"),
        ("kd_white_box", {"dataset__logits_path": ["a", "b"]}, "dataset.logits_path: Input should be a valid string"),
        ("kd_white_box", {"models__teacher": None}, "models.teacher: missing"),
        ("kd_white_box", {"models__teacher": "openai:big"}, "a server gives tokens, not distributions"),
        (
            "kd_white_box",
            {"distillation__kd_ratio": 1.5},
            "distillation.kd_ratio: Input should be less than or equal to 1",
        ),
        ("kd_white_box", {"distillation__kd_rato": 0.1}, "distillation.kd_rato: no such key"),
        ("kd_white_box", {"distillation__distillation_type": "jsd"}, "distillation.distillation_type: Input should be"),
        (
            "kd_white_box",
            {"distillation__max_seq_length": 64},
            "max_seq_length 64 is less than training.max_length 128",
        ),
        ("kd_white_box", {"inference__top_logits_num": 0}, "inference.top_logits_num: Input should be greater"),
        ("kd_white_box", {"training__label_smoothing_factor": 0.1}, "training.label_smoothing_factor"),
        ("kd_white_box_train_only", {"dataset__logits_path": []}, "dataset.logits_path: Tuple should have at least 1"),
        ("kd_white_box_train_only", {"inference__top_logits_num": -1}, "inference.top_logits_num: Input should be"),
        (
            "kd_white_box_train_only",
            {"models__teacher": ["a", "b"]},
            "names 2 teachers and dataset.logits_path 1 files",
        ),
        ("kd_white_box_train_only", {}, "logits.jsonl: no such file; run kd_white_box to write it"),
        ("kd_white_box_tran_only", {}, "did you mean kd_white_box_train_only?"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(job_type: str, changes: dict[str, Any], message: str) -> None:
    Path("out.json").write_text(json.dumps([{**row, "output": "x"} for row in FEW]))
    before = sorted(path.name for path in Path.cwd().iterdir())
    with pytest.raises(UserError) as caught:
        run(config(job_type, **changes))
    assert message in str(caught.value)
    assert sorted(path.name for path in Path.cwd().iterdir()) == sorted([*before, "job.json"])


def test_a_teacher_that_is_here_is_written_to_a_file_that_others_learn_from() -> None:
    log = Log()
    run(config(), watch=log)
    labeled = json.loads(Path("out.json").read_text())
    assert labeled[0]["output"] == "CAT, FOX"
    lines = [json.loads(line) for line in Path("logits.jsonl").read_text().splitlines()]
    assert len(lines) == len(FEW)
    assert all(6 <= len(token) <= 7 and sum(token.values()) < 1.01 for line in lines for token in line)
    assert log.has("the loss is 0.25 * divergence + 0.75 * cross-entropy")
    for row in steps():
        assert row["loss"] == pytest.approx(0.25 * row["metrics"]["kd"] + 0.75 * row["metrics"]["ce"], rel=1e-4)
    settings = inputs_of()
    assert settings["objective"] == "forward_kl"
    assert settings["teacher_cache"] == {"mode": "top_k", "size": 6, "folder": "", "seed": 0}
    # Again: nothing is done twice.
    written = Path("logits.jsonl").stat().st_mtime_ns
    weights = Path("student/model.safetensors").stat().st_mtime_ns
    run(config())
    assert Path("logits.jsonl").stat().st_mtime_ns == written
    assert Path("student/model.safetensors").stat().st_mtime_ns == weights
    # Another run does not replace the file.
    with pytest.raises(UserError, match=r"logits\.jsonl already exists and was not created by this run"):
        run(config(training__output_dir="other"))
    # The same file read, by a teacher's name that means nothing here and by one that does.
    log = Log()
    changes: dict[str, Any] = {
        "training__output_dir": "again",
        "inference__seed": None,
        "dataset__instruction_path": "",
    }
    run(config("kd_white_box_train_only", models__teacher="no/such-teacher", **changes), watch=log)
    assert log.has("16 rows whole, 0 up to where")
    assert log.has("no/such-teacher is not here, so its tokenizer cannot be compared")
    assert log.has("not used, because no teacher is asked: inference.temperature, inference.max_new_tokens")
    first, again = steps()[0]["metrics"], steps("again")[0]["metrics"]
    assert again["ce"] == pytest.approx(first["ce"], rel=1e-3)
    assert again["kd"] == pytest.approx(first["kd"], rel=0.1, abs=0.02)
    assert inputs_of("again")["teacher_cache"]["mode"] == "given"


def answer_ids(prompt: str, answer: str) -> tuple[list[int], int]:
    """What the student's trainer trains of a row, and the id of a line break."""
    tokenizer = load_tokenizer(ModelConfig(model="tiny:student"))
    turn = {"role": "assistant", "content": answer}
    [encoded] = encode_turns(tokenizer, [{"role": "user", "content": prompt}], [turn], thinking=False)
    row = Row.from_encoded(encoded)
    return row.target[row.loss_mask].tolist(), tokenizer.encode("\n", add_special_tokens=False)[-1]


def test_files_as_easydistill_writes_them_are_laid_over_the_right_tokens() -> None:
    rows, lines = [], []
    for place, row in enumerate(FEW):
        answer = row["instruction"].partition(": ")[2].upper()
        ids, line_break = answer_ids(row["instruction"], answer)
        text = [*[line_break] * (place % 2), *ids, *[5] * (3 + place % 4)]
        lines.append([{str(id): 0.9, "1": 0.05} if id != 1 else {"1": 0.9} for id in text])
        rows.append({**row, "output": answer if place % 4 else "Something else entirely"})
    # Rows in another order than the lines, which are found by their prompts.
    Path("out.json").write_text(json.dumps([*rows[8:], *rows[:8]]))
    Path("logits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = Log()
    run(config("kd_white_box_train_only", training__max_steps=2, training__logging_steps=1), watch=log)
    assert log.has("12 rows whole")
    [found] = (run_directory("student") / "probabilities").glob("*.json")
    assert json.loads(found.read_text())["num_whole"] == 12
    # Two teachers: their divergences are added.
    Path("second.jsonl").write_bytes(Path("logits.jsonl").read_bytes())
    changes: dict[str, Any] = {"training__output_dir": "two", "training__max_steps": 2, "training__logging_steps": 1}
    changes |= {"dataset__logits_path": ["logits.jsonl", "second.jsonl"], "models__teacher": ["a/b", "tiny:teacher"]}
    run(config("kd_white_box_train_only_multi", **changes))
    assert steps("two")[0]["metrics"]["kd"] == pytest.approx(2 * steps()[0]["metrics"]["kd"], rel=1e-4)
    assert len(inputs_of("two")["teacher_cache"]["folders"]) == 2
    # A file of other prompts, a damaged one, and one that EasyDistill has appended to.
    Path("in.json").write_text(json.dumps([*FEW[1:], FEW[0]]))
    Path("second.jsonl").write_text(json.dumps(lines[0][:2]) + "\n[{}]\n")
    changes = {"training__output_dir": "three", "dataset__logits_path": "second.jsonl"}
    with pytest.raises(DataError, match=r"second\.jsonl:2: token 0: expected"):
        run(config("kd_white_box_train_only", **changes))
    Path("second.jsonl").write_bytes(Path("logits.jsonl").read_bytes() * 2)
    with pytest.raises(UserError, match=r"more lines than there are prompts \(16\); EasyDistill appends"):
        run(config("kd_white_box_train_only", **changes))


def test_reverse_kl_and_lengths_that_only_distillation_names() -> None:
    path = config(
        distillation={"kd_ratio": 1, "max_seq_length": 96, "distillation_type": "reverse_kld"},
        training__max_length=None,
    )
    job = read_white_box(path, json.loads(path.read_text()))
    assert job.training.max_length == 96
    assert (job.top, job.distillation.kd_ratio) == (6, 1)
    run(path)
    settings = inputs_of()
    assert (settings["objective"], settings["objective_settings"]) == ("reverse_kl", ["ce_weight=0.0"])
    assert settings["max_length"] == 96


def test_the_authors_config_with_a_teacher(shared_data: Path) -> None:
    path = authors_config(
        shared_data, "kd_white_box.json", dataset__instruction_path="in.json", dataset__labeled_path="labeled.json",
        models__teacher="tiny:teacher", models__student="tiny:student", training__output_dir="result",
    )  # fmt: skip
    log = Log()
    run(path, watch=log)
    assert len(Path("logits.json").read_text().splitlines()) == len(FEW)
    assert log.has("inference.enable_chunked_prefill, inference.gpu_memory_utilization")
    assert log.has("dataset.template is not used")
    settings = inputs_of("result")
    assert settings["objective_settings"] == ["ce_weight=0.9"]
    assert settings["teacher_cache"]["size"] == 10
    assert (settings["num_epochs"], settings["learning_rate"], settings["max_length"]) == (3, 2e-5, 512)


def test_the_authors_config_with_the_files_of_two_teachers(shared_data: Path) -> None:
    Path("labeled.json").write_text(json.dumps([{**FEW[0], "output": "CAT, FOX"}, {**FEW[1], "output": "CAT, SAW"}]))
    files = ["first.jsonl", "second.jsonl"]
    for file in files:
        lines = []
        for row, answer in zip(FEW[:2], ("CAT, FOX", "CAT, SAW"), strict=True):
            ids, line_break = answer_ids(row["instruction"], answer)
            lines.append([{str(id): 0.8, "3": 0.1} for id in (line_break, *ids) if id != 3])
        Path(file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = authors_config(
        shared_data, "kd_white_box_train_only_multi.json", dataset__instruction_path="labeled.json",
        dataset__labeled_path="labeled.json", dataset__logits_path=files, models__student="tiny:student",
        models__teacher=["tiny:teacher", "tiny:teacher"], training__output_dir="result",
    )  # fmt: skip
    log = Log()
    run(path, watch=log)
    assert log.has("2 rows whole")
    assert inputs_of("result")["num_epochs"] == 5
    assert json.loads((run_directory("result") / "training.json").read_text())["num_rows"] == 2
