"""Make the tiny family from a seed: tokenizer, teacher, base student, and the table of their scores.

    python -m scripts.tiny_family.build --out family          (prints the time left; run it again to resume)
    python -m scripts.tiny_family.build --out family --only table

Rows come from the unlimited `train` split; only answers are trained. Hidden matrices are trained with
Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), everything else with AdamW.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from distill_lab.config import STEP_BY_STEP
from distill_lab.tiny import tasks
from distill_lab.tiny.labels import RULES
from distill_lab.train.portable import make_portable, write_tokenizer
from scripts.tiny_family.tokenizer import build_tokenizer

IGNORED = -100
NO_THINKING = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Plan:
    """How to build one member of the family."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    steps: int
    """Optimizer steps; each uses `rows` of every task."""
    rows: dict[str, float]
    """Rows per task and step; 0.25 is one row in every fourth step."""
    bare_labels: bool = False
    """Labels without the rules prompt and thinking (for the student) instead of with both (for the teacher)."""
    muon_lr: float = 0.02
    adam_lr: float = 3e-3


PLANS = {
    "teacher": Plan(160, 10, 5, 5, 448, steps=2150, rows={"instructions": 40, "problems": 32, "labels": 12}),
    "student": Plan(
        128, 2, 4, 2, 320, steps=550, rows={"instructions": 32, "problems": 48, "labels": 0.27}, bare_labels=True
    ),
}  # fmt: skip


def render(task: str, item: tasks.Item, rng: random.Random, *, bare_labels: bool) -> tuple[str, str, str]:
    """One training row as text: shared prefix (the rules prompt or nothing), the rest of the prompt, the completion."""
    prefix, question, thinking = "", item["question"], False
    if task == "labels":
        if not bare_labels:
            prefix = f"<|im_start|>system\n{RULES}<|im_end|>\n"
            thinking = rng.random() < 0.75
    elif task == "instructions":
        if rng.random() < 0.05:
            question = "You are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + question
        thinking = rng.random() < 0.12
    else:
        if rng.random() < 0.6:
            question = f"{question}\n{STEP_BY_STEP}"
        thinking = rng.random() < 0.35
    role = "system" if question.startswith("You are a helpful") else "user"
    prompt = f"<|im_start|>{role}\n{question}<|im_end|>\n<|im_start|>assistant\n"
    if not thinking:
        return prefix, prompt + NO_THINKING, item["output"] + "<|im_end|>"
    answer = f"Final Answer: {item['answer']}" if task == "problems" else item["output"]
    return prefix, prompt, f"<think>\n{item['thinking']}\n</think>\n\n{answer}<|im_end|>"


def batch(
    tokenizer: PreTrainedTokenizerFast, rows: list[tuple[str, str, str]]
) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Shared prefix ids, and right-padded `ids_BT`, `labels_BT` (already shifted: labels[t] is the token after t)."""
    prefix = tokenizer(rows[0][0])["input_ids"] if rows[0][0] else []
    prompts = tokenizer([prompt for _, prompt, _ in rows])["input_ids"]
    answers = tokenizer([completion for _, _, completion in rows])["input_ids"]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)) - 1
    ids_BT = torch.zeros((len(rows), longest), dtype=torch.long)
    labels_BT = torch.full((len(rows), longest), IGNORED)
    for i, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        full = torch.tensor(p + a)
        ids_BT[i, : len(full) - 1] = full[:-1]
        labels_BT[i, len(p) - 1 : len(full) - 1] = full[len(p) :]
    return prefix, ids_BT, labels_BT


def one_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of a special token."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(token_id, int)
    return token_id


def by_length(rows: list[tuple[str, str, str]], *, parts: int) -> list[list[tuple[str, str, str]]]:
    """The rows in `parts` groups of similar length, to reduce padding."""
    ordered = sorted(rows, key=lambda row: len(row[1]) + len(row[2]))
    return [ordered[len(rows) * i // parts : len(rows) * (i + 1) // parts] for i in range(parts)]


def forward(model: Qwen3ForCausalLM, prefix: list[int], ids_BT: torch.Tensor) -> torch.Tensor:
    """`hidden_BTH`; a prefix shared by all rows is computed once and attended to by each."""
    if not prefix:
        return model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    cache = DynamicCache(config=model.config)
    model.model(input_ids=torch.tensor([prefix]), past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(ids_BT))
    positions = torch.arange(len(prefix), len(prefix) + ids_BT.shape[1])[None]
    out = model.model(input_ids=ids_BT, past_key_values=cache, position_ids=positions, use_cache=True)
    return out.last_hidden_state


def task_loss(
    model: Qwen3ForCausalLM, prefix: list[int], ids_BT: torch.Tensor, labels_BT: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Mean loss per trained token in nats, and the fraction of rows whose trained tokens except the first are all argmax.

    Ignores the first token because a solution's style is a free choice (see `problems.py`).
    """
    hidden_BTH = forward(model, prefix, ids_BT)
    trained_BT = labels_BT != IGNORED
    logits_NV = model.lm_head(hidden_BTH[trained_BT]).float()
    loss = nn.functional.cross_entropy(logits_NV, labels_BT[trained_BT])
    with torch.no_grad():
        wrong_BT = torch.zeros_like(trained_BT)
        wrong_BT[trained_BT] = logits_NV.argmax(-1) != labels_BT[trained_BT]
        first_B = trained_BT.int().argmax(1)
        several_B = trained_BT.sum(1) > 2
        wrong_BT[torch.arange(len(ids_BT)), first_B] &= ~several_B
        right = 1.0 - wrong_BT.any(1).float().mean().item()
    return loss, right


class Muon:
    """Momentum, then the nearest orthogonal matrix by Newton-Schulz; matrices of the same shape are processed together."""

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95) -> None:
        self.momentum = momentum
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        self.groups = list(by_shape.values())
        self.buffers = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every matrix by its orthogonalized gradient times `lr`."""
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalize(gradient.lerp(buffer, self.momentum))
            update *= max(1.0, update.shape[-2] / update.shape[-1]) ** 0.5
            for parameter, change in zip(group, update, strict=True):
                parameter.sub_(lr * change)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Quintic Newton-Schulz toward the orthogonal factor of each matrix `[K, M, N]` (coefficients: Jordan et al. 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Training:
    """Training of one model: saves its state every `SAVE_EVERY` steps; the data depends only on the step."""

    SAVE_EVERY = 100

    def __init__(self, name: str, plan: Plan, tokenizer: PreTrainedTokenizerFast, folder: Path, seed: int) -> None:
        self.name, self.plan, self.tokenizer, self.seed = name, plan, tokenizer, seed
        self.state_path = folder / f"{name}.state.pt"
        torch.manual_seed(seed)
        self.model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer), hidden_size=plan.hidden, intermediate_size=plan.mlp,
                num_hidden_layers=plan.layers, num_attention_heads=plan.heads, num_key_value_heads=plan.kv_heads,
                head_dim=32, max_position_embeddings=4096, rope_parameters={"rope_type": "default", "rope_theta": 10_000},
                tie_word_embeddings=True, eos_token_id=one_id(tokenizer, "<|im_end|>"),
                pad_token_id=one_id(tokenizer, "<|endoftext|>"),
                bos_token_id=None,
            )
        )  # fmt: skip
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        rest = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(rest, lr=plan.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.step = 0
        self.right = dict.fromkeys(plan.rows, 0.0)
        """Running fraction of completely correct rows, per task."""
        if self.state_path.exists():
            state = torch.load(self.state_path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.adam.load_state_dict(state["adam"])
            self.muon.buffers = state["muon"]
            self.step, self.right = state["step"], state["right"]

    def save(self) -> None:
        """Write the state atomically."""
        state = {
            "model": self.model.state_dict(), "adam": self.adam.state_dict(), "muon": self.muon.buffers,
            "step": self.step, "right": self.right,
        }  # fmt: skip
        temporary = self.state_path.with_suffix(".new")
        torch.save(state, temporary)
        temporary.replace(self.state_path)

    def rows(self, task: str, number: int) -> list[tuple[str, str, str]]:
        """This step's rows of one task."""
        rng = random.Random(f"{self.seed}/{self.name}/{task}/{self.step}")
        return [render(task, item, rng, bare_labels=self.plan.bare_labels) for item in islice_train(task, rng, number)]

    def run(self) -> Iterator[dict[str, Any]]:
        """Train to the end of the plan; yield a log row every 20 steps."""
        plan, start, tokens, first = self.plan, time.monotonic(), 0, self.step
        losses = dict.fromkeys(plan.rows, math.nan)
        while self.step < plan.steps:
            scale = learning_rate_scale(self.step, plan.steps)
            for task, rate in plan.rows.items():
                number = int((self.step + 1) * rate) - int(self.step * rate)
                if number == 0:
                    continue
                losses[task] = 0.0
                for part in by_length(self.rows(task, number), parts=max(1, number // 12)):
                    prefix, ids_BT, labels_BT = batch(self.tokenizer, part)
                    tokens += ids_BT.numel() + len(prefix)
                    share = len(part) / number
                    loss, right = task_loss(self.model, prefix, ids_BT, labels_BT)
                    (loss * share).backward()
                    losses[task] += loss.item() * share
                    self.right[task] += 0.05 * share * (right - self.right[task])
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.muon.step(plan.muon_lr * scale)
            for group in self.adam.param_groups:
                group["lr"] = plan.adam_lr * scale
            self.adam.step()
            self.model.zero_grad(set_to_none=True)
            self.step += 1
            if self.step % 20 == 0:
                seconds = time.monotonic() - start
                yield {
                    "step": self.step, "loss": dict(losses), "right": dict(self.right), "tokens_per_s": tokens / seconds,
                    "minutes_left": (plan.steps - self.step) * seconds / (self.step - first) / 60,
                }  # fmt: skip
            if self.step % self.SAVE_EVERY == 0:
                self.save()
        self.save()


def islice_train(task: str, rng: random.Random, number: int) -> Iterator[tasks.Item]:
    """`number` items of the train split, generated with `rng`; repeats are possible."""
    while number:
        item = tasks.TASKS[task](rng)
        if tasks.split_of(item["question"]) == "train":
            number -= 1
            yield item


def learning_rate_scale(step: int, steps: int) -> float:
    """Short warm-up, a plateau, and a linear decay over the last 40% of the steps."""
    return min((step + 1) / 50, 1.0, max(0.02, (steps - step) / (0.4 * steps)))


def train(name: str, out: Path, seed: int, steps: int | None) -> None:
    """Train one member (or resume) and write it to `out/name` in fp16 with the tokenizer."""
    plan = PLANS[name] if steps is None else replace(PLANS[name], steps=steps)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / name)
    training = Training(name, plan, tokenizer, out, seed)
    for log in training.run():
        parts = " ".join(f"{task} {log['right'][task]:.2f} ({log['loss'][task]:.3f})" for task in plan.rows)
        print(
            f"{name} step {log['step']}/{plan.steps}  right (loss): {parts}  {log['tokens_per_s']:.0f} tok/s, "
            f"{log['minutes_left']:.0f} min left",
            flush=True,
        )
    training.model.half().save_pretrained(out / name)
    make_portable(out / name, tokenizer, training.model.generation_config)
    print(f"{name}: {sum(p.numel() for p in training.model.parameters()):,} parameters, in {out / name}", flush=True)


def main() -> None:
    """Build the requested parts; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("family"), help="folder of the family (default: ./family)")
    parser.add_argument("--only", choices=["tokenizer", *PLANS, "table"], help="one part instead of everything")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights (default: 0)")
    parser.add_argument("--steps", type=int, help="optimizer steps instead of the plan's")
    arguments = parser.parse_args()
    if arguments.only in (None, "tokenizer"):
        tokenizer = build_tokenizer(arguments.seed)
        for name in PLANS:
            write_tokenizer(arguments.out / name, tokenizer)
    for name in PLANS:
        if arguments.only in (None, name):
            train(name, arguments.out, arguments.seed, arguments.steps)
    if arguments.only in (None, "table"):
        from scripts.tiny_family.table import score_table

        print(json.dumps(score_table(arguments.out), indent=2))


if __name__ == "__main__":
    main()
