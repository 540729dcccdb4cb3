"""What an experiment is: groups/a.yaml or a file of the user -> Experiment.

    experiment = read_experiment("a")
    [variant.name for variant in experiment.presets["tiny"].variants]     ['500 rows', '2,000 rows', '8,000 rows']

A variant is a change of the settings of one recipe, or of how its student is asked. The settings are those of the recipe's
YAML files (`--config`), put on top of the recipe's preset of the same name, then those of all variants, then the variant's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from distill_lab.config import Config, DataConfig
from distill_lab.errors import UserError
from distill_lab.files.yaml_file import read_yaml
from distill_lab.types import JsonObject

GROUPS = Path(__file__).parent / "groups"
"""Folder of the lab's own experiments, one YAML file each."""
ALL = "all"
TAKEN = (ALL, "students", "answers", "models")
"""Names that no experiment has: folders beside the experiments'."""
TEST = "test"
"""Name of the prompts that the recipe itself tests on."""
OPEN = "open"
"""Grader of answers that have no single right form: the judge if there is one, else likeness to a reference text."""
Shown = Literal["steps", "speed", "teacher's work", "failures"]
"""Further columns and parts of a report."""


class PromptsConfig(Config):
    """Prompts that every model of an experiment answers."""

    name: str
    """How reports call them. `test`: those that the recipe tests on, in which case there is nothing else to set."""
    data: DataConfig | None = None
    """The prompts."""
    grader: str = OPEN
    """How answers are graded: a file name in distill_lab/grading/graders, or open."""

    @model_validator(mode="after")
    def _has_data_or_is_the_test(self) -> PromptsConfig:
        if (self.name == TEST) == (self.data is not None):
            raise UserError(f"the prompts {self.name!r} need `data`; only those called {TEST} are the recipe's own")
        return self


class CutConfig(Config):
    """A student that is made from another model by leaving out layers."""

    model: str
    """The model."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)]
    """Numbers of the layers that stay, from 0."""


class VariantConfig(Config):
    """One variant of an experiment."""

    name: str
    """How reports call it; unique in the experiment."""
    value: float | None = None
    """Its place on the axis, such as 500 rows; without one the variants are next to each other."""
    recipe: str = ""
    """Another recipe than the experiment's."""
    settings: JsonObject = Field(default_factory=dict)
    """Settings of the recipe, as in its YAML file."""
    instruction: str | None = None
    """Text that follows every prompt when the models are asked, in place of the recipe's `instruction`."""
    cut: CutConfig | None = None
    """The student is this one."""


class PresetConfig(Config):
    """An experiment for one family of models."""

    settings: JsonObject = Field(default_factory=dict)
    """Settings of all variants."""
    prompts: Annotated[tuple[PromptsConfig, ...], Field(min_length=1)]
    """What the models are compared on; the first ones decide."""
    variants: Annotated[tuple[VariantConfig, ...], Field(min_length=1)]
    """What is compared."""

    @model_validator(mode="after")
    def _has_no_double_names(self) -> PresetConfig:
        for what, names in (
            ("variants", [variant.name for variant in self.variants]),
            ("prompts", [prompts.name for prompts in self.prompts]),
        ):
            if len(set(names)) < len(names):
                raise UserError(f"two of the {what} have the same name; each needs another one: {', '.join(names)}")
        return self


class Experiment(Config):
    """A question and how it is answered."""

    name: str
    """A letter, or the file's name; the result is in the folder of this name."""
    title: str
    """A few words."""
    question: str
    """The question, in two sentences."""
    recipe: str
    """The recipe of the variants."""
    axis: str
    """What the variants differ in, such as `training rows`."""
    ordered: bool = False
    """Whether the variants go from less to more."""
    baseline: bool = False
    """Whether each student is compared with its base, prompts by prompts, besides the variants with each other."""
    shows: tuple[Shown, ...] = ()
    """What the report shows besides scores."""
    presets: dict[str, PresetConfig]
    """By name: tiny, qwen2.5."""

    @model_validator(mode="after")
    def _has_a_folder_of_its_own(self) -> Experiment:
        if not re.fullmatch(r"\w[\w.-]*", self.name) or self.name.lower() in TAKEN:
            raise UserError(
                f"an experiment cannot be called {self.name!r}: letters, digits, - and _ make a name, other than "
                f"{', '.join(TAKEN)}; set `name:` or rename the file"
            )
        return self


def names() -> list[str]:
    """The lab's own experiments."""
    return sorted(path.stem for path in GROUPS.glob("*.yaml"))


def read_experiment(name: str) -> Experiment:
    """The experiment with this letter, or in this YAML file. Raises UserError, naming the file and the key."""
    path = GROUPS / f"{name}.yaml"
    if name not in names():
        path = Path(name).expanduser()
        if path.suffix not in (".yaml", ".yml"):
            known = ", ".join([*names(), ALL])
            raise UserError(
                f"no experiment {name!r}; choose from {known}, or give a .yaml file like those in experiments/"
            )
    try:
        found = Experiment.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise UserError("\n".join(lines)) from None
    own = found.name.lower()
    if name not in names() and own in names() and found != read_experiment(own):
        raise UserError(
            f"{path}: the lab's own experiment is called {own}, and this one would replace its result; set another `name:` "
            "or rename the file"
        )
    return found
