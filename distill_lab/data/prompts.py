"""Read prompts.jsonl: one Prompt at a time, with every row checked.

for prompt in read_prompts(run.path("prompts.jsonl")): ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from distill_lab.errors import DataError
from distill_lab.files.id_index import IdIndex
from distill_lab.files.jsonl import read_jsonl
from distill_lab.types import Prompt


def read_prompts(path: Path, *, references: bool = False) -> Iterator[Prompt]:
    """Stream the prompts of a file. Raises DataError naming line and reason for malformed rows and duplicate ids.

    references: for prompts without a gold answer, use the completion from the data, if any, as the answer.
    """
    seen = IdIndex()
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            prompt = Prompt.from_json(row)
        except KeyError as error:
            raise DataError(str(path), number, f"a prompt needs the field {error.args[0]!r}") from None
        if not isinstance(prompt.id, str):
            raise DataError(str(path), number, f"the id is {type(prompt.id).__name__}, expected text")
        if not seen.add(prompt.id, number):
            raise DataError(str(path), number, f"the id {prompt.id!r} occurs twice; ids must be unique")
        if references and prompt.answer is None and row.get("completion"):
            prompt = dataclasses.replace(prompt, answer=row["completion"][0]["content"])
        yield prompt
