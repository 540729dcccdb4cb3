"""files/fingerprints.py: what differs has another fingerprint, directories count by content, large files are read once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill_lab.files import fingerprints
from distill_lab.files.fingerprints import differences
from distill_lab.run import fingerprint
from tests.helpers import model_folder


def test_fingerprints_tell_apart_what_differs(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"x" * 3_000_000)
    folder.mkdir()
    values: list[Any] = [{}, [], None, 0, "0", {"a": 1, "b": 2}, {"a": 1}, {"a": [1]}, file, folder, tmp_path / "none"]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"epochs": 4}) == fingerprint({"epochs": 4.0}) != fingerprint({"epochs": 4.5})
    assert (
        fingerprint(file)
        == hashlib.sha256(json.dumps(hashlib.sha256(file.read_bytes()).hexdigest()).encode()).hexdigest()
    )

    before = fingerprint(file), fingerprint(folder)
    file.touch()
    assert fingerprint(file) == before[0]
    file.write_bytes(b"x" * 2_999_999 + b"y")
    (folder / "new").write_text("1")
    assert fingerprint(file) != before[0]
    assert fingerprint(folder) != before[1]


def test_a_copy_with_other_times_is_the_same_directory(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    copied = Path(shutil.copytree(model, tmp_path / "copied", copy_function=shutil.copyfile))
    for path in copied.iterdir():
        os.utime(path, (1, 1))
    assert fingerprint(copied) == fingerprint(model)
    other = model_folder(tmp_path / "other", b"w" * 999 + b"v")
    stat = (model / "model.safetensors").stat()
    os.utime(other / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(other) != fingerprint(model)


def test_what_is_no_part_of_a_model_does_not_change_its_fingerprint(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    before = fingerprint(model)
    for name in ("student-q4.gguf", "notes.txt", "README.md", ".key.json", "mine.py"):
        (model / name).write_text("1")
    (model / "adapter").mkdir()
    (model / "adapter" / "adapter_model.safetensors").write_text("1")
    assert fingerprint(model) == before
    for name in ("chat_template.jinja", "generation_config.json", "added_tokens.json", "model-2.safetensors"):
        (model / name).write_text("1")
        changed = fingerprint(model)
        assert changed != before, name
        before = changed
    (model / "config.json").write_text('{"auto_map": {"AutoModel": "mine.Model"}}')
    before = fingerprint(model)
    (model / "mine.py").write_text("2")
    assert fingerprint(model) != before


def test_a_large_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "LARGE", 1000)
    monkeypatch.setattr(fingerprints, "SETTLED_S", -1.0)
    monkeypatch.setattr(fingerprints, "_known", {})
    monkeypatch.setattr(fingerprints, "_loaded", None)
    model = model_folder(tmp_path / "model")
    before = fingerprint(model)
    read: list[str] = []
    monkeypatch.setattr(fingerprints.hashlib, "sha256", Counting(hashlib.sha256, read))
    assert fingerprint(model) == before
    assert "w" * 1000 not in read
    monkeypatch.setattr(fingerprints, "_known", {})  # as in another process
    monkeypatch.setattr(fingerprints, "_loaded", None)
    assert fingerprint(model) == before
    assert "w" * 1000 not in read
    stat = (model / "model.safetensors").stat()
    (model / "model.safetensors").write_bytes(b"v" * 1000)
    os.utime(model / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(model) != before
    assert "v" * 1000 in read
    (tmp_path / "cache" / "digests.json").write_text("[1")
    monkeypatch.setattr(fingerprints, "_known", {})
    monkeypatch.setattr(fingerprints, "_loaded", None)
    (model / "model.safetensors").write_bytes(b"w" * 1000)
    assert fingerprint(model) == before


def test_differences_are_named_by_their_place() -> None:
    digest = "a" * 64
    assert differences({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 2]}}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": None}}) == ["a.b (1, now none)"]
    assert differences({"m": [{"files": digest}]}, {"m": [{"files": "b" * 64}]}) == ["m.files (other content)"]
    assert differences({"m": digest}, {}) == ["m (other content)"]
    assert differences([1], [1, 2], "x") == ["x ([1], now [1, 2])"]


class Counting:
    """A hash function that notes what it is given."""

    def __init__(self, function: Any, read: list[str]) -> None:
        self.function, self.read = function, read

    def __call__(self, content: bytes = b"") -> Any:
        counting, inner = self, self.function(content)

        class Noting:
            def update(self, block: bytes) -> None:
                counting.read.append(block.decode())
                inner.update(block)

            def hexdigest(self) -> str:
                return inner.hexdigest()

        return Noting()
