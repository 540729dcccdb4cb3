"""Fingerprints: a JSON-like value, a file or a directory -> SHA-256 of its content, in hexadecimal digits.

    fingerprint({"rows": Path("train.jsonl"), "model": Path("student"), "epochs": 3})

Paths count by what is in them, never by name, place or time, so that a copy is the same. Of a model's directory the files
that loading it reads count: notes, a GGUF file or a model card beside them change nothing. The digests of large files are
remembered in the user's cache folder by path, size, times and inode, so that gigabytes are read once and not at each step.
`differences` says what differs between two such values.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_lab import activity
from distill_lab.files.cache_folder import cache_folder, is_off

LARGE = 1 << 26
"""Bytes from which on a file's digest is remembered; reading less takes no time."""
MAX_REMEMBERED = 1_000
MAX_DIFFERENCES = 6
"""Named in a message."""
SETTLED_S = 2.0
"""A file written less than this many seconds ago may change again without a change of its times: it is read each time."""
BLOCK = 1 << 22
MODEL_CONFIGS = ("config.json", "adapter_config.json")
"""A directory that holds one of these is a model's."""
MODEL_FILE = re.compile(
    r"(?!training_args\.)([^/]+\.(safetensors|bin|model|index\.json)"
    r"|(adapter_|generation_|tokenizer_|processor_|preprocessor_|quantize_|quant_|hf_quant_)?config\.json"
    r"|tokenizer\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|chat_template\.(jinja|json)|additional_chat_templates/.+\.jinja)"
)
"""Files of a model's directory that loading it reads, by their path in it."""

_known: dict[str, list[Any]] = {}
"""Path -> what `_state` said of a large file when it was read, and its digest."""
_loaded: str | None = None
"""The file `_known` was completed from."""


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-like value. Paths in it count by content."""
    return hashlib.sha256(json.dumps(plain(value), ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def plain(value: Any) -> Any:
    """`value` as JSON holds it, each Path as the digest of its content."""
    if isinstance(value, Path):
        return path_fingerprint(value)
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [plain(element) for element in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 4 and 4.0 are one number, whichever a file or a caller wrote
    return value


def path_fingerprint(path: Path) -> str:
    """Digest of a file's bytes, or of a directory's files by their names in it and bytes; "missing" where nothing is."""
    if path.is_dir():
        entries = [(name, _file_digest(path / name)) for name in files_of(path) if counts(path, name)]
        return hashlib.sha256(repr(entries).encode()).hexdigest()
    return _file_digest(path) if path.exists() else "missing"


def files_of(folder: Path) -> list[str]:
    """The files below a directory, each as its path in it with slashes, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def counts(folder: Path, name: str) -> bool:
    """Whether a file of a directory is part of its fingerprint: all are, but for a model's directory the model's alone."""
    if not any((folder / config).is_file() for config in MODEL_CONFIGS):
        return True
    if name.endswith(".py"):  # code of the model's own, where its config names it
        return b"auto_map" in (folder / "config.json").read_bytes() if (folder / "config.json").is_file() else False
    return MODEL_FILE.fullmatch(name) is not None


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """What differs between two JSON values, each as `place (was, is now)`; digests as "other content"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for name in [*old, *(name for name in new if name not in old)]:
            found += differences(old.get(name), new.get(name), f"{place}.{name}" if place else str(name))
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [each for pair in zip(old, new, strict=True) for each in differences(*pair, place)]
    if old == new:
        return []
    how = "other content" if _is_digest(old) or _is_digest(new) else f"{_short(old)}, now {_short(new)}"
    return [f"{place} ({how})"]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _file_digest(path: Path) -> str:
    state, place = _state(path), os.path.realpath(path)
    large = state[0] >= LARGE
    if large:
        _recall()
        if (known := _known.get(place)) and known[:-1] == state:
            return known[-1]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            if large:
                activity.report(f"checking {path.name}, MB", file.tell() >> 20, state[0] >> 20)
    if large:
        activity.over()
    if large and state == _state(path) and time.time() - max(state[1:3]) / 1e9 > SETTLED_S:
        _remember(place, [*state, digest.hexdigest()])
    return digest.hexdigest()


def _state(path: Path) -> list[int]:
    """What changes whenever a file does: size, times of content and of the entry in ns, inode and device."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _place() -> Path | None:
    try:
        return None if is_off() else cache_folder() / "digests.json"
    except OSError:
        return None


def _recall() -> None:
    """Complete `_known` from the user's cache folder, once; what cannot be read there is read from the files again."""
    global _loaded
    place = _place()
    if place is None or _loaded == str(place):
        return
    _loaded = str(place)
    _known.update({**_read(place), **_known})


def _read(place: Path) -> dict[str, list[Any]]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    rows = found.items() if isinstance(found, dict) else ()
    return {key: row for key, row in rows if isinstance(row, list) and len(row) == 6 and isinstance(row[-1], str)}


def _remember(path: str, row: list[Any]) -> None:
    _known[path] = row
    place = _place()
    if place is None:
        return
    # Another process may have added to it. What two add in the same moment one of them reads again the next time.
    rows = list({**_read(place), path: row}.items())[-MAX_REMEMBERED:]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, suffix=".json", delete=False, encoding="utf-8") as file:
            json.dump(dict(rows), file)
        os.replace(file.name, place)
    except OSError:  # a full disk, no permission: it is only quicker with it
        return
