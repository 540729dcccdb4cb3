"""Text files for people, such as a model card, that say by themselves whether somebody has changed them since.

    write_signed(Path("student/README.md"), text)      False if it would replace what somebody wrote
    is_signed(Path("student/README.md"))               True if it is what the lab wrote, unchanged

They are Markdown. The last line is a comment with the digest of everything before it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from distill_lab.files.jsonl import atomic_path

LINE = re.compile(rb"<!-- qwen-distillation-lab ([0-9a-f]{64}) -->\s*\Z")


def write_signed(path: Path, text: str) -> bool:
    """Write `text` and its signature to `path`, atomically. A file that the lab did not write, or that was changed since,
    stays as it is; returns whether the text was written."""
    if path.exists() and not is_signed(path):
        return False
    body = text.rstrip("\n") + "\n\n"
    with atomic_path(path) as temporary:
        temporary.write_bytes(_bytes(body) + b"<!-- qwen-distillation-lab %s -->\n" % _digest(_bytes(body)))
    return True


def is_signed(path: Path) -> bool:
    """Whether `path` is a file that ends with the signature of its content."""
    if path.suffix != ".md" or not path.is_file():
        return False
    content = path.read_bytes().replace(b"\r\n", b"\n")
    found = LINE.search(content)
    return found is not None and found[1] == _digest(content[: found.start()])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
