"""The date that chat templates write: today's, or the one at which a run began, so that a resume past midnight keeps it.

    with template_date.frozen("2026-11-30T23:50:00"):       in this process and in those it starts
        template_date.now()

Templates such as Llama 3's write today's date into every prompt (`strftime_now`). A run keeps its first date in `run.json`,
a command in the key file next to its output. DISTILL_LAB_DATE sets another date.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from distill_lab.errors import UserError

VARIABLE = "DISTILL_LAB_DATE"
CALL = re.compile(r"""\bstrftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")


def now() -> datetime:
    """The date and time for templates. Raises UserError if DISTILL_LAB_DATE is not a date."""
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        return datetime.now()
    date = _date(given)
    if date is None:
        raise UserError(f"{VARIABLE}={given} is not a date; set it to one like 2026-11-30, or unset it")
    return date


def dated(template: str) -> str:
    """A chat template with the date in place of its calls of `strftime_now`, whose argument is a text.

    transformers passes only data to templates, so the function itself cannot be replaced.
    """
    return CALL.sub(lambda call: json.dumps(now().strftime(call[2]), ensure_ascii=False), template)


def first_date(recorded: object) -> str:
    """The date that an earlier execution recorded; the present one if it recorded none."""
    date = _date(recorded)
    return (date or now()).isoformat(timespec="seconds")


def recorded_in(path: Path) -> object:
    """The date in a JSON file of an earlier execution; None if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # whoever needs the file's other content says what is wrong with it
    return found.get("date") if isinstance(found, dict) else None


@contextmanager
def frozen(date: str) -> Iterator[None]:
    """Use this date in the block, also in processes that start in it."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = date
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def _date(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
