"""Jobs that make data from data: one file per job; the file name is the job's name.

    job = load("refine")
    job.values({"id": "a", "messages": [...], ...}, "")        what goes into the request, or why the row cannot be asked
    job.read(row, {"": completion}, template)                  the new row, or why the answer cannot be read

To add a job, add one file here with what `Job` lists. Its request names a tag as an empty pair, `<a></a>`: a model that
repeats the request then writes nothing between tags. Files that start with an underscore are shared parts.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Literal, Protocol, cast

from distill_lab.errors import UserError
from distill_lab.pipeline.synthesis.template import Template
from distill_lab.types import Completion

Row = dict[str, Any]
"""A row of prompts.jsonl: `{"id", "messages", "answer", "meta"}` and, if it is answered, `"completion": [messages]`."""
Values = Mapping[str, Mapping[str, str]]
"""Part of the request ("" if it has one part) -> what is put into the template's places."""
Compared = Literal["new", "instruction", "row", ""]
ABOUT = "about"
"""Key of a new row under which `read` puts what else the row's history is to say; the stage takes it out."""
HISTORY = "synthesis"
"""Key of a row's meta that lists how it was made."""


class Job(Protocol):
    """What a job's file must define."""

    TEMPLATE: str
    """The request, with places in braces."""
    VERSION: int
    """Of the template; raised when it changes."""
    PLACEHOLDERS: tuple[str, ...]
    """The places of a template."""
    NEEDED: tuple[str, ...]
    """Texts without which a template cannot work."""
    SETTINGS: tuple[str, ...]
    """Settings that only this job and others that name them use."""
    SEVERAL: bool
    """Whether several answers to one request are several rows."""
    COMPARED: Compared
    """What may not come twice. new: an instruction that the data or another new row has, or one that is a near duplicate;
    instruction: the same, but it may be near to the row it was made from; row: prompt and answer together; "": anything."""

    def values(self, row: Row, kind: str) -> Values | str:
        """What the model gets of a row: one request for each part; or the reason why the row cannot be asked."""
        ...

    def read(self, row: Row, answers: Mapping[str, Completion], template: Template) -> Row | str:
        """The new row from finished, non-empty answers to each part; or the reason why they cannot be read."""
        ...


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all jobs, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


@functools.cache
def load(name: str) -> Job:
    """The job with this name. Raises UserError listing the known jobs if there is none."""
    if name not in names():
        raise UserError(f"no job {name!r}; choose from {', '.join(names())}")
    return cast(Job, importlib.import_module(f"{__name__}.{name}"))
