"""The command line: help that teaches, settings from preset, YAML and flags, exit codes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distill_lab import cli
from distill_lab.commands._spelling import spell_out, take_options
from distill_lab.config import Config, ModelConfig, TrainConfig
from distill_lab.device import has_gpu
from distill_lab.errors import UserError
from distill_lab.files.yaml_file import merge_settings, read_yaml
from distill_lab.formatting import clean
from distill_lab.recipes import system1
from distill_lab.terminal import Terminal

pytestmark = pytest.mark.slow

COMMANDS = [(package, name) for package in cli.PACKAGES for name in cli._names(package)]


def distill(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distill_lab.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    for _, name in COMMANDS:
        assert re.search(rf"^  {name.replace('_', '-')} +\w", printed, re.MULTILINE), name
    assert {"system1", "demo", "generate", "train", "eval", "compare"} <= {name for _, name in COMMANDS}


@pytest.mark.parametrize(("package", "name"), COMMANDS)
def test_help_says_what_goes_in_what_comes_out_and_every_setting(
    package: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = name.replace("_", "-")
    assert cli.main([typed, "--help-all"]) == 0
    printed = capsys.readouterr().out
    assert "In: " in printed
    assert "Out: " in printed
    assert f"distill {typed}" in printed
    for setting in settings(cli.importlib.import_module(f"distill_lab.{package}.{name}").Config):
        assert setting in printed


def settings(kind: type[Config], prefix: str = "--") -> list[str]:
    found = []
    for name, field in kind.model_fields.items():
        flag = prefix + name.replace("_", "-")
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Config):
            found += settings(group, flag + ".")
        else:
            found.append(flag)
    return found


def test_wrong_usage_ends_with_2_and_names_the_remedy() -> None:
    misspelled = distill("sytem1")
    assert misspelled.returncode == 2
    assert "did you mean system1?" in misspelled.stderr
    unknown = distill("system1", "--preset", "tiny", "--learning-rate", "1")
    assert unknown.returncode == 2
    assert "--train.learning-rate" in unknown.stdout + unknown.stderr
    preset = distill("system1", "--preset", "huge")
    assert preset.returncode == 2
    assert "tiny, qwen2.5, qwen3" in preset.stderr
    nothing = distill("compare", "--prompts", "hi")
    assert nothing.returncode == 2
    assert "--teacher" in nothing.stderr


def test_flags_beat_yaml_beats_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  learning_rate: 2e-5\n  num_epochs: 7\nnum_test: 3\n")
    base = cli._from_yaml(system1.PRESETS["tiny"], str(file))
    config = cli._flags(
        system1.Config, base, ["--train.num-epochs", "9", "--student", "my/model"], prog="distill", description=""
    )
    assert config.train.learning_rate == 2e-5
    assert config.train.num_epochs == 9
    assert config.num_test == 3
    assert config.student == ModelConfig(model="my/model")
    assert config.teacher == ModelConfig(model="tiny:teacher")
    assert config.train.weight_decay == system1.PRESETS["tiny"].train.weight_decay != TrainConfig().weight_decay


def test_a_learning_rate_left_open_follows_what_flags_and_yaml_train(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for yaml, flags in (("num_test: 3\n", ["--train.lora.r", "4"]), ("train:\n  lora:\n    r: 4\n", [])):
        file.write_text(yaml)
        base = cli._from_yaml(system1.Config(), str(file))
        config = cli._flags(system1.Config, base, flags, prog="distill", description="")
        assert config.train.peak_learning_rate == 2e-4
    assert system1.Config().train.peak_learning_rate == 2e-5


def test_short_forms_and_equals_signs() -> None:
    spelled = spell_out(system1.Config, ["--teacher=a/b", "--student", "c", "--relabel", "--data.split", "train"])
    assert spelled == ["--teacher.model=a/b", "--student.model", "c", "--relabel", "--data.split", "train"]
    both = spell_out(system1.Config, ["--dtype", "bf16", "--train.dtype", "fp32"])
    config = cli._flags(system1.Config, system1.PRESETS["tiny"], both, prog="distill", description="")
    assert (config.teacher.dtype, config.student.dtype, config.train.dtype) == ("bf16", "bf16", "fp32")
    found, rest = take_options(["--run=x", "--relabel", "--preset", "tiny"], ("run", "preset"))
    assert (found, rest) == ({"run": "x", "preset": "tiny"}, ["--relabel"])
    with pytest.raises(UserError, match="--run needs a value"):
        take_options(["--run"], ("run",))


def test_a_value_that_cannot_be_is_named_without_a_link() -> None:
    done = distill("train", "--student", "tiny:student", "--out", "x", "--train.num-epochs", "-1")
    assert done.returncode == 2
    assert "num_epochs" in done.stderr
    assert "greater than 0" in done.stderr
    assert "http" not in done.stderr


def test_flags_as_people_write_them() -> None:
    words = ["--relabel=false", "--train.compile=True", "--student.trust-remote-code=false", "--train.num-epochs=2"]
    spelled = spell_out(system1.Config, words)
    assert spelled == [
        "--no-relabel", "--train.compile", "--student.no-trust-remote-code", "--train.num-epochs=2"
    ]  # fmt: skip
    config = cli._flags(system1.Config, system1.PRESETS["tiny"], words, prog="distill", description="")
    assert (config.relabel, config.train.compile, config.train.num_epochs) == (False, True, 2)
    for typed in ("-preset", "-train.num-epochs", "-relabel"):
        with pytest.raises(UserError, match=f"^{typed}: write it with two dashes, -{typed}$"):
            spell_out(system1.Config, [typed, "x"])
    assert spell_out(system1.Config, ["--train.max-steps", "-1", "--grader", "-x"])[-1] == "-x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  learning_rat: 1\n", "train.learning_rat: no such setting; did you mean learning_rate?"),
        ("gradr: exact\n", "gradr: no such setting; did you mean grader?"),
        ("xyzzy: 1\n", "xyzzy: no such setting"),
        ("num_test: many\n", "num_test"),
        ("num_test: 1\nnum_test: 2\n", '2: "num_test" is given twice'),
        ("- a\n", "expected settings"),
        ("a: [1\n", "not YAML"),
    ],
)
def test_bad_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        cli._from_yaml(system1.PRESETS["tiny"], str(file))


def test_yaml_is_read_the_way_people_mean_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("a: 2e-5\nb: no\nc: 010\nd: true\ne: null\nf: 1_000\ng: 12:30\nh: 2026-11-30\n")
    plain = {"a": 2e-5, "b": "no", "c": 10, "d": True, "e": None}
    assert read_yaml(file) == {**plain, "f": 1000, "g": "12:30", "h": "2026-11-30"}
    assert merge_settings({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}}) == {"a": {"b": 1, "c": 4}, "d": 3}


def test_sigterm_ends_with_143_and_frees_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distill_lab.cli", "system1", "--preset", "tiny", "--run", str(tmp_path / "run")]
    process = subprocess.Popen([*command, "--engine.batch-size", "4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "run" / "completions.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    ended = distill("system1", "--preset", "tiny", "--run", str(tmp_path / "run"), "--data.split", "distill[:0]")
    assert ended.stderr.strip() == "No data for System 1 distillation"


def test_what_models_say_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert clean("a\x1b[31mred\x07\nb‮c") == "a[31mred\nbc"
    Terminal().note("[/foo] [bold]not markup[/bold] \x1b]0;title\x07")
    assert capsys.readouterr().out == "  [/foo] [bold]not markup[/bold] ]0;title\n"


def test_runs_and_report_and_doctor(tmp_path: Path) -> None:
    assert "no runs under" in distill("runs", "--folder", str(tmp_path)).stdout
    missing = distill("report", "--run", str(tmp_path))
    assert missing.returncode == 2
    assert str(tmp_path) in missing.stderr
    said = distill("doctor").stdout
    assert "torch" in said
    if not has_gpu():
        assert re.search(r"dtype +(fp32|bf16): matrix products of .* are [\d.e-]+ times as fast in bf16", said)
