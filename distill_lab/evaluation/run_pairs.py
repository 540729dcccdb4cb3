"""Two runs' answers to the same test prompts: eval files -> a paired comparison of what has the same content.

    found = pair_runs(Path("runs/a/eval/student.jsonl"), Path("runs/b/eval/student.jsonl"))
    found.paired.gain, found.n, found.only_first

Ids are not compared: two runs may number their test prompts differently. Prompts are the same if all their turns and their
gold answers are.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill_lab.evaluation.eval_rows import BAD_GOLD, read_eval_rows
from distill_lab.evaluation.statistics import Paired, paired_scores


@dataclass(frozen=True, slots=True)
class RunPair:
    """What two runs' students reach on the prompts that both answered."""

    n: int
    """Prompts in both."""
    only_first: int
    """Prompts that the second run's test does not have."""
    only_second: int
    first: float
    """Mean score of the first run's student on the `n` prompts; nan if there are none."""
    second: float
    paired: Paired | None
    """Second minus first; None without common prompts."""


def pair_runs(first: Path, second: Path) -> RunPair:
    """Compare two eval files. Raises UserError if one is not an eval file.

    A prompt that occurs several times, or has several samples, counts once with its mean score. Prompts whose gold answer a
    grader could not read are left out.
    """
    scores = [_by_content(path) for path in (first, second)]
    common = [key for key in scores[0] if key in scores[1]]
    only_first, only_second = (len(each) - len(common) for each in scores)
    if not common:
        return RunPair(0, only_first, only_second, float("nan"), float("nan"), None)
    pairs = np.array([[each[key] for each in scores] for key in common])
    means = pairs.mean(axis=0)
    return RunPair(len(common), only_first, only_second, float(means[0]), float(means[1]), paired_scores(pairs))


def _by_content(path: Path) -> dict[bytes, float]:
    """Digest of prompt and gold answer -> mean score."""
    found: dict[bytes, list[float]] = defaultdict(list)
    bad: set[bytes] = set()
    for row in read_eval_rows(path):
        key = hashlib.sha256(json.dumps([row.prompt, row.answer], sort_keys=True).encode()).digest()
        found[key].append(row.score)
        if row.grade.status == BAD_GOLD:
            bad.add(key)
    return {key: sum(scores) / len(scores) for key, scores in found.items() if key not in bad}
