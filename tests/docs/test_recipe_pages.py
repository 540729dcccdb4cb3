"""The recipes' pages and the README: figures are the benchmarks', messages the package's, defaults the recipes'."""

from __future__ import annotations

import ast
import re
from functools import lru_cache

import pytest

from distill_lab.planning import hardware_table
from distill_lab.recipes import cot, prompt, system1, system2, verified
from scripts.architecture import PACKAGE, ROOT
from tests.pages import PAGES

RESULTS = " ".join((ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8").split())
WITH_FIGURES = ("README.md", "docs/verified.md", "docs/prompt.md")
INTERVAL = r"[-+]?\d+\.\d%? \[[-+]?\d+\.\d, [-+]?\d+\.\d\]"
OURS = ("system1", "system2", "cot", "verified", "prompt")


@pytest.mark.parametrize("page", WITH_FIGURES)
def test_figures_with_intervals_are_those_of_the_benchmarks(page: str) -> None:
    text = " ".join(PAGES[page].split())
    found = re.findall(INTERVAL, text)
    assert len(found) >= 3
    for figure in found:
        assert figure in RESULTS, f"{page}: {figure}"


@pytest.mark.parametrize(
    ("page", "figures"),
    [
        ("README.md", ("10.5", "21.2", "p = 0.12", "8.0 points")),
        (
            "docs/prompt.md",
            ("730.3", "69.3", "7.29", "0.35", "10.5", "21.2", "677", "597", "6.7 min", "15.2 min", "5.0 min"),
        ),
        ("docs/prompt.md", ("88.3% [84.5, 91.2]", "90.0%", "11.6", "13.3")),
        ("docs/verified.md", ("296", "282", "293", "3,428", "994", "1,399", "8.0 points", "p = 0.12", "0.67x")),
    ],
)
def test_other_figures_are_those_of_the_benchmarks(page: str, figures: tuple[str, ...]) -> None:
    text = " ".join(PAGES[page].split())
    for figure in figures:
        assert figure in RESULTS, figure
        assert figure.removesuffix("x") in text, f"{page}: {figure}"


@lru_cache
def package_texts() -> str:
    """Every text of the package, `{}` for what an f-string puts in."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\0".join(found)


@pytest.mark.parametrize("page", [*OURS, "scaling", "migrating"])
def test_messages_are_the_packages(page: str) -> None:
    for message in re.findall(r"(?m)^- \*\*`([^`]*)`", PAGES[f"docs/{page}.md"]):
        pattern = r"[^\0]*?".join(re.escape(part.strip()) for part in message.split("..."))
        filled = re.sub(r"System 2 distillation|omni\\\[0\\\]", r"[^\\0]*?", pattern)
        assert re.search(filled, package_texts()), message


def test_defaults_are_the_recipes() -> None:
    def says(page: str, text: str) -> None:
        assert text in " ".join(PAGES[f"docs/{page}.md"].split()), f"{page}: {text}"

    first = system1.Config()
    says("system1", f"`--sampling.temperature` {first.sampling.temperature}, `--sampling.top-p` {first.sampling.top_p}")
    second = system2.Config()
    says("system2", f"| `--rv-min`, `--cd-min` | {second.rv_min} |")
    says("system2", f"| `--per-question` | {second.per_question} |")
    says("system2", f'by default "{second.instruction}"')
    says("system2", f"({second.train.max_length:,} here)")
    lora, train = cot.LORA, cot.Config().train
    says("cot", f"r {lora.r}, alpha {lora.alpha}, dropout {lora.dropout} on")
    says("cot", f"{train.num_epochs:g} epochs, steps of {train.gradient_accumulation_steps} packed micro-batches")
    says(
        "cot", f"of {train.tokens_per_batch:,} tokens, greedy solutions of up to {cot.Config().sampling.max_new_tokens}"
    )
    third = verified.Config()
    says("verified", f"of each question ({third.sampling.num_samples}), at temperature {third.sampling.temperature}")
    says("verified", f"up to {third.sampling.max_new_tokens:,} tokens")
    says("verified", f"`--min-score` ({third.min_score:g})")
    fourth = prompt.Config()
    says("prompt", f"at temperature {fourth.sampling.temperature}")
    says("prompt", f"adapters of rank {fourth.train.lora.r}")
    assert (fourth.max_retries, fourth.train.learning_rate) == (3, 2e-4)  # "three more times", "the default is 2e-4"


def test_memory_in_troubleshooting_is_the_estimators() -> None:
    rows = re.findall(r"(?m)^\| Qwen.*$", PAGES["docs/troubleshooting.md"])
    assert len(rows) >= 3
    made = hardware_table.tables().splitlines()
    assert [row for row in rows if row not in made] == []
