"""Near duplicates of test prompts: how many planted ones are found, and how many other prompts are lost with them.

In: GSM8K's training problems (a .jsonl file with "question") or, without a file, the tiny family's problems. Out: a line per
method: the share of planted changes that it finds, the share of unrelated prompts that it removes, CPU time per prompt.

    pip install datasketch
    python -m benchmarks.near_duplicates                    templates: problems that differ in names and numbers
    python -m benchmarks.near_duplicates gsm8k_train.jsonl
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from distill_lab.data.contamination import TestPrompts
from distill_lab.data.words import words
from distill_lab.tiny import tasks

NUM_TEST, NUM_TRAINING, NUM_PLANTED = 300, 3000, 100
Finder = Callable[[Sequence[str], Sequence[str]], list[bool]]


def planted(texts: Sequence[str], seed: int = 0) -> list[str]:
    """One changed word, or one added sentence, in turns."""
    draw = random.Random(seed)
    found = []
    for number, text in enumerate(texts):
        parts = text.split()
        places = [place for place, part in enumerate(parts) if part.isalpha()]
        parts[draw.choice(places)] = "somehow"
        found.append(" ".join(parts) if number % 2 else f"{text} Please take great care.")
    return found


def ours(test: Sequence[str], training: Sequence[str]) -> list[bool]:
    """`contamination.TestPrompts`."""
    tests = TestPrompts({"id": str(number), **_row(text)} for number, text in enumerate(test))
    for text in training:
        tests.count(_row(text))
    return [tests.find(_row(text)) is not None for text in training]


def minhash(threshold: float, size: int) -> Finder:
    """MinHash LSH of datasketch on phrases of `size` words, 128 permutations, candidates checked at the threshold."""
    from datasketch import MinHash, MinHashLSH  # pyright: ignore[reportMissingImports]

    def sketch(text: str) -> Any:
        found, sketched = words(text), MinHash(num_perm=128)
        sketched.update_batch(
            [" ".join(found[place : place + size]).encode() for place in range(max(1, len(found) - size + 1))]
        )
        return sketched

    def find(test: Sequence[str], training: Sequence[str]) -> list[bool]:
        index, sketches = MinHashLSH(threshold=threshold, num_perm=128), [sketch(text) for text in test]
        for number, each in enumerate(sketches):
            index.insert(number, each)
        found = []
        for text in training:
            sketched = sketch(text)
            found.append(any(sketches[number].jaccard(sketched) >= threshold for number in index.query(sketched)))
        return found

    return find


def _row(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1:
        with Path(sys.argv[1]).open(encoding="utf-8") as file:
            texts = [json.loads(line)["question"] for line in islice(file, NUM_TEST + NUM_TRAINING)]
        test, training = texts[:NUM_TEST], texts[NUM_TEST:]
    else:
        test, training = (
            [row["messages"][0]["content"] for row in islice(tasks.rows("problems", split), number)]
            for split, number in (("test", NUM_TEST), ("distill", NUM_TRAINING))
        )
    methods: dict[str, Finder] = {"distill_lab": ours}
    methods |= {
        f"MinHash, {size}-word phrases, {threshold}": minhash(threshold, size)
        for size in (1, 3)
        for threshold in (0.5, 0.7, 0.8)
    }
    print(f"{'method':<36}{'planted found':>14}{'others lost':>13}{'ms/prompt':>11}")
    for name, find in methods.items():
        start = time.process_time()
        found = find(test, [*training, *planted(test[:NUM_PLANTED])])
        spent = 1000 * (time.process_time() - start) / len(found)
        lost, hit = sum(found[: len(training)]) / len(training), sum(found[len(training) :]) / NUM_PLANTED
        print(f"{name:<36}{hit:>14.0%}{lost:>13.1%}{spent:>11.2f}")


if __name__ == "__main__":
    main()
