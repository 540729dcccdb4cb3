"""docs/on-policy.md: its commands parse, its objectives and settings are those there are, its messages are the package's."""

from __future__ import annotations

import re

from distill_lab.recipes.on_policy import Config
from distill_lab.train.objectives import load_objective, signals_of
from scripts.architecture import PACKAGE, ROOT
from tests.typed import settings

TEXT = (ROOT / "docs" / "on-policy.md").read_text(encoding="utf-8")


def test_commands_parse() -> None:
    commands = re.findall(r"^    \.venv/bin/(distill .*)$", TEXT, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        assert settings(command) is not None
    for flag in (
        "--warm-up-epochs 0", "--train.objective-settings beta=0.3", "--rollout.max-new-tokens 64",
        "--rollout.thinking False",
        "--teacher.quantization 8bit", "--train.lora.r 32", "--train.max-length 256", "--steps-per-round 4",
        "--rollouts-per-step 64", "--train.learning-rate 1e-5", "--train.tokens-per-batch 512",
    ):  # fmt: skip
        assert flag.split()[0] in TEXT
        assert settings(f"distill on-policy --preset tiny {flag}") is not None


def test_objectives_and_defaults_are_those_there_are() -> None:
    named = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert named[0] == Config().objective
    for name in [*named, "forward_kl", "skew_kl", "acceptance"]:
        assert "logits" in signals_of(name)
        assert f"`{name}`" in TEXT
    for name, setting in re.findall(r"`(\w+)` \| [^|]*`(\w+) [\d.]+`", TEXT):
        load_objective(name, [f"{setting}=0.5"])
    assert signals_of("sampled_reverse_kl") == ("scored",)
    assert f"`--teacher-top-k` ({Config().teacher_top_k})" in TEXT
    assert f"`--steps-per-round` optimizer steps ({Config().steps_per_round})" in TEXT
    assert f"`--rollouts-per-step` rollouts ({Config().rollouts_per_step})" in TEXT
    assert Config().rollout.temperature == 1


def test_messages_are_the_packages() -> None:
    files = [*(PACKAGE / "train").rglob("*.py"), *(PACKAGE / "recipes").rglob("*.py")]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    messages = re.findall(r"^- \*\*`(.*)`\*\*", TEXT, re.MULTILINE)
    assert len(messages) == 4
    words = re.sub(r'"\s*f?"', "", source)
    for message in messages:
        assert message in words, message
