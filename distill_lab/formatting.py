"""Numbers and foreign text as a person reads them: in the terminal, the report and errors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def times(ratio: float, sign: str = "×") -> str:
    """A ratio such as 4.2×; rounded down, so that what is shown as 3.0× has reached 3."""
    if ratio >= 20:
        return f"{math.floor(ratio)}{sign}"
    digits = 10 if ratio >= 1 else 100
    # The margin keeps 4.1 from becoming 4.0 by binary rounding.
    return f"{math.floor(ratio * digits + 1e-9) / digits:.{1 if digits == 10 else 2}f}{sign}"
