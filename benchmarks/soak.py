"""Commands that are killed at random moments and given again until the time is up: kills, resumes, and what differs then.

In: minutes, a seed. Out: a line per cycle, then one JSON object. A cycle runs generate, grade, train, eval and a recipe on
the tiny family in a fresh folder. Each command gets SIGKILL, SIGTERM or SIGINT at drawn moments and is given again, the
same, until it ends by itself. Then the folder must hold what an undisturbed cycle made: the same bytes, or the same content
in files that say how long something took. Everything runs on this machine; nothing is sent anywhere.

    python -m benchmarks.soak --minutes 30
    python -m benchmarks.soak --minutes 0 --prompts 1000000       only memory and pace of many prompts (benchmarks.scale)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import scale

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ENDINGS = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}
MAX_KILLS = 4
"""Of one command in a cycle; then it is left alone."""
LIMIT_S = 600.0
"""A command that takes longer hangs."""
TIMES = frozenset(
    "seconds date at started ended resumed_from time tokens_per_s files output python completions".split()
)
"""Names in JSON files that hold times, places, or digests of files with times or with rows in any order in them."""
NOT_COMPARED = (".html", ".md", ".svg", ".log", ".lock", ".sqlite")
UNORDERED = ("answers.jsonl", ".completions.jsonl", "completions.jsonl")
"""Files whose rows come in the order in which a model finishes them."""

DATA = ["--data.path", "tiny:problems"]
ALONE = ["--engine", "transformers"]
COMMANDS: dict[str, list[str]] = {
    "generate": [
        "generate", "--model", "tiny:teacher", *DATA, "--data.split", "distill[:240]", "--out", "answers.jsonl", *ALONE,
        "--sampling.max-new-tokens", "160", "--sampling.num-samples", "2", "--sampling.temperature", "0.7",
    ],
    "grade": [
        "grade", "--prompts", "answers.prompts.jsonl", "--completions", "answers.jsonl", "--grader", "math",
        "--out", "graded.jsonl",
    ],
    "train": [
        "train", "--student", "tiny:student", "--rows", "rows.jsonl", "--out", "student", "--train.dtype", "fp32",
        "--train.num-epochs", "3", "--train.tokens-per-batch", "1024", "--train.save-steps", "5",
        "--train.logging-steps", "5", "--train.learning-rate", "1e-3",
    ],
    "eval": [
        "eval", "--model", "student", *DATA, "--data.split", "test[:60]", "--out", "eval.jsonl", *ALONE,
        "--grader", "numeric", "--sampling.max-new-tokens", "160",
    ],
    "recipe": [
        "verified", "--preset", "tiny", "--run", "run", "--data.split", "distill[:80]", "--test.split", "test[:20]",
        "--train.num-epochs", "1", "--train.dtype", "fp32", "--no-measure", *ALONE,
    ],
}  # fmt: skip


@dataclass
class Found:
    """What happened."""

    cycles: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    """By signal."""
    killed: Counter[str] = field(default_factory=Counter)
    """By command."""
    resumes: int = 0
    """Commands that were given again and ended by themselves."""
    too_late: int = 0
    """Signals for a command that had just ended."""
    compared: int = 0
    differences: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Wrong exit codes and tracebacks."""

    def to_json(self) -> dict[str, Any]:
        """For the last line."""
        lists = {"differences": self.differences[:20], "faults": self.faults[:20]}
        counts = {"num_differences": len(self.differences), "num_faults": len(self.faults)}
        plain = {"cycles": self.cycles, "resumes": self.resumes, "too_late": self.too_late, "compared": self.compared}
        return {**plain, "kills": dict(self.kills), "killed": dict(self.killed), **counts, **lists}


class Command:
    """A process of the lab in a separate session, with its output in a file."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        environment = {
            **os.environ, "DISTILL_LAB_CACHE": "off", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1",
            "PYTHONPATH": str(ROOT), "DISTILL_LAB_DATE": "2026-01-01",
        }  # fmt: skip
        self._log = folder / "command.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "distill_lab.cli", *arguments],
                cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it still runs after this time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self, kind: signal.Signals) -> None:
        """Send a signal as it comes in life: Ctrl-C goes to all processes of a terminal, the others to one."""
        with suppress(ProcessLookupError):
            (os.killpg if kind == signal.SIGINT else os.kill)(self.process.pid, kind)

    def close(self) -> str:
        """End whatever is left of it; its output."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return self._log.read_text(encoding="utf-8", errors="replace")


def finish(name: str, folder: Path) -> float:
    """Run a command undisturbed; its seconds. Ends the program if it fails."""
    start, command = time.monotonic(), Command(COMMANDS[name], folder)
    code = command.wait(LIMIT_S)
    said = command.close()
    if code != 0:
        raise SystemExit(f"{name} ended with {code} undisturbed:\n{said[-3000:]}")
    return time.monotonic() - start


def disturb(name: str, folder: Path, seconds: float, draw: random.Random, found: Found, deadline: float) -> None:
    """Run a command with kills at drawn moments until it ends by itself."""
    killed = 0
    while True:
        is_last = killed >= MAX_KILLS or time.monotonic() > deadline
        command = Command(COMMANDS[name], folder)
        code = command.wait(LIMIT_S if is_last else draw.uniform(0.0, 1.15 * seconds))
        kind = draw.choice(SIGNALS)
        if code is None and not is_last:
            command.kill(kind)
            code = command.wait(60.0)
            if code in ENDINGS[kind]:
                killed += 1
                found.kills[kind.name] += 1
                found.killed[name] += 1
                said = command.close()
                if "Traceback" in said and kind != signal.SIGKILL:
                    found.faults.append(f"{name}: a traceback after {kind.name}: {said[-400:]}")
                continue
            found.too_late += code == 0
        said = command.close()
        if code != 0:
            found.faults.append(f"{name}: ended with {code} after {killed} kills: {said[-600:]}")
            killed += 1
            if killed > MAX_KILLS + 3:
                raise SystemExit(f"{name} does not come to an end:\n{said[-3000:]}")
            continue
        found.resumes += killed > 0
        return


def rows_of_training(folder: Path) -> None:
    """What is between grade and train in a recipe."""
    from distill_lab.training_data.training_set import write_training_set

    write_training_set(folder / "answers.prompts.jsonl", folder / "rows.jsonl", completions=folder / "graded.jsonl")


def without_times(value: Any) -> Any:
    """A JSON value without what differs between any two runs."""
    if isinstance(value, dict):
        # A stage's key is a digest of its inputs, among them that of completions, whose rows come in any order.
        is_stage = "completions" in (value.get("inputs") or ())
        left_out = TIMES | {"key"} if is_stage else TIMES
        return {name: without_times(below) for name, below in value.items() if name not in left_out}
    return [without_times(below) for below in value] if isinstance(value, list) else value


def content(path: Path, folder: Path) -> Any:
    """What must be equal in two cycles; None for a file that is not compared. folder: of the cycle, whose name differs."""
    if path.suffix in NOT_COMPARED or path.name == "command.log":
        return None
    is_log = "log" in path.name and path.suffix == ".jsonl"
    if not (path.suffix == ".json" or path.name.endswith(UNORDERED) or is_log):
        return path.read_bytes()
    text = path.read_text(encoding="utf-8").replace(str(folder), "FOLDER")
    if path.suffix == ".json":
        return without_times(json.loads(text))
    rows = [json.loads(line) for line in text.splitlines()]
    if is_log:
        return [row for row in map(without_times, rows) if "step" in row]
    return sorted(rows, key=lambda row: (row["id"], row["sample"]))


def compare(whole: Path, folder: Path, found: Found) -> None:
    """Every file of an undisturbed cycle and of a disturbed one."""
    files = {each: {p.relative_to(each).as_posix() for p in each.rglob("*") if p.is_file()} for each in (whole, folder)}
    found.differences += [f"{name}: only in one" for name in sorted(files[whole] ^ files[folder])]
    for name in sorted(files[whole] & files[folder]):
        one, other = content(whole / name, whole), content(folder / name, folder)
        found.compared += one is not None
        if one != other:
            found.differences.append(f"cycle {found.cycles}: {name} differs")


def soak(minutes: float, seed: int, place: Path) -> dict[str, Any]:
    """Cycles until the time is up."""
    start, draw, found = time.monotonic(), random.Random(seed), Found()
    deadline = start + 60 * minutes
    whole = place / "undisturbed"
    whole.mkdir()
    seconds: dict[str, float] = {}
    for name in COMMANDS:
        seconds[name] = finish(name, whole)
        if name == "grade":
            rows_of_training(whole)
    print(f"undisturbed: {', '.join(f'{name} {took:.0f} s' for name, took in seconds.items())}", flush=True)
    while time.monotonic() < deadline:
        folder = place / f"cycle-{found.cycles}"
        folder.mkdir()
        for name, took in seconds.items():
            disturb(name, folder, took, draw, found, deadline)
            if name == "grade":
                rows_of_training(folder)
        compare(whole, folder, found)
        found.cycles += 1
        print(f"{(time.monotonic() - start) / 60:.1f} minutes: {json.dumps(found.to_json())}", flush=True)
    used = round((time.monotonic() - start) / 60, 1)
    return {"part": "kills", "minutes": used, "seed": seed, **found.to_json()}


def main() -> None:
    """Soak, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of kills (default 30; 0: none)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    parser.add_argument("--prompts", type=int, default=0, help="also memory and pace of this many prompts")
    parser.add_argument("--folder", type=Path, help="where the files go; they stay there")
    given = parser.parse_args()
    # A shell's background jobs, and all that they start, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        if given.prompts:
            print(json.dumps({"part": "scale", **scale.run(given.prompts, answered=0.0, folder=place)}), flush=True)
        if given.minutes:
            print(json.dumps(soak(given.minutes, given.seed, place)), flush=True)


if __name__ == "__main__":
    main()
