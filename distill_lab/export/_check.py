"""The check of an export: load it again, ask it what its student is asked, and compare the greedy answers.

    prompts = check_prompts(source, 20)
    check = compare(student_answers, exported_answers, ...)

Two greedy answers part at the first token where two candidates are nearly tied, and everything after it differs; so three
figures are given: the share of answers that are the same, the share of the text before the first difference, and the share
of the student's tokens that are the export's first choice, too, after the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab.config import SamplingConfig
from distill_lab.evaluation.eval_rows import first_samples
from distill_lab.evaluation.evaluate import Score, evaluate
from distill_lab.export._questions import QUESTIONS
from distill_lab.export._source import Source
from distill_lab.files.jsonl import write_jsonl
from distill_lab.types import Completion, JsonObject, Prompt

if TYPE_CHECKING:
    from distill_lab.export import Exported, ExportEngine
    from distill_lab.generation.engines import Engine
    from distill_lab.report.model_card import ExportRow

NUM_TOKENS = 64
"""Tokens per answer for a model without a run; first tokens of an answer whose choice is compared."""
SLOW = ("judge",)
"""Graders that cost more than the check is worth: each grade is another model's answer."""


@dataclass(frozen=True, slots=True)
class Check:
    """How an export compares with its student."""

    n: int
    """Prompts."""
    same: int
    """Prompts whose answers are the same text."""
    shared: float
    """Characters before the first difference over those of the student's answers, in [0, 1]."""
    loaded_with: str
    grader: str | None = None
    """What both are scored with; None if nothing can be graded."""
    score: float | None = None
    score_ci95: tuple[float, float] | None = None
    student_score: float | None = None
    """The student's score on the same prompts."""
    tokenized_alike: int | None = None
    """Prompts that the program makes the same tokens of as the student's tokenizer; None if it cannot be seen."""
    next_tokens: int = 0
    """Tokens of the student's answers after which the export's choice was compared, at most `NUM_TOKENS` of each."""
    next_tokens_same: int = 0
    """Those that the export, too, finds most likely after the same text."""

    @property
    def agreement(self) -> float:
        """Share of prompts with the same answer."""
        return self.same / self.n

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return asdict(self)


def check_prompts(source: Source, number: int) -> list[Prompt]:
    """At most `number` prompts: from all over the run's test, as the student sees them; without a run, general questions."""
    found: list[Prompt] = []
    items = source.run / "eval" / "student.jsonl" if source.run else None
    if items is not None and items.is_file():
        found = [Prompt(row.id, row.prompt, row.answer) for row in first_samples(items)]
    if not found:
        found = [Prompt(f"q-{place}", [{"role": "user", "content": text}]) for place, text in enumerate(QUESTIONS)]
    step = max(1, len(found) // number)
    return found[::step][:number]


def check_sampling(source: Source) -> SamplingConfig:
    """Greedy, with the length and the thinking of the run's test."""
    tested = source.config.get("test_sampling") or {}
    length = tested.get("max_new_tokens", NUM_TOKENS)
    return SamplingConfig(max_new_tokens=length, thinking=tested.get("thinking"))


def answers(engine: Engine, prompts: Sequence[Prompt], sampling: SamplingConfig) -> dict[str, Completion]:
    """Prompt id -> greedy answer. Raises UserError if the engine gives fewer."""
    from distill_lab.generation.engines import complete

    return {answer.id: answer for answer in complete(engine, prompts, sampling)}


def compare(
    source: Source,
    prompts: Sequence[Prompt],
    expected: Mapping[str, Completion],
    found: Mapping[str, Completion],
    *,
    loaded_with: str,
    folder: Path,
    tokenized_alike: int | None = None,
    next_tokens: tuple[int, int] = (0, 0),
) -> Check:
    """The check of `found` against the student's own answers, `expected`. folder: for the answers and their grades."""
    texts = {name: (_text(expected[name]), _text(found[name])) for name in expected}
    length = sum(len(own) for own, _ in texts.values())
    shared = sum(_same_start(own, other) for own, other in texts.values())
    grader = _grader(source, prompts)
    scores: list[Score | None] = [None, None]
    if grader is not None:
        write_jsonl(folder / "prompts.jsonl", (prompt.to_json() for prompt in prompts))
        for place, (name, rows) in enumerate((("export", found), ("student", expected))):
            completions = folder / f"{name}.completions.jsonl"
            write_jsonl(completions, (row.to_json() for row in rows.values()))
            scores[place] = evaluate(folder / "prompts.jsonl", completions, folder / f"{name}.jsonl", grader)
    return Check(
        n=len(texts),
        same=sum(own == other for own, other in texts.values()),
        shared=shared / length if length else 1.0,
        loaded_with=loaded_with,
        grader=grader,
        score=scores[0].score if scores[0] else None,
        score_ci95=scores[0].ci95 if scores[0] else None,
        student_score=scores[1].score if scores[1] else None,
        tokenized_alike=tokenized_alike,
        next_tokens=next_tokens[0],
        next_tokens_same=next_tokens[1],
    )


def same_tokens(engine: ExportEngine, prompts: Sequence[Prompt], sampling: SamplingConfig) -> int | None:
    """Prompts that a program's own tokenizer reads as the student's does; None if it does not show its tokens."""
    from distill_lab.generation.engines.llama_cpp import LlamaCppEngine

    if not isinstance(engine, LlamaCppEngine):
        return None
    from distill_lab.chat import prompt_ids, template_settings

    tokenizer, alike = engine.io.tokenizer, 0
    settings = template_settings(sampling.thinking)
    for prompt in prompts:
        text = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False, **settings)
        alike += engine.token_ids(str(text)) == prompt_ids(tokenizer, prompt.messages, thinking=sampling.thinking)
    return alike


def same_next_tokens(
    engine: ExportEngine, prompts: Sequence[Prompt], expected: Mapping[str, Completion], sampling: SamplingConfig
) -> tuple[int, int]:
    """Tokens of the student's answers, and how many of them are the export's first choice after the same text.

    Answers that show thinking are left out: their tokens do not follow from their text.
    """
    compared = same = 0
    for prompt in prompts:
        answer = expected[prompt.id]
        ids, _, refusal = engine.io.request(prompt, sampling, context=1_000_000)
        if refusal or answer.thinking is not None or answer.finish_reason == "error":
            continue
        tokens = engine.io.tokenizer.encode(answer.content, add_special_tokens=False)[:NUM_TOKENS]
        if tokens:
            found = _first_choices(engine, [*ids, *tokens], len(ids))
            compared += len(tokens)
            same += sum(own == other for own, other in zip(tokens, found, strict=True))
    return compared, same


def _first_choices(engine: ExportEngine, ids: list[int], start: int) -> list[int]:
    from distill_lab.generation.engines.llama_cpp import LlamaCppEngine

    if isinstance(engine, LlamaCppEngine):
        return engine.next_tokens(ids, start)
    import torch

    with torch.inference_mode():
        logits_1LV = engine.model(input_ids=torch.tensor([ids], device=engine.model.device)).logits
    return [int(token) for token in logits_1LV[0, start - 1 : -1].argmax(-1)]


def exported_json(exported: Exported, check: Check | None, folder: Path) -> ExportRow:
    """The entry of export.json, which the model card reads. folder: what the file's name is relative to."""
    name = exported.path.relative_to(folder).as_posix()
    return {
        "file": "model" if name == "." else name,
        "bytes": exported.num_bytes,
        "kind": exported.kind,
        "weights": exported.weights,
        "check": check.to_json() if check else None,
    }


def _same_start(one: str, other: str) -> int:
    """Characters before the first difference."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _text(completion: Completion) -> str:
    return f"{completion.thinking or ''}\n{completion.content}".strip()


def _grader(source: Source, prompts: Sequence[Prompt]) -> str | None:
    """The grader of the run's scores, if it is quick and every prompt has a gold answer."""
    from distill_lab.report.run_student import read_run

    if source.run is None or any(prompt.answer is None for prompt in prompts):
        return None
    summary = read_run(source.run)[1]
    name = str((summary.get("metric") or {}).get("grader") or "")
    return name if name and name.partition(":")[0] not in SLOW else None
