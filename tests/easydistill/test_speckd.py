"""EasyDistill's draft job: what is refused and told, answers kept and written in its form, and the authors' own config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.easydistill.job import run, run_directory
from distill_lab.easydistill.speckd import read_draft_job
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl
from tests.easydistill.jobs import FEW, Log, authors_config, write_config

pytestmark = pytest.mark.slow

CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}"


@pytest.fixture(autouse=True)
def instructions(folder: Path) -> None:
    """12 of the FEW in `in.jsonl`, and the others in `test.jsonl`."""
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FEW[:12]))
    tests = [{"text": CHATML.format(row["instruction"], "?")} for row in FEW[12:]]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))


def config(**changes: Any) -> Path:
    """A config of 12 instructions for the tiny family, with changes."""
    schedule = {"warmup_min_lr": 0, "warmup_max_lr": 1e-3, "warmup_num_steps": 10, "total_num_steps": 100}
    data: dict[str, Any] = {
        "job_type": "speckd_local",
        "dataset": {"instruction_path": "in.jsonl", "labeled_path": "labeled.jsonl"},
        "models": {"teacher": "tiny:teacher", "student": "tiny:student"},
        "inference": {"sampling_config": {"temperature": 0.0, "max_tokens": 24}},
        "training": {
            "trainpath": "labeled.jsonl", "testpath": "test.jsonl", "num_epochs": 2, "max_len": 128, "savedir": "draft",
            "deepspeed_config": {
                "optimizer": {"type": "AdamW", "params": {"lr": 0, "weight_decay": 0.01, "betas": [0.9, 0.95]}},
                "scheduler": {"type": "WarmupDecayLR", "params": schedule},
                "gradient_clipping": 0.5, "gradient_accumulation_steps": 2,
            },
        },
    }  # fmt: skip
    return write_config(data, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset__labeled_path": None}, "dataset.labeled_path: missing"),
        ({"training__testpath": None}, "training.testpath: missing"),
        ({"training__testpath": "absent.jsonl"}, "absent.jsonl"),
        (
            {"training__trainpath": "other.jsonl"},
            "training.trainpath other.jsonl is another file than dataset.labeled_path",
        ),
        ({"training__num_epoch": 3}, "training.num_epoch: no such key"),
        ({"training__deepspeed_config": {}}, "training.deepspeed_config: no learning rate"),
        (
            {"training__deepspeed_config__scheduler__type": "OneCycle"},
            "training.deepspeed_config.scheduler.type: Input should be 'WarmupDecayLR' or 'WarmupLR'",
        ),
        (
            {"training__deepspeed_config__scheduler__params__warmup_min_lr": 0.1},
            "training.deepspeed_config.scheduler.params.warmup_min_lr: Input should be less",
        ),
        ({"training__deepspeed_config__flops_profiler": {}}, "training.deepspeed_config.flops_profiler: no such key"),
        ({"models__teacher": "openai:big"}, "a server gives tokens, not distributions"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(config(**changes))
    assert message in str(caught.value)
    assert not Path("labeled.jsonl").exists()


def test_deepspeeds_settings_become_the_labs() -> None:
    path = config()
    training = read_draft_job(path, json.loads(path.read_text())).training
    assert (training.learning_rate, training.warmup_ratio, training.lr_scheduler_type) == (1e-3, 0.1, "linear")
    assert (training.weight_decay, training.max_grad_norm, training.num_train_epochs) == (0.01, 0.5, 2)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 2
    changes: dict[str, Any] = {"training__deepspeed_config__scheduler": None}
    path = config(**changes, training__deepspeed_config__optimizer={"params": {"lr": 3e-4}})
    training = read_draft_job(path, json.loads(path.read_text())).training
    assert (training.learning_rate, training.lr_scheduler_type, training.warmup_steps) == (3e-4, "constant", 0)


def test_the_targets_answers_train_a_draft() -> None:
    kept = {"text": CHATML.format(FEW[3]["instruction"], "MY OWN WORDS")}
    Path("labeled.jsonl").write_text(json.dumps(kept) + "\n")
    log = Log()
    assert run(config(training__system_prompt="Be brief."), watch=log) == Path("draft").absolute()
    rows = list(read_jsonl(Path("labeled.jsonl")))
    assert len(rows) == 12
    assert rows[3] == kept
    assert rows[0] == {"text": CHATML.format(FEW[0]["instruction"], "CAT, FOX")}
    trained = list(read_jsonl(run_directory("draft") / "train.jsonl"))
    assert {row["prompt"][0]["content"] for row in trained} == {"Be brief."}
    report = json.loads((run_directory("draft") / "draft.json").read_text())
    assert set(report["drafts"]) == {"base", "draft"}
    assert log.has("of the draft's tokens at temperature 1")
    assert log.has("vllm serve tiny:teacher --speculative-config")
    assert log.has("betas are not used")
    stages = json.loads((run_directory("draft") / "run.json").read_text())["stages"]
    assert stages["student"]["inputs"]["train"]["teacher_cache"]["mode"] == "sampled"
    again = Log()
    run(config(training__system_prompt="Be brief."), watch=again)
    assert not again.has("running again")


def test_the_authors_config(shared_data: Path) -> None:
    for name in ("speckd_demo", "speckd_demo_labeled", "speckd_demo_labeled_test"):
        source = shared_data / "easydistill_1.0" / f"{name}.jsonl"
        Path(f"{name}.jsonl").write_bytes(source.read_bytes())
    Path("in.jsonl").write_bytes(Path("speckd_demo.jsonl").read_bytes())
    path = authors_config(
        shared_data, "speckd_local.json", dataset__instruction_path="speckd_demo.jsonl",
        dataset__labeled_path="speckd_demo_labeled.jsonl", training__trainpath="speckd_demo_labeled.jsonl",
        training__testpath="test.jsonl", training__savedir="saves",
        models__teacher="tiny:teacher", models__student="tiny:student",
    )  # fmt: skip
    log = Log()
    run(path, watch=log)
    for told in (
        "dataset.labeled_progress_dir", "inference.batch_size", "inference.vllm_config.tensor_parallel_size",
        "training.num_workers", "training.deepspeed_config.zero_optimization", "dataset.labeled_path_raw is not written",
        "training.config_path config.json is not used", "as 12,000 of 800,000",
    ):  # fmt: skip
        assert log.has(told), told
    settings = json.loads((run_directory("saves") / "run.json").read_text())["stages"]["student"]["inputs"]["train"]
    assert (settings["num_epochs"], settings["learning_rate"], settings["max_length"]) == (40, 5e-5, 2048)
    assert settings["max_grad_norm"] == 0.5
