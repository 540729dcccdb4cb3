"""Claim a command's output: a key file next to it records its inputs, and the user's files are never overwritten.

    with claim(out, "generate", inputs={"model": ..., "sampling": ..., "prompts": Path(...)}, files=[out, ...]) as claimed:
        ...                              writes the files; `claimed.done` means that they are already complete

`<out>.key.json` lists the inputs (files by digest) and the files that the command writes. With the same inputs the command
resumes; other inputs raise a UserError that says what differs, unless `overwrite` is set. A file that is not in the key, or
that was changed after the lab wrote it, belongs to the user: UserError before anything is written. A second process that
writes one of the files is rejected.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from distill_lab import __version__
from distill_lab.errors import DataError, UserError
from distill_lab.files.bookkeeping import read_record
from distill_lab.files.fingerprints import MAX_DIFFERENCES, differences, path_fingerprint, plain_object
from distill_lab.files.jsonl import write_json
from distill_lab.files.locks import locked
from distill_lab.files.outputs import (
    FileState,
    check_removable,
    check_work,
    has_work,
    record,
    remove_output,
    remove_work,
    writing,
)
from distill_lab.settings.template_date import first_date, frozen
from distill_lab.types import Fields, JsonObject

MADE_BY = "qwen-distillation-lab"
REMEDY = "choose another output name, or move the existing file elsewhere"


@dataclass(frozen=True, slots=True)
class Claim:
    """An output that this process has locked."""

    done: bool
    """Whether an earlier execution with the same inputs finished and its files are unchanged."""


@dataclass(frozen=True, slots=True)
class _Key:
    """What a key file holds."""

    inputs: JsonObject
    files: dict[str, FileState | None]
    shown: JsonObject
    status: object
    date: object


def _names(state: FileState | None) -> list[str] | None:
    return state.get("names") if state else None


def key_path(out: Path) -> Path:
    """Path of an output's key file."""
    return out.with_name(out.name + ".key.json")


@contextmanager
def claim(
    out: Path,
    command: str,
    *,
    inputs: Fields,
    files: Sequence[Path],
    appended: Sequence[Path] = (),
    reads: Sequence[Path] = (),
    shown: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Iterator[Claim]:
    """Lock `out` and the other `files` of a command while the block writes them.

    inputs: everything the files depend on; Paths in it count by content. appended: the files that grow row by row, from
    which the user may remove rows. reads: files that the command reads; they are never written. shown: readable names for
    error messages about differing inputs (such as a model's name, because models count by content).
    """
    with ExitStack() as stack:
        _check_names(files, reads)
        with writing(out):
            for path in sorted({_real(path) for path in files}):
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path))
            now: JsonObject = {"command": command, **plain_object(inputs)}
            old = _read_key(key_path(out))
            same = old is not None and old.inputs == now
            begun = any(_holds_something(path) for path in (out, *appended)) or has_work(out)
            if old is not None and not same and begun and not overwrite:
                raise UserError(_other_key(out, old, now, shown or {}))
            made = dict(old.files) if old else {}
            for path in files:
                check_work(path)
                _check_ours(path, made, changes=path in appended or not same, key=key_path(out))
            if old is not None and not same:
                for path in files:
                    remove_output(path, _names(made.get(_name(path, out))))
                    remove_work(path)
                made = {}
            done = same and old is not None and old.status == "done" and all(path.exists() for path in files)
            date = first_date(old.date if old and same else None)
            content = {
                "made_by": MADE_BY,
                "version": __version__,
                "date": date,
                "inputs": now,
                "shown": dict(shown or {}),
            }
            # Recorded before they are written, so that after a kill they count as the lab's.
            made = {**{_name(path, out): None for path in files}, **made}
            write_json(key_path(out), {**content, "status": "done" if done else "running", "files": made})
        ended = False
        try:
            with frozen(date):
                yield Claim(done)
            ended = True
        finally:
            for path in files:
                if done and path.is_dir():  # files that the user added since do not become the lab's
                    continue
                made[_name(path, out)] = None if path in appended else record(path)
                if not path.exists():
                    del made[_name(path, out)]
            with writing(out) if ended else suppress(OSError):
                if made or ended or has_work(out):
                    write_json(key_path(out), {**content, "status": "done" if ended else "running", "files": made})
                else:
                    key_path(out).unlink()


def _other_key(out: Path, old: _Key, now: Fields, shown: Mapping[str, str]) -> str:
    was = old.shown
    renamed = {name for name in shown if name in was and was[name] != shown[name]}
    found = [f"{name} ({was[name]}, now {shown[name]})" for name in sorted(renamed)]
    for name in [*now, *(name for name in old.inputs if name not in now)]:
        if name not in renamed:
            found += differences(old.inputs.get(name), now.get(name), name)
    more = f" and {len(found) - MAX_DIFFERENCES} more" if len(found) > MAX_DIFFERENCES else ""
    return (
        f"{out} was made with other settings: {', '.join(found[:MAX_DIFFERENCES])}{more}. Choose another output name, "
        "or add --overwrite to replace it"
    )


def check_is_name(path: Path) -> None:
    """Raise UserError if a path cannot be an output, because it ends with no name: the folder the user is in, or `..`."""
    if path.name in ("", ".."):
        raise UserError(f"{path} is not the name of an output; give a name, such as {path / 'out'}")


def _check_names(files: Sequence[Path], reads: Sequence[Path]) -> None:
    """Raise UserError if two outputs are the same file, or if an output is also an input."""
    for path in files:
        check_is_name(path)
    outputs = [_real(path) for path in files]
    for path, output in zip(files, outputs, strict=True):
        if outputs.count(output) > 1:
            raise UserError(f"{path}: this command writes two files of this name; give one of them another name")
        for other in reads:
            if output == _real(other) or (path.exists() and other.exists() and os.path.samefile(path, other)):
                raise UserError(f"{path}: this file is also an input; choose another output name")


def _check_ours(path: Path, made: Mapping[str, FileState | None], *, changes: bool, key: Path) -> None:
    """Raise UserError if something at `path` was not written by the lab or, unless `changes`, was changed since."""
    if not path.exists() and not path.is_symlink():
        return
    name = _name(path, key)
    if name not in made:
        if path.is_file() and not path.stat().st_size:
            return
        raise UserError(f"{path} exists but was not written by this command (it is not listed in {key}); {REMEDY}")
    state = made[name]
    if state is None:
        if path.is_dir():
            check_removable(path)
        return
    if path.is_dir() != ("names" in state):
        raise UserError(f"{path} is not what this lab wrote there; {REMEDY}")
    if changes:
        check_removable(path, _names(state))
    elif path_fingerprint(path) != state["digest"]:
        raise UserError(f"{path} was changed after this lab wrote it and would be overwritten; {REMEDY}")


def _read_key(path: Path) -> _Key | None:
    if not path.exists() and not path.is_symlink():
        return None
    with suppress(DataError):
        key = {"status": "", "shown": {}, **read_record(path)}
        right = key.get("made_by") == MADE_BY and all(
            isinstance(key.get(e), dict) for e in ("inputs", "files", "shown")
        )
        if right and all(map(_is_state, key["files"].values())):
            return _Key(key["inputs"], key["files"], key["shown"], key["status"], key.get("date"))
    raise UserError(f"{path} should record the inputs of the output next to it, but does not; move both elsewhere")


def _is_state(state: object) -> bool:
    """Whether a file's state in a key is as `record` makes it; None: unfinished, or a file that grows."""
    if not isinstance(state, dict):
        return state is None
    names = state.get("names", [])
    return isinstance(state.get("digest"), str) and isinstance(names, list) and all(isinstance(e, str) for e in names)


def _name(path: Path, beside: Path) -> str:
    """A file's name in a key: relative to the key's folder, so that both can be moved together."""
    return os.path.relpath(_real(path), _real(beside).parent).replace(os.sep, "/")


def _real(path: Path) -> Path:
    """Absolute path with links in its folders resolved, but not a link at its end, which would itself be replaced."""
    return path.parent.resolve() / path.name


def _holds_something(path: Path) -> bool:
    return path.is_dir() or (path.is_file() and path.stat().st_size > 0)
