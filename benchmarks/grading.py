"""Rows per second and peak memory of grading: 1,000 and 100,000 completions, and 200 hostile ones among honest ones.

In: how many rows. Out: a line per case, then one JSON object. Each case runs `evaluate` in a process of its own, on files
made here: word problems with a worked answer of some 1,000 characters (numeric), formulas (math), formulas made to hang
a computer algebra system (hostile; seconds per hostile row, honest rows' time taken off).

    python -m benchmarks.grading --rows 100000
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_lab.evaluation.evaluate import evaluate
from distill_lab.files.jsonl import write_jsonl

HOSTILE = (
    r"\frac{(x^{200}-1)^{200}}{(x-1)^{199}}",
    r"\int_0^1 e^{\sin(x^x)} \cos(e^{x^2}) dx",
    "9^{9^{9^{9}}}",
    "10**10**10",
    r"(\sin x+\cos y)^{300}(1+\tan z)^{300}",
    "((999!)!)!",
    r"\sqrt{" * 300 + "2" + "}" * 300,
    r"\frac{1}{" * 150 + "x" + "}" * 150,
    "{" * 100_000,
    r"\boxed{" * 14_000,
    "x+" * 5_000 + "1",
    r"\sum_{k=1}^{999} \prod_{j=1}^{999} \frac{k^{99}}{j^{99}+x}",
    "final answer: " + "_ " * 50_000,
    r"\binom{999}{499}^{999} x^{999}",
)
NUM_HOSTILE = 200
LIMIT_S = 3.0


def rows(case: str, number: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(prompt, completion) rows of a case."""
    rng = random.Random(0)
    for index in range(number):
        a, b = rng.randrange(1, 2000), rng.randrange(1, 2000)
        if case == "numeric":
            text = f"She has {a} and gets {b} more, which we add up with care. " * 20 + f"\nFinal Answer: ${a + b:,}.00"
            gold = str(a + b)
        elif case == "math" or index >= NUM_HOSTILE:
            gold, text = f"{a}x + {a * b}", rf"So it is $\boxed{{{a}(x + {b})}}$."
        else:
            gold, text = f"{a}x + {b}", rf"\boxed{{{HOSTILE[index % len(HOSTILE)]}}}"
        prompt = {"id": f"p-{index}", "messages": [{"role": "user", "content": "How many?"}], "answer": gold}
        completion = {"id": prompt["id"], "sample": 0, "content": text, "thinking": None}
        yield prompt, completion | {"finish_reason": "stop", "num_tokens": 300}


def measure(case: str, number: int) -> dict[str, Any]:
    """Grade `number` rows of a case in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jsonl(folder / "prompts.jsonl", (prompt for prompt, _ in rows(case, number)))
        write_jsonl(folder / "completions.jsonl", (completion for _, completion in rows(case, number)))
        start = time.perf_counter()
        grader = "numeric" if case == "numeric" else "math"
        score = evaluate(folder / "prompts.jsonl", folder / "completions.jsonl", folder / "eval.jsonl", grader)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "case": case,
        "rows": number,
        "seconds": round(seconds, 2),
        "rows_per_s": round(number / seconds, 1),
        "peak_memory_mib": round(peak, 1),
        "score": round(score.score, 4),
        "timeouts": score.timeouts,
        "unparseable": score.unparseable,
    }


def in_process(case: str, number: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.grading", "--case", case, "--rows", str(number)]
    root = str(Path(__file__).resolve().parent.parent)
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout)
    print(f"{case}, {number:,} rows: {figures['rows_per_s']:,} rows/s, {figures['peak_memory_mib']} MiB", flush=True)
    return figures


def main() -> None:
    """Measure all cases, or the one asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the large case (default 100,000)")
    parser.add_argument("--case", choices=("numeric", "math", "hostile"), help="this case alone, in this process")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.rows)))
        return
    small, large = in_process("numeric", 1000), in_process("numeric", arguments.rows)
    honest, hostile = in_process("math", 1000), in_process("hostile", 1000 + NUM_HOSTILE)
    per_hostile = (hostile["seconds"] - honest["seconds"]) / NUM_HOSTILE
    growth = large["peak_memory_mib"] - small["peak_memory_mib"]
    assert small["score"] == large["score"] == honest["score"] == 1.0
    print(
        json.dumps(
            {
                "cases": [small, large, honest, hostile],
                "memory_growth_mib": round(growth, 1),
                "hostile_seconds_per_row": round(per_hostile, 3),
                "met": {
                    "500 rows/s": large["rows_per_s"] >= 500,
                    "growth within 300 MB": growth * 2**20 <= 300e6,
                    "a hostile row within 3 s": per_hostile <= LIMIT_S,
                },
            }
        )
    )


if __name__ == "__main__":
    main()
