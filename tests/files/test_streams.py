"""The terminal's streams: a reader that leaves, a full disk, an encoding without the letters, escapes, and keys."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.files.redact import environment_redactor
from distill_lab.files.streams import GuardedStream, guarded_streams
from distill_lab.files.system_errors import explain
from distill_lab.terminal import Terminal

KEY = "sk-canary-0123456789abcdefghij"


def test_help_for_a_reader_that_leaves() -> None:
    """`distill --help | head -1`"""
    child = subprocess.Popen(
        [sys.executable, "-m", "distill_lab.cli", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    error = child.stderr.read()
    assert (child.wait(), error) == (0, b"")


@pytest.mark.skipif(os.name == "nt", reason="needs pipes")
def test_the_work_goes_on_for_a_reader_that_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with guarded_streams() as streams:
            terminal = Terminal(ticking=False)
            for number in range(100):
                terminal.note(f"line {number}")
                print("more")
            assert streams.problem() == ""
        assert sys.stdout is pipe


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_behind_standard_output_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["runs", "--folder", str(tmp_path)]) == 2
        assert "standard output cannot be written (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_letters_that_the_terminal_lacks_are_escaped(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert cli.main(["runs", "--folder", str(tmp_path / "läufe 你好 \udcff")]) == 0
    assert b"no runs under" in written.getvalue()


@pytest.mark.parametrize("text", ["\x1b[31mred\x07", "[/x]", "[red]x", "\u202eb", "a\rb", "\x9b2J", "\ud800"])
def test_a_users_error_cannot_steer_the_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([text]) == 2
    printed = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\r", "\x9b", "\u202e", "\ud800"} & set(printed)
    assert "no command" in printed
    if text.startswith("["):
        assert text in printed


def test_a_key_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, KEY + name)
    written = io.StringIO()
    stream = GuardedStream(written, "standard output")
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "WANDB_API_KEY"):
        print(f"sent {KEY + name}", file=stream)
    assert KEY not in written.getvalue()
    assert written.getvalue().count("sent ***") == 3
    assert environment_redactor({"OPENAI_API_KEY": "EMPTY"})("EMPTY") == "EMPTY"


TWICE = """
import sys, time
from distill_lab import cli
def work(name, arguments):
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("closing", flush=True)
        time.sleep(60)
cli._run = work
sys.exit(cli.main(["generate"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
@pytest.mark.parametrize("number", [1, 2])
def test_ctrl_c_ends_a_command_and_a_second_one_at_once(number: int) -> None:
    code = TWICE if number == 2 else TWICE.replace('print("closing", flush=True)\n        time.sleep(60)', "pass")
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for said in ("working\n", "closing\n")[:number]:
        assert child.stdout.readline() == said
        child.send_signal(signal.SIGINT)
    _, error = child.communicate()
    assert child.returncode == 130
    assert "Traceback" not in error
    assert error.strip().endswith("run the same command again to resume")
    assert ("at once" in error) == (number == 2)


def test_the_signals_are_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    cli.main(["--version"])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_fault_of_the_lab_is_printed_clean_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(name: str, arguments: list[str]) -> int:
        raise KeyError(f"\x1b[31m {KEY}")

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(cli, "_run", fails)
    assert cli.main(["generate"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "please report it" in printed
    assert KEY not in printed
    assert "\x1b" not in printed


def test_errors_of_the_system_have_a_remedy() -> None:
    assert explain(OSError(28, "No space left on device", "a/b")) == (
        "a/b: No space left on device; free some disk space; nothing is lost, run the same command again to resume"
    )
    wrapped = RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0")
    rust = ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
    for error in (wrapped, rust, OSError(27, "File too large")):
        assert "free some disk space" in (explain(error) or "")
    outer = RuntimeError("cannot save")
    outer.__cause__ = OSError(13, "Permission denied", b"student")
    assert (explain(outer) or "").startswith("student: Permission denied; choose another path")
    for bug in (KeyError("x"), OSError("no number"), ConnectionResetError(104, "Connection reset by peer")):
        assert explain(bug) is None
