"""Rate answers yourself, blind: teacher, base student and student in shuffled order, from 1 to 5, in the terminal.

In: a run directory, or the folder of an experiment. Out: DIR/ratings.jsonl, and the means with intervals in the summary and
on the page, beside the judge's grades if a judge graded the run. Which model gave an answer is not shown. Quit at any time;
the same command goes on where you stopped.

    distill rate runs/first
    distill rate runs/experiments/a --number 10
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from distill_lab import config as settings
from distill_lab.errors import UserError
from distill_lab.settings.base import Seed

if TYPE_CHECKING:
    from distill_lab.evaluation.ratings import Card, RatingSummary

HELP = """\
5  correct, complete and clear; it does all that was asked
4  correct; something minor is missing or could be clearer
3  partly correct, or correct and much of what was asked is missing
2  mostly wrong or beside the point
1  wrong, empty, harmful or no answer to what was asked
s  skip this answer; it comes again next time
b  back to the answer before
g  show the gold answer or reference text
q  quit; everything rated so far is kept"""
WIDTH = 90


class Config(settings.Config):
    """Settings of `distill rate`."""

    run: Annotated[Path, tyro.conf.Positional]
    """A finished run directory, or the folder of an experiment (runs/experiments/a)."""
    number: Annotated[int, Field(ge=1)] = 30
    """Maximum prompts to rate."""
    rater: str = "me"
    """Your name in ratings.jsonl; several people may rate the same run."""
    prompts: str = ""
    """Of an experiment: which of its prompts; empty: the first ones."""
    seed: Seed = 0
    """The order of prompts and answers; the same seed shows the same order."""


def main(config: Config) -> None:
    """Ask for the ratings that are missing, and write what they say into summary and page."""
    from distill_lab.evaluation.ratings import FILE, make_cards
    from distill_lab.files.locks import take_lock
    from distill_lab.report.rated import Rated, find_rated, publish_ratings
    from distill_lab.terminal import Terminal

    rated: Rated = find_rated(config.run, prompts=config.prompts)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(
            "distill rate asks a person, so it needs a terminal for input and output; without one, use --grader judge:MODEL"
        )
    path = config.run / FILE
    busy = f"{config.run} is in use by another process; wait for it"
    with take_lock(config.run / ".lock", busy=busy):
        cards = make_cards(rated.answers, seed=config.seed, number=config.number, instructions=rated.instructions)
        print(HELP)
        rate(cards, path, rater=config.rater, ask=_ask, show=print)
        found = publish_ratings(config.run, rated)
    terminal = Terminal()
    for line in result_lines(found, rated.names):
        terminal.wrapped(line)


def rate(
    cards: Sequence[Card], path: Path, *, rater: str, ask: Callable[[str], str], show: Callable[[str], None]
) -> int:
    """Show every card that `rater` has not rated and append the ratings to `path`; returns how many were given.

    ask: shows its argument and returns a line of input; EOFError means quit.
    """
    from distill_lab.evaluation.ratings import latest
    from distill_lab.files.jsonl import JsonlAppender

    known = {digest for who, digest in latest(path) if who == rater}
    waiting = [card for card in cards if card.digest not in known]
    show(f"\n{len(cards) - len(waiting)} of {len(cards)} answers are rated")
    place = given = 0
    with JsonlAppender(path) as file:
        while place < len(waiting):
            card = waiting[place]
            show(_shown(card, place, len(waiting)))
            reply = _reply(ask, show, card)
            if reply == "q":
                break
            if reply == "b":
                place = max(0, place - 1)
                continue
            if reply != "s":
                row = {
                    "rater": rater,
                    "id": card.id,
                    "answer": card.digest,
                    "rating": int(reply),
                    "at": round(time.time()),
                }
                file.append([row])
                given += 1
            place += 1
    return given


def _reply(ask: Callable[[str], str], show: Callable[[str], None], card: Card) -> str:
    """A rating, or s, b or q."""
    while True:
        try:
            reply = ask("1-5, s, b, g, q, ?: ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            return "q"
        if reply in ("1", "2", "3", "4", "5", "s", "b", "q"):
            return reply
        if reply == "g":
            show(_wrapped(card.gold) if card.gold else "  there is no reference text")
        else:
            show(HELP)


def _shown(card: Card, place: int, number: int) -> str:
    text = _wrapped(card.text) if card.text else "  (empty answer)"
    return f"\n{'=' * 40} {place + 1} of {number}\n{_wrapped(card.prompt)}\n{'-' * 40}\n{text}\n"


def _wrapped(text: str) -> str:
    """Indented lines; what a model says cannot steer the terminal."""
    from distill_lab.formatting import clean

    lines: list[str] = []
    for line in clean(text.expandtabs(4)).split("\n"):
        lines += textwrap.wrap(line, WIDTH, replace_whitespace=False, drop_whitespace=False) or [""]
    return "\n".join(f"  {line}".rstrip() for line in lines)


def _ask(text: str) -> str:
    return input(text)


def result_lines(found: RatingSummary | None, names: Mapping[str, str]) -> list[str]:
    """What the ratings say, as lines for a terminal. names: label -> how it is called."""
    from distill_lab.report.ratings import agreement_text, gain_text, mean_text

    if found is None:
        return ["nothing is rated yet"]
    lines = [f"{names.get(label, label)}: {mean_text(each)}" for label, each in found.models.items()]
    if found.gain:
        lines.append(gain_text(found.gain))
    lines.append(agreement_text(found.agreement))
    return lines
