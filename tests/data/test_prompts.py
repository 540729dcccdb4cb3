"""Prompts of a small file are read from disk once until the file changes, and every reader gets all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_lab.data import prompts
from distill_lab.data.prompts import read_prompts
from distill_lab.errors import DataError
from distill_lab.files.jsonl import write_jsonl


def rows(*texts: str) -> list[dict[str, Any]]:
    turn = {"role": "assistant", "content": "yes"}
    return [{"id": text, "messages": [{"role": "user", "content": text}], "completion": [turn]} for text in texts]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened."""
    found: list[str] = []
    original = Path.open

    def counted(self: Path, *arguments: Any, **settings: Any) -> Any:
        found.append(self.name)
        return original(self, *arguments, **settings)

    monkeypatch.setattr(Path, "open", counted)
    return found


def test_a_small_file_is_read_once_until_it_changes(tmp_path: Path, opened: list[str]) -> None:
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, rows("a", "b"))
    opened.clear()
    assert next(read_prompts(path)).id == "a"  # not read to its end
    assert [prompt.id for prompt in read_prompts(path)] == ["a", "b"]
    assert opened == ["prompts.jsonl"] * 2
    assert [prompt.answer for prompt in read_prompts(path)] == [None, None]
    assert [prompt.answer for prompt in read_prompts(path, references=True)] == ["yes", "yes"]
    assert len(opened) == 2
    write_jsonl(path, rows("a", "c"))
    assert [prompt.id for prompt in read_prompts(path)] == ["a", "c"]
    path.write_bytes(path.read_bytes() + b'{"id": "a", "messages": []}\n')
    for _ in range(2):
        with pytest.raises(DataError, match="occurs twice"):
            list(read_prompts(path))


def test_only_the_last_small_files_are_kept(tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{number}.jsonl" for number in range(prompts.MAX_KEPT_FILES + 1)]
    for path in files:
        write_jsonl(path, rows("a"))
        list(read_prompts(path))
    opened.clear()
    for path in files[1:]:
        list(read_prompts(path))
    assert opened == []
    list(read_prompts(files[0]))
    assert opened == ["0.jsonl"]
    monkeypatch.setattr(prompts, "MAX_KEPT_BYTES", 10)
    write_jsonl(files[0], rows("b"))
    opened.clear()
    for _ in range(2):
        assert [prompt.id for prompt in read_prompts(files[0])] == ["b"]
    assert opened == ["0.jsonl"] * 2
