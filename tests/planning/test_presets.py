"""What a recipe starts from: the toy's settings for the toy only, own data tested on itself, CLI and Python alike."""

from __future__ import annotations

import shlex
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from distill_lab import cli
from distill_lab.activity import ProgressReporter
from distill_lab.config import DataConfig, ModelConfig
from distill_lab.errors import UserError
from distill_lab.planning.machine import Machine
from distill_lab.planning.presets import given, start

RECIPES = ("system1", "system2", "cot", "verified", "prompt")


def started(recipe: str, line: str, monkeypatch: pytest.MonkeyPatch, *, gpu: bool = False) -> Any:
    """The settings that `distill RECIPE LINE` would run with; the recipe itself is not run."""
    module, found = import_module(f"distill_lab.recipes.{recipe}"), []
    here = Machine("cuda", 80e9, 128e9, "bf16") if gpu else Machine("cpu", 64e9, 64e9, "fp32")
    monkeypatch.setattr("distill_lab.planning.machine.this_machine", lambda: here)

    def caught(config: Any, directory: Path, *, watch: ProgressReporter) -> dict[str, Any]:
        found.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", caught)
    assert cli.main([recipe, *shlex.split(line)]) == 130
    return found[0]


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "line",
    [
        "--data mine.jsonl",
        "--data.path=mine.jsonl --teacher Qwen/Qwen3-8B --student Qwen/Qwen3-0.6B",
        "--teacher openai:big --data mine.jsonl",
    ],
)
def test_own_data_and_models_take_the_recipes_defaults_as_from_python(
    recipe: str, line: str, gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = started(recipe, line, monkeypatch, gpu=gpu)
    kind = import_module(f"distill_lab.recipes.{recipe}").Config
    models = {name: getattr(config, name) for name in ("teacher", "student")}
    assert config == kind(data=DataConfig(path="mine.jsonl"), **models)
    assert config.test.path == ""
    assert config.data.split == "train"
    assert config.train.peak_learning_rate < 1e-3


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_tiny_preset_is_for_the_tiny_family(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = import_module(f"distill_lab.recipes.{recipe}").PRESETS["tiny"]
    assert started(recipe, "", monkeypatch) == tiny
    assert started(recipe, "--student tiny:student --teacher tiny:teacher", monkeypatch, gpu=True).train == tiny.train
    assert started(recipe, "--student some/model", monkeypatch).train != tiny.train
    assert started(recipe, "", monkeypatch, gpu=True).train != tiny.train


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("preset", ["tiny", "qwen2.5"])
def test_a_preset_as_asked_does_not_keep_its_test_for_other_data(
    recipe: str, preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = started(recipe, f"--preset {preset} --data mine.jsonl", monkeypatch)
    presets = import_module(f"distill_lab.recipes.{recipe}").PRESETS
    assert (config.data, config.test) == (DataConfig(path="mine.jsonl"), DataConfig(path=""))
    assert config.train == presets[preset].train
    if presets[preset].test.path:
        assert f"held-out rows of mine.jsonl, not {presets[preset].test.path}" in capsys.readouterr().out
    config = started(recipe, f"--preset {preset} --data mine.jsonl --test theirs.jsonl", monkeypatch)
    assert config.test.path == "theirs.jsonl"
    config = started(recipe, f'--preset {preset} --data.split "train[:7]"', monkeypatch)
    assert config.test == presets[preset].test


def test_yaml_counts_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data:\n  path: mine.jsonl\nnum_test: 7\n")
    config = started("verified", f"--config {file}", monkeypatch)
    assert (config.test.path, config.num_test, config.teacher.model) == ("", 7, "Qwen/Qwen2.5-Math-7B-Instruct")
    file.write_text("data: {path: tiny:problems, split: 'distill[:9]'}\n")
    assert started("verified", f"--config {file}", monkeypatch).student == ModelConfig(model="tiny:student")


def test_what_was_given_is_found_in_every_spelling() -> None:
    flags = ["--teacher.model", "a", "--data.path=b", "--relabel", "--prompt-file", "c", "--test.split", "train"]
    assert given({"student": {"model": "d"}}, flags) == {
        "teacher": "a",
        "data": "b",
        "prompt_file": "c",
        "student": "d",
    }
    assert given({"data": {"path": "x"}}, ["--data.path", "y"]) == {"data": "y"}


def test_data_of_the_family_keeps_its_slice_and_its_own_test() -> None:
    recipe = import_module("distill_lab.recipes.system1")
    base: Any
    base, why, notes = start(recipe.PRESETS, recipe.Config, preset=None, given={"data": "tiny:problems"})
    assert (base.data.split, base.test.path) == ("distill[:16000]", "")
    assert "tiny" in why
    assert notes


def test_a_recipe_may_have_any_presets_or_none() -> None:
    recipe = import_module("distill_lab.recipes.system1")
    start_with = partial(start, defaults=recipe.Config, preset=None)
    assert start_with({}, given={})[:2] == (recipe.Config(), "this recipe's defaults")
    assert start_with({}, given={"data": "tiny:problems"})[1] == "this recipe's defaults"
    only = {"mine": recipe.Config(num_test=7)}
    assert start_with(only, given={})[:2] == (only["mine"], "preset mine (the recipe's first preset)")
    with pytest.raises(UserError, match="no such preset; choose from none at all"):
        start({}, recipe.Config, preset="tiny", given={})
