"""Tell the lab's files, which may be replaced, from the user's files, which are never touched.

made = record(path)                      digest of a new output, and for a directory its file names
foreign(path, made["names"])             other files in the directory
remove_output(path, made["names"])       raises UserError naming such files, if there are any
work_folder(path)                        <path>.work, marked as the lab's; rejects an unmarked folder of that name
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from distill_lab.errors import UserError
from distill_lab.files.fingerprints import MODEL_FILE, files_of, path_fingerprint
from distill_lab.files.signed import is_signed
from distill_lab.files.system_errors import REMEDIES

MARK = ".distill-lab"
"""An empty file in a work folder; shows that the lab created the folder and may remove it."""
PARTIAL = "partial"
"""Subfolder of a work folder in which an output directory is prepared before it is moved into place."""
MAX_NAMED = 3


class _Digest(TypedDict):
    digest: str


class FileState(_Digest, total=False):
    """An output as a key file records it: its digest and, for a directory, the names of its files."""

    names: list[str]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError while writing a file into a UserError that names the file and the remedy."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        if not isinstance(error, OSError):
            if "null byte" in str(error) or "null character" in str(error):
                raise UserError(f"{str(path)!r} is not the name of a file; choose another path") from None
            raise
        if error.filename and not _concerns(str(error.filename), path):
            raise  # of a file that was read: its own name is in the error
        remedy = REMEDIES.get(error.errno or 0, "fix this, or choose another path")
        file = f": {error.filename}" if error.filename and str(error.filename) != str(path) else ""
        raise UserError(f"{path} cannot be written ({error.strerror or error}{file}); {remedy}") from error


def _concerns(file: str, path: Path) -> bool:
    """Whether a file is an output, one of the lab's files next to it, or a folder that it is in."""
    found, output = Path(os.path.abspath(file)), Path(os.path.abspath(path))
    return found in (output, *output.parents) or output in found.parents or output.name[:40] in found.name


def record(path: Path) -> FileState | None:
    """The digest of `path` and, for a directory, the names of all files in it; None if there is nothing."""
    if not path.exists():
        return None
    state: FileState = {"digest": path_fingerprint(path)}
    if path.is_dir():
        state["names"] = files_of(path)
    return state


def foreign(path: Path, names: Sequence[str] | None) -> list[str]:
    """Files in the directory `path` that are not in `names`; if names is None, files that are not part of a model.

    A model card that the lab wrote and nobody changed is the lab's, whenever it was written.
    """
    known = set(names or ())
    return [
        name
        for name in files_of(path)
        if name not in known
        and not (names is None and MODEL_FILE.fullmatch(name.removeprefix("adapter/")))
        and not is_signed(path / name)
    ]


def remove_output(path: Path, names: Sequence[str] | None = None) -> None:
    """Remove what the lab wrote at `path`. Raises UserError if a directory contains files that it did not write."""
    if path.is_dir() and not path.is_symlink():
        check_removable(path, names)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_removable(path: Path, names: Sequence[str] | None = None) -> None:
    """Raise UserError if the directory `path` contains files that the lab did not write."""
    if path.is_dir() and (found := foreign(path, names)):
        more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        raise UserError(
            f"{path} must be written again, but contains files that this lab did not write: "
            f"{', '.join(found[:MAX_NAMED])}{more}; move them elsewhere, then run the same command again"
        )


def work_folder(output: Path) -> Path:
    """Create and mark the folder `<output>.work` for files that are kept until `output` is complete.

    Raises UserError if something of that name is not the lab's.
    """
    work = _work_of(output)
    check_work(output)
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        (work / MARK).touch()
    return work


def check_work(output: Path) -> None:
    """Raise UserError if `<output>.work` exists and is not the lab's."""
    work = _work_of(output)
    if (work.exists() or work.is_symlink()) and not _is_work(work):
        raise UserError(
            f"{work} is needed for unfinished work, but exists and was not created by this lab; move it elsewhere, or "
            "choose another output name"
        )


def remove_work(output: Path) -> None:
    """Remove `<output>.work` if it exists. Raises UserError if it is not the lab's."""
    check_work(output)
    work = _work_of(output)
    if work.exists():
        shutil.rmtree(work)


def has_work(output: Path) -> bool:
    """Whether `<output>.work` contains anything."""
    work = _work_of(output)
    return work.is_dir() and any(path.name != MARK for path in work.iterdir())


def _work_of(output: Path) -> Path:
    return output.with_name(output.name + ".work")


def _is_work(work: Path) -> bool:
    """Whether the lab made the folder: it has the mark, is empty, or contains only files of versions without the mark."""
    if work.is_symlink() or not work.is_dir():
        return False
    if (work / MARK).is_file() or not (names := [path.name for path in work.iterdir()]):
        return True
    try:
        key = json.loads((work / "key.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return all(re.fullmatch(r"[0-9a-f]{16}\.jsonl", name) for name in names)
    return isinstance(key, str) and re.fullmatch(r"[0-9a-f]{64}", key) is not None
