"""The lab on a pair of real models: `make test-real DIR=folder`, a folder with one Hugging Face directory per model.

The largest is the teacher, the smallest the student. Skipped where DISTILL_LAB_REAL names no such folder.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from distill_lab import chat
from distill_lab.cli import main
from distill_lab.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines.transformers import load
from distill_lab.models.loading import load_model
from distill_lab.train.student import train_student
from distill_lab.types import Prompt

FOLDER = os.environ.get("DISTILL_LAB_REAL", "")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FOLDER, reason="no real models (make test-real DIR=folder)"),
    pytest.mark.timeout(1800),
]
LONG = "You answer in one short sentence, in plain words, without a list and without quoting the question. " * 20
QUESTIONS = [
    "Name three colors.",
    "What is 17 + 25? Think step by step.",
    "Write a Python function that adds two numbers.",
    "Why is the sky blue?",
    "Translate to French: good morning",
]


def models() -> list[str]:
    """Teacher and student."""
    sizes = {
        folder: sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        for folder in Path(FOLDER).expanduser().iterdir()
        if (folder / "config.json").is_file()
    }
    ordered = sorted(sizes, key=lambda folder: -sizes[folder])
    assert len(ordered) >= 2, f"{FOLDER} holds fewer than two model directories"
    return [str(ordered[0]), str(ordered[-1])]


def prompts(*, system: str = "") -> list[Prompt]:
    start = [{"role": "system", "content": system}] if system else []
    return [Prompt(str(number), [*start, {"role": "user", "content": text}]) for number, text in enumerate(QUESTIONS)]


@pytest.mark.parametrize("system", ["", LONG], ids=["bare", "shared prefix"])
def test_greedy_answers_in_fp32_are_those_of_generate(system: str) -> None:
    engine = load(ModelConfig(model=models()[1], dtype="fp32"), EngineConfig(engine="transformers"))
    asked = prompts(system=system)
    found = {answer.id: answer for answer in engine.generate(asked, SamplingConfig(max_new_tokens=40))}
    assert len(found) == len(asked)
    for prompt in asked:
        ids = chat.prompt_ids(engine.tokenizer, prompt.messages)
        made = engine.model.generate(  # pyright: ignore[reportCallIssue]
            torch.tensor([ids]), do_sample=False, max_new_tokens=40, repetition_penalty=1.0, top_k=None, top_p=None,
            temperature=None, eos_token_id=engine.io.end_ids,
        )[0, len(ids) :].tolist()  # fmt: skip
        assert found[prompt.id].content == str(engine.tokenizer.decode(made, skip_special_tokens=True)).strip()


def test_bf16_gives_the_same_next_token_almost_always() -> None:
    name = models()[1]
    tokenizer = load_model(ModelConfig(model=name, dtype="fp32"))[1]
    rows = [chat.prompt_ids(tokenizer, prompt.messages) for prompt in prompts(system=LONG)]
    logits = {}
    for dtype in ("fp32", "bf16"):
        model, _ = load_model(ModelConfig(model=name, dtype=dtype))
        with torch.no_grad():
            logits[dtype] = torch.cat([model(torch.tensor([ids]), use_cache=False).logits[0].float() for ids in rows])
    wide, narrow = (logits[dtype].log_softmax(-1) for dtype in ("fp32", "bf16"))
    agree = (wide.argmax(-1) == narrow.argmax(-1)).float().mean().item()
    divergence = (wide.exp() * (wide - narrow)).sum(-1).mean().item()
    assert agree >= 0.97
    assert divergence < 0.01


def test_adapters_learn_and_load_again(tmp_path: Path) -> None:
    name = models()[1]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is the code word for {number}?"}],
            "completion": [{"role": "assistant", "content": f"zebra {number % 3} lantern"}],
        }
        for number in range(32)
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    train = TrainConfig(
        num_epochs=2, learning_rate=1e-3, tokens_per_batch=256, validation_fraction=0.1, lora=LoraConfig(r=8, alpha=16)
    )
    result = train_student(ModelConfig(model=name), tmp_path / "rows.jsonl", tmp_path / "student", train, thinking=None)
    assert result.validation_loss_before is not None
    assert result.validation_loss_after is not None
    assert result.validation_loss_after < 0.5 * result.validation_loss_before
    engine = load(ModelConfig(model=str(tmp_path / "student")), EngineConfig(engine="transformers"))
    asked = Prompt("new", [{"role": "user", "content": "What is the code word for 77?"}])
    answer = next(iter(engine.generate([asked], SamplingConfig(max_new_tokens=16))))
    assert "zebra" in answer.content


def test_system1_from_the_command_line(tmp_path: Path) -> None:
    teacher, student = models()
    instructions = [
        {"instruction": f"Name a city that begins with the letter {letter}."} for letter in "ABCDEFGHIJKLMNOPQRST"
    ]
    write_jsonl(tmp_path / "data.jsonl", instructions)
    code = main(
        ["system1", "--teacher", teacher, "--student", student, "--data", str(tmp_path / "data.jsonl"), "--relabel",
         "--sampling.max-new-tokens", "24", "--test-sampling.max-new-tokens", "24", "--train.lora.r", "8",
         "--train.max-steps", "2", "--no-measure", "--run", str(tmp_path / "run")]
    )  # fmt: skip
    assert code == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary.n == 2
    assert set(summary.models) == {"teacher", "base", "student"}
    assert (tmp_path / "run" / "report.html").is_file()
