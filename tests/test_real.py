"""The lab on a pair of real models: `make test-real DIR=folder`, a folder with one Hugging Face directory per model.

The largest is the teacher, the smallest the student. Skipped where DISTILL_LAB_REAL names no such folder.
"""

import os
from itertools import islice
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from distill_lab import chat
from distill_lab.cli import main
from distill_lab.config import EngineConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines.transformers import load
from distill_lab.models.loading import load_model
from distill_lab.tiny.tasks import rows as task_rows
from distill_lab.train.student import train_student
from distill_lab.types import Prompt
from tests.helpers import ROOT, real_models

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
    return real_models(FOLDER)


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
    summary = read_summary(tmp_path / "run" / "summary.json")
    assert summary.n == 2
    # Without gold answers the teacher's are the reference, so it gets no score.
    assert set(summary.models) == {"base", "student"}
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_notebook_on_these_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell, with few rows and adapters; the further recipes are estimated, and one of them is run."""
    teacher, student = models()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for task in ("instructions", "problems"):
        rows = list(islice(task_rows(task, "train"), 16))
        write_jsonl(tmp_path / f"{task}.jsonl", rows)
    slices = 'DATASET_SLICE_SYS{0}, TEST_SLICE_SYS{0} = "train[:12]", "train[12:14]"'
    small = 'MEASURE_SYS{0}, METHOD_SYS{0} = False, "lora"\n' + slices
    parameters = {
        "setup": 'PRESET = "qwen2.5"',
        "system1-config": f"TEACHER_MODEL_SYS1, STUDENT_MODEL_SYS1 = {teacher!r}, {student!r}\n"
        f"DATASET_SYS1, OUT_SYS1 = 'instructions.jsonl', './one'\n{small.format(1)}",
        "system2-config": f"STUDENT_MODEL_SYS2 = {student!r}\n"
        f"DATASET_SYS2, OUT_SYS2 = 'problems.jsonl', './two'\n{small.format(2)}",
        "more-config": "RUN_MORE, ROWS_MORE, TEST_MORE, QUESTIONS_MORE = 'estimate only', 10, 1, 'problems.jsonl'",
        "more-data": "short = {'sampling.max_new_tokens': 24, 'test_sampling.max_new_tokens': 24, 'train.lora.r': 8}\n"
        "print(recipe('logits', PRESET, {**instructions, **short, 'relabel': False}, run='yes', directory='runs/run'))",
        "export": 'EXPORT, CHECK = "safetensors", 1',
    }
    notebook = nbformat.read(ROOT / "notebook.ipynb", as_version=4)
    for cell in notebook.cells:  # long answers say no more here
        cell.source = cell.source.replace("else 512", "else 32").replace("else 1024", "else 64")
        cell.source = cell.source.replace("ask_student(f", "ask_student(max_new_tokens=24, question=QUESTION, model=f")
        cell.source = cell.source.replace('.run", QUESTION)', '.run")')
    for place in reversed(range(len(notebook.cells))):
        if notebook.cells[place].id in parameters:
            notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(parameters[notebook.cells[place].id]))
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = {
        cell.id: "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    for number, out in ((1, "one"), (2, "two")):
        assert said[f"system{number}-run"].endswith(f"System {number} student saved to ./{out}\n")
        assert "score [95%]" in said[f"system{number}-score"]
        assert f"all files are in {tmp_path / out}.run" in said[f"system{number}-score"]
        summary = read_summary(tmp_path / f"{out}.run" / "summary.json")
        assert set(summary.models) == {"teacher", "base", "student"}
    assert "not found" not in said["comparison-run"]
    assert read_summary(tmp_path / "runs" / "run" / "summary.json").n == 1
    for name in ("cot", "verified", "prompt", "logits", "on-policy", "draft"):
        assert "Estimate:\n  time: ~ " in said[name], said[name]
    assert (tmp_path / "one.run" / "export" / "safetensors" / "README.md").is_file()
