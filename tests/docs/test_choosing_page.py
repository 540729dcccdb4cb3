"""docs/choosing.md and docs/easydistill.md: commands parse, experiments are valid, all names are those there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distill_lab.commands.experiment import find_recipe
from distill_lab.easydistill.config import DRAFT_JOB, JOBS, WHITE_BOX_JOBS
from distill_lab.pipeline.experiments.arms import Options, make_arms
from distill_lab.pipeline.experiments.definition import read_experiment
from distill_lab.recipes import logits, on_policy, verified
from distill_lab.training_data.choosing import EXTREMES
from scripts.architecture import ROOT
from tests.typed import settings

CHOOSING = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
EASYDISTILL = (ROOT / "docs" / "easydistill.md").read_text(encoding="utf-8")
EXPERIMENTS = sorted((ROOT / "examples").glob("*.yaml"))


def test_commands_parse_and_name_the_defaults() -> None:
    commands = re.findall(r"^    \.venv/bin/(distill .*)$", CHOOSING + EASYDISTILL, re.MULTILINE)
    assert len(commands) == 9
    for command in commands:
        assert settings(command) is not None
    for flag in ("choose-rows", "rows-share"):
        assert flag.replace("-", "_") in logits.Config.model_fields
        assert f"--{flag}" in CHOOSING
    for recipe in (verified, on_policy):
        config = recipe.PRESETS["tiny"]
        assert (config.min_pass_rate, config.max_pass_rate, config.pass_rate_samples) == (0.2, 0.8, 8)
    assert "(8), grade" in CHOOSING
    assert f"the {EXTREMES:.0%} that surprise the teacher" in CHOOSING
    assert f"`--rows-share` ({logits.Config().rows_share})" in CHOOSING


@pytest.mark.parametrize("preset", ["tiny", "qwen2.5"])
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_compare_the_choice_with_as_many_at_random(path: Path, preset: str) -> None:
    assert f"experiment examples/{path.name} --preset tiny --seeds 3" in CHOOSING
    experiment = read_experiment(str(path))
    if preset not in experiment.presets:
        return
    arms = make_arms(experiment, Options(preset=preset), find=find_recipe, models=Path("runs/models"))
    chosen = [getattr(arm.config, "choose_rows", None) or getattr(arm.config, "choose_prompts", None) for arm in arms]
    assert chosen[0] == "all"
    assert chosen[1] in ("gap", "pass_rate")
    assert chosen[2] == "random"
    others = [arm.config.model_dump(exclude={"choose_rows", "choose_prompts"}) for arm in arms]
    assert others[0] == others[1] == others[2]


def test_all_jobs_are_named() -> None:
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", EASYDISTILL, re.MULTILINE)))
    assert sorted(named[1:]) == sorted([*JOBS, *WHITE_BOX_JOBS, DRAFT_JOB])
