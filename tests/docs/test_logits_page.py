"""docs/logits.md: its commands parse, its objectives and modes are those there are, its messages are the package's."""

from __future__ import annotations

import inspect
import re

from distill_lab.recipes._white_box import CE_WEIGHT, OTHER_TOKENS
from distill_lab.recipes.logits import Config
from distill_lab.train.alignment import MAX_TOKENS
from distill_lab.train.cached_teacher import DEFAULT_SIZE, FORMS
from distill_lab.train.objectives import chunk_likelihood, objective_names, signals_of
from scripts.architecture import PACKAGE, ROOT
from tests.typed import settings

TEXT = (ROOT / "docs" / "logits.md").read_text(encoding="utf-8")


def test_commands_parse() -> None:
    commands = re.findall(r"^    \.venv/bin/(distill .*)$", TEXT, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        assert settings(command) is not None
    for flag in (
        "--train.objective-settings beta=0.3",
        "--no-relabel",
        "--teacher.quantization 8bit",
        "--ce-weight 0.1",
    ):
        assert flag.split()[0] in TEXT
        assert settings(f"distill logits --preset tiny {flag}") is not None


def test_tables_name_what_there_is() -> None:
    first = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert [name for name in first if name not in FORMS] == [
        "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "entropy_aware", "acceptance"
    ]  # fmt: skip
    dense = {name for name in objective_names() if "logits" in signals_of(name)}
    assert dense == {name for name in first if name not in FORMS}
    assert [name for name in first if name in FORMS] == list(FORMS)
    assert f"{DEFAULT_SIZE['sampled']} draws" in TEXT
    assert f"the {DEFAULT_SIZE['top_k']} most likely ids" in TEXT
    assert f"and {CE_WEIGHT} if it did not" in TEXT


def test_settings_of_the_objective_between_tokenizers_are_those_there_are() -> None:
    _, found = TEXT.split("## A teacher with another tokenizer\n")
    section = found.split("\n## ")[0]
    given = dict(re.findall(r"^- `(\w+)`, ([\d.]+):", section, re.MULTILINE))
    known = inspect.signature(chunk_likelihood.chunk_loss).parameters
    assert given == {name: f"{known[name].default:g}" for name in ("tau", "exact")}
    assert set(known) - {"logits_CV", "targets"} == {"tau", "exact", "temperature", "ce_weight"}
    assert f"more than {MAX_TOKENS} tokens" in section
    assert Config().objective == "auto"
    assert f"`--objective auto`, the default, is `{OTHER_TOKENS}`" in section.replace("\n", " ")


def test_messages_are_the_packages() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "train").rglob("*.py"))
    for room in ("models", "pipeline"):
        source += "".join(path.read_text(encoding="utf-8") for path in (PACKAGE / room).rglob("*.py"))
    messages = re.findall(r"^- \*\*`(.*)`\*\*", TEXT, re.MULTILINE)
    assert len(messages) == 4
    words = re.sub(r'"\s*f?"', "", source)
    for message in messages:
        assert re.search(r"\{\w+\}".join(map(re.escape, message.split("..."))), words), message
