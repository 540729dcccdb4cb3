"""Self-Instruct seed tasks: `{"instruction", "instances": [{"input", "output"}, ...]}`; uses the first instance.

Other instances stay in meta, because a row is one prompt.
"""

from __future__ import annotations

from distill_lab.data.adapters import _row
from distill_lab.types import Fields, Record

FIELDS = ("instruction", "instances")


def matches(row: Fields) -> bool:
    """Whether the row has an instruction with instances."""
    return isinstance(row.get("instruction"), str) and isinstance(row.get("instances"), list)


def record(row: Fields, id: str) -> Record:
    """The row as a Record. Raises ValueError with the reason for a malformed row."""
    instances = _row.turns(row.get("instances"), "instances")
    if not instances:
        raise ValueError("field 'instances' is empty")
    parts = (_row.text(row, "instruction"), _row.optional_text(instances[0], "input") or "")
    prompt = [{"role": "user", "content": "\n\n".join(part for part in parts if part.strip())}]
    output = _row.optional_text(instances[0], "output")
    rest = row if len(instances) == 1 else {**row, "other_instances": instances[1:]}
    completion = None if output is None else [_row.assistant(output)]
    return _row.record(rest, id, used=FIELDS, prompt=prompt, completion=completion)
