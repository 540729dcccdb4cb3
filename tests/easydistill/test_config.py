"""EasyDistill configs: what is refused and how it is said, and what they become in the lab's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.chat import answer_text
from distill_lab.config import DataConfig
from distill_lab.data.records import Records
from distill_lab.easydistill.config import read_job
from distill_lab.easydistill.job import run
from distill_lab.easydistill.training import Training, train_config
from distill_lab.errors import UserError
from distill_lab.train.plan import make_plan
from distill_lab.training_data.training_set import instruction_row
from tests.easydistill.jobs import black_box

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("instructions")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job_type": None}, "job_type: missing; give one of kd_black_box_local"),
        ({"job_type": "kd_black_box_locl"}, "did you mean kd_black_box_local?"),
        ({"job_type": "instruction_expansion_ap"}, "did you mean instruction_expansion_api?"),
        ({"job_type": ["kd_sft"]}, "job_type ['kd_sft']: no such job"),
        ({"dataset__instruction_path": None}, "dataset.instruction_path: missing"),
        ({"dataset__labeled_path": None}, "dataset.labeled_path: missing"),
        ({"dataset__labelled_path": "x"}, "dataset.labelled_path: no such key"),
        ({"dataset__logits_path": "x"}, "dataset.logits_path: belongs to the white-box jobs"),
        ({"distillation": {"kd_ratio": 0.1}}, "distillation: belongs to the white-box jobs"),
        ({"inference__temperature": -1}, "inference.temperature: Input should be greater"),
        ({"inference__base_url": "http://x"}, "inference.base_url: no such key"),
        ({"models__teacher": None}, "models.teacher: missing"),
        ({"models__student": ""}, "models.student"),
        ({"training": None}, "training: missing"),
        ({"training__output_dir": None}, "training.output_dir: missing"),
        ({"training__learning_rate": "fast"}, "training.learning_rate: Input should be a valid number"),
        ({"training__learning_rat": 1e-5}, "training.learning_rat: no such setting; did you mean learning_rate?"),
        ({"training__label_smoothing_factor": 0.1}, "training.label_smoothing_factor: the lab's trainer has no such"),
        ({"training__completion_only_loss": False}, "training.completion_only_loss: the lab's trainer has no such"),
        ({"training__optim": "adafactor"}, "training.optim: the lab's trainer has no such"),
        (
            {"training__lr_scheduler_type": "cosin"},
            "training.lr_scheduler_type: no scheduler 'cosin'; choose from linear",
        ),
        ({"training__max_length": 512, "training__max_seq_length": 1024}, "max_seq_length differ"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        run(black_box(**changes))
    assert str(caught.value).startswith("job.json: ")
    assert message in str(caught.value)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["in.json", "job.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"job_type": }', "job.json:2: not JSON"),
        ("[]", "expected one JSON object, found list"),
        ('{"job_type": "a", "job_type": "b"}', "duplicate key 'job_type' in an object"),
        ('{"job_type": NaN}', "NaN is not JSON"),
        ("job_type: kd_sft", "an EasyDistill 1.0 config is JSON"),
    ],
)
def test_files_that_are_no_config(text: str, message: str) -> None:
    Path("job.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_job(Path("job.json"))
    with pytest.raises(UserError, match="give the path of an EasyDistill config"):
        read_job(Path("absent.json"))


def test_keys_with_plain_defaults_may_be_missing() -> None:
    job = read_job(black_box(inference=None, dataset__seed=None, dataset__template=None, training__fp16=None))
    assert (job.sampling.max_new_tokens, job.sampling.temperature, job.seed, job.notes) == (512, 0.8, 42, ())
    assert job.sampling.thinking is False
    harmless = black_box(
        training__adam_beta2=0.999, training__optim="adamw_torch", training__bf16=False, training__seed=3
    )
    job = read_job(harmless)
    assert job.seed == 3
    assert any("training.fp16, training.bf16" in note for note in job.notes)
    job = read_job(black_box(inference__max_model_len=4096))
    assert any(note.endswith("for this machine: training.fp16, inference.max_model_len") for note in job.notes)


def test_paths_are_seen_from_here_and_then_from_beside_the_config(folder: Path) -> None:
    other = folder / "elsewhere"
    other.mkdir()
    black_box().rename(other / "job.json")
    assert read_job(other / "job.json").instructions == "in.json"
    (other / "in.json").write_text("[]")
    assert read_job(other / "job.json").instructions == "in.json"
    Path("in.json").unlink()
    job = read_job(other / "job.json")
    assert job.instructions == str(other / "in.json")
    assert (job.labeled, job.out) == (Path("out.json"), Path("student"))


@pytest.mark.parametrize(
    ("length", "each", "accumulated", "expected"),
    [
        (100, 1, 8, (800, 1)),  # 8 rows of 100 go at once
        (1000, 1, 8, (2048, 4)),  # two rows fit into what goes at once
        (1000, 4, 2, (4000, 2)),  # four rows at once, as the config says
    ],
)
def test_a_step_has_the_rows_the_config_asks_for(
    length: int, each: int, accumulated: int, expected: tuple[int, int]
) -> None:
    training = Training(
        output_dir="x",
        num_train_epochs=2,
        per_device_train_batch_size=each,
        gradient_accumulation_steps=accumulated,
        warmup_steps=4,
    )
    config, note = train_config(training, [length] * 64, seed=5)
    assert (config.tokens_per_batch, config.gradient_accumulation_steps) == expected
    assert make_plan([length] * 64, config).num_steps == 16  # 64 rows, 8 to a step, twice
    assert (config.warmup_ratio, config.num_epochs, config.seed) == (0.25, 2, 5)
    assert "about 8.0 rows (in the config: 8)" in note


def test_rows_of_mixed_lengths_come_close() -> None:
    lengths = [40 + 17 * i % 400 for i in range(500)]
    training = Training(output_dir="x", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    config, _ = train_config(training, lengths, seed=0)
    steps = make_plan(lengths, config.model_copy(update={"num_epochs": 1.0})).num_steps
    assert 6 <= len(lengths) / steps <= 10


def test_rows_and_their_answers_survive_the_way_through_a_file() -> None:
    user = {"role": "user", "content": "Hi"}
    conversations = [
        [user],
        [{"role": "system", "content": "Be brief."}, user],
        [user, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}],
    ]
    rows = [instruction_row(messages, answer_text("Yes", "Is it?")) for messages in conversations]
    assert rows[0] == {"instruction": "Hi", "input": "", "output": "<think>\nIs it?\n</think>\n\nYes"}
    Path("rows.json").write_text(json.dumps(rows))
    back = list(Records(DataConfig(path="rows.json")))
    whole = [[*record.prompt.messages, *(record.completion or [])] for record in back]
    answer = {"role": "assistant", "content": "Yes", "thinking": "Is it?"}
    assert whole == [[*messages, answer] for messages in conversations]
