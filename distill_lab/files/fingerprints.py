"""Fingerprints: a JSON-like value, file or directory -> hexadecimal SHA-256 of its content.

    fingerprint({"rows": Path("train.jsonl"), "model": Path("student"), "epochs": 3})

Paths count by content, never by name, location or time, so that a copy has the same fingerprint. In a model directory only
the files needed to load it count: notes, a GGUF file or a model card do not. Digests of large files are stored in the
user's cache folder by path, size, times and inode, so that gigabytes are read only once. `differences` lists what differs
between two values.
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

from distill_lab import activity
from distill_lab.files.cache_folder import cache_folder, is_off
from distill_lab.types import Fields, JsonObject

LARGE = 1 << 26
"""Minimum size in bytes of files whose digest is stored; smaller ones are quick to read."""
MAX_REMEMBERED = 1_000
MAX_DIFFERENCES = 6
"""Maximum number of differences listed in a message."""
SETTLED_S = 2.0
"""A file written less than this many seconds ago may change again with the same times, so its digest is not stored."""
BLOCK = 1 << 22
MODEL_CONFIGS = ("config.json", "adapter_config.json")
"""A directory that contains one of these is a model directory."""
MODEL_FILE = re.compile(
    r"(?!training_args\.)([^/]+\.(safetensors|bin|model|index\.json)"
    r"|(adapter_|generation_|tokenizer_|processor_|preprocessor_|quantize_|quant_|hf_quant_)?config\.json"
    r"|tokenizer\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|chat_template\.(jinja|json)|additional_chat_templates/.+\.jinja)"
)
"""Matches the files in a model directory that are needed to load it, by relative path."""

_known: dict[str, tuple[list[int], str]] = {}
"""Path -> `_state` of a file when this process read it, and its digest; those of large files are also stored."""
_loaded: str | None = None
"""The file from which `_known` was loaded."""


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON-like value. Paths in it count by content."""
    text = json.dumps(plain(value), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()  # names of files may be other than UTF-8


def plain(value: object) -> object:
    """`value` as plain JSON data, each Path replaced by the digest of its content."""
    if isinstance(value, Path):
        return path_fingerprint(value)
    if isinstance(value, Mapping):
        return plain_object(value)
    if isinstance(value, (list, tuple)):
        return [plain(element) for element in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 4 and 4.0 are the same number
    return value


def plain_object(values: Fields) -> JsonObject:
    """`plain` of a JSON object: its names are text, and sorted."""
    return {str(key): plain(values[key]) for key in sorted(values, key=str)}


def path_fingerprint(path: Path) -> str:
    """Digest of a file's bytes, or of a directory's relative file names and bytes; "missing" if there is nothing."""
    if path.is_dir():
        entries = [(name, _file_digest(path / name)) for name in files_of(path) if counts(path, name)]
        return hashlib.sha256(repr(entries).encode(errors="surrogatepass")).hexdigest()
    return _file_digest(path) if path.exists() else "missing"


def files_of(folder: Path) -> list[str]:
    """Sorted relative paths (with slashes) of all files below a directory."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def counts(folder: Path, name: str) -> bool:
    """Whether a file counts in a directory's fingerprint: in a model directory only the model's files, otherwise all."""
    if not any((folder / config).is_file() for config in MODEL_CONFIGS):
        return True
    if name.endswith(".py"):  # the model's own code, if its config refers to it
        return b"auto_map" in (folder / "config.json").read_bytes() if (folder / "config.json").is_file() else False
    return MODEL_FILE.fullmatch(name) is not None


def differences(old: object, new: object, name: str = "") -> list[str]:
    """List the differences between two JSON values, each as `name (old, now new)`; digests as "other content"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in [*old, *(key for key in new if key not in old)]:
            found += differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [each for pair in zip(old, new, strict=True) for each in differences(*pair, name)]
    if old == new:
        return []
    how = "other content" if _is_digest(old) or _is_digest(new) else f"{_short(old)}, now {_short(new)}"
    return [f"{name} ({how})"]


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _file_digest(path: Path) -> str:
    state, real_path = _state(path), os.path.realpath(path)
    large = state[0] >= LARGE
    if large:
        _recall()
    if (known := _known.get(real_path)) and known[0] == state:
        return known[1]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            if large:
                activity.report(f"checking {path.name}, MB", file.tell() >> 20, state[0] >> 20)
    if large:
        activity.over()
    if state == _state(path) and time.time() - max(state[1:3]) / 1e9 > SETTLED_S:
        if large or len(_known) < MAX_REMEMBERED:
            _known[real_path] = state, digest.hexdigest()
        if large:
            _store(real_path)
    return digest.hexdigest()


def _state(path: Path) -> list[int]:
    """Values that change when a file changes: size, mtime and ctime in ns, inode and device."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]


def _digest_file() -> Path | None:
    try:
        return None if is_off() else cache_folder() / "digests.json"
    except OSError:
        return None


def _recall() -> None:
    """Load `_known` from the user's cache folder, once; unreadable entries are computed again."""
    global _loaded
    store = _digest_file()
    if store is None or _loaded == str(store):
        return
    _loaded = str(store)
    _known.update({**_read(store), **_known})


def _read(store: Path) -> dict[str, tuple[list[int], str]]:
    try:
        found = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    rows = found.items() if isinstance(found, dict) else ()
    whole = {key: row for key, row in rows if isinstance(row, list) and len(row) == 6 and isinstance(row[-1], str)}
    return {key: (row[:-1], row[-1]) for key, row in whole.items()}


def _store(path: str) -> None:
    """Add the digest of a large file to the user's cache folder."""
    store = _digest_file()
    if store is None:
        return
    # Another process may have added entries. If two add at the same moment, one entry is lost and computed again later.
    rows = list({**_read(store), path: _known[path]}.items())[-MAX_REMEMBERED:]
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=store.parent, suffix=".json", delete=False, encoding="utf-8") as file:
            json.dump({name: [*state, digest] for name, (state, digest) in rows}, file)
        os.replace(file.name, store)
    except OSError:  # a full disk or no permission: storing digests only saves time
        return
