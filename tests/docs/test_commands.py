"""Every command and flag in the documentation is taken by the program it is for. Nothing is run here.

`distill` is parsed by the lab's own parser, with presets and types. Of accelerate and Ray the flags are looked up in their
source, because importing them takes longer than all the rest. tests/docs/test_pages_run.py runs what runs offline.
"""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.recipes import system1
from scripts.architecture import ROOT
from tests.pages import FENCED, PAGES, RUN_ELSEWHERE, all_flags, code_lines, commands, flags_of, spans
from tests.typed import settings

PARSED = [name for name in PAGES if name not in RUN_ELSEWHERE]
RECIPES = sorted(cli._spelled(name) for name in cli._names("recipes"))
TAKE_RECIPES = {"plan"}
"""Commands that take a recipe and its settings."""
OF_OTHERS = {
    *("--temp", "--repeat-penalty", "--min-p", "--max-logprobs", "--max-model-len", "--append", "--project"),
    "--per_device_train_batch_size",
}
"""Flags of llama.cpp, vLLM, wandb and trackio that pages name, and one that `distill train` refuses by name."""


def taken(command: str) -> None:
    """Raise if `distill` does not take the command."""
    words = shlex.split(command)
    if {"--help", "--help-all"} & set(words):
        assert cli._help(words[1], cli._package_of(words[1]), words[2:])
    elif len(words) == 2:
        cli._package_of(words[1])
    else:
        assert settings(command) is not None


@pytest.mark.parametrize("page", PARSED)
def test_the_parser_takes_every_command(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for command in dict.fromkeys(commands(PAGES[page])):
        try:
            taken(command)
        except (Exception, SystemExit):
            wrong.append(f"{command}\n{capsys.readouterr().err}")
    assert not wrong, "\n".join(wrong)


def test_there_is_something_to_check() -> None:
    found = [command for page in PARSED for command in commands(PAGES[page])]
    assert len(found) > 90
    assert {command.split()[1] for command in found} >= {*RECIPES, "generate", "train", "eval", "export", "experiment"}


def named(code: str) -> str:
    """The recipe or command that code in the text calls; empty if it calls none."""
    words = code.removeprefix(".venv/bin/").split()
    return words[1] if words[:1] == ["distill"] and re.fullmatch(r"[a-z][\w-]*", "".join(words[1:2])) else ""


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_exist(page: str) -> None:
    others = OF_OTHERS | launcher_flags("accelerate") | launcher_flags("ray")
    called = {named(code) for code in (*spans(PAGES[page]), *commands(PAGES[page]))} - {""}
    recipe = Path(page).stem
    # On a recipe's page a flag is one of the recipe, or of a command that the page names.
    here = flags_of(recipe).union(*map(flags_of, called)) if recipe in RECIPES else all_flags()
    for code in spans(PAGES[page]):
        name = named(code)
        known = flags_of(name) if name else here
        if name in TAKE_RECIPES:
            known = known.union(*(flags_of(word) for word in code.split() if word in RECIPES))
        for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", code):
            flag = flag.partition("=")[0]
            group = f"{flag.rstrip('.')}."  # a whole group: --engine.price, --test-sampling.*
            assert (
                flag in known
                or flag.replace("_", "-") in known
                or any(each.startswith(group) for each in known)
                or (not name and flag in others)
            ), f"{page}: {code}: {flag}"


def launcher_flags(program: str) -> frozenset[str]:
    """The flags in the source of `accelerate launch` or `ray start`."""
    file = {"accelerate": "commands/launch.py", "ray": "scripts/scripts.py"}[program]
    spec = find_spec(program)
    if spec is None or spec.origin is None:
        pytest.skip(f"{program} is not installed")
    return frozenset(re.findall(r'"(--?[a-z][\w-]*)"', (Path(spec.origin).parent / file).read_text(encoding="utf-8")))


def test_accelerate_and_ray_have_the_flags() -> None:
    launches = [command for page in PARSED for command in commands(PAGES[page], "accelerate launch")]
    assert launches
    for command in launches:
        own, _, ours = command.partition(" -m distill_lab.cli ")
        words = shlex.split(own)[2:]
        assert {word for word in words if word.startswith("-")} <= launcher_flags("accelerate"), command
        assert (ROOT / words[words.index("--config_file") + 1]).is_file()
        taken(f"distill {ours}")
    starts = [command for page in PARSED for command in commands(PAGES[page], "ray start")]
    assert starts
    for command in starts:
        assert {word for word in shlex.split(command) if word.startswith("-")} <= launcher_flags("ray"), command


def test_modules_that_python_is_to_run_exist() -> None:
    texts = "\n".join(code for text in PAGES.values() for code in (*code_lines(text), *spans(text)))
    names = set(re.findall(r"python -m ((?:benchmarks|scripts|distill_lab)[\w.]*)", texts))
    assert len(names) > 5
    for name in names:
        path = ROOT / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_yaml_settings_are_read(tmp_path: Path) -> None:
    [body] = [body for language, body in FENCED.findall(PAGES["docs/using.md"]) if language == "yaml"]
    (tmp_path / "mine.yaml").write_text(body, encoding="utf-8")
    _, config, *_ = cli._recipe_settings("system1", ["--config", str(tmp_path / "mine.yaml")], prog="distill system1")
    assert isinstance(config, system1.Config)
    assert config.train.lora.r == 16


def test_every_page_is_in_the_index_and_every_recipe_has_one() -> None:
    index = PAGES["docs/README.md"]
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert f"({Path(page).name})" in index, page
    for recipe in RECIPES:
        text = PAGES[f"docs/{recipe}.md"]
        titles = re.findall(r"(?m)^## (.*)$", text)
        assert {"When", "How it works", "What goes wrong"} <= set(titles), recipe
        assert "arxiv.org" in text, f"{recipe}: a paper"
        assert f"({Path(recipe).name}.md)" in PAGES["docs/README.md"]
        assert f"(docs/{recipe}.md)" in PAGES["README.md"]
