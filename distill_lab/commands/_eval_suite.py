"""`distill eval --suite`: standard benchmarks on a model -> scores with intervals, eval rows, and lm_eval's own figures.

Tasks are loaded before any model. Answers are kept as they come (`<out>.work`), so an interrupted command goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
    from distill_lab.evaluation.eval_rows import EvalRow
    from distill_lab.evaluation.suite.contamination import Contamination
    from distill_lab.evaluation.suite.harness import Suite
    from distill_lab.settings.suite import SuiteConfig
    from distill_lab.terminal import Terminal
    from distill_lab.types import JsonObject


def eval_suite(
    model: ModelConfig,
    config: SuiteConfig,
    out: Path,
    *,
    base: str,
    sampling: SamplingConfig,
    engine: EngineConfig,
    max_samples: int | None,
    overwrite: bool,
) -> None:
    """Score the model, and the base model if one is given, print, and write rows, figures and overlaps."""
    from distill_lab.errors import UserError
    from distill_lab.evaluation.suite.contamination import training_set_of
    from distill_lab.evaluation.suite.harness import check_installed, load_suite
    from distill_lab.models.names import api_engine
    from distill_lab.planning.preflight import check_generation, check_writable
    from distill_lab.terminal import Terminal

    check_installed()
    check_writable(out)
    rows = config.rows or training_set_of(model.model)
    if rows is not None and not rows.is_file():
        raise UserError(f"--suite.rows {rows}: no such file; `distill system1` writes one as train.jsonl")
    models = [(model, out)]
    if base:
        models.append((model.model_copy(update={"model": base}), out.with_suffix(".base.jsonl")))
    for each, _ in models:
        check_generation(each, engine, sampling)
    terminal = Terminal()
    suite = load_suite(config.name, on_server=any(api_engine(each.model) for each, _ in models))
    num_items = sum(min(max_samples or len(task.eval_docs), len(task.eval_docs)) for task in suite.tasks.values())
    terminal.note(f"{len(suite.tasks)} tasks of lm_eval {suite.version}, {num_items:,} items")
    found = None
    for each, items in models:
        result = _evaluated(
            each, config, suite, items, sampling=sampling, engine=engine, max_samples=max_samples, overwrite=overwrite,
            rows=rows if each is model else None, terminal=terminal,
        )  # fmt: skip
        found = found or result
    if found is None:
        terminal.note("no training set was compared with the items; --suite.rows FILE compares one")


def _evaluated(
    model: ModelConfig,
    config: SuiteConfig,
    suite: Suite,
    items: Path,
    *,
    sampling: SamplingConfig,
    engine: EngineConfig,
    max_samples: int | None,
    overwrite: bool,
    rows: Path | None,
    terminal: Terminal,
) -> Contamination | None:
    """Score one model; its files are those of an earlier execution if nothing has changed."""
    import json

    from distill_lab.evaluation.suite.contamination import Contamination
    from distill_lab.files.claims import claim
    from distill_lab.generation.model_identity import answer_inputs, shown_name

    figures, overlap = items.with_suffix(".results.json"), items.with_suffix(".overlap.jsonl")
    inputs: JsonObject = {
        **answer_inputs(model, engine, sampling),
        "suite": suite.key,
        "chat": config.chat,
        "num_fewshot": config.num_fewshot,
        "metric": config.metric,
        "max_samples": max_samples,
        "rows": rows,
    }
    files = [items, figures, *([overlap] if rows else [])]
    claimed = claim(
        items, "eval --suite", inputs=inputs, files=files, reads=[rows] if rows else [],
        shown={"model": shown_name(model)}, overwrite=overwrite,
    )  # fmt: skip
    with claimed as state:
        if not state.done:
            _run(
                model, config, suite, items, sampling=sampling, engine=engine, max_samples=max_samples, rows=rows,
                terminal=terminal,
            )  # fmt: skip
        else:
            terminal.note(f"{items} was already made with the same settings; nothing was computed again")
        result = json.loads(figures.read_text(encoding="utf-8"))
    for line in result["lines"]:
        terminal.wrapped(line, indent=4)
    terminal.note(f"all items are in {items}, all figures in {figures}")
    contamination = result["contamination"]
    return Contamination(**contamination) if contamination else None


def _run(
    model: ModelConfig,
    config: SuiteConfig,
    suite: Suite,
    items: Path,
    *,
    sampling: SamplingConfig,
    engine: EngineConfig,
    max_samples: int | None,
    rows: Path | None,
    terminal: Terminal,
) -> None:
    from distill_lab.evaluation.suite.answers import SuiteAnswers
    from distill_lab.evaluation.suite.contamination import find_contamination
    from distill_lab.evaluation.suite.results import group_figures, read_results, table_lines
    from distill_lab.evaluation.suite.run import has_template, run_suite
    from distill_lab.files.jsonl import write_json, write_jsonl
    from distill_lab.files.outputs import remove_work, work_folder, writing
    from distill_lab.formatting import clean

    work = work_folder(items)
    contamination = None
    if rows is not None:
        contamination = find_contamination(suite, rows, items.with_suffix(".overlap.jsonl"), limit=max_samples)
    terminal.stage(f"{config.name}: {model.model}")
    with SuiteAnswers(model, engine, sampling, work, on_note=terminal.note, on_progress=terminal.generated) as answers:
        chat = has_template(answers) if config.chat is None else config.chat
        terminal.note(
            f"{model.model} is asked {'in its chat template' if chat else 'as a base model, without a template'}"
        )
        results, chats = run_suite(suite, answers, chat=chat, num_fewshot=config.num_fewshot, limit=max_samples)
        if answers.num_cut:
            terminal.note(f"{answers.num_cut} contexts are longer than the model reads and lost their beginning")
    made, tasks = read_results(suite, results, chats, answers, metric=config.metric)
    groups = group_figures(results)
    lines = [clean(line) for line in (f"{model.model}:", *table_lines(tasks, groups))]
    failed = sum(row.finish_reason in ("error", "missing") for row in made)
    if failed:
        lines.append(f"{failed} answers failed or are longer than the model's context; they score 0")
    if contamination is not None:
        lines.append(f"contamination: {contamination}")
        lines += _clean_lines(made, contamination)
    with writing(items):
        write_jsonl(items, (row.to_json() for row in made))
        write_json(
            items.with_suffix(".results.json"),
            {
                "suite": config.name,
                "model": model.model,
                "lm_eval": suite.version,
                "chat": chat,
                "max_samples": max_samples,
                "tasks": {name: task.to_json() for name, task in tasks.items()},
                "groups": groups,
                "contamination": contamination.to_json() if contamination else None,
                "lines": lines,
            },
        )
    remove_work(items)


def _clean_lines(rows: list[EvalRow], contamination: Contamination) -> list[str]:
    """The score of each task with items that overlap, without those items."""
    from distill_lab.evaluation.statistics import score_interval

    lines = []
    for task in contamination.items:
        scores = [row.score for row in rows if row.id.startswith(f"{task}/") and row.id not in contamination.ids]
        if scores:
            low, high = score_interval(scores)
            lines.append(
                f"{task} without those items: {sum(scores) / len(scores):.1%} [{low:.1%}, {high:.1%}] on {len(scores)}"
            )
    return lines
