"""`distill generate --form messages`: answers under a system prompt -> `{"messages": [user, assistant]}` without it.

An answer that cannot be read, because it was cut, is empty, or names no label or several, is requested again with another
seed. What is written is the label alone if there are labels, else the answer without its thinking.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill_lab.config import SamplingConfig
    from distill_lab.types import Counts


def retry_files(out: Path, retries: int) -> list[Path]:
    """Where the answers of each retry go; the prompts are next to each, with the suffix .prompts.jsonl."""
    return [out.with_suffix(f".retry{number}.jsonl") for number in range(1, retries + 1)]


def write_messages_form(
    questions: Path,
    asked: Path,
    out: Path,
    path: Path,
    *,
    labels: Sequence[str],
    retries: int,
    sampling: SamplingConfig,
    answer: Callable[[Path, Path, SamplingConfig], object],
) -> Counts:
    """Ask again where an answer cannot be read, and write the rows to `path`; returns those kept and left out.

    questions: the prompts as rows have them. asked: as the model gets them. out: their completions. answer: fills a file
    with the completions of prompts. Raises NoData if no answer can be read.
    """
    from distill_lab.errors import NoData
    from distill_lab.training_data.prompt_distillation import write_answered, write_messages, write_unread

    files, prompts = [out], asked
    # Greedy answers would come out the same again.
    for number, file in enumerate(retry_files(out, retries if sampling.temperature else 0), start=1):
        unread = file.with_suffix(".prompts.jsonl")
        if not write_unread(prompts, files[-1], unread, labels=labels).kept:
            unread.unlink()
            break
        answer(unread, file, sampling.model_copy(update={"seed": sampling.seed + number}))
        files.append(file)
        prompts = unread
    with tempfile.TemporaryDirectory() as folder:
        answered = Path(folder) / "answered.jsonl"
        counts = write_answered(questions, *files, answered, labels=labels)
        if not counts.kept:
            raise NoData(
                f"no answer can be read ({counts}); see {out}: look at the answers, --labels and --prompt-file, or give the "
                "model more tokens (--sampling.max-new-tokens)"
            )
        write_messages(answered, path)
    return counts
