"""A teacher on a server: the same figures as with the teacher here, and clear refusals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill_lab.chat import prompt_ids
from distill_lab.config import LoraConfig, ModelConfig, PriceConfig, SamplingConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_tokenizer
from distill_lab.planning.preflight import check_training
from distill_lab.train.on_policy import OnPolicyResult, check_on_policy, on_policy_inputs, train_on_policy
from distill_lab.train.rollouts import NO_ROOM_FOR_TEACHER, RolloutSettings
from distill_lab.train.scoring_server import ScoringServer
from tests.helpers import make_prompts
from tests.scoring_vllm import Vllm

pytestmark = pytest.mark.slow

SETTINGS = RolloutSettings(
    sampling=SamplingConfig(max_new_tokens=10, temperature=1.0), steps_per_round=1, rollouts_per_step=8
)


TINY = ModelConfig(model="tiny:teacher")
ON_SERVER = ModelConfig(model="openai:tiny")


@pytest.fixture(scope="module")
def running() -> Iterator[Vllm]:
    server = Vllm(TINY)
    yield server
    server.close()


@pytest.fixture
def vllm(running: Vllm, monkeypatch: pytest.MonkeyPatch) -> Vllm:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running.requests.clear()
    running.fails, running.most, running.shift, running.scores, running.max_model_len = 0, 20, 0, True, None
    running.on_arrival = lambda: None
    return running


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    write_jsonl(path, [prompt.to_json() for prompt in make_prompts(40)])
    return path


def config_for(teacher: ModelConfig, objective: str, **changes: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "dtype": "fp32", "learning_rate": 5e-3, "tokens_per_batch": 1024, "max_steps": 12, "logging_steps": 1,
        "validation_fraction": 0.2, "warmup_ratio": 0.0, "save_steps": 4,
    }  # fmt: skip
    return TrainConfig(teacher=teacher, objective=objective, **(given | changes))


def train(
    student: ModelConfig,
    prompts: Path,
    out: Path,
    config: TrainConfig,
    vllm: Vllm,
    settings: RolloutSettings = SETTINGS,
) -> OnPolicyResult:
    return train_on_policy(student, prompts, out, config, settings, server=vllm.engine)


def test_own_text_is_scored_as_by_the_teacher_here(
    student: ModelConfig, prompts: Path, tmp_path: Path, vllm: Vllm
) -> None:
    vllm.fails = 2
    config = {"max_steps": 2}
    served = train(student, prompts, tmp_path / "served", config_for(ON_SERVER, "sampled_reverse_kl", **config), vllm)
    assert vllm.fails == 0
    here = train_on_policy(student, prompts, tmp_path / "here", config_for(TINY, "reverse_kl", **config), SETTINGS)
    # Before the first step both have written the same, and the teacher thinks the same of it.
    assert served.stats.rounds[0].tokens == here.stats.rounds[0].tokens
    assert served.stats.before is not None
    assert here.stats.before is not None
    assert served.stats.before.teacher_nats == pytest.approx(here.stats.before.teacher_nats, rel=1e-4)
    assert served.stats.before.student_nats == pytest.approx(here.stats.before.student_nats, rel=1e-4)
    assert served.stats.before.divergence == pytest.approx(here.stats.before.divergence, rel=0.3)  # an estimate
    # A probe, 8 texts of own text twice, and each rollout once.
    assert len(vllm.requests) == 2 + 1 + 8 + 2 * 8 + 8
    assert {len(body) for body in vllm.requests} == {5}


def test_with_all_ids_named_a_student_learns_what_it_learns_here(
    student: ModelConfig, prompts: Path, tmp_path: Path, vllm: Vllm
) -> None:
    number = len(load_tokenizer(TINY))
    vllm.most = number
    settings = SETTINGS.model_copy(update={"teacher_top_k": number, "rollouts_per_step": 4})
    logs: list[list[dict[str, Any]]] = []
    for teacher, objective in ((ON_SERVER, "sampled_reverse_kl"), (TINY, "reverse_kl")):
        logs.append([])
        train_on_policy(
            student, prompts, tmp_path / objective, config_for(teacher, objective, max_steps=3, validation_fraction=0.05),
            settings, server=vllm.engine, on_log=logs[-1].append,
        )  # fmt: skip
    served, here = ([row for row in each if "loss" in row] for each in logs)
    assert len(served) == len(here) == 3
    for left, right in zip(served, here, strict=True):
        assert left["metrics"]["kd"] == pytest.approx(right["metrics"]["kd"], rel=1e-3)
        assert left["metrics"]["ce"] == pytest.approx(right["metrics"]["ce"], rel=1e-3)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-2)


def test_a_teacher_on_a_server_may_have_a_prompt_too(
    student: ModelConfig, prompts: Path, tmp_path: Path, vllm: Vllm
) -> None:
    settings = SETTINGS.model_copy(update={"system": "Answer in the words of a sailor."})
    config = config_for(ON_SERVER, "sampled_reverse_kl", max_steps=1)
    served = train(student, prompts, tmp_path / "served", config, vllm, settings)
    here = train_on_policy(student, prompts, tmp_path / "here", config_for(TINY, "reverse_kl", max_steps=1), settings)
    assert served.stats.before is not None
    assert here.stats.before is not None
    assert served.stats.before.teacher_nats == pytest.approx(here.stats.before.teacher_nats, rel=1e-4)
    texts = [load_tokenizer(TINY).decode(body["prompt"]) for body in vllm.requests[1:]]
    assert all("the words of a sailor" in text for text in texts)


def test_scores_are_kept_with_their_round(
    student: ModelConfig, prompts: Path, tmp_path: Path, vllm: Vllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(ON_SERVER, "sampled_reverse_kl", save_steps=100, max_steps=6)
    out = tmp_path / "student"
    whole = train(student, prompts, tmp_path / "whole", config, vllm)
    vllm.requests.clear()

    class Stopped(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row.get("step") == 3 and "loss" in row:
            raise Stopped

    with pytest.raises(Stopped):
        train_on_policy(student, prompts, out, config, SETTINGS, server=vllm.engine, on_log=stop)
    assert len(vllm.requests) == 1 + 8 + 3 * 8
    damaged = out.with_name("student.work") / "scores-1.jsonl"
    lines = [bytearray(line) for line in damaged.read_bytes().splitlines()]
    assert len(lines) == 8
    lines[3][len(lines[3]) // 2] ^= 1
    damaged.write_bytes(b"\n".join(lines) + b'\n{"sco')
    vllm.requests.clear()
    resumed = train(student, prompts, out, config, vllm)
    # From the beginning, for there was no checkpoint; but only one of 24 rollouts is scored again.
    assert len(vllm.requests) == 1 + 1 + 3 * 8 + 8
    assert (resumed.stats.before, resumed.stats.after) == (whole.stats.before, whole.stats.after)
    assert not out.with_name("student.work").exists()


def test_a_round_that_was_interrupted_is_paid_for_once(
    student: ModelConfig, prompts: Path, tmp_path: Path, vllm: Vllm
) -> None:
    config = config_for(ON_SERVER, "sampled_reverse_kl", max_steps=1)
    out = tmp_path / "student"
    one = vllm.engine.model_copy(update={"max_concurrency": 1, "max_retries": 0})

    def break_down() -> None:
        if len(vllm.requests) == 1 + 8 + 5:
            vllm.fails = 1

    vllm.on_arrival = break_down
    with pytest.raises(UserError, match="HTTP 503: busy"):
        train_on_policy(student, prompts, out, config, SETTINGS, server=one)
    vllm.on_arrival = lambda: None
    asked = [tuple(body["prompt"]) for body in vllm.requests]
    vllm.requests.clear()
    train_on_policy(student, prompts, out, config, SETTINGS, server=one)
    again = [tuple(body["prompt"]) for body in vllm.requests]
    # A probe, the rollouts from the sixth on (which the server did not answer), and own text after the last step.
    assert len(again) == 1 + 3 + 8
    assert set(asked[9:-1]).isdisjoint(again[1:4])


def test_ctrl_c_does_not_wait_for_the_server(vllm: Vllm) -> None:
    server = ScoringServer(ON_SERVER, vllm.engine.model_copy(update={"timeout_s": 3.0}), size=2, first_wait_s=0.01)
    vllm.arrived = 0
    vllm.on_arrival = lambda: os.kill(os.getpid(), signal.SIGINT) if vllm.arrived == 1 else None
    vllm.waiting.clear()
    try:
        with pytest.raises(KeyboardInterrupt):
            server.scores([[number, 3, 4] for number in range(20)])
        assert vllm.arrived <= 4  # those that ran; none was sent again after its time was up
    finally:
        vllm.waiting.set()
        while len(vllm.requests) < vllm.arrived:
            time.sleep(0.01)


def test_what_requests_have_besides_is_in_the_key_and_replaces_no_score(
    student: ModelConfig, prompts: Path, vllm: Vllm
) -> None:
    extra = vllm.engine.model_copy(
        update={"extra_body": '{"prompt_logprobs": 3, "max_tokens": null, "lora_name": "better"}'}
    )
    ScoringServer(ON_SERVER, extra, size=20).probe(load_tokenizer(student))
    [body] = vllm.requests
    assert (body["prompt_logprobs"], body["max_tokens"], body["lora_name"]) == (20, 1, "better")
    config = config_for(ON_SERVER, "sampled_reverse_kl")
    keys = [on_policy_inputs(student, prompts, config, SETTINGS, engine) for engine in (vllm.engine, extra)]
    assert keys[0] != keys[1]
    elsewhere = vllm.engine.model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    assert on_policy_inputs(student, prompts, config, SETTINGS, elsewhere) == keys[0]


def test_prompts_without_room_in_the_servers_context_are_counted(
    student: ModelConfig, prompts: Path, tmp_path: Path, vllm: Vllm
) -> None:
    tokenizer = load_tokenizer(student)
    lengths = sorted(len(prompt_ids(tokenizer, prompt.messages)) for prompt in make_prompts(40))
    room = SETTINGS.sampling.max_new_tokens
    vllm.max_model_len = lengths[30] + room + 1  # one token is generated after the text
    result = train(student, prompts, tmp_path / "out", config_for(ON_SERVER, "sampled_reverse_kl", max_steps=1), vllm)
    assert result.training.dropped == {NO_ROOM_FOR_TEACHER: sum(length > lengths[30] for length in lengths)}
    assert max(len(body["prompt"]) for body in vllm.requests[1:]) <= lengths[30] + room


def test_servers_that_cannot_teach_are_refused_by_name(student: ModelConfig, vllm: Vllm) -> None:
    tokenizer = load_tokenizer(student)

    def probe(model: ModelConfig = ON_SERVER, **changes: Any) -> None:
        ScoringServer(model, vllm.engine.model_copy(update=changes), size=20, first_wait_s=0.01).probe(tokenizer)

    probe()
    vllm.most = 5
    with pytest.raises(UserError, match=r"the server names [56] ids at a position, 20 were requested; start it with"):
        probe()
    vllm.most, vllm.shift = 20, 1
    with pytest.raises(UserError, match=r"tiny and the student have different tokenizers: id .* on the server and"):
        probe()
    vllm.shift, vllm.scores = 0, False
    with pytest.raises(UserError, match=r"cannot score texts, so .* \(.*no prompt_logprobs in vLLM's form\)"):
        probe()
    with pytest.raises(UserError, match=r"cannot score texts.*HTTP 404"):
        probe(base_url=vllm.engine.base_url.replace("/v1", "/v2"))
    vllm.fails = 100
    with pytest.raises(UserError, match=r"HTTP 503: busy \(tried 2 times\)"):
        probe(max_retries=1)
    with pytest.raises(UserError, match=r"engine.price and --max-cost count answers, not the texts"):
        probe(price=PriceConfig(input=1, output=1, max_cost=5))
    with pytest.raises(UserError, match="it cannot be reached"):
        probe(base_url="http://127.0.0.1:9/v1", max_retries=0)


def test_combinations_with_a_bias_are_refused_by_name() -> None:
    student = ModelConfig(model="tiny:student")
    sampled = config_for(ON_SERVER, "sampled_reverse_kl")
    check_training(student, sampled, on_policy=True)
    check_on_policy(sampled, SETTINGS)
    with pytest.raises(
        UserError, match="is right only for texts that the student has just sampled; use `distill on-policy`"
    ):
        check_training(student, sampled)
    with pytest.raises(UserError, match="on-policy use --objective sampled_reverse_kl, the only one that has no bias"):
        check_training(student, config_for(ON_SERVER, "reverse_kl"), on_policy=True)
    with pytest.raises(UserError, match="is for a teacher on a server; tiny:teacher is loaded here"):
        check_training(student, config_for(TINY, "sampled_reverse_kl"), on_policy=True)
    for name, value in {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1}.items():
        sampling = SETTINGS.sampling.model_copy(update={name: value})
        with pytest.raises(
            UserError, match=f"--rollout.{name.replace('_', '-')} {value}: sampled_reverse_kl has no bias"
        ):
            check_on_policy(sampled, SETTINGS.model_copy(update={"sampling": sampling}))
    with pytest.raises(UserError, match="--steps-per-round 4: sampled_reverse_kl has no bias only if rollouts"):
        check_on_policy(sampled, SETTINGS.model_copy(update={"steps_per_round": 4}))
    with pytest.raises(UserError, match=r"train.lora.dropout 0.1: sampled_reverse_kl has no bias only if a step"):
        check_on_policy(sampled.model_copy(update={"lora": LoraConfig(r=4, dropout=0.1)}), SETTINGS)
