"""What drafts are worth to a target: prompts and the target's answers -> acceptance, expected lengths, wall time, a command.

    answers = {"sampled": sampled, "greedy": greedy}
    report = measure_drafts(target, {"base": base, "draft": student}, prompts, answers, max_new_tokens=256, num_timed=16)
    for line in report.lines(): print(line)

All models must have one tokenizer. Acceptance is counted on the target's own answers (`evaluation/acceptance.py`); wall time
is that of transformers' assisted generation on this machine (`evaluation/assisted.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill_lab import activity
from distill_lab.config import ModelConfig
from distill_lab.device import memory_returned
from distill_lab.errors import NoData
from distill_lab.evaluation.acceptance import (
    Acceptance,
    Rate,
    acceptance,
    best_drafted,
    compare_rows,
    difference,
)
from distill_lab.evaluation.answer_rows import answer_rows
from distill_lab.evaluation.assisted import ALONE, AssistedTimes, time_assisted, token_seconds
from distill_lab.evaluation.goals import Figure
from distill_lab.evaluation.intervals import Interval
from distill_lab.generation.engines._token_io import TokenIO
from distill_lab.models.loading import load_model
from distill_lab.models.token_bytes import refuse_other_ids, token_bytes
from distill_lab.train.loss_module import decoder_and_head
from distill_lab.train.packing import Row
from distill_lab.train.teachers import LiveTeacher, refuse_foreign_tokens
from distill_lab.types import Counts

BASE, DRAFT = "base", "draft"
SAMPLED, GREEDY = "sampled", "greedy"
TITLES = {BASE: "base draft", DRAFT: "draft"}


@dataclass(frozen=True, slots=True)
class DraftFigures:
    """One draft's figures."""

    model: str
    acceptance: Acceptance
    num_drafted: int
    """Tokens to draft per pass of the target, by the greedy acceptance and both models' seconds per token here."""
    expected_speedup: float
    """What that many should gain, if the target read them as fast as one token."""
    speedup: Figure | None
    """Measured: seconds of the target alone over seconds with the draft. None: not measured."""
    same_answers: int | None
    """Timed answers that are the target's own, token for token."""


@dataclass(frozen=True, slots=True)
class DraftReport:
    """The drafts beside each other."""

    target: str
    answers: Mapping[str, Counts]
    """By SAMPLED and GREEDY: the target's answers, and those that could not be compared, by reason."""
    drafts: Mapping[str, DraftFigures]
    """By BASE and DRAFT; BASE may be missing."""
    gain_sampled: tuple[float, Interval | None] | None
    """Acceptance of the draft minus that of the base draft at temperature 1, in [-1, 1], on the same answers."""
    gain_greedy: tuple[float, Interval | None] | None
    num_timed: int
    """Prompts that wall time was taken on; 0: none."""
    target_tokens_per_s: float | None
    """Of the target alone."""
    no_time: str
    """Why no wall time was taken; empty if it was."""

    @property
    def num_answers(self) -> int:
        """Answers of the target behind the greedy rates."""
        return next(iter(self.drafts.values())).acceptance.greedy.num_answers

    def sentence(self) -> str:
        """What was reached, without a full stop."""
        rates = [f"{found.acceptance.sampled.rate:.1%}" for found in self.drafts.values()]
        return f"The target accepts {' -> '.join(rates)} of the draft's tokens at temperature 1"

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return json.loads(json.dumps(asdict(self)))  # lists, as they are read again

    def lines(self) -> Iterator[str]:
        """The report for a terminal, at most 80 characters wide."""
        for name, found in self.drafts.items():
            yield f"{TITLES[name]}: {found.model}"
            yield from _rate_lines("temperature 1", found.acceptance.sampled)
            yield from _rate_lines("greedy", found.acceptance.greedy)
            if found.speedup is not None:
                ratio = _with_interval(found.speedup.value or 0.0, found.speedup.ci95, "{:.2f}x")
                yield f"  wall time      {ratio} as fast, {found.num_drafted} tokens drafted"
                yield f"    {found.same_answers} of {self.num_timed} answers are the target's own, token for token"
        for title, gain in (("temperature 1", self.gain_sampled), ("greedy", self.gain_greedy)):
            if gain is not None:
                value, ci95 = 100 * gain[0], gain[1] and (100 * gain[1][0], 100 * gain[1][1])
                yield f"gain over the base draft, {title}: {_with_interval(value, ci95, '{:+.1f}')} points"
        for kind, counts in self.answers.items():
            if counts.dropped:
                yield f"{kind} answers of the target: {counts}"
        if self.no_time:
            yield f"wall time not measured: {self.no_time}"
        yield "serve both with vLLM:"
        yield f"  {self.command()}"

    def command(self) -> str:
        """How vLLM serves the target with the draft."""
        found = self.drafts.get(DRAFT) or self.drafts[BASE]
        draft = str(Path(found.model).absolute()) if Path(found.model).exists() else found.model
        settings = {"model": draft, "num_speculative_tokens": found.num_drafted, "method": "draft_model"}
        return f"vllm serve {self.target} --speculative-config '{json.dumps(settings)}'"


@memory_returned()
def measure_drafts(
    target: ModelConfig,
    drafts: Mapping[str, ModelConfig],
    prompts: Path,
    answers: Mapping[str, Path],
    *,
    max_new_tokens: int,
    num_timed: int,
    thinking: bool | None = None,
) -> DraftReport:
    """Measure `drafts` (BASE, DRAFT) for `target` on its own answers to `prompts`.

    answers: completions by SAMPLED, at temperature 1 without cutting the distribution, and GREEDY. num_timed: prompts whose
    wall time is taken, the first ones; 0: none. Raises UserError for drafts with another tokenizer, NoData if no answer
    can be compared.
    """
    with activity.doing(f"loading the target {target.model}"):
        model, tokenizer = load_model(target)
    rows: dict[str, list[Row]] = {}
    counts: dict[str, Counts] = {}
    for kind, path in answers.items():
        rows[kind], counts[kind] = answer_rows(prompts, path, tokenizer, thinking=thinking)
        if not rows[kind]:
            raise NoData(f"the target gave no answer that a draft could be compared on ({counts[kind]}); see {path}")
    models: dict[str, Any] = {}
    heads = {ALONE: _head_rows(model)}
    names = token_bytes(tokenizer)
    for name, config in drafts.items():
        models[name], other = load_model(config)
        heads[name] = _head_rows(models[name])
        num_ids = min(heads[ALONE], heads[name])
        refuse_other_ids(names, token_bytes(other), num_ids=num_ids, names=(target.model, config.model))
        for each in rows.values():
            refuse_foreign_tokens(names, each, num_ids=num_ids, student=other, teacher=target.model)
    num_ids = min(heads.values())
    students = {name: LiveTeacher(draft, num_ids) for name, draft in models.items()}
    compared = {kind: compare_rows(LiveTeacher(model, num_ids), students, rows[kind]) for kind in (SAMPLED, GREEDY)}
    found = {name: acceptance(compared[SAMPLED][name], compared[GREEDY][name]) for name in models}
    first = _prompt_of(rows[GREEDY][0])
    pass_s = token_seconds(model, first)
    best = {
        name: best_drafted(found[name].greedy.tokens_per_pass, token_seconds(draft, first) / pass_s)
        for name, draft in models.items()
    }
    no_time = "" if num_timed else "turned off"
    if num_timed and len(set(heads.values())) > 1:
        sizes = " and ".join(f"{size:,}" for size in dict.fromkeys(heads.values()))
        no_time = f"the heads have {sizes} rows, and assisted generation needs one number"
    times = None
    if not no_time:
        times = time_assisted(
            model,
            models,
            [_prompt_of(row) for row in rows[GREEDY][:num_timed]],
            drafted={name: number for name, (number, _) in best.items()},
            max_new_tokens=max_new_tokens,
            end_ids=TokenIO(tokenizer, model.generation_config).end_ids,
            pad_id=int(tokenizer.pad_token_id),  # pyright: ignore[reportArgumentType]
        )
    return DraftReport(
        target=target.model,
        answers=counts,
        drafts={
            name: DraftFigures(
                model=drafts[name].model,
                acceptance=each,
                num_drafted=best[name][0],
                expected_speedup=best[name][1],
                speedup=times.speedups[name] if times else None,
                same_answers=times.same[name] if times else None,
            )
            for name, each in found.items()
        },
        gain_sampled=_gain({name: [row.accepted_N for row in each] for name, each in compared[SAMPLED].items()}),
        gain_greedy=_gain({name: [row.agrees_N for row in each] for name, each in compared[GREEDY].items()}),
        num_timed=len(times.tokens) if times else 0,
        target_tokens_per_s=_pace(times),
        no_time=no_time,
    )


def _head_rows(model: Any) -> int:
    return decoder_and_head(model)[1].linear.out_features


def _prompt_of(row: Row) -> list[int]:
    """The tokens before the first one that is learned."""
    first = int(row.loss_mask.argmax())
    return [int(each) for each in row.input_ids[: first + 1]]


def _gain(rates: Mapping[str, Sequence[np.ndarray]]) -> tuple[float, Interval | None] | None:
    return difference(rates[BASE], rates[DRAFT]) if rates.keys() == {BASE, DRAFT} else None


def _pace(times: AssistedTimes | None) -> float | None:
    return sum(times.tokens) / sum(times.seconds[ALONE]) if times else None


def _rate_lines(title: str, rate: Rate) -> Iterator[str]:
    share = _with_interval(100 * rate.rate, rate.ci95 and (100 * rate.ci95[0], 100 * rate.ci95[1]), "{:.1f}%")
    yield f"  {title:<15}{share} of {rate.num_tokens:,} tokens accepted"
    lengths = " ".join(f"{tokens:.2f}" for tokens in rate.tokens_per_pass)
    yield f"    tokens per pass, 1 to {len(rate.tokens_per_pass)} drafted: {lengths}"


def _with_interval(value: float, ci95: Interval | None, form: str) -> str:
    shown = form.format(value)
    return f"{shown} [{form.format(ci95[0])} to {form.format(ci95[1])}]" if ci95 else shown
