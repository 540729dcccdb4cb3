"""What on the disk is the lab's and may be replaced, and what is the user's and is never touched.

made = record(path)                      what was just written: its digest, of a directory also the names in it
foreign(path, made["names"])             files of a directory that are not among those
remove_output(path, made["names"])       refuses, naming them, where there are such files
work_folder(path)                        <path>.work, marked as the lab's; a folder of that name without it is refused
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill_lab.errors import UserError
from distill_lab.files.fingerprints import MODEL_FILE, files_of, path_fingerprint

MARK = ".distill-lab"
"""An empty file in a work folder: the lab made the folder, and removes it."""
PARTIAL = "partial"
"""Where in a work folder a directory is written that is to appear at once."""
MAX_NAMED = 3


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says against a file that is written becomes a UserError that names it and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "make room: what is in it stays, and the same command goes on from there"
        elif isinstance(error, (FileExistsError, NotADirectoryError)):
            remedy = "a part of its path is no folder: choose another place for it"
        else:
            remedy = "mend that, or choose another place for it"
        place = f": {error.filename}" if error.filename else ""
        raise UserError(f"{path} cannot be written ({error.strerror or error}{place}); {remedy}") from error


def record(path: Path) -> dict[str, Any] | None:
    """The digest of what stands at `path`, of a directory also the names of all files in it; None where nothing does."""
    if not path.exists():
        return None
    names = {"names": files_of(path)} if path.is_dir() else {}
    return {"digest": path_fingerprint(path), **names}


def foreign(path: Path, names: Sequence[str] | None) -> list[str]:
    """Files in the directory `path` that are not among `names`; where these are not known, that no model consists of."""
    if names is None:
        return [name for name in files_of(path) if not MODEL_FILE.fullmatch(name.removeprefix("adapter/"))]
    known = set(names)
    return [name for name in files_of(path) if name not in known]


def remove_output(path: Path, names: Sequence[str] | None = None) -> None:
    """Remove what the lab wrote at `path`. Raises UserError where a directory holds files that it did not write."""
    if path.is_dir() and not path.is_symlink():
        check_removable(path, names)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_removable(path: Path, names: Sequence[str] | None = None) -> None:
    """Raise UserError where the directory `path` holds files that the lab did not write there."""
    if path.is_dir() and (found := foreign(path, names)):
        more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        raise UserError(
            f"{path} has to be written again, and holds files that this lab did not write there: "
            f"{', '.join(found[:MAX_NAMED])}{more}; move them elsewhere, then give the same command again"
        )


def work_folder(output: Path) -> Path:
    """The folder `<output>.work` for what is kept until `output` is whole: made and marked.

    Raises UserError where something of that name is not the lab's.
    """
    work = _work_of(output)
    check_work(output)
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
        (work / MARK).touch()
    return work


def check_work(output: Path) -> None:
    """Raise UserError where `<output>.work` is there and is not the lab's."""
    work = _work_of(output)
    if (work.exists() or work.is_symlink()) and not _is_work(work):
        raise UserError(
            f"{work} is needed for unfinished work, and what stands there is not this lab's; move it elsewhere, or choose "
            "another name for the output"
        )


def remove_work(output: Path) -> None:
    """Remove `<output>.work`, if it is there. Raises UserError where it is not the lab's."""
    check_work(output)
    work = _work_of(output)
    if work.exists():
        shutil.rmtree(work)


def has_work(output: Path) -> bool:
    """Whether `<output>.work` holds anything."""
    work = _work_of(output)
    return work.is_dir() and any(path.name != MARK for path in work.iterdir())


def _work_of(output: Path) -> Path:
    return output.with_name(output.name + ".work")


def _is_work(work: Path) -> bool:
    """Whether the lab made the folder: it bears the mark, is empty, or holds what versions without the mark wrote."""
    if work.is_symlink() or not work.is_dir():
        return False
    if (work / MARK).is_file() or not (names := [path.name for path in work.iterdir()]):
        return True
    try:
        key = json.loads((work / "key.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return all(re.fullmatch(r"[0-9a-f]{16}\.jsonl", name) for name in names)
    return isinstance(key, str) and re.fullmatch(r"[0-9a-f]{64}", key) is not None
