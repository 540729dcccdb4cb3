"""Run an experiment: its arms as runs of the recipe, then figures, differences and a conclusion -> experiment.json.

    result = run_experiment(experiment, options, Path("runs/experiments"), find=find_recipe, watch=Terminal())

    runs/experiments/students/KEY/        a run of the recipe for each distinct training; experiments share them
                     models/NAME/         students made by leaving out layers
                     answers/KEY/         a student's answers to further prompts
                     a/experiment.json    the result, with the merged graded answers in a/eval/

The same call again resumes: finished stages are skipped by their keys, and the teacher's answers come from the request
cache, so that a variant that is added later asks the teacher only what no variant has asked.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from distill_lab.activity import ProgressReporter
from distill_lab.config import ModelConfig
from distill_lab.data.contamination import find_overlaps
from distill_lab.errors import UserError
from distill_lab.evaluation.experiment import ExperimentResult, read_result, write_result
from distill_lab.evaluation.summary_file import Summary, read_summary
from distill_lab.evaluation.variants import merge_seeds, reached
from distill_lab.files.fingerprints import fingerprint
from distill_lab.files.jsonl import read_jsonl
from distill_lab.pipeline.experiments.arms import (
    Arm,
    FindRecipe,
    Options,
    asked_data,
    make_arms,
    preset_of,
    prompts_key,
    unused_students,
)
from distill_lab.pipeline.experiments.asking import ask_variant
from distill_lab.pipeline.experiments.cut_model import cut_model
from distill_lab.pipeline.experiments.definition import Experiment, PromptsConfig
from distill_lab.pipeline.experiments.results import NAMES, STUDENTS, Graded, make_result, unused_text

ANSWERS, MODELS, RESULT = "answers", "models", "experiment.json"


def run_experiment(
    experiment: Experiment,
    options: Options,
    folder: Path,
    *,
    find: FindRecipe,
    watch: ProgressReporter,
) -> ExperimentResult:
    """Train, ask and compare all variants, and write `folder / experiment.name / experiment.json`.

    Raises UserError and the recipe's errors; what was finished before stays.
    """
    arms = make_arms(experiment, options, find=find, models=folder / MODELS)
    preset = preset_of(experiment, options.preset)
    prompts = [_scaled(each, options.scale) for each in preset.prompts]
    made_of = definition(arms, prompts)
    check_not_replaced(folder / experiment.name / RESULT, options.preset, made_of)
    watch.note(f"experiment {experiment.name}: {experiment.title}; {len({arm.key for arm in arms})} trainings")
    if left := unused_students(preset, options.students):
        watch.note(unused_text(left))
    summaries: dict[str, Summary] = {}
    for arm in arms:
        if arm.key not in summaries:
            watch.note(f"variant {arm.variant.name}, training {arm.seed + 1} of {options.seeds}: {arm.key}")
            if arm.cut:
                cut_model(
                    ModelConfig(model=arm.cut.model),
                    arm.cut.layers,
                    folder / MODELS / Path(arm.config.student.model).name,
                )
            summaries[arm.key] = find(arm.recipe).run(arm.config, folder / STUDENTS / arm.key, watch=watch)
    graded: dict[str, dict[str, Graded]] = {}
    for name, group in groupby(arms, key=lambda arm: arm.variant.name):
        graded[name] = _graded(list(group), prompts, summaries, folder, experiment.name, options, watch)
    result = make_result(experiment, options, arms, graded, summaries, folder, prompts, watch.note)
    result = dataclasses.replace(result, definition=made_of)
    write_result(folder / experiment.name / RESULT, result)
    return result


def definition(arms: Sequence[Arm], prompts: Sequence[PromptsConfig]) -> dict[str, str]:
    """Each variant and set of prompts -> a digest of its settings; further seeds and another judge change none."""
    found = {f"the variant {arm.variant.name}": fingerprint([arm.key, arm.instruction]) for arm in arms if not arm.seed}
    return found | {f"the prompts {each.name}": fingerprint(each.model_dump(mode="json")) for each in prompts}


def check_not_replaced(path: Path, preset: str, made_of: Mapping[str, str]) -> None:
    """Raise UserError if `path` has the result of another experiment; a result may gain variants, prompts and seeds."""
    try:
        known = read_result(path)
    except UserError:
        return  # there is none, or none that could be lost
    if known.preset != preset:
        what = f"with the preset {known.preset}"
    elif changed := [name for name, digest in known.definition.items() if made_of.get(name) != digest]:
        what = f"with other settings ({changed[0]})"
    else:
        return
    raise UserError(
        f"{path} is the result of this experiment {what}, and would be replaced; give another folder (--run), or remove "
        f"{path.parent}"
    )


def _scaled(prompts: PromptsConfig, share: float) -> PromptsConfig:
    return prompts.model_copy(update={"data": asked_data(prompts.data, share)}) if prompts.data else prompts


def _graded(
    arms: list[Arm],
    prompts: list[PromptsConfig],
    summaries: Mapping[str, Summary],
    folder: Path,
    name: str,
    options: Options,
    watch: ProgressReporter,
) -> dict[str, Graded]:
    """Set of prompts -> a variant's graded answers."""
    found: dict[str, Graded] = {}
    for each in prompts:
        places = [_asked(arm, each, folder, options, watch) for arm in arms]
        files: dict[str, Path] = {}
        for model in NAMES:
            given = [place / "eval" / f"{model}.jsonl" for place in places]
            if all(path.is_file() for path in given):
                files[model] = (
                    folder / name / "eval" / _slug(each.name) / f"{_slug(arms[0].variant.name)}.{model}.jsonl"
                )
                merge_seeds(given, files[model])
        by_seed = tuple(reached(place / "eval" / "student.jsonl", steps=False).score for place in places)
        first = summaries[arms[0].key] if each.data is None else read_summary(places[0] / "summary.json")
        metric = first.metric
        if metric is None or "student" not in files:
            raise UserError(
                f"{places[0]}: no score on the prompts {each.name}; give test data with answers or references"
            )
        overlap = _overlap(folder / STUDENTS / arms[0].key, places[0]) if each.data else 0
        instruction = arms[0].instruction if each.data else getattr(arms[0].config, "instruction", "")
        found[each.name] = Graded(files, metric, by_seed, overlap, instruction)
    return found


def _asked(arm: Arm, prompts: PromptsConfig, folder: Path, options: Options, watch: ProgressReporter) -> Path:
    run_dir = folder / STUDENTS / arm.key
    if prompts.data is None:
        return run_dir
    instruction = arm.instruction
    key = prompts_key(prompts.name, f"{prompts.grader} {options.judge} {instruction}", prompts.data)
    directory = folder / ANSWERS / f"{arm.key}-{key}"
    watch.note(f"variant {arm.variant.name} on the prompts {prompts.name}")
    return ask_variant(arm, prompts, run_dir, directory, judge=options.judge, instruction=instruction, watch=watch)


def _overlap(run_dir: Path, place: Path) -> int:
    """Prompts of a set with which a training prompt overlaps (`data/contamination.py`)."""
    found = place / "overlap.jsonl"
    find_overlaps(run_dir / "prompts.jsonl", place / "test.jsonl", found)
    return len({row["test_id"] for row in read_jsonl(found)})


def _slug(name: str) -> str:
    """A file name for a name: the same, or its letters and digits and a digest, so that no two names share one."""
    found = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return found if found == name else f"{found or 'x'}-{fingerprint(name)[:6]}"
