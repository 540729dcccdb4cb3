"""Run an experiment: variants of a recipe, compared with intervals, with a conclusion computed from them.

In: a letter, all, or a YAML file like those in experiments/. Out: a page with question, setup, results, examples and
conclusion in DIR/NAME/report.html, the figures in DIR/NAME/experiment.json, and DIR/index.html over all. Variants with the
same settings are trained once, also across experiments; the teacher answers each prompt once. Run the same command again to
resume.

a: data size. b: the teacher's answers or the data set's. c: where the student fails. d: thresholds of verbosity and
difficulty. e: student size. f: prompting. g: other tasks, languages and domains.

    distill experiment a --preset tiny
    distill experiment all --preset tiny --dry-run
    distill experiment e --teacher Qwen/Qwen2.5-7B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct Qwen/Qwen2.5-3B-Instruct
    distill experiment f --preset real --models my-models --data questions.jsonl
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import tyro
from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import EngineConfig

if TYPE_CHECKING:
    from distill_lab.evaluation.experiment import ExperimentResult
    from distill_lab.pipeline.experiments.arms import Options, Recipe
    from distill_lab.pipeline.experiments.definition import Experiment
    from distill_lab.terminal import Terminal


class Config(settings.Config):
    """Settings of `distill experiment`."""

    name: Annotated[str, tyro.conf.Positional]
    """a, b, c, d, e, f, g, all, or a YAML file."""
    preset: Literal["auto", "tiny", "qwen2.5", "real"] = "auto"
    """tiny: the embedded family, offline on a CPU; qwen2.5: Qwen2.5 and its data sets; real: the models in --models; auto:
    by the models given, else by this machine."""
    dry_run: bool = False
    """Say what the variants are and what each costs, and stop."""
    judge: str = ""
    """A model that grades open answers, as in --grader judge:MODEL; without it they are compared with reference texts."""
    seeds: Annotated[int, Field(ge=1, le=20)] = 1
    """Trainings of each variant, with different seeds."""
    teacher: str = ""
    """Another teacher."""
    student: tuple[str, ...] = ()
    """Another student; experiment e compares several, from small to large."""
    data: str = ""
    """Training data in place of the preset's, in the variants' slices; its last 100 rows are the test, or --test."""
    test: str = ""
    """Test data that goes with --data."""
    models: str = ""
    """With --preset real: a folder of model directories. The largest is the teacher, the others are the students."""
    scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of all rows and prompts, for a trial of the machinery."""
    run: Path = Path("runs/experiments")
    """Folder for everything; experiments in the same folder share their students."""
    engine: EngineConfig = EngineConfig()
    """Which engine generates; what differs from the defaults here replaces the experiment's own settings."""


def main(config: Config) -> int:
    """Run the experiments one after the other, and write their pages. Returns 2 if a dry run finds a problem."""
    from distill_lab.pipeline.experiments.arms import Options
    from distill_lab.pipeline.experiments.choose import choose
    from distill_lab.pipeline.experiments.definition import ALL, names, read_experiment
    from distill_lab.pipeline.experiments.sweep import run_experiment
    from distill_lab.report.experiment_page import write_experiment, write_index
    from distill_lab.terminal import Terminal

    experiments = [read_experiment(name) for name in (names() if config.name == ALL else [config.name])]
    _check(config)
    terminal = Terminal()
    given = Options(
        preset=config.preset,
        teacher=config.teacher,
        students=config.student,
        data=config.data,
        test=config.test,
        seeds=config.seeds,
        judge=config.judge,
        scale=config.scale,
        engine=config.engine,
    )
    options, why = choose(given, models=config.models, presets=find_recipe("system1").PRESETS)
    terminal.note(f"preset {options.preset} ({why}), folder {config.run}")
    if config.dry_run:
        return _plan(experiments, options, config.run, terminal)
    for experiment in experiments:
        terminal.heading(f"{experiment.name.upper()}. {experiment.title}")
        terminal.wrapped(experiment.question, style="dim")
        result = run_experiment(experiment, options, config.run, find=find_recipe, watch=terminal)
        page = write_experiment(config.run / experiment.name)
        index = write_index(config.run)
        _show(result, page, terminal)
        terminal.print(f"all experiments: {index}")
    return 0


def find_recipe(name: str) -> Recipe:
    """The recipe with this name. Raises UserError if there is none."""
    from distill_lab.errors import UserError

    module = f"distill_lab.recipes.{name.replace('-', '_')}"
    try:
        return cast("Recipe", import_module(module))
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # what the recipe needs is missing, not the recipe
        raise UserError(
            f"the experiment names the recipe {name!r}, which does not exist; distill --help lists them"
        ) from None


def _check(config: Config) -> None:
    from distill_lab.errors import UserError
    from distill_lab.pipeline.experiments.definition import ALL
    from distill_lab.planning.preflight import check_grader

    if config.data and config.name == ALL:
        raise UserError("--data is for one experiment at a time: instructions do not fit d to f, nor reasoning a to c")
    if config.test and not config.data:
        raise UserError("--test goes with --data; the presets have their own test data")
    if config.judge:
        check_grader(f"judge:{config.judge}", config.engine)


def _plan(experiments: list[Experiment], options: Options, folder: Path, terminal: Terminal) -> int:
    """Print variants and costs of all experiments, what they share counted once."""
    from distill_lab.files.cache_folder import VARIABLE, is_off
    from distill_lab.formatting import duration
    from distill_lab.pipeline.experiments.arms import make_arms
    from distill_lab.pipeline.experiments.cost import plan_experiment
    from distill_lab.pipeline.experiments.sweep import MODELS, STUDENTS
    from distill_lab.planning.machine import this_machine

    arms = [arm for each in experiments for arm in make_arms(each, options, find=find_recipe, models=folder / MODELS)]
    owners = [each for each in experiments for _ in make_arms(each, options, find=find_recipe, models=folder / MODELS)]
    costs = plan_experiment(arms, folder / STUDENTS, machine=this_machine(), cached=not is_off())
    terminal.finished("")
    problems: list[str] = []
    shown = ""
    for experiment, cost in zip(owners, costs, strict=True):
        if experiment.name != shown:
            shown = experiment.name
            terminal.print(f"\n{experiment.name.upper()}. {experiment.title}")
            terminal.print(f"  {'variant':<26}{'rows':>8}{'new answers':>13}{'their tokens':>14}{'time':>12}")
        name = cost.arm.variant.name + (f" ({cost.arm.seed + 1})" if options.seeds > 1 else "")
        if cost.shared or cost.done:
            why = "shares the student of a variant above" if cost.shared else "its run is finished"
            terminal.print(f"  {name:<26}{why:>47}")
            continue
        time = "not known" if cost.seconds is None else f"~ {duration(cost.seconds)}"
        terminal.print(f"  {name:<26}{cost.rows:>8,}{cost.new_answers:>13,}{cost.tokens:>14,.0f}{time:>12}")
        problems += [f"{experiment.name}, {name}: {problem}" for problem in cost.problems]
    known = [cost.seconds for cost in costs]
    total = None if None in known else sum(each for each in known if each is not None)
    terminal.print(
        f"\nall trainings: {'not known' if total is None else duration(total)}, and the answers to further prompts"
    )
    if is_off():
        terminal.print(
            f"{VARIABLE} is off: variants do not share the teacher's answers, and each pays for all of its rows"
        )
    for problem in dict.fromkeys(problems):
        terminal.print(f"does not work as it is: {problem}")
    return 2 if problems else 0


def _show(result: ExperimentResult, page: Path, terminal: Terminal) -> None:
    """Print the scores of the variants, and the conclusion."""
    from distill_lab.evaluation.verdict import tenths

    terminal.finished("")
    width = max(len(variant.name) for variant in result.variants) + 2
    for place, each in enumerate(result.variants[0].on):
        likeness = " (likeness, not quality)" if each.metric.similarity else ""
        terminal.print(f"\n{each.prompts}: {each.metric.name}{likeness}, {each.models['student'].n:,} prompts")
        for variant in result.variants:
            found = variant.on[place].models
            cells = [
                f"{label} {tenths(found[model].score)} [{', '.join(map(tenths, found[model].ci95))}]"
                for model, label in (("student", "student"), ("base", "base"), ("teacher", "teacher"))
                if model in found
            ]
            terminal.print(f"  {variant.name:<{width}}{'  '.join(cells)}")
    terminal.print("")
    for line in (*result.conclusion, *result.next_steps):
        terminal.wrapped(f"- {line}", indent=2)
    terminal.print(f"\nthe page: {page}")
