"""Signed files: the lab replaces what it wrote itself, and nothing that somebody has written or changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_lab.errors import UserError
from distill_lab.files.outputs import check_removable, foreign, remove_output
from distill_lab.files.signed import is_signed, write_signed
from tests.helpers import model_folder


def test_what_the_lab_wrote_is_replaced_and_an_edit_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    assert write_signed(path, "# one\n")
    assert is_signed(path)
    assert write_signed(path, "# two, naïve 漢字 \ud800")
    assert path.read_text(encoding="utf-8").startswith("# two, naïve 漢字 ?\n")
    edited = path.read_text(encoding="utf-8").replace("two", "mine")
    path.write_text(edited, encoding="utf-8")
    assert not is_signed(path)
    assert not write_signed(path, "# three")
    assert path.read_text(encoding="utf-8") == edited


@pytest.mark.parametrize("text", ["", "# mine", f"<!-- qwen-distillation-lab {'0' * 64} -->"])
def test_what_somebody_wrote_is_kept(text: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    assert not write_signed(path, "# the lab's")
    assert path.read_text() == text


def test_line_ends_of_windows_and_text_after_the_signature(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    write_signed(path, "# one\n\ntext")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\n", b"\r\n"))
    assert is_signed(path)
    path.write_bytes(content + b"mine\n")
    assert not is_signed(path)


def test_an_unchanged_card_does_not_keep_the_lab_from_its_directory(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "student")
    names = sorted(path.name for path in folder.iterdir())
    write_signed(folder / "README.md", "# a card")
    check_removable(folder, names)
    check_removable(folder)
    (folder / "notes.md").write_text("mine")
    assert foreign(folder, names) == foreign(folder, None) == ["notes.md"]
    (folder / "notes.md").unlink()
    (folder / "README.md").write_text("# my card")
    with pytest.raises(UserError, match=r"README\.md"):
        remove_output(folder, names)
    write_signed(folder / "other.md", "x")
    (folder / "README.md").unlink()
    remove_output(folder, names)
    assert not folder.exists()
