"""What several tests share: rows, prompts, small engines and models, a training that is killed, limited memory."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distill_lab.chat import prompt_ids
from distill_lab.config import ModelConfig, SamplingConfig, TeacherCacheConfig, TrainConfig
from distill_lab.control_tokens import split_thinking
from distill_lab.evaluation.eval_rows import EvalRow
from distill_lab.files.jsonl import write_jsonl
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.models.loading import load_model
from distill_lab.run import Run
from distill_lab.tiny.tasks import rows as task_rows
from distill_lab.train.cached_teacher import cache_identity
from distill_lab.train.capture import capture
from distill_lab.train.loss_module import decoder_and_head
from distill_lab.train.objectives import LossBatch, LossOutput, Objective, load_objective
from distill_lab.train.packing import Row
from distill_lab.train.plan import make_plan, training_arguments
from distill_lab.train.rounds import known_rows
from distill_lab.train.rows import read_rows
from distill_lab.train.student import train_model
from distill_lab.train.teacher_cache import TeacherCache, create
from distill_lab.train.teachers import LiveTeacher
from distill_lab.train.trainer import StudentTrainer
from distill_lab.types import Completion, Counts, Grade, Prompt

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "distill_lab"
FAMILY = PACKAGE / "tiny" / "family"
CROSS_ENTROPY = load_objective("cross_entropy")
COLOURS = ["red", "green", "blue", "white"]
FAST = TrainConfig(
    dtype="fp32", learning_rate=5e-3, tokens_per_batch=128, num_epochs=3, logging_steps=1, validation_fraction=0.1
)


def toy_rows(number: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "user", "content": f"Say the colour {COLOURS[index % 4]}, please. ({index})"}],
            "completion": [{"role": "assistant", "content": f"The colour is {COLOURS[index % 4]}" + "!" * (index % 7)}],
        }
        for index in range(number)
    ]


CHILD = """
import json, os, sys, time
from pathlib import Path
from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.train.student import train_student

def on_log(row):
    if row.get("step") == int(sys.argv[5]) and "loss" in row:
        Path(sys.argv[4]).touch()
        time.sleep(600)

train_student(ModelConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]),
              TrainConfig.model_validate_json(sys.argv[6]), on_log=on_log, log_file=Path(sys.argv[3] + ".jsonl"))
"""


def train_and_kill(student: ModelConfig, rows: Path, out: Path, config: TrainConfig, *, step: int) -> None:
    """Train in another process and end it with SIGKILL in the middle of `step`."""
    sign = out.with_name("reached")
    arguments = [student.model_dump_json(), str(rows), str(out), str(sign), str(step), config.model_dump_json()]
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not sign.exists():
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.communicate()
    assert not out.exists()


class _FailsBackward(torch.autograd.Function):
    """Passes its input on; its backward pass runs out of memory."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


def limited(most: int, *, calls: list[int], backward: bool = False) -> Objective:
    """Cross-entropy that takes at most `most` loss positions; beyond, a pass runs out of memory."""

    def objective(hidden_NH: torch.Tensor, head: Any, batch: LossBatch) -> LossOutput:
        calls.append(len(hidden_NH))
        # Every third call is let through whatever its size, so that a step has gradients when it fails.
        if len(hidden_NH) > most and len(calls) % 3:
            if not backward:
                raise torch.OutOfMemoryError("out of memory")
            hidden_NH = _FailsBackward.apply(hidden_NH)  # pyright: ignore[reportAssignmentType]
        return CROSS_ENTROPY(hidden_NH, head, batch)

    return objective


def base_model(folder: Path, **generation: Any) -> ModelConfig:
    """The tiny student as a base model: its text ends with <|endoftext|>, its template's turns with <|im_end|>."""
    shutil.copytree(FAMILY / "student", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "pad_token_id": end, **generation}))
    return ModelConfig(model=str(folder))


ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "plain": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "untied head": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": False}),
    "sliding window": ("Gemma3TextConfig", "Gemma3ForCausalLM", {"sliding_window": 8, "head_dim": 16}),
    "experts": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    ),
}


def other_architecture(
    kind: str, tokenizer: PreTrainedTokenizerBase, folder: Path, *, more_rows: int = 0, **changes: Any
) -> ModelConfig:
    """A random model of one of ARCHITECTURES in `folder`, with this tokenizer. more_rows: of the head, without a token."""
    config, model, settings = ARCHITECTURES[kind]
    common = {
        "vocab_size": len(tokenizer) + more_rows, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
    }  # fmt: skip
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**(common | settings | changes)))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(model=str(folder))


def model_folder(place: Path, weights: bytes = b"w" * 1000) -> Path:
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "tokenizer.json").write_text("{}")
    (place / "model.safetensors").write_bytes(weights)
    return place


WORDS = "apple two the price of has many buys gives how left 3 7 12 then and in total box 今天 naïve".split()


def make_prompts(number: int, *, seed: int = 0, longest: int = 30) -> list[Prompt]:
    draw_words = random.Random(seed)
    texts = [" ".join(draw_words.choices(WORDS, k=draw_words.randint(1, longest))) for _ in range(number)]
    return [Prompt(f"p-{place}", [{"role": "user", "content": text}]) for place, text in enumerate(texts)]


def make_engine(folder: Path, *, num_ends: int = 0, **settings: Any) -> TransformersEngine:
    """An engine whose model ends at `num_ends` more tokens, so that its rows end at different lengths."""
    model, tokenizer = load_model(ModelConfig(model=str(folder)))
    ends = random.Random(0).sample(range(len(tokenizer)), num_ends)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
    return TransformersEngine(model, tokenizer, **settings)


def by_id(completions: Any) -> dict[tuple[str, int], Completion]:
    rows = list(completions)
    found = {(row.id, row.sample): row for row in rows}
    assert len(found) == len(rows), "a completion came twice"
    return found


def assert_equals_generate(engine: TransformersEngine, prompts: Sequence[Prompt], sampling: SamplingConfig) -> int:
    """Every completion is what `generate` makes of the prompt alone. Returns how many ended by themselves."""
    found = by_id(engine.generate(prompts, sampling))
    model: Any = engine.model
    for prompt in prompts:
        ids = torch.tensor([prompt_ids(engine.tokenizer, prompt.messages)])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=engine.io.end_ids,
            pad_token_id=engine.tokenizer.pad_token_id,
        )[0, ids.shape[1] :].tolist()
        row = found[prompt.id, 0]
        assert row.num_tokens == len(output)
        assert (row.thinking, row.content) == split_thinking(engine.io.text(output))
        assert row.finish_reason == ("stop" if output[-1] in engine.io.end_ids else "length")
    return sum(row.finish_reason == "stop" for row in found.values())


def with_system(prompts: Sequence[Prompt], *, words: int, every: int = 1) -> list[Prompt]:
    """The prompts, every so manyth under one long system message."""
    text = " ".join(random.Random(9).choices(WORDS, k=words))
    system = {"role": "system", "content": text}
    return [
        Prompt(prompt.id, [system, *prompt.messages]) if place % every == 0 else prompt
        for place, prompt in enumerate(prompts)
    ]


def passes(engine: TransformersEngine) -> list[int]:
    """Fresh tokens of every forward pass from now on."""
    forward, seen = engine.model.forward, []

    @functools.wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    engine.model.forward = counted
    return seen


IN_THREE_PARTS = TrainConfig(
    dtype="fp32",
    learning_rate=1e-3,
    tokens_per_batch=256,
    gradient_accumulation_steps=3,
    logging_steps=1,
    validation_fraction=0,
)
"""Steps of three micro-batches."""


def train_with(
    objective: Objective, student: Path, out: Path, config: TrainConfig
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The weights of a student trained on `toy_rows`, and what the trainer said."""
    write_jsonl(out.with_suffix(".jsonl"), toy_rows())
    model, tokenizer = load_model(ModelConfig(model=str(student)), training=True)
    data = read_rows(out.with_suffix(".jsonl"), tokenizer, max_length=512, validation_fraction=0, seed=0)
    logs: list[dict[str, Any]] = []
    train_model(model, tokenizer, data, out, config, key="k", objective=objective, on_log=logs.append)
    return load_file(out / "model.safetensors"), logs


def eval_row(id: str, score: float = 1.0, **fields: Any) -> dict[str, Any]:
    """A line of an eval file; fields that are not given are those of a short, whole answer."""
    row = EvalRow(id, 0, [{"role": "user", "content": id}], "4", None, "4", "stop", 1, Grade(score, "4"))
    return row.to_json() | fields


def step_gradients(student: ModelConfig, rows: Path, tmp_path: Path, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The gradients the first optimizer step is taken with, by the real training loop."""
    model, tokenizer = load_model(student, training=True)
    data = read_rows(rows, tokenizer, max_length=512, validation_fraction=0, seed=0)
    plan = make_plan([len(row) for row in data.training], config)
    seen: dict[str, torch.Tensor] = {}

    class Spy(StudentTrainer):
        def _clip_grad_norm(self, model: Any) -> Any:
            seen.update({name: weight.grad.clone() for name, weight in model.named_parameters()})
            return super()._clip_grad_norm(model)

    args = training_arguments(tmp_path / "work", config, plan.num_steps, validate=False)
    rounds = known_rows(data.training, plan)
    Spy(model, args=args, config=config, rounds=rounds, objective=CROSS_ENTROPY, on_log=lambda row: None).train()
    assert plan.num_steps == 1
    return seen


def finished_run(folder: Path, *, made: Path | None = None, rows: Sequence[Prompt] = (), **config: Any) -> Path:
    """A run directory as a recipe leaves it: run.json with its stages, the student, its graded answers, summary.json.

    made: what "training" made; the tiny student if not given. rows: the test prompts. config: replaces settings.
    """
    settings = {
        "teacher": {"model": "tiny:teacher"},
        "student": {"model": "tiny:student", "quantization": "none"},
        "data": {"path": "tiny:instructions", "split": "distill[:800]"},
        "test_sampling": {"max_new_tokens": 24, "thinking": False},
        "train": TrainConfig().model_dump(),
    }
    with Run.open(folder, recipe="system1", config=settings | config) as run:
        counts = Counts(800, 790, {"cut": 10})
        run.stage("training set", "train.jsonl", inputs={}, work=lambda path: path.touch() or counts)
        source = made or FAMILY / "student"
        run.stage("student", "student", inputs={}, work=lambda path: shutil.copytree(source, path) and None)
    if rows:
        items = [eval_row(row.id, prompt=row.messages, answer=row.answer) for row in rows]
        write_jsonl(folder / "eval" / "student.jsonl", items)
    models = {"teacher": {"score": 0.9, "ci95": [0.8, 0.95]}, "student": {"score": 0.8, "ci95": [0.7, 0.88]}}
    metric = {"grader": "exact", "name": "exact match", "short": "exact match", "similarity": False}
    found: dict[str, Any] = {"recipe": "system1", "n": 60, "models": models, "metric": metric, "notes": []}
    found |= {
        "retention": 0.889,
        "retention_ci95": [0.8, 0.97],
        "gain": 0.25,
        "gain_ci95": [0.1, 0.4],
        "p_value": 0.003,
    }
    (folder / "summary.json").write_text(json.dumps(found))
    return folder


def tiny_prompts(number: int) -> list[Prompt]:
    """Test prompts of the tiny family's instructions, with gold answers."""
    rows = islice(task_rows("instructions", "test"), number)
    return [Prompt(f"t-{place}", row["messages"][:1], row["answer"]) for place, row in enumerate(rows)]


def teacher_settings(teacher: ModelConfig, mode: str = "sampled", **changes: Any) -> TrainConfig:
    cache = {"mode": mode} | {name: changes.pop(name) for name in ("size", "folder", "seed") if name in changes}
    given = {"dtype": "fp32", "tokens_per_batch": 256, "validation_fraction": 0.0, "objective": "forward_kl"} | changes
    return TrainConfig(teacher=teacher, teacher_cache=TeacherCacheConfig.model_validate(cache), **given)


def live_teacher_of(teacher: ModelConfig, num_ids: int | None = None) -> LiveTeacher:
    model = load_model(teacher)[0]
    return LiveTeacher(model, num_ids or decoder_and_head(model)[1].linear.out_features)


def filled_cache(config: TrainConfig, folder: Path, rows: list[Row]) -> TeacherCache:
    cache = create(folder, cache_identity(config), rows)
    capture(live_teacher_of(config.teacher), rows, cache, tokens_per_batch=256)
    return TeacherCache.open(folder, cache_identity(config))


VOID_TAGS = {"meta", "br", "path", "line", "rect", "circle", "polyline"}


class _StrictPage(HTMLParser):
    """Every element closes in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag, tag


def well_formed(text: str) -> None:
    """Assert that a page is well-formed, loads nothing and runs nothing."""
    page = _StrictPage()
    page.feed(text)
    page.close()
    assert page.open == []
    assert not page.seen & {"script", "img", "iframe", "link", "object"}
    assert "http://" not in text
    assert "https://" not in text


def real_models(folder: str) -> list[str]:
    """The largest and the smallest model in a folder with a directory for each (DISTILL_LAB_REAL)."""
    sizes = {
        each: sum(file.stat().st_size for file in each.glob("*.safetensors"))
        for each in Path(folder).expanduser().iterdir()
        if (each / "config.json").is_file()
    }
    ordered = sorted(sizes, key=lambda each: -sizes[each])
    assert len(ordered) >= 2, f"{folder} holds fewer than two model directories"
    return [str(ordered[0]), str(ordered[-1])]
