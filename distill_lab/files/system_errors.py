"""Errors of the operating system as people read them: a full disk, a missing permission, a name that is too long.

explain(OSError(28, "No space left on device", "student/model.safetensors"))
    -> "student/model.safetensors: No space left on device; free some disk space; nothing is lost, run ..."

Libraries wrap such errors in others (torch and safetensors write files in C++ and Rust), so the text counts too.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

FREE_SPACE = "free some disk space; nothing is lost, run the same command again to resume"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDIES = {
    **dict.fromkeys(NO_SPACE, FREE_SPACE),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM), "choose another path, or get the permission; then run the same command again"
    ),
    errno.EROFS: "this disk is read-only; choose another path",
    errno.EEXIST: "a file of this name is in the way; choose another path",
    errno.ENOTDIR: "a parent of this path is a file, not a folder; choose another path",
    errno.EISDIR: "this is a folder, not a file; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle; choose another path",
    errno.ENOENT: "check the path",
    errno.EIO: "the disk has a fault; choose a path on another disk, then run the same command again",
    errno.EMFILE: "raise the limit of open files (ulimit -n), then run the same command again",
    errno.ENFILE: "close other programs, then run the same command again",
    errno.EINVAL: "choose another path",
    errno.EBUSY: "another program is using it; run the same command again later",
    errno.ETXTBSY: "another program is using it; run the same command again later",
    errno.ESTALE: "the network disk was disconnected; run the same command again",
}
"""What to do about an error number. Numbers that are not here may be bugs of the lab."""
FULL_DISK = re.compile(
    r"No space left on device|File too large|quota exceeded|os error (28|27|122)\b|PytorchStreamWriter failed"
    r"|database or disk is full|file write failed",
    re.IGNORECASE,
)
"""Matches what libraries say if a disk is full."""


def explain(error: BaseException) -> str | None:
    """What is wrong and what to do, or None if an error is not one of the operating system that the user can fix."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in REMEDIES and (each.filename or each.errno in NO_SPACE):
            names = [_name(name) for name in (each.filename, each.filename2) if name]
            place = f"{' -> '.join(names)}: " if names else ""
            return f"{place}{each.strerror}; {REMEDIES[each.errno]}"
        if FULL_DISK.search(str(each)):
            return f"the disk is full ({' '.join(str(each).split())[:200]}); {FREE_SPACE}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    seen: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in seen:
        yield each
        seen.append(each)
        each = each.__cause__


def _name(filename: object) -> str:
    text = filename.decode(errors="replace") if isinstance(filename, bytes) else str(filename)
    return text if len(text) <= 300 else f"{text[:300]}[...]"
