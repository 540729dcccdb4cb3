"""Score a model on prompts with gold answers: generate and grade completions, report the score with a 95% interval.

In: a model, data with gold answers (or reference completions), and optionally a base model to compare with. Out: `<out>`
with one JSON object per line: prompt, output and grade. Prints the score, and for several samples pass@k and the majority
vote. `<out>` with the suffix .completions.jsonl contains the raw completions, with .judge.jsonl the replies of a judge.
--predictions FILE also writes `{"question", "generated_text", "prediction", "gold_answer"}`; this needs no gold answers.
--grader label prints each answer as it arrives, the confusion matrix and the worst labels, and writes them to `<out>` with
the suffix .results.json. Run the same command again to resume; another model, other prompts or other settings need another
--out, or --overwrite.

    distill eval --model tiny:student --data tiny:instructions --data.split "test[:200]" --out eval/base.jsonl
    distill eval --model BIG --draft SMALL --data my_prompts.jsonl --out draft.json
    distill eval --suite gsm8k,ifeval --model runs/s1/student --base BASE --out eval/suites.jsonl      lm-evaluation-harness
    distill eval --base_model BASE --lora_model ADAPTERS --test_file test_questions.jsonl --output_file predictions.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig
from distill_lab.settings.suite import SuiteConfig

if TYPE_CHECKING:
    from distill_lab.terminal import Terminal

ALIASES = {
    "--base-model": ("--base",),
    "--lora-model": ("--model.quantization", "4bit", "--model.model"),
    "--model-path": ("--model.model",),
    "--test-file": ("--grader", "final-answer", "--data.path"),
    "--output-file": ("--predictions",),
}
FINAL_ANSWER, LABEL = "final-answer", "label"


class Config(settings.Config):
    """Settings of `distill eval`."""

    model: ModelConfig
    """The model to score."""
    data: DataConfig = DataConfig(path="")
    """Prompts and gold answers."""
    suite: SuiteConfig = SuiteConfig()
    """Standard benchmarks of lm-evaluation-harness, in place of --data."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Use only the first n prompts; with --suite, of each task."""
    out: Path | None = None
    """Output file for graded answers (.jsonl); default: next to --predictions."""
    predictions: Path | None = None
    """Also write question, generated text, prediction and gold answer to this file (.jsonl)."""
    results: Path | None = None
    """Where --grader label writes predictions, confusion matrix, accuracy per label and errors (.json); default: next to
    --out."""
    against: Path | None = None
    """An earlier output (--out) for the same prompts: prints the gain over it, prompt by prompt."""
    base: str = ""
    """A model to compare with, loaded with the same quantization as --model; prints its score and the gain over it."""
    draft: str = ""
    """A draft model for speculative decoding: instead of a score, prints the share of its tokens that --model accepts and
    the wall time of answers with and without it, and writes them to --out as JSON. Needs no gold answers."""
    base_draft: str = ""
    """Another draft to compare --draft with, such as the model it was trained from."""
    instruction: str = ""
    """Text to append to every question."""
    grader: str = "auto"
    """A file name in distill_lab/grading/graders; auto: exact if every row has a gold answer, otherwise overlap;
    final-answer: numeric if all gold answers are numbers, otherwise math."""
    sampling: SamplingConfig = SamplingConfig()
    """How to sample the answers."""
    engine: EngineConfig = EngineConfig()
    """Which engine generates."""
    overwrite: bool = False
    """Replace this command's earlier output for another model, other settings or other prompts. Never touches other
    files."""


def main(config: Config) -> None:
    """Generate, grade and print the score."""
    import tempfile

    from distill_lab.data.records import write_prompts
    from distill_lab.errors import UserError
    from distill_lab.files.jsonl import copy_file
    from distill_lab.files.outputs import writing
    from distill_lab.planning.preflight import check_generation, check_grader, check_writable
    from distill_lab.terminal import Terminal
    from distill_lab.training_data.cot_files import take_gold, write_predictions
    from distill_lab.training_data.reasoning import add_instruction

    if config.suite.name:
        _suite(config)
        return
    if not config.data.path:
        raise UserError("what is the model to be asked? give --data prompts.jsonl, or --suite gsm8k")
    if config.draft or config.base_draft:
        _drafts(config)
        return
    config = _as_meant(config)
    out = config.out or next(
        (path.with_suffix(".items.jsonl") for path in (config.predictions, config.results) if path), None
    )
    if out is None:
        raise UserError("no output file; give --out items.jsonl, or --predictions predictions.jsonl")
    check_grader(config.grader, config.engine)
    for model in (config.model, *([config.model.model_copy(update={"model": config.base})] if config.base else [])):
        check_generation(model, config.engine, config.sampling, grader=config.grader)
    check_writable(out)
    terminal = Terminal()
    prompts = out.with_suffix(".prompts.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        names = ("questions", "asked", "gold", "bare")
        questions, asked, gold, bare = (Path(folder) / f"{name}.jsonl" for name in names)
        with writing(questions):
            terminal.note(f"prompts: {write_prompts(config.data, questions)}")
            add_instruction(questions, asked, config.instruction)
        grader = _grader(config, asked, gold)
        with _holding(config, asked, out, grader):
            with writing(prompts):
                copy_file(asked, prompts)
            if config.predictions is None:
                _scores(config, prompts, out, grader, terminal)
                return
            files: list[Path] = []
            if take_gold(prompts, gold, gold=True).kept:
                _scores(config, gold, out, grader, terminal)
                files.append(out)
            if num_bare := take_gold(prompts, bare, gold=False).kept:
                answers = out.with_suffix(".bare.completions.jsonl")
                _answer(config, config.model, bare, answers, terminal, paid=_paid(config, out), live=False)
                terminal.print(f"{num_bare} prompts have no gold answer: they get predictions but no score")
                files.append(answers)
            with writing(config.predictions):
                written = write_predictions(questions, *files, config.predictions)
            terminal.note(f"{written}, in {config.predictions}")


def _suite(config: Config) -> None:
    """Score the model on standard benchmarks. Raises UserError for settings that belong to other prompts."""
    from distill_lab.commands._eval_files import check_against, refuse_given
    from distill_lab.commands._eval_suite import eval_suite
    from distill_lab.errors import UserError
    from distill_lab.terminal import Terminal

    if config.out is None:
        raise UserError("no output file; give --out eval/gsm8k.jsonl")
    unread = {
        "--data": config.data.path,
        "--predictions": config.predictions,
        "--results": config.results,
        "--instruction": config.instruction,
        "--draft": config.draft or config.base_draft,
        "--grader": "" if config.grader == "auto" else config.grader,
    }
    refuse_given(unread, "belongs to your own prompts, and --suite brings its own; remove one of the two")
    check_against(config.against)
    eval_suite(
        config.model,
        config.suite,
        config.out,
        base=config.base,
        sampling=config.sampling,
        engine=config.engine,
        max_samples=config.max_samples,
        overwrite=config.overwrite,
    )
    _gains(config, config.out, Terminal())


def _as_meant(config: Config) -> Config:
    """The settings with --max-samples as a slice, and with --predictions FILE.json as the results of labels."""
    from distill_lab.commands._eval_files import check_against, first_samples
    from distill_lab.errors import UserError

    check_against(config.against)
    changes: dict[str, object] = {"data": first_samples(config.data, config.max_samples)}
    if config.predictions is not None and config.predictions.suffix == ".json":
        changes |= {"results": config.predictions, "predictions": None}
        if config.grader == "auto":
            changes["grader"] = LABEL
    config = config.model_copy(update=changes)
    if config.results is not None and config.grader != LABEL:
        raise UserError(f"{config.results}: one file of results is what --grader label writes; add it, or use .jsonl")
    return config


def _drafts(config: Config) -> None:
    """Measure drafts in place of a score. Raises UserError for settings that belong to a score."""
    from distill_lab.commands._eval_draft import eval_draft
    from distill_lab.commands._eval_files import first_samples, refuse_given
    from distill_lab.errors import UserError
    from distill_lab.models.names import api_engine
    from distill_lab.pipeline.draft_proof import BASE, DRAFT
    from distill_lab.pipeline.draft_stages import check_draft_sampling

    if config.out is None:
        raise UserError("no output file; give --out draft.json")
    unread = {
        "--base": config.base,
        "--against": config.against,
        "--predictions": config.predictions,
        "--results": config.results,
        "--grader": "" if config.grader == "auto" else config.grader,
    }
    refuse_given(unread, "belongs to a score, and --draft takes none; remove it")
    check_draft_sampling(config.sampling, "--sampling")
    for name in filter(None, (config.model.model, config.draft, config.base_draft)):
        if api_engine(name):
            raise UserError(
                f"{name}: a server gives tokens, not distributions; a draft is judged on models that run here"
            )
    eval_draft(
        config.model,
        {role: name for role, name in ((BASE, config.base_draft), (DRAFT, config.draft)) if name},
        first_samples(config.data, config.max_samples),
        config.out,
        instruction=config.instruction,
        sampling=config.sampling,
        engine=config.engine,
        overwrite=config.overwrite,
    )


def _grader(config: Config, prompts: Path, gold: Path) -> str:
    """Name of the grader to use."""
    from distill_lab.errors import UserError
    from distill_lab.grading.choose_grader import default_grader, final_answer_grader
    from distill_lab.planning.preflight import check_gold
    from distill_lab.training_data.cot_files import take_gold

    if config.predictions is not None:
        if not take_gold(prompts, gold, gold=True).kept:
            return config.grader  # not used: there is nothing to grade
        prompts = gold
    grader = default_grader(prompts) if config.grader == "auto" else config.grader
    grader = final_answer_grader(prompts) if grader == FINAL_ANSWER else grader
    try:
        check_gold(prompts, grader, source=config.data.path)
    except UserError as error:
        raise UserError(f"{error}; to get answers without a score, give --predictions FILE") from None
    return grader


@contextmanager
def _holding(config: Config, prompts: Path, out: Path, grader: str) -> Iterator[None]:
    """Claim all output files of the command; the base model's files have a separate key."""
    from distill_lab.files.claims import claim
    from distill_lab.generation.model_identity import answer_inputs, shown_name
    from distill_lab.grading.graders import grader_inputs, judge_model, replies_path

    judged = grader not in ("auto", FINAL_ANSWER) and judge_model(grader) is not None
    with ExitStack() as stack:
        for model, items in _models(config, out):
            files = [items, items.with_suffix(".completions.jsonl")]
            if items == out:
                files += [out.with_suffix(".prompts.jsonl"), out.with_suffix(".bare.completions.jsonl")]
                files += [config.predictions] if config.predictions else []
            if grader == LABEL:
                files.append(_results_path(config, items))
            if judged:
                files.append(replies_path(items))
            claimed = claim(
                items,
                "eval",
                inputs={
                    **answer_inputs(model, config.engine, config.sampling),
                    "prompts": prompts,
                    "grader": grader_inputs(grader, config.engine),
                },
                files=files,
                appended=[path for path in files if path.name.endswith((".completions.jsonl", ".judge.jsonl"))],
                reads=[Path(config.data.path)],
                shown={"model": shown_name(model)},
                overwrite=config.overwrite,
            )
            stack.enter_context(claimed)
        yield


def _models(config: Config, out: Path) -> list[tuple[ModelConfig, Path]]:
    """The models to score (the model and, if given, the base), each with the file for its graded answers."""
    models = [(config.model, out)]
    if config.base:
        models.append((config.model.model_copy(update={"model": config.base}), out.with_suffix(".base.jsonl")))
    return models


def _scores(config: Config, prompts: Path, out: Path, grader: str, terminal: Terminal) -> None:
    """Print the model's score and, with a base, the base's score and the gain."""
    for model, items in _models(config, out):
        _score(config, model, prompts, items, grader, terminal, paid=_paid(config, out))
    _gains(config, out, terminal)
    terminal.note(f"all graded answers are in {out}")


def _gains(config: Config, out: Path, terminal: Terminal) -> None:
    from distill_lab.commands._eval_files import print_gains

    others = {config.base: out.with_suffix(".base.jsonl")} if config.base else {}
    others |= {str(config.against): config.against} if config.against else {}
    print_gains(config.model.model, out, others, terminal)


def _answer(
    config: Config,
    model: ModelConfig,
    prompts: Path,
    path: Path,
    terminal: Terminal,
    *,
    paid: Sequence[Path],
    live: bool,
) -> None:
    from distill_lab.evaluation.labels import LiveLines
    from distill_lab.generation.engines import load_engine
    from distill_lab.generation.generate import check_answered, generate
    from distill_lab.generation.prices import spending
    from distill_lab.models.generation_config import resolve_sampling
    from distill_lab.models.names import api_engine

    sampling, note = resolve_sampling(model, config.sampling)
    if note:
        terminal.note(note)
    terminal.stage(f"answers of {model.model}")
    # With a line per answer, no progress bar.
    counts = generate(
        prompts,
        path,
        lambda: load_engine(model, config.engine, on_note=terminal.note),
        sampling,
        paid=paid,
        on_progress=None if live else terminal.generated,
        on_completion=LiveLines(prompts, terminal.note, done=path) if live else None,
    )
    if api_engine(model.model):
        terminal.note(f"paid for answers of {model.model}: {spending([path], config.engine.price)}")
    check_answered(counts, path)


def _paid(config: Config, out: Path) -> list[Path]:
    """All files whose completions the command may pay for, whether they are there or not."""
    from distill_lab.grading.graders import replies_path

    files = [out.with_suffix(".bare.completions.jsonl")]
    for _, items in _models(config, out):
        files += [items.with_suffix(".completions.jsonl"), replies_path(items)]
    return files


def _score(
    config: Config,
    model: ModelConfig,
    prompts: Path,
    out: Path,
    grader: str,
    terminal: Terminal,
    *,
    paid: Sequence[Path],
) -> None:
    from distill_lab.commands._eval_files import write_label_results
    from distill_lab.evaluation.evaluate import evaluate
    from distill_lab.evaluation.pass_at_k import best_of_k
    from distill_lab.generation.cut_answers import cut_warning
    from distill_lab.grading.grade import bad_gold_note
    from distill_lab.grading.graders import grading, metric_of

    answers = out.with_suffix(".completions.jsonl")
    _answer(config, model, prompts, answers, terminal, paid=paid, live=grader == LABEL)
    with grading(grader, config.engine) as loaded:
        score = evaluate(prompts, answers, out, loaded, paid=paid, on_note=terminal.note)
    if grader == LABEL:
        write_label_results(model, out, _results_path(config, out), terminal)
    low, high = score.ci95
    terminal.print(
        f"{model.model}: {metric_of(grader).name} {score.score:.1%} [{low:.1%}, {high:.1%}] on {score.n} prompts; "
        f"{score.mean_tokens:.0f} tokens per answer, {score.truncated} cut off ({score.cut_share:.0%}), "
        f"{score.unparseable} unparseable, {score.missing} missing"
        + (f", {score.timeouts} exceeded the grader's time limit" if score.timeouts else "")
    )
    if score.bad_gold:
        terminal.note(f"{out}: {bad_gold_note(score.bad_gold, score.bad_gold_ids)}")
    if warning := cut_warning(model.model, score.cut_share):
        terminal.note(warning)
    if config.sampling.num_samples > 1:
        terminal.print(str(best_of_k(out)))


def _results_path(config: Config, items: Path) -> Path:
    """Where what --grader label finds goes; the base model's is always next to its items."""
    is_base = items.name.endswith(".base.jsonl")
    return config.results if config.results and not is_base else items.with_suffix(".results.json")
