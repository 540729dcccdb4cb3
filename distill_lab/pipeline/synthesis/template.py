"""The text of a request: a template with placeholders in braces, and the material that is put in their places.

    Template("Rewrite {instruction}", ("instruction",), "refine/1").fill({"instruction": "Sort a list."})

`{mark}` is a line that the material cannot contain, because it is a hash of all of it: what is between two of them cannot
pretend to have ended. A template without a placeholder gets the material after its text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

MARK = "mark"
PLACE = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True)
class Template:
    """A request with places for the material."""

    text: str
    placeholders: tuple[str, ...]
    """Names of what is put in."""
    name: str
    """Name and version, which the rows made with it keep."""
    verbatim: bool = False
    """Braces in the text are text; the material follows it."""

    def fill(self, values: Mapping[str, str]) -> str:
        """The request with `values` in it, in one pass: braces in the material are text."""
        used = set() if self.verbatim else set(PLACE.findall(self.text)) & set(self.placeholders)
        if not used:
            return f"{self.text.rstrip()}\n{material(values)}"
        known = {**values, MARK: _mark(values)}
        return PLACE.sub(lambda place: known.get(place[1], place[0]), self.text)

    def tag(self, *names: str) -> str | None:
        """The first of these tags that the template asks the model to write; None if it names none of them."""
        return next((name for name in names if f"<{name}>" in self.text), None)


def material(values: Mapping[str, str]) -> str:
    """What a template without placeholders gets: the text itself, or several with their names above them."""
    if len(values) == 1:
        return next(iter(values.values()))
    return "\n\n".join(f"{name.capitalize()}:\n{value}" for name, value in values.items() if value.strip())


def _mark(values: Mapping[str, str]) -> str:
    text = "\0".join(values.values())
    return f"==={hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}==="
