"""Read the lab's bookkeeping files: a JSON object, or a DataError that names the file and what is wrong with it.

read_record(Path("runs/demo/run.json"))      -> the object; raises DataError for anything else
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distill_lab.errors import DataError


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError if it cannot be read, is not JSON, or holds something else."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(str(path), None, f"cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise DataError(str(path), None, f"damaged: not UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise DataError(str(path), None, "damaged: nested too deeply") from None
    except ValueError as error:
        raise DataError(str(path), None, f"damaged: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(str(path), None, f"damaged: expected a JSON object, found {type(found).__name__}")
    return found
