"""On-policy training: exact divergences of the student's own tokens on any architecture, and the same after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill_lab.chat import prompt_ids
from distill_lab.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig, TeacherCacheConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_model
from distill_lab.train import on_policy_rounds, rollouts, trainer
from distill_lab.train.on_policy import OnPolicyResult, check_on_policy, train_on_policy
from distill_lab.train.packing import collate
from distill_lab.train.rollout_file import read_rollouts, rollouts_path
from distill_lab.train.rollouts import RolloutSettings
from distill_lab.train.teachers import LiveTeacher
from distill_lab.training_data.prompt_distillation import with_system
from tests.helpers import ROOT, make_prompts, other_architecture

pytestmark = pytest.mark.slow

SAMPLING = SamplingConfig(max_new_tokens=10, temperature=1.0)
SETTINGS = RolloutSettings(sampling=SAMPLING, steps_per_round=2, rollouts_per_step=6)
SYSTEM = "Answer in the words of a sailor, and never with more than ten of them."


def config_for(teacher: ModelConfig, **changes: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "dtype": "fp32", "learning_rate": 1e-2, "tokens_per_batch": 256, "max_steps": 8, "logging_steps": 1,
        "validation_fraction": 0.2, "objective": "reverse_kl", "warmup_ratio": 0.0, "save_steps": 2,
    }  # fmt: skip
    return TrainConfig(teacher=teacher, **(given | changes))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write_jsonl(path, [prompt.to_json() for prompt in make_prompts(40)])
    return path


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next(out.glob("*model.safetensors")))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(weight, right[name]) for name, weight in left.items())


def train(
    student: ModelConfig, prompts: Path, out: Path, config: TrainConfig, settings: RolloutSettings = SETTINGS
) -> tuple[OnPolicyResult, list[dict[str, Any]]]:
    logs: list[dict[str, Any]] = []
    result = train_on_policy(
        student, prompts, out, config, settings, on_log=logs.append, log_file=out.with_suffix(".log")
    )
    return result, logs


@pytest.mark.parametrize("kind", ["sliding window", "experts", "untied head", "the teacher has a prompt"])
def test_the_first_loss_is_the_exact_reverse_kl_of_the_students_own_tokens(
    kind: str, teacher: ModelConfig, prompts: Path, tmp_path: Path
) -> None:
    """Against passes over each rollout alone, with nothing packed, chunked or cached."""
    tokenizer = load_model(teacher)[1]
    student = other_architecture(
        "plain" if "prompt" in kind else kind, tokenizer, tmp_path / "model", initializer_range=0.1
    )
    system = SYSTEM if "prompt" in kind else ""
    rounds = SETTINGS.model_copy(update={"steps_per_round": 1, "system": system})
    out = tmp_path / "student"
    seen: list[Any] = []

    def on_log(row: dict[str, Any]) -> None:
        if row.get("step") == 1 and "loss" in row:
            seen.append((row, read_rollouts(out.with_name("student.work"), 0)))

    train_on_policy(student, prompts, out, config_for(teacher, max_steps=1), rounds, on_log=on_log)
    [(row, (stats, written))] = seen
    assert stats.kept == 6
    models: list[Any] = [load_model(each)[0].eval() for each in (student, teacher)]
    by_id = {each["id"]: each["messages"] for each in read_jsonl(prompts)}
    total, number = 0.0, 0
    for rollout in written:
        messages = by_id[rollout.id.partition("/")[2]]
        log_probs = []
        for model, seen_by in zip(models, (messages, with_system(messages, system)), strict=True):
            ids = torch.tensor([prompt_ids(tokenizer, seen_by) + rollout.tokens])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[
                    0, -len(rollout.tokens) - 1 : -1, : len(tokenizer)
                ]
            log_probs.append(logits.double().log_softmax(-1))
        log_q, log_p = log_probs
        total += (log_q.exp() * (log_q - log_p)).sum().item()
        number += len(rollout.tokens)
    assert row["metrics"]["kd"] == pytest.approx(total / number, rel=1e-4)
    assert row["loss"] == pytest.approx(row["metrics"]["kd"], rel=1e-5)


@pytest.mark.parametrize("kind", ["full", "lora", "jsd", "entropy_aware"])
def test_the_students_own_text_comes_nearer_to_the_teacher(
    kind: str, student: ModelConfig, teacher: ModelConfig, prompts: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"max_steps": 24}
    if kind == "lora":
        changes |= {"lora": LoraConfig(r=8)}
        student, teacher = ModelConfig(model="tiny:student"), ModelConfig(model="tiny:teacher")  # heads worth freezing
    elif kind != "full":
        changes["objective"] = kind
    result, logs = train(student, prompts, tmp_path / "student", config_for(teacher, **changes))
    assert result.stats.before is not None
    assert result.stats.after is not None
    assert result.stats.held_out
    assert result.stats.before.texts == result.stats.after.texts == 8
    assert result.stats.after.divergence < 0.9 * result.stats.before.divergence
    if kind == "full":
        assert result.stats.after.teacher_nats < result.stats.before.teacher_nats
        # Two estimates of the same: sampled tokens, and whole distributions.
        sampled = result.stats.before.teacher_nats - result.stats.before.student_nats
        assert sampled == pytest.approx(result.stats.before.divergence, rel=0.5)
    assert len(result.stats.rounds) == 12
    assert [each.round for each in result.stats.rounds] == list(range(12))
    assert all(each.rollouts == 12 == each.kept + sum(each.dropped.values()) for each in result.stats.rounds)
    assert result.training.tokens == sum(each.row_tokens for each in result.stats.rounds)
    assert (result.training.num_rows, result.training.steps) == (40, 24)
    steps = [row for row in logs if "loss" in row]
    assert len(steps) == 24
    assert steps[-1]["epoch"] == pytest.approx(12)
    notes = [row["note"] for row in logs if "note" in row]
    assert sum(note.startswith("round ") for note in notes) == 12
    assert not (tmp_path / "student.work").exists()
    assert load_model(ModelConfig(model=str(tmp_path / "student")))[0].num_parameters() > 0


CHILD = """
import sys, time
from pathlib import Path
from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.train import rollouts
from distill_lab.train.on_policy import train_on_policy

student, teacher_config, settings, prompts, out, moment, sign = sys.argv[1:]

def here(now):
    if now == moment:
        Path(sign).touch()
        time.sleep(600)

def on_log(row):
    if "loss" in row:
        here(f"step {row['step']}")

own, calls = rollouts.sample, []

def sample(*arguments):
    found = own(*arguments)
    calls.append(1)
    here(f"written {len(calls)}")
    return found

rollouts.sample = sample
train_on_policy(
    ModelConfig.model_validate_json(student), Path(prompts), Path(out), TrainConfig.model_validate_json(teacher_config),
    rollouts.RolloutSettings.model_validate_json(settings), on_log=on_log,
)
"""


def kill_at(moment: str, student: ModelConfig, prompts: Path, out: Path, config: TrainConfig) -> None:
    """Train in another process and end it with SIGKILL at a moment."""
    sign = out.with_name("sign")
    words = [student.model_dump_json(), config.model_dump_json(), SETTINGS.model_dump_json()]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *words, str(prompts), str(out), moment, str(sign)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not sign.exists():
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.communicate()
    assert not out.exists()


@pytest.fixture(scope="module")
def uninterrupted(
    student: ModelConfig, teacher: ModelConfig, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], OnPolicyResult]:
    out = tmp_path_factory.mktemp("whole") / "student"
    result, _ = train(student, prompts, out, config_for(teacher))
    return weights(out), result


# Written, but not on the disk; in the middle of a round; far from the newest checkpoint; before the first one.
@pytest.mark.parametrize(
    ("moment", "save_steps", "resumed_from", "written_again"),
    [("written 3", 2, 4, 2), ("step 5", 2, 4, 1), ("step 7", 4, 4, 0), ("step 1", 2, 0, 3)],
)
def test_killed_at_any_moment_it_ends_with_the_same_student(
    moment: str, save_steps: int, resumed_from: int, written_again: int,
    student: ModelConfig, teacher: ModelConfig, prompts: Path, tmp_path: Path,
    uninterrupted: tuple[dict[str, torch.Tensor], OnPolicyResult], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config, out = config_for(teacher, save_steps=save_steps), tmp_path / "student"
    kill_at(moment, student, prompts, out, config)
    calls: list[int] = []
    own = rollouts.sample
    monkeypatch.setattr(rollouts, "sample", lambda *arguments: calls.append(1) or own(*arguments))
    result, _ = train(student, prompts, out, config)
    whole, expected = uninterrupted
    assert result.training.resumed_from == resumed_from
    assert len(calls) == written_again
    assert same(weights(out), whole)
    assert (result.stats.before, result.stats.after) == (expected.stats.before, expected.stats.after)
    figures = [[each.rollouts, each.tokens, each.truncated, each.row_tokens] for each in expected.stats.rounds]
    assert [[each.rollouts, each.tokens, each.truncated, each.row_tokens] for each in result.stats.rounds] == figures
    assert result.training.tokens == expected.training.tokens
    assert not out.with_name("student.work").exists()


def test_damaged_rounds_are_written_again_and_own_text_is_left_out(
    student: ModelConfig, teacher: ModelConfig, prompts: Path, tmp_path: Path,
    uninterrupted: tuple[dict[str, torch.Tensor], OnPolicyResult],
) -> None:  # fmt: skip
    config, out = config_for(teacher), tmp_path / "student"
    kill_at("step 5", student, prompts, out, config)
    work = out.with_name("student.work")
    path = rollouts_path(work, 2)
    path.write_bytes(path.read_bytes()[:-30])
    (work / "own-text.json").write_text("{")
    (work / ".rollouts-2.jsonl.0123abcd.jsonl").write_text("of a kill")
    result, logs = train(student, prompts, out, config)
    assert any("the round is generated again" in row.get("note", "") for row in logs)
    assert result.stats.before is None
    assert same(weights(out), uninterrupted[0])
    assert not work.exists()


def test_other_settings_start_again(student: ModelConfig, teacher: ModelConfig, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    kill_at("step 5", student, prompts, out, config_for(teacher))
    other = SETTINGS.model_copy(update={"sampling": SAMPLING.model_copy(update={"seed": 5})})
    result, logs = train(student, prompts, out, config_for(teacher), other)
    assert result.training.resumed_from == 0
    assert any("it is a checkpoint of other settings" in row.get("note", "") for row in logs)
    clean, _ = train(student, prompts, tmp_path / "clean", config_for(teacher), other)
    assert same(weights(out), weights(tmp_path / "clean"))
    assert clean.stats.rounds[0].tokens == result.stats.rounds[0].tokens


def at_the_end(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let the second measurement of own text fail."""
    own, calls = on_policy_rounds.measure_own_text, []

    def measure(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return own(*arguments)

    monkeypatch.setattr(on_policy_rounds, "measure_own_text", measure)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), UserError("the server is gone")])
def test_a_measurement_that_fails_costs_no_steps(
    error: Exception, student: ModelConfig, teacher: ModelConfig, prompts: Path, tmp_path: Path,
    uninterrupted: tuple[dict[str, torch.Tensor], OnPolicyResult], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    at_the_end(monkeypatch, error)
    out = tmp_path / "student"
    result, logs = train(student, prompts, out, config_for(teacher))
    assert same(weights(out), uninterrupted[0])
    assert result.stats.before == uninterrupted[1].stats.before
    assert result.stats.after is None
    assert len(result.stats.rounds) == 4
    assert any(f"was not measured after the last step: {error}" in row.get("note", "") for row in logs)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_measurement_that_is_interrupted_costs_no_steps(
    rank: int, student: ModelConfig, teacher: ModelConfig, prompts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config, out = config_for(teacher, max_steps=2, lora=LoraConfig(r=rank)), tmp_path / "student"
    whole, _ = train(student, prompts, tmp_path / "whole", config)
    at_the_end(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(student, prompts, out, config)
    assert not out.exists()
    result, _ = train(student, prompts, out, config)
    assert result.training.resumed_from == 2
    assert same(weights(out), weights(tmp_path / "whole"))
    assert result.stats.before == whole.stats.before
    assert result.stats.after == whole.stats.after
    assert not out.with_name("student.work").exists()


def test_engine_settings_and_the_teachers_context_hold(
    student: ModelConfig, random_model: Callable[..., Path], prompts: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tokenizer = load_model(student)[1]
    lengths = sorted(len(prompt_ids(tokenizer, prompt.messages)) for prompt in make_prompts(40))
    short = lengths[30] + SAMPLING.max_new_tokens
    teacher = ModelConfig(model=str(random_model(max_position_embeddings=short)))
    sizes: list[Any] = []
    batches: list[int] = []
    passes: list[int] = []
    begin, signal = TransformersEngine.__init__, LiveTeacher.signal

    def counted_begin(engine: TransformersEngine, *arguments: Any, **settings: Any) -> None:
        sizes.append(settings.get("batch_size"))
        begin(engine, *arguments, **settings)

    monkeypatch.setattr(TransformersEngine, "__init__", counted_begin)
    monkeypatch.setattr(LiveTeacher, "signal", lambda *given: passes.append(1) or signal(*given))
    monkeypatch.setattr(trainer, "collate", lambda *rows, **given: batches.append(1) or collate(*rows, **given))
    result = train_on_policy(
        student,
        prompts,
        tmp_path / "out",
        config_for(teacher, max_steps=2),
        SETTINGS,
        server=EngineConfig(batch_size=3),
    )
    assert sizes == [3]
    assert len(passes) == len(batches)  # own text too is read by the teacher once
    assert result.training.dropped == {rollouts.NO_ROOM_FOR_TEACHER: sum(length > lengths[30] for length in lengths)}


def test_a_step_is_the_same_however_it_is_split(
    student: ModelConfig, teacher: ModelConfig, prompts: Path, tmp_path: Path
) -> None:
    rounds = SETTINGS.model_copy(update={"steps_per_round": 1, "rollouts_per_step": 12})
    found = []
    for tokens in (96, 4096):
        config = config_for(teacher, tokens_per_batch=tokens, max_steps=1, validation_fraction=0)
        result, logs = train(student, prompts, tmp_path / str(tokens), config, rounds)
        assert not result.stats.held_out
        found.append(next(row for row in logs if "loss" in row))
    for name in ("loss", "grad_norm"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4)


def test_what_would_have_a_bias_or_no_meaning_is_refused(teacher: ModelConfig) -> None:
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "the objective cross_entropy does not compare whole distributions": ({"objective": "cross_entropy"}, {}),
        "ce_weight: on-policy the next token is the student's own": ({"objective_settings": ["ce_weight=0.1"]}, {}),
        "teacher-cache.mode top_k: rollouts are new": ({"teacher_cache": TeacherCacheConfig(mode="top_k")}, {}),
        "runs in one process": ({"num_processes": 2}, {}),
        "train.eval-steps: own text is measured": ({"eval_steps": 2}, {}),
        r"train.max-steps 3 .*give a multiple of --steps-per-round 2, .*: 2 or 4": ({"max_steps": 3}, {}),
        "train.num-epochs 3: train.max-steps 8 says how long": ({"num_epochs": 3}, {}),
        "--rollout.response-format: rollouts are drawn from": ({}, {"response_format": '{"type":"json_object"}'}),
        r"a round has 12 rollouts \(2 steps of 6\), which 5 samples": ({}, {"num_samples": 5}),
        "--rollout.stop: a student learns where to end": ({}, {"stop": ("x",)}),
    }
    for message, (changes, sampling) in cases.items():
        settings = SETTINGS.model_copy(update={"sampling": SAMPLING.model_copy(update=sampling)})
        with pytest.raises(UserError, match=message):
            check_on_policy(config_for(teacher, **changes), settings)
    check_on_policy(config_for(teacher, objective_settings=["ce_weight=0", "temperature=1"]), SETTINGS)
    check_on_policy(config_for(teacher, max_steps=-1, num_epochs=3), SETTINGS)
