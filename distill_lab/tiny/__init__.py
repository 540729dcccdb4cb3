"""The embedded model family and its tasks: small enough to ship, real enough to run every part of the lab offline.

`family/teacher` and `family/student` are Qwen3-architecture models, trained from scratch on the tasks in `tasks.py` by
`scripts/tiny_family/build.py`. They demonstrate the pipeline, not Qwen's quality.
"""

from __future__ import annotations

from pathlib import Path

FAMILY = Path(__file__).parent / "family"
"""Folder with the shipped weights."""
