"""The notebook's first cells: torch stays, a restart is said, and the folder on Google Drive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from distill_lab.commands import _colab

ROOT = Path(__file__).resolve().parents[2]

PROJECT = """\
[project]
dependencies = [
    "torch>=2.9",
    "rich>=14",
    "nothing-like-this>=1; platform_machine == 'z80'",
    {more}
]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout that needs a package that is not there."""
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(more='"no-such-package-anywhere>=3",'))
    return tmp_path


def done(returncode: int, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], returncode, "", text)


def test_everything_the_lab_needs_is_here_and_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *args, **how: pytest.fail("nothing is to be installed"))
    assert len(_colab.requirements(ROOT)) > 15
    _colab.install(ROOT)
    _colab.install(ROOT / "docs")  # no checkout: a package that was installed with its dependencies


def test_torch_is_pinned_to_what_is_there_and_pips_last_lines_are_shown(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def pip(words: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        seen.extend([*words, Path(words[words.index("--constraint") + 1]).read_text()])
        return done(1, "first line\n" + "more\n" * 9 + "ERROR: no matching distribution")

    monkeypatch.setattr("subprocess.run", pip)
    with pytest.raises(SystemExit, match="no-such-package-anywhere>=3"):
        _colab.install(root)
    assert f"torch=={_colab.version('torch')}\n" in seen[-1]
    assert seen[-2] == "no-such-package-anywhere>=3"  # and nothing that is there already
    printed = capsys.readouterr().out
    assert "installing 1 packages" in printed
    assert "ERROR: no matching distribution" in printed
    assert "first line" not in printed


def test_an_old_torch_is_left_and_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *args, **how: pytest.fail("nothing is to be installed"))
    monkeypatch.setattr(_colab, "version", lambda name: "2.6.0+cu124" if name == "torch" else "99")
    with pytest.raises(SystemExit, match=r"The lab needs torch>=2\.9, and this session has 2\.6\.0\+cu124"):
        _colab.install(root)


def test_a_package_that_was_loaded_in_an_older_version_needs_a_restart(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"no-such-package-anywhere": "3.1"}
    versions = iter([{"pytest": "1.0", "rich": "14"}, {"pytest": "9.2", "rich": "14"}])
    known = _colab.version
    monkeypatch.setattr(_colab, "version", lambda name: now.get(name) if ran else known(name))
    monkeypatch.setattr(_colab, "versions", lambda: next(versions))
    monkeypatch.setattr(_colab, "unmet", lambda lines: iter([] if ran else ["no-such-package-anywhere>=3"]))
    ran: list[int] = []
    monkeypatch.setattr("subprocess.run", lambda *args, **how: ran.append(1) or done(0))
    with pytest.raises(SystemExit, match=r"Restart the session .*: pytest had been loaded before"):
        _colab.install(root)


def test_work_goes_to_drive_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _colab.workspace() == tmp_path
    assert _colab.workspace(on_drive=True) == tmp_path
    assert "There is no Google Drive outside of Colab" in capsys.readouterr().out
    drive = ModuleType("google.colab.drive")
    drive.mount = lambda place: (Path(place) / "MyDrive").mkdir(parents=True)  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "google.colab.drive", drive)
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    found = _colab.workspace(on_drive=True, drive=tmp_path / "drive")
    assert found == Path.cwd() == tmp_path / "drive" / "MyDrive" / "qwen-distillation-lab"
