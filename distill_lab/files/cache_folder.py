"""The folder for data that a user's runs share: cached model answers, teachers' distributions, digests of large files.

cache_folder() -> Path("~/.cache/distill-lab")      DISTILL_LAB_CACHE sets another folder, or "off"
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE, OFF = "DISTILL_LAB_CACHE", "off"
TEACHERS = "teachers"
"""The folder inside it that has a folder for each teacher cache."""


def is_off() -> bool:
    """Whether the user turned the cache off."""
    return os.environ.get(VARIABLE, "").strip().lower() == OFF


def cache_folder() -> Path:
    """The cache folder, which may not exist yet. Raises OSError for a user without a home folder."""
    if chosen := os.environ.get(VARIABLE, "").strip():
        return Path(chosen)
    xdg, local = os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("LOCALAPPDATA", "")
    if os.path.isabs(xdg):  # the XDG specification says to ignore relative paths
        folder = Path(xdg)
    elif os.name == "nt" and local:
        folder = Path(local)
    else:
        try:
            folder = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        except RuntimeError as error:
            raise OSError(f"{error} Set {VARIABLE} to a folder.") from None
    return folder / "distill-lab"
