"""The help of a recipe or command: the settings that matter first, or all of them, at the width of the terminal.

    print(help_text("distill system1", Path("distill_lab/recipes/system1.py"), everything=False))

Reads the files as text (`_settings_file`). No word is broken, and no line is wider than the terminal if its words are not;
commands that are too long continue on the next line as a shell takes them.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path

from distill_lab.commands._settings_file import REQUIRED, Setting, docstring, preset_names, settings_of

MAX_WIDTH, MIN_WIDTH = 100, 40
NUM_FIRST = 10
"""Settings that the short help shows."""
FIRST = (
    "teacher.model", "student.model", "model.model", "data.path", "test.path", "out", "cot", "relabel", "grader",
    "sampling.max_new_tokens", "train.num_epochs", "train.learning_rate", "train.method", "engine.engine",
    "train.max_length", "engine.base_url", "data.split", "sampling.temperature",
)  # fmt: skip
"""In this order, after those that are required."""
RECIPE_HELP = """\
--preset NAME   start from these settings: {presets} (default: without a model or data, tiny on a machine without a GPU and {default} on one with a GPU; with a model or data, the recipe's defaults)
--config FILE   YAML settings that override the preset; flags override both
--run DIR       the run directory (default: runs/{name}); run the same command again to resume
--dtype D       sets teacher.dtype, student.dtype and train.dtype"""  # noqa: E501


def help_text(prog: str, path: Path, *, is_recipe: bool, everything: bool, about: str = "") -> str:
    """The help; empty if the file has no class of settings. about: the description, if it is not that of the file."""
    settings = settings_of(path)
    if settings is None:
        return ""
    width = max(MIN_WIDTH, min(shutil.get_terminal_size().columns, MAX_WIDTH))
    blocks = [f"usage: {prog} [settings]", reflowed(about or docstring(path), width)]
    if is_recipe:
        presets = preset_names(path)
        default = next((name for name in presets if name != "tiny"), "the recipe's defaults")
        text = RECIPE_HELP.format(
            presets=", ".join(presets) or "none", default=default, name=path.stem.replace("_", "-")
        )
        blocks.append("\n".join(_hanging(line, 16, width) for line in text.splitlines()))
    shown = settings if everything else first_settings(settings)
    title = "All settings" if len(shown) == len(settings) else f"The settings that matter first, of {len(settings)}"
    if settings:
        blocks.append(f"{title}:\n\n" + "\n".join(_lines(shown, width, short=not everything)))
    if len(shown) < len(settings):
        blocks.append(f"All settings: {prog} --help-all")
    return "\n\n".join(blocks) + "\n"


def first_settings(settings: list[Setting]) -> list[Setting]:
    """Those that the short help shows, in their order there."""
    if len(settings) <= NUM_FIRST:
        return settings
    required = [each for each in settings if each.default == REQUIRED]
    named = sorted((each for each in settings if each.name in FIRST), key=lambda each: FIRST.index(each.name))
    own = [each for each in settings if "." not in each.name]
    return list({each.name: each for each in (*required, *named, *own)}.values())[:NUM_FIRST]


def _lines(settings: Iterable[Setting], width: int, *, short: bool) -> Iterable[str]:
    groups: tuple[str, ...] = ()
    for each in settings:
        if not short and each.group != groups:
            groups = each.group
            yield ""
            yield _fill(f"{each.name.rpartition('.')[0]}: {each.group[-1]}" if each.group else "", width)
            yield ""
        flag, text = each.flag, each.text
        if short and re.fullmatch(r"--(teacher|student|model|adapter|data|test|engine)\.(model|path|engine)", flag):
            flag, text = flag.partition(".")[0], each.group[-1]
        if not each.kind:
            stem, dot, last = flag.removeprefix("--").rpartition(".")
            flag = f"{flag}, --{stem}{dot}no-{last}"
        default = each.default if each.default == REQUIRED else f"(default: {each.default})"
        yield _fill(f"{flag} {each.kind}".rstrip(), width, "  ", "      ")
        yield _fill(f"{text} {default}".strip(), width, "      ", "      ")


def reflowed(text: str, width: int) -> str:
    """Paragraphs filled to the width; indented lines are commands and stay lines."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith((" ", "\t")):
            lines = textwrap.dedent(block).splitlines()
            blocks.append("\n".join(_command(line, width) for line in lines))
        else:
            blocks.append(_fill(" ".join(block.split()), width))
    return "\n\n".join(blocks)


def _command(line: str, width: int) -> str:
    """A command on as many lines as it takes, each but the last with a backslash at its end."""
    words = line.replace("\\\n", " ").split(" ")
    lines = [f"    {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) + 2 > width:
            lines.append(f"        {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _hanging(line: str, indent: int, width: int) -> str:
    return _fill(line[:indent].rstrip().ljust(indent - 2) + "  " + line[indent:], width, "  ", " " * (indent + 2))


def _fill(text: str, width: int, first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False,
        replace_whitespace=False,
    )  # fmt: skip
