"""One process on each output, and a student that is trained again in its place."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill_lab.files.claims import claim, key_path
from tests.claimed import TRAIN, Distill, asked, rows_file, snapshot

pytestmark = pytest.mark.slow


def test_training_the_same_again_is_done_and_other_settings_are_refused(tmp_path: Path, run: Distill) -> None:
    rows, out = rows_file(tmp_path / "rows.jsonl"), tmp_path / "student"
    again = [*TRAIN, "--rows", rows, "--out", out]
    assert run(*again)[0] == 0
    assert not (tmp_path / "student.work").exists()
    (out / "mine.gguf").write_text("hours of work")
    before = snapshot(tmp_path)
    code, printed = run(*again)
    assert (code, "there is nothing to do" in printed) == (0, True), printed
    assert snapshot(tmp_path)["student/mine.gguf"] == b"hours of work"
    code, printed = run(*again, "--train.learning-rate", "0.5")
    assert (code, "train.learning_rate (2e-05, now 0.5)" in printed) == (2, True), printed
    code, printed = run(*again, "--train.learning-rate", "0.5", "--overwrite")
    assert (code, "mine.gguf" in printed) == (2, True), printed
    assert {name: text for name, text in snapshot(tmp_path).items() if "key" not in name} == {
        name: text for name, text in before.items() if "key" not in name
    }
    (out / "mine.gguf").unlink()
    assert run(*again, "--train.learning-rate", "0.5", "--overwrite")[0] == 0
    assert snapshot(tmp_path)["student/model.safetensors"] != before["student/model.safetensors"]


HOLD = """
import sys, time
from pathlib import Path
from distill_lab.files.claims import claim
out = Path(sys.argv[1])
with claim(out, "generate", inputs={"a": 1}, files=[out]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_second_process_on_an_output_is_refused(tmp_path: Path, data: Path, run: Distill) -> None:
    out, rows = tmp_path / "out.jsonl", rows_file(tmp_path / "rows.jsonl")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out), "600"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for command in (
            asked("generate", data, out, "tiny:student"),
            asked("generate", data, tmp_path / "link" / "out.jsonl", "tiny:student"),
            asked("generate", data, tmp_path / "x.jsonl", "tiny:student", "--cot", out),
            asked("eval", data, out, "tiny:student", "--overwrite"),
            [*TRAIN, "--rows", rows, "--out", out],
        ):
            code, printed = run(*command)
            assert (code, "is being written by another process" in printed) == (2, True), printed
        holder.kill()
    with claim(out, "generate", inputs={"a": 1}, files=[out]):
        pass
    assert not list(tmp_path.glob(".*.lock"))


def test_many_processes_at_once_hold_an_output_one_after_the_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out"), "0.3"]
    holders = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(5)]
    results = [(*holder.communicate(), holder.returncode) for holder in holders]
    held = [said for said, _, code in results if code == 0]
    assert held
    assert all(said == "held\n" for said in held)
    assert all("being written by another process" in error for _, error, code in results if code)


def test_two_trainings_of_one_student_do_not_mix(tmp_path: Path) -> None:
    rows, out = rows_file(tmp_path / "rows.jsonl", 40), tmp_path / "student"
    command = [sys.executable, "-m", "distill_lab.cli", *TRAIN[:3], "--rows", str(rows), "--out", str(out)]
    command += ["--train.num-epochs", "3"]
    children = []
    for seed in ("1", "2"):
        child = subprocess.Popen(
            [*command, "--train.seed", seed], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        children.append(child)
        while child.poll() is None and not key_path(out).exists():
            time.sleep(0.02)
    said = [child.communicate()[0] for child in children]
    assert sorted(child.returncode for child in children) == [0, 2], said
    refused = next(text for text, child in zip(said, children, strict=True) if child.returncode)
    assert "Traceback" not in refused
    assert "another process" in refused or "train.seed" in refused
