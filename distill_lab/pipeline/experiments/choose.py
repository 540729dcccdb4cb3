"""Choose the models of an experiment: what the user gave -> options with a preset that the experiments have.

options, why = choose(Options(preset="auto"), models="", presets=system1.PRESETS)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from distill_lab.config import RecipeConfig
from distill_lab.errors import UserError
from distill_lab.pipeline.experiments.arms import Options
from distill_lab.planning.presets import is_tiny

AUTO, TINY, QWEN, REAL = "auto", "tiny", "qwen2.5", "real"
WEIGHTS = "*.safetensors"


def choose(options: Options, *, models: str, presets: Mapping[str, RecipeConfig]) -> tuple[Options, str]:
    """The options with a preset of the experiments, and why it is that one.

    models: the folder of the preset `real`, whose settings are those of qwen2.5. presets: of a recipe with the same models,
    to see whether they fit this machine. Raises UserError if the preset and the folder do not go together.
    """
    if (options.preset == REAL) != bool(models):
        raise UserError("--preset real and --models DIR go together: the folder has a directory for each model")
    if options.preset == REAL:
        found = models_in(Path(models))
        teacher, students = options.teacher or found[-1], options.students or tuple(found[:-1])
        return dataclasses.replace(
            options, preset=QWEN, teacher=teacher, students=students
        ), f"with the models in {models}"
    if options.preset != AUTO:
        return options, "as requested"
    preset, why = _fitting(options, presets)
    return dataclasses.replace(options, preset=preset), why


def _fitting(options: Options, presets: Mapping[str, RecipeConfig]) -> tuple[str, str]:
    given = [name for name in (options.teacher, *options.students, options.data) if name]
    foreign = [name for name in given if not is_tiny(name)]
    if foreign:
        return QWEN, f"{foreign[0]} is not tiny"
    if given:
        return TINY, "all given models and data are tiny"
    from distill_lab.planning.machine import this_machine
    from distill_lab.planning.method import preset_for

    return preset_for({name: presets[name] for name in (TINY, QWEN)}, this_machine())


def models_in(folder: Path) -> list[str]:
    """The model directories in a folder, from small to large. Raises UserError if there are fewer than two."""
    folder = folder.expanduser()
    sizes = {
        path: sum(file.stat().st_size for file in path.glob(WEIGHTS))
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (path / "config.json").is_file()
    }
    if len(sizes) < 2:
        raise UserError(f"{folder}: fewer than two model directories; it needs a teacher and a student")
    return [str(path) for path in sorted(sizes, key=lambda path: sizes[path])]
