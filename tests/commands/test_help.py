"""Help is there at once, says what the settings are, and fits the terminal."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from distill_lab import cli
from distill_lab.commands._help import NUM_FIRST, first_settings, help_text, reflowed
from distill_lab.commands._settings_file import REQUIRED, preset_names, settings_of
from distill_lab.commands._spelling import other_spellings

FILES = {
    name: (package, cli._folder(package) / f"{name}.py") for package in cli.PACKAGES for name in cli._names(package)
}


def values(kind: type[BaseModel], given: Any, prefix: str = "") -> dict[str, Any]:
    """Name -> default of all settings, groups opened, as pydantic has them."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        default = field.default if given is None else getattr(given, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner = None if default is PydanticUndefined else default
            found |= values(field.annotation, inner, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = default
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_settings_in_the_file_are_those_of_the_class(name: str) -> None:
    package, path = FILES[name]
    module = importlib.import_module(f"distill_lab.{package}.{name}")
    wanted = values(module.Config, None)
    found = {setting.name: setting for setting in settings_of(path) or []}
    assert found.keys() == wanted.keys()
    assert all(setting.text for setting in found.values())
    for key, default in wanted.items():
        shown = found[key].default
        if default is PydanticUndefined:
            assert shown == REQUIRED, key
        elif isinstance(default, tuple):
            assert shown == (" ".join(default) or "none"), key
        else:
            same = isinstance(default, float) and float(shown) == default  # 3 is a default of 3.0
            assert same or shown in (str(default), repr(default)), key
    assert preset_names(path) == list(getattr(module, "PRESETS", {}))


def test_help_imports_nothing_that_takes_long() -> None:
    code = (
        "import sys, distill_lab.cli as cli\n"
        f"for name in {[name.replace('_', '-') for name in FILES]}:\n"
        "    for flag in ('--help', '-h', '--help-all'):\n"
        "        assert cli.main([name, flag]) == 0\n"
        "print(*sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(printed.splitlines()[-1].split())
    assert not {"torch", "transformers", "numpy", "scipy", "datasets", "pydantic", "tyro", "rich"} & loaded


def shell_words(text: str) -> list[str]:
    return text.replace(" \\\n", " ").split()


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_help_fits_the_terminal_and_breaks_no_word(
    name: str, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, path = FILES[name]

    def at(width: int) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        return help_text(f"distill {name}", path, is_recipe=package == "recipes", everything=everything)

    for width in (60, 80):
        for line in at(width).splitlines():
            assert len(line) <= width or len(line.replace("--no-", "").split()) <= 3, line
        assert shell_words(at(width)) == shell_words(at(100))


@pytest.mark.parametrize("name", FILES)
def test_the_short_help_shows_ten_settings_and_the_way_to_all(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(FILES[name][1]) or []
    assert cli.main([name.replace("_", "-"), "--help"]) == 0
    printed = capsys.readouterr().out
    shown = printed.partition("settings that matter first")[2] or printed.partition("All settings:")[2]
    number = len(re.findall(r"^  --", shown, re.MULTILINE))
    assert min(3, len(settings)) <= number <= NUM_FIRST
    assert (f"{name.replace('_', '-')} --help-all" in printed) == (number < len(settings))
    first = first_settings(settings)
    assert {each.name for each in settings if each.default == REQUIRED} <= {each.name for each in first}


def test_a_command_that_is_too_long_can_be_typed_as_it_is_printed() -> None:
    command = "distill system1 --teacher Qwen/Qwen2.5-7B-Instruct --student Qwen/Qwen2.5-0.5B-Instruct --relabel"
    printed = reflowed(f"A sentence.\n\n    {command}\n    distill runs", 60)
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 60
    assert shell_words(printed) == ["A", "sentence.", *command.split(), "distill", "runs"]
    assert [line.endswith(" \\") for line in lines if "distill system1" in line] == [True]


def test_a_file_without_settings_has_no_help(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text('"""X."""\nNAME = 1\n')
    assert help_text("distill x", tmp_path / "x.py", is_recipe=False, everything=False) == ""


def test_the_options_of_the_prompt_distillation_scripts_are_taken() -> None:
    from distill_lab.commands import generate, train

    script: str = "--input_file multi.txt --output_file pd.jsonl --model_name tiny:teacher --temperature 0.15"
    script += " --tensor_parallel_size 4 --max_retries 3"
    words = other_spellings(generate.ALIASES, [*script.split()])
    config = cli._flags(generate.Config, None, words, prog="distill generate", description="")
    assert (config.data.path, str(config.cot), config.model.model) == ("multi.txt", "pd.jsonl", "tiny:teacher")
    assert (config.sampling.temperature, config.engine.tensor_parallel_size, config.retries) == (0.15, 4, 3)
    assert config.form == "messages"
    script = "--student_model m --rows rows.jsonl --output_dir out --report_to none"
    words = other_spellings(train.ALIASES, [*script.split()])
    config = cli._flags(train.Config, None, words, prog="distill train", description="")
    assert config.train.report_to == ("none",)
    script = "--model_name m --rows r.jsonl --output_dir o --lora_rank 32 --lora_alpha 16 --max_length 2048"
    script += " --gradient_accumulation_steps 4 --learning_rate 2e-4 --num_train_epochs 1 --lr_scheduler_type cosine"
    words = other_spellings(train.ALIASES, [*script.split()])
    config = cli._flags(train.Config, None, words, prog="distill train", description="")
    found = config.train
    assert (config.student.model, found.lora.r, found.lora.alpha, found.max_length) == ("m", 32, 16, 2048)
    assert (found.gradient_accumulation_steps, found.learning_rate, found.num_epochs) == (4, 2e-4, 1)


def test_an_option_that_means_something_else_here_is_refused_with_the_right_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "--student", "m", "--out", "o", "--per_device_train_batch_size", "4"]) == 2
    said = capsys.readouterr().err
    assert "--per_device_train_batch_size:" in said
    assert "--train.tokens-per-batch" in said
