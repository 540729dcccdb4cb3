"""The embedded model family and its tasks: small enough to ship, real enough to run every part of the lab offline.

`family/teacher` and `family/student` are Qwen3-architecture models trained from scratch by `build.py` on the tasks of
`tasks.py`. What they show is the machinery at work, not Qwen's quality.
"""

from __future__ import annotations

from pathlib import Path

FAMILY = Path(__file__).parent / "family"
"""Where the shipped weights live."""
