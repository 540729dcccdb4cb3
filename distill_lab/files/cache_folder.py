"""Where the lab keeps what several runs of a user share: the answers of models, the digests of large files.

cache_folder() -> Path("~/.cache/distill-lab")      DISTILL_LAB_CACHE names another folder, or says off
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE, OFF = "DISTILL_LAB_CACHE", "off"


def is_off() -> bool:
    """Whether the user wants no cache."""
    return os.environ.get(VARIABLE, "").strip().lower() == OFF


def cache_folder() -> Path:
    """The folder, there or not. Raises OSError for a user without a home folder."""
    if chosen := os.environ.get(VARIABLE, "").strip():
        return Path(chosen)
    xdg, local = os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("LOCALAPPDATA", "")
    if os.path.isabs(xdg):  # other values are to be ignored, says the XDG specification
        folder = Path(xdg)
    elif os.name == "nt" and local:
        folder = Path(local)
    else:
        try:
            folder = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        except RuntimeError as error:
            raise OSError(f"{error} Set {VARIABLE} to a folder.") from None
    return folder / "distill-lab"
