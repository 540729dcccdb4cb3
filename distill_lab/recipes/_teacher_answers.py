"""What prompt distillation asks the teacher: texts under the system prompt, again if an answer cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from distill_lab.config import Asked, RecipeConfig
from distill_lab.errors import UserError
from distill_lab.generation.cut_answers import dropped_warning
from distill_lab.pipeline.stages import Pipeline
from distill_lab.training_data.prompt_distillation import write_answered, write_asked, write_gold, write_unread


class PromptConfig(RecipeConfig):
    """What the teacher is given besides the texts."""

    prompt_file: str = ""
    """The system prompt to distill, a text file; tiny:labels: the rules prompt of the embedded family's task."""
    gold: str = ""
    """File with one gold answer per line, for the rows of the test data, or of the data if no test is given."""
    labels: str = ""
    """The labels, as a,b,c or as a file with one per line; empty: those the prompt lists after "Labels:"."""
    max_retries: Annotated[int, Field(ge=0)] = 3
    """Retries, each with another seed, if an answer of the teacher cannot be read; then the text is dropped and counted."""

    def proof(self) -> tuple[Asked, ...]:
        """The teacher answers the test as it answered the training texts."""
        return tuple(
            each._replace(sampling=self.sampling) if each.role == "teacher" else each for each in super().proof()
        )


def check_settings(config: RecipeConfig) -> None:
    """Raise UserError for settings that cannot work, before anything is written."""
    if not config.data.path:
        raise UserError("what is the teacher to be asked? give --data texts.txt (one per line) or any data set")
    if config.sampling.num_samples != 1 or config.test_sampling.num_samples != 1:
        raise UserError("prompt distillation learns one answer per text; leave num_samples at 1")


def with_gold(pipeline: Pipeline, name: str, prompts: Path, gold: str) -> Path:
    """The prompts with the gold answers of a file, if one is given."""
    if not gold:
        return prompts
    return pipeline.step(f"gold of {name}", f"{name}_gold.jsonl", write_gold, prompts, gold=gold).path


def readable_answers(
    pipeline: Pipeline, config: PromptConfig, prompts: Path, system: str, labels: Sequence[str]
) -> Path:
    """The prompts with the teacher's answers under the system prompt, those that could be read: answered.jsonl."""
    answers: list[Path] = []
    output = "rounds/0.prompts.jsonl"
    asked = pipeline.step("prompts with the rules", output, write_asked, prompts, system=system, labels=labels)
    # Greedy answers would come out the same again.
    retries = config.max_retries if config.sampling.temperature else 0
    for number in range(retries + 1):
        sampling = config.sampling.model_copy(update={"seed": config.sampling.seed + number})
        name = f"teacher answers, retry {number}" if number else "teacher answers"
        output = f"rounds/{number}.completions.jsonl"
        answers.append(pipeline.answers(name, config.teacher, asked.path, sampling, output=output))
        if number == retries:
            break
        name, output = f"to be asked again, {number + 1}", f"rounds/{number + 1}.prompts.jsonl"
        asked = pipeline.step(name, output, write_unread, asked.path, answers[-1], labels=labels)
        if not asked.kept:
            break
    found = pipeline.step("readable answers", "answered.jsonl", write_answered, prompts, *answers, labels=labels)
    assert found.counts is not None
    pipeline.warn(dropped_warning(found.counts))
    return found.path
