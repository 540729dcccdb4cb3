"""The variants of an experiment as settings of recipes: Experiment and options -> Arms, one for each variant and seed.

    arms = make_arms(read_experiment("a"), Options(preset="tiny"), find=find_recipe)
    [arm.key for arm in arms]                                 ['system1-1f0c66d2', 'system1-8e7bb0aa', 'system1-...']

Arms with the same settings have the same key, in one experiment and in several: their student is trained once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from distill_lab.activity import ProgressReporter
from distill_lab.config import AS_GIVEN, DataConfig, EngineConfig, ModelConfig, RecipeConfig
from distill_lab.data.records import Slice
from distill_lab.errors import UserError
from distill_lab.evaluation.summary_file import Summary
from distill_lab.files.fingerprints import fingerprint
from distill_lab.files.yaml_file import merge_settings
from distill_lab.pipeline.experiments.cut_model import cut_name
from distill_lab.pipeline.experiments.definition import TEST, CutConfig, Experiment, PresetConfig, VariantConfig
from distill_lab.types import JsonObject

MIN_ROWS = 8
"""Rows of a slice that `scale` leaves at least."""
NO_FILE_NAME = re.compile(r"[^\w.]+")
HELD_OUT = "train[-100:]"
"""Test rows of the user's data; the recipe leaves them out of the training set."""


class Recipe(Protocol):
    """A file of distill_lab/recipes."""

    Config: type[RecipeConfig]
    PRESETS: Mapping[str, RecipeConfig]

    def run(self, config: RecipeConfig, directory: str | Path, *, watch: ProgressReporter | None = None) -> Summary:
        """Run the recipe."""
        ...


FindRecipe = Callable[[str], Recipe]
"""Name -> recipe; this package is below the recipes and does not import them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user chose for all variants."""

    preset: str
    teacher: str = ""
    students: tuple[str, ...] = ()
    """Students in place of the preset's: the first one, or all of them where students are compared."""
    data: str = ""
    test: str = ""
    seeds: int = 1
    """Trainings of each variant."""
    judge: str = ""
    scale: float = 1.0
    """Share of all training and test rows, for a trial."""
    engine: EngineConfig = field(default_factory=EngineConfig)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training of one variant."""

    variant: VariantConfig
    seed: int
    """From 0."""
    recipe: str
    config: RecipeConfig
    cut: CutConfig | None

    @property
    def key(self) -> str:
        """Name of the run directory, the same for the same recipe and settings."""
        settings = self.config.model_dump(exclude={"engine"})
        if self.cut:
            settings["student"]["model"] = cut_name(self.cut.model, self.cut.layers)
        return f"{self.recipe}-{fingerprint(settings)[:8]}"

    @property
    def instruction(self) -> str:
        """What follows every prompt when the models are asked."""
        given = self.variant.instruction
        return given if given is not None else getattr(self.config, "instruction", "")


def make_arms(experiment: Experiment, options: Options, *, find: FindRecipe, models: Path) -> list[Arm]:
    """All arms, variant by variant. models: folder of students that are made by leaving out layers.

    Raises UserError for an unknown preset, and for settings that the recipe refuses, naming the variant.
    """
    preset = preset_of(experiment, options.preset)
    variants = _variants(experiment, preset, options.students)
    return [
        _arm(experiment, preset, variant, seed, options, find=find, models=models)
        for variant in variants
        for seed in range(options.seeds)
    ]


def preset_of(experiment: Experiment, name: str) -> PresetConfig:
    """The experiment for these models. Raises UserError for an unknown name."""
    if name not in experiment.presets:
        raise UserError(
            f"experiment {experiment.name} has no preset {name}; choose from {', '.join(experiment.presets)}"
        )
    return experiment.presets[name]


def compares_students(preset: PresetConfig) -> bool:
    """Whether the variants differ in nothing but the student."""
    return all(variant.cut or set(variant.settings) == {"student"} for variant in preset.variants)


def unused_students(preset: PresetConfig, students: Sequence[str]) -> list[str]:
    """Those of the user's students that no variant trains."""
    return [] if compares_students(preset) else list(students[1:])


def _variants(experiment: Experiment, preset: PresetConfig, students: Sequence[str]) -> Sequence[VariantConfig]:
    if not students or not compares_students(preset):
        return preset.variants
    if len(students) < 2:
        raise UserError(f"experiment {experiment.name} compares students; give two or more: --student SMALL LARGE")
    names = [Path(name).name for name in students]
    shown = names if len(set(names)) == len(names) else list(students)
    return [
        VariantConfig(name=name, settings={"student": {"model": model}})
        for name, model in zip(shown, students, strict=True)
    ]


def _arm(
    experiment: Experiment,
    preset: PresetConfig,
    variant: VariantConfig,
    seed: int,
    options: Options,
    *,
    find: FindRecipe,
    models: Path,
) -> Arm:
    name = variant.recipe or experiment.recipe
    recipe = find(name)
    base = recipe.PRESETS[options.preset] if options.preset in recipe.PRESETS else recipe.Config()  # pyright: ignore[reportCallIssue]
    settings = merge_settings(base.model_dump(context=AS_GIVEN), preset.settings)
    if options.teacher:
        settings["teacher"] = ModelConfig(model=options.teacher, quantization="auto").model_dump()
    if options.students:
        settings["student"] = ModelConfig(model=options.students[0]).model_dump()
    settings = merge_settings(settings, variant.settings)
    if options.data:
        settings |= _own_data(settings["data"]["split"], options)
    if variant.cut:
        settings["student"] = {"model": str(models / cut_name(variant.cut.model, variant.cut.layers))}
    for part in ("data", "test"):
        settings[part]["split"] = scaled(settings[part]["split"], options.scale)
    settings["train"]["seed"] += seed
    settings["engine"] = settings["engine"] | options.engine.model_dump(context=AS_GIVEN, exclude_defaults=True)
    try:
        config = recipe.Config.model_validate(settings)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        where = f"experiment {experiment.name}, variant {variant.name}"
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None
    return Arm(variant=variant, seed=seed, recipe=name, config=config, cut=variant.cut)


def _own_data(split: str, options: Options) -> JsonObject:
    """The user's data in a variant's slice, and a test set that is the same for all variants."""
    part = Slice.parse(split)
    bounds = f"[{part.start or ''}:{part.stop or ''}]" if part.start or part.stop else ""
    data = DataConfig(path=options.data, split=f"train{bounds}")
    test = DataConfig(path=options.test) if options.test else DataConfig(path=options.data, split=HELD_OUT)
    return {"data": data.model_dump(), "test": test.model_dump()}


def scaled(split: str, share: float) -> str:
    """A slice with a share of its rows, from its start on; a slice without an end stays as it is."""
    part = Slice.parse(split)
    if share >= 1 or part.stop is None or not part.stop.isdigit() or not (part.start or "0").isdigit():
        return split
    start, stop = int(part.start or 0), int(part.stop)
    rows = min(stop - start, max(MIN_ROWS, round((stop - start) * share)))
    return f"{part.name}[{start}:{start + rows}]"


def asked_data(data: DataConfig, share: float) -> DataConfig:
    """Prompts with a share of their rows."""
    return data.model_copy(update={"split": scaled(data.split, share)})


def described(arms: Sequence[Arm]) -> str:
    """What all arms of an experiment have in common, in a sentence: models and data."""
    first = arms[0].config

    def same(part: str, key: str) -> str:
        values = list(dict.fromkeys(str(getattr(getattr(arm.config, part), key)) for arm in arms))
        return values[0] if len(values) == 1 else " or ".join(values)

    cut = {arm.cut.model for arm in arms if arm.cut}
    student = "variants of " + ", ".join(sorted(cut)) if cut else same("student", "model")
    epochs = " or ".join(dict.fromkeys(f"{arm.config.train.num_epochs:g}" for arm in arms))
    return (
        f"Teacher {first.teacher.model}, student {student}; training data {same('data', 'path')} "
        f"({same('data', 'split')}), {epochs} epochs; test of the recipe {same('test', 'path')} ({same('test', 'split')})."
    )


def prompts_key(name: str, grader: str, data: DataConfig | None) -> str:
    """Name of a directory with the answers to prompts."""
    text = json.dumps([grader, data.model_dump() if data else None], sort_keys=True)
    return f"{TEST if data is None else NO_FILE_NAME.sub('-', name)}-{fingerprint(text)[:6]}"
