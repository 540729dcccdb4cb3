r"""How graders do on real outputs: false accepts and false rejects, in counts, with examples to read.

In: the folder of real data sets. Out: a line per set, the rows to read, then one JSON object. Right and wrong are told apart
by an independent rule: the text after the last `####`, in the last box, or after `So the answer is`, compared as plain text
or as a plain number with the gold answer, and by giving each solution the gold answer of another problem.

    python -m benchmarks.grading_real ../shared/data
    python -m benchmarks.grading_real ../shared/data --share 0.25     a drawn quarter of the gradings
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from distill_lab.data import adapters
from distill_lab.grading.graders import load_grader
from distill_lab.types import Completion, Prompt

NUMBERS = ("gsm8k_train", "cmath_test", "mawps_addsub", "mawps_multiarith", "mawps_singleeq", "mawps_singleop")
TASKS = ("date_understanding", "boolean_expressions", "navigate", "object_counting", "sports_understanding")
Case = tuple[str, str, str, bool | None]
"""Grader, gold answer, text, and whether the text is right; None: to be read."""


def plain(text: str) -> str | Fraction:
    """A plain number as such, without name, unit and percent; any other text without spaces, dollars and a final period."""
    bare = re.sub(r"\^\{?\\circ\}?|\\%|\\text\{[^{}]*\}$|^[A-Za-z]=", "", text.strip())
    bare = re.sub(r"[\s$]|(?<=\d),(?=\d{3})", "", bare).rstrip(".")
    return Fraction(bare) if re.fullmatch(r"-?\d+(\.\d+)?(/[1-9]\d*)?", bare) else bare


def numbers(folder: Path) -> Iterator[Case]:
    """Word problems: their worked solutions and gold answers, and the gold answers of others."""
    for name in NUMBERS:
        rows = [json.loads(line) for line in (folder / f"math/{name}.jsonl").open(encoding="utf-8")]
        records = [adapters.load(adapters.choose(row) or "").record(row, str(n)) for n, row in enumerate(rows)]
        for record, other in zip(records, [*records[1:], records[0]], strict=True):
            gold, wrong = record.prompt.answer or "", other.prompt.answer or ""
            texts = [gold, rf"Thus $\boxed{{{gold}}}$ follows.", f"答案是{gold}。"]
            texts += [turn["content"] for turn in record.completion or []]
            for text in texts:
                yield "numeric", gold, text, True
                if plain(gold) != plain(wrong):
                    yield "numeric", wrong, text, False


def formulas(folder: Path) -> Iterator[Case]:
    """MATH's gold answers: each against itself and against the next that is written differently."""
    rows = json.loads((folder / "math/math_train_problems.json").read_text(encoding="utf-8"))
    golds = [row["answer"] for row in rows if row["answer"] and row["answer"].strip()]
    for gold, other in zip(golds, [*golds[1:], golds[0]], strict=True):
        yield "math", gold, rf"So it is $\boxed{{{gold}}}$.", True
        yield "math", gold, rf"Hence \boxed{{{gold.replace(chr(92) + 'frac', chr(92) + 'dfrac')}}}.", True
        if plain(gold) != plain(other):
            yield "math", other, rf"So it is $\boxed{{{gold}}}$.", False


def tasks(folder: Path) -> Iterator[Case]:
    """A real teacher's chains of thought on BIG-Bench Hard; `So the answer is x.` ends each."""
    for name in TASKS:
        outputs = json.loads((folder / f"bbh/code-davinci-002-cot/{name}.json").read_text(encoding="utf-8"))["outputs"]
        labels = sorted({row["target"] for row in outputs})
        for row in outputs:
            said = re.findall(r"[Ss]o the answer is (.*?)\.?\s*$", row["prediction"])
            right = bool(said) and said[-1].strip() == row["target"]
            yield (
                "numeric" if name == "object_counting" else f"label:{json.dumps(labels)}",
                row["target"],
                row["prediction"],
                right,
            )


def reasoning(folder: Path) -> Iterator[Case]:
    """R1's answers and SCoRe's trajectories, whose answers are in boxes."""
    for name in ("ollama", "openrouter"):
        for row in json.loads((folder / f"cot/r1_sample_{name}.json").read_text(encoding="utf-8")):
            yield "math", row["gtruth_answer"], row["message_content"], None
    seeds = [json.loads(line) for line in (folder / "cot/easydistill_math_bc_init_seed.jsonl").open(encoding="utf-8")]
    golds = {seed["question"]: seed["true_answer"] for seed in seeds}
    for row in json.loads((folder / "cot/easydistill_BC_init_math.json").read_text(encoding="utf-8")):
        turns = [turn["value"] for turn in row["conversations"]]
        call = re.search(r"""final_answer_print\((r?"[^"]*"|r?'[^']*'|-?[\d.]+)\)""", turns[-1])
        if turns[0] in golds and call:
            gold, text = golds[turns[0]], str(ast.literal_eval(call[1])).replace("\\\\", "\\")
            yield "math", gold, text, True if plain(re.sub(r"^\\boxed\{(.*)\}$", r"\1", text)) == plain(gold) else None


SETS = {"word problems": numbers, "MATH": formulas, "BIG-Bench Hard": tasks, "R1 and SCoRe": reasoning}


def graded(case: Case) -> str:
    """Right, wrong, or the status of a grade that is neither."""
    name, gold, text, _ = case
    name, _, labels = name.partition(":")
    prompt = Prompt("p", [], gold, {"labels": json.loads(labels)} if labels else {})
    found = load_grader(name)(prompt, Completion("p", 0, text, None, "stop", 1))
    return found.status if found.status != "ok" else ("right" if found.score == 1 else "wrong")


def measure(cases: Iterator[Case]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Counts, and the rows whose grade is not what the rule says, or that no rule decides and that are not right."""
    counts, to_read = Counter[str](), []
    for case in cases:
        grade, expected = graded(case), case[3]
        counts["gradings"] += 1
        false_accept = expected is False and grade == "right"
        false_reject = expected is True and grade != "right"
        counts["false accepts"] += false_accept
        counts["false rejects"] += false_reject
        counts["no rule, right"] += expected is None and grade == "right"
        counts["no rule, not right"] += expected is None and grade != "right"
        if false_accept or false_reject or (expected is None and grade != "right"):
            to_read.append(
                {"grader": case[0][:7], "gold": case[1], "text": case[2][-160:], "grade": grade, "rule": expected}
            )
    return dict(counts), to_read


def main() -> None:
    """Measure all sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of the data sets")
    parser.add_argument("--only", choices=list(SETS), help="this set alone")
    parser.add_argument("--share", type=float, default=1.0, help="of the gradings, drawn (default 1: all)")
    parser.add_argument("--show", type=int, default=40, help="rows to print per set (default 40)")
    arguments = parser.parse_args()
    results = {}
    for name, make in SETS.items():
        if arguments.only in (None, name):
            draw = random.Random(0)
            cases = (case for case in make(arguments.folder) if draw.random() < arguments.share)
            results[name], to_read = measure(cases)
            print(f"{name}: {results[name]}", flush=True)
            for row in to_read[: arguments.show]:
                print("   ", json.dumps(row, ensure_ascii=False), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
