"""What drafts are worth to a target: prompts and the target's answers -> acceptance, expected lengths, wall time, a command.

    answers = {"sampled": sampled, "greedy": greedy}
    report = measure_drafts(target, {"base": base, "draft": student}, prompts, answers, max_new_tokens=256, num_timed=16)
    for line in report.lines(): print(line)

All models must have one tokenizer. Acceptance is counted on the target's own answers (`evaluation/acceptance.py`); wall time
is that of transformers' assisted generation on this machine (`evaluation/assisted.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from distill_lab import activity
from distill_lab.config import ModelConfig
from distill_lab.device import memory_returned
from distill_lab.errors import NoData
from distill_lab.evaluation.acceptance import acceptance, best_drafted, compare_rows, difference
from distill_lab.evaluation.answer_rows import answer_rows
from distill_lab.evaluation.assisted import ALONE, AssistedTimes, time_assisted, token_seconds
from distill_lab.evaluation.draft_figures import BASE, DRAFT, GREEDY, SAMPLED, DraftFigures, DraftReport
from distill_lab.evaluation.intervals import Interval
from distill_lab.generation.engines._token_io import TokenIO
from distill_lab.models.loading import load_model
from distill_lab.models.token_bytes import refuse_other_ids, token_bytes
from distill_lab.train.loss_module import decoder_and_head
from distill_lab.train.packing import Row
from distill_lab.train.teachers import LiveTeacher, refuse_foreign_tokens
from distill_lab.types import Counts


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
    models: dict[str, PreTrainedModel] = {}
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


def _head_rows(model: PreTrainedModel) -> int:
    return decoder_and_head(model)[1].linear.out_features


def _prompt_of(row: Row) -> list[int]:
    """The tokens before the first one that is learned."""
    first = int(row.loss_mask.argmax())
    return [int(each) for each in row.input_ids[: first + 1]]


def _gain(rates: Mapping[str, Sequence[np.ndarray]]) -> tuple[float, Interval | None] | None:
    return difference(rates[BASE], rates[DRAFT]) if rates.keys() == {BASE, DRAFT} else None


def _pace(times: AssistedTimes | None) -> float | None:
    return sum(times.tokens) / sum(times.seconds[ALONE]) if times else None
