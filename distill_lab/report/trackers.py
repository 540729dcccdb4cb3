"""A run's proof in its experiment trackers: summary and eval files -> figures, histograms of tokens, sample answers.

    log_proof(run, summary)                      for each of the settings' train.report_to, after summary.json is written

They go to the tracker's run that has the losses, at the last training step. A tracker gets a result once. One that fails
costs the run nothing: a note says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from distill_lab.evaluation.eval_rows import EvalRow, first_samples
from distill_lab.evaluation.summary_file import Summary
from distill_lab.evaluation.token_stats import read_tokens, token_stats
from distill_lab.files.fingerprints import fingerprint
from distill_lab.files.jsonl import write_json
from distill_lab.files.redact import environment_redactor
from distill_lab.formatting import one_line
from distill_lab.report.text_tables import TextTable
from distill_lab.run import Run
from distill_lab.settings.secrets import without_secrets
from distill_lab.train.trackers import FILE, PROJECT, TrackerRun, finish_wandb, tracker_run, wandb_run
from distill_lab.types import Fields, JsonObject

MODELS = ("teacher", "base", "student")
OF_MODEL = (
    "score", "cut_share", "tokens_per_s", "tokens_per_s_single", "seconds_per_answer", "seconds_per_answer_single",
    "latency_p50_s", "latency_p95_s", "latency_p95_ci95", "num_parameters", "peak_memory_bytes",
)  # fmt: skip
OF_RUN = (
    "retention", "retention_ci95", "base_retention", "similarity", "base_similarity", "gain", "gain_ci95", "p_value",
    "speedup", "speedup_ci95", "speedup_batched", "speedup_batched_ci95", "speedup_single", "speedup_single_ci95",
    "speedup_per_token_batched", "speedup_per_token_single", "token_ratio", "size_ratio", "draft",
)  # fmt: skip
NUM_ANSWERS, MAX_CHARS = 10, 2_000
"""Sample answers that a tracker gets, and characters of each text."""
OFF = ("none", "all")


@dataclass(frozen=True, slots=True)
class Proof:
    """What a tracker gets."""

    step: int
    """The last training step."""
    figures: dict[str, float]
    """By name, as eval/student/score; an interval as NAME_low and NAME_high."""
    tokens: dict[str, list[int]]
    """Model -> tokens of each answer, thinking included."""
    columns: tuple[str, ...]
    answers: list[tuple[str, ...]]
    """Rows of sample answers."""
    result: str
    config: JsonObject
    """The run's settings, without secrets."""


def log_proof(run: Run, summary: Summary) -> None:
    """Send the proof to the trackers of the run's settings; what they have already is not sent again."""
    names = [name for name in dict.fromkeys(_report_to(run.config)) if name not in OFF]
    if not names:
        return
    proof, place = read_proof(run, summary), tracker_run(run.directory)
    content = fingerprint(asdict(proof))
    for name in names:
        if _sent(run.directory, name) == content:
            continue
        write = WRITERS.get(name)
        if write is None:
            run.watch.note(f"{name} has the losses; scores and answers go to {', '.join(WRITERS)} only")
            continue
        try:
            where = write(place, proof)
        except Exception as error:  # a service that is away, full or changed is no reason to lose a run
            reason = one_line(error)
            run.watch.note(
                f"scores and answers did not reach {name} ({reason}); run the same command again to send them"
            )
            continue
        _remember(run.directory, name, content)
        run.watch.note(f"{name}: {len(proof.figures)} figures and {len(proof.answers)} answers, {where}")


def read_proof(run: Run, summary: Summary) -> Proof:
    """The figures of a summary, and the answers and their tokens from the run's eval files."""
    row = json.loads(json.dumps(summary.to_json()))
    figures = dict(_flat("eval", {name: row.get(name) for name in OF_RUN}))
    items: dict[str, dict[str, EvalRow]] = {}
    tokens: dict[str, list[int]] = {}
    for name in MODELS:
        model = row["models"].get(name)
        if model is not None:
            ends = {"score_ci95": model.get("ci95")}
            figures |= _flat(f"eval/{name}", {field: model.get(field) for field in OF_MODEL} | ends)
        file = run.path(f"eval/{name}.jsonl")
        if model is None or not file.is_file():
            continue
        items[name] = {item.id: item for item in first_samples(file)}
        if found := read_tokens(file):
            tokens[name] = found
            figures |= _flat(f"tokens/{name}", asdict(token_stats(found)))
    columns = ("prompt", "gold answer", *items)
    redact = environment_redactor()
    config = json.loads(redact(json.dumps(without_secrets(json.loads(json.dumps(run.config, default=str))))))
    return Proof(_last_step(run.directory), figures, tokens, columns, list(_answers(items)), summary.result, config)


def _flat(prefix: str, value: object) -> Iterator[tuple[str, float]]:
    """The numbers in a JSON value by path; a list of two numbers is an interval."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, (int, float)):
        yield prefix, float(value)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flat(f"{prefix}/{name}", inner)
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        name = prefix.removesuffix("_ci95")
        for end, inner in zip(("low", "high"), value, strict=True):
            yield from _flat(f"{name}_{end}", inner)


def _answers(items: Mapping[str, Mapping[str, EvalRow]]) -> Iterator[tuple[str, ...]]:
    """Sample answers of all models to the same prompts, half of which the student fails, if it fails so many."""
    judged = items.get("student") or next(iter(items.values()), {})
    failed = [id for id, row in judged.items() if row.score < 0.5]
    others = [id for id, row in judged.items() if row.score >= 0.5]
    num_failed = max(NUM_ANSWERS // 2, NUM_ANSWERS - len(others))
    chosen = failed[:num_failed]
    chosen += others[: NUM_ANSWERS - len(chosen)]
    for id in sorted(chosen, key=list(judged).index):
        row = judged[id]
        cells = [row.text, row.answer or ""]
        for found in items.values():
            answer = found.get(id)
            cells.append(f"({answer.score:.2f}) {answer.output}" if answer else "")
        yield tuple(cell if len(cell) <= MAX_CHARS else f"{cell[:MAX_CHARS]}..." for cell in cells)


def _last_step(directory: Path) -> int:
    """Of the training that ended last."""
    for path in sorted(directory.rglob("training.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(path.read_text(encoding="utf-8"))["steps"])
    return 0


def _report_to(config: Fields) -> Sequence[str]:
    train = config.get("train")
    return train.get("report_to") or () if isinstance(train, Mapping) else ()


def _sent(directory: Path, name: str) -> str:
    with suppress(OSError, ValueError, AttributeError):
        return str(json.loads((directory / FILE).read_text(encoding="utf-8")).get("sent", {}).get(name, ""))
    return ""


def _remember(directory: Path, name: str, content: str) -> None:
    known = json.loads((directory / FILE).read_text(encoding="utf-8"))
    write_json(directory / FILE, known | {"sent": {**known.get("sent", {}), name: content}})


def _tensorboard(place: TrackerRun, proof: Proof) -> str:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(log_dir=str(place.tensorboard)) as writer:
        for name, value in proof.figures.items():
            writer.add_scalar(name, value, proof.step)
        for name, tokens in proof.tokens.items():
            writer.add_histogram(f"tokens/{name}", np.array(tokens), proof.step)
        writer.add_text("result", proof.result, proof.step)
        writer.add_text("answers", TextTable(proof.columns, proof.answers).markdown(), proof.step)
        settings = json.dumps(proof.config, indent=2, ensure_ascii=False)
        writer.add_text("settings", "\n".join(f"    {line}" for line in settings.splitlines()), proof.step)
    return f"tensorboard --logdir {place.tensorboard}"


def _wandb(place: TrackerRun, proof: Proof) -> str:
    import wandb  # pyright: ignore[reportMissingImports]

    run = wandb_run(place)
    run.config.update({"distill": proof.config}, allow_val_change=True)
    table = wandb.Table(columns=list(proof.columns), data=[list(row) for row in proof.answers])
    histograms = {f"tokens/{name}/histogram": wandb.Histogram(tokens) for name, tokens in proof.tokens.items()}
    run.log({**proof.figures, **histograms, "answers": table, "train/global_step": proof.step})
    run.summary["result"] = proof.result
    where = run.url or f"offline, in {Path(run.dir).parent} (wandb sync sends it)"
    finish_wandb()
    return where


def _trackio(place: TrackerRun, proof: Proof) -> str:
    import pandas as pd
    import trackio  # pyright: ignore[reportMissingImports]

    trackio.init(
        project=PROJECT, name=place.name, resume="allow", config={"distill": proof.config, "result": proof.result}
    )
    try:
        table = trackio.Table(dataframe=pd.DataFrame(proof.answers, columns=list(proof.columns)))
        trackio.log({**proof.figures, "answers": table, "train/global_step": proof.step})
    finally:
        trackio.finish()
    return f"trackio show --project {PROJECT}"


WRITERS: dict[str, Callable[[TrackerRun, Proof], str]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""Tracker -> what sends it a proof, and says where to see it."""
