"""What the lab makes of every data file in a folder: one line per file with its adapter, counts and fields left in meta.

    python -m scripts.what_is_read FOLDER

Ends with 1 if a file ends in anything but rows or a sentence that says why not.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from distill_lab.config import DataConfig
from distill_lab.data.records import Records
from distill_lab.data.sources import kind_of
from distill_lab.errors import UserError


def describe(path: Path) -> str:
    """`question: 600 in, 600 kept; 600 golds; meta: grade, num_digits`, or `refused: ...`."""
    found: Counter[str] = Counter()
    meta: set[str] = set()
    try:
        records = Records(DataConfig(path=str(path), skip_invalid=True))
        for record in records:
            found["completions"] += record.completion is not None
            found["golds"] += record.prompt.answer is not None
            found["with thinking"] += any("thinking" in message for message in record.completion or [])
            meta |= record.prompt.meta.keys()
    except UserError as error:
        return f"refused: {str(error)[:300]}"
    if not records.counts.kept:
        return f"refused: {str(records.invalid[0])[:300]}" if records.invalid else "empty"
    numbers = "".join(f", {number} {name}" for name, number in found.items() if number)
    return f"{records.adapter}: {records.counts}{numbers}; meta: {', '.join(sorted(meta)) or 'nothing'}"


def main(folder: Path) -> int:
    """Print a line per data file; 1 if one of them raises what it should not."""
    faults = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and kind_of(path.name)):
        try:
            line = describe(path)
        except Exception as error:
            line, faults = f"FAULT: {error!r}", faults + 1
        print(f"{path.relative_to(folder)}: {line}")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
