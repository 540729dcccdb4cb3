"""How much a recipe has to do: settings -> prompts, answers and tokens, from its data where that is on this machine.

    volume = measure_volume(config, "system1", deadline_s=5)
    volume.rows, volume.answer_tokens.mean, volume.too_long

Reads the data as the recipe will (`data.records`), for at most `deadline_s` seconds of processor time; measures lengths on a
sample, with the student's tokenizer if it is on this machine. Downloads nothing: of data on the hub, only the slice's bounds
are known.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from distill_lab.config import DataConfig, ModelConfig, RecipeConfig
from distill_lab.data.records import Records, Slice
from distill_lab.data.sources import Hub, open_source
from distill_lab.errors import ModelError, UserError
from distill_lab.planning.preflight import asks_teacher
from distill_lab.types import Counts, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_TOKENS = {"system1": 250, "system2": 1000, "verified": 400, "cot": 200, "prompt": 800, "on-policy": 300}
"""Assumed tokens per answer if the data shows none."""
ROWS = 1000
"""Assumed rows of data that is not on this machine and has no slice."""
SAMPLE = 400
"""Rows whose lengths are measured."""
CHARACTERS_PER_TOKEN = 3.5
"""Assumed if no tokenizer is on this machine; English text in Qwen's tokens."""
MAX_OVERLAP_ROWS = 20_000
"""Rows up to which training and test prompts are compared."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sample of texts."""

    mean: float
    p95: float
    longest: float
    measured: bool
    """Counted by a tokenizer; False: from the number of characters, or assumed."""


@dataclass(frozen=True)
class Volume:
    """What a recipe has to read, generate and train."""

    rows: int
    """Prompts to train on, test prompts of the same data left out."""
    counted: bool
    """Whether the rows were read; False: they follow from the slice, or are assumed."""
    complete: bool
    """Whether they were read to the end before the deadline."""
    test_rows: int
    prompt: Lengths
    answer: Lengths
    answers_from: str
    """Where the answers' length comes from, in words."""
    shared_tokens: int
    """Tokens that the teacher reads before every prompt, such as the rules of the recipe prompt."""
    answers_per_prompt: int
    """Answers that the teacher writes for each prompt; 0 if the recipe uses the data's own."""
    too_long: int
    """Rows of the sample that do not fit in train.max_length and would be dropped."""
    sampled: int
    """Rows in the sample."""
    overlap: Counts | None
    """Training prompts removed because of the test set; None if the two were not compared."""
    note: str
    """Why the data could not be read; may be empty."""
    texts: tuple[str, ...] = ()
    """The sample's answers; of rows that have none, the last message of the prompt."""

    @property
    def num_answers(self) -> int:
        """Answers the teacher writes for training."""
        return self.rows * self.answers_per_prompt


def measure_volume(config: RecipeConfig, recipe: str, *, deadline_s: float = 5.0) -> Volume:
    """The volume of a recipe with these settings. Raises UserError for data that the recipe would refuse as well."""
    tokenizer = local_tokenizer(config.student)
    sample, num_read, complete, note = _read(config.data, deadline_s)
    counted = not note
    rows = num_read if counted else _assumed_rows(config.data)
    test_rows = _test_rows(config, rows, deadline_s)
    overlap = None
    if not config.test.path:
        rows -= test_rows
    elif counted and complete and rows + test_rows <= MAX_OVERLAP_ROWS:
        overlap = _overlap(config)
        rows = rows if overlap is None else overlap.kept
    limit = config.sampling.max_new_tokens
    own = [each.completion[0]["content"] for each in sample if each.completion]
    if own:
        answer, answers_from = _lengths(own, tokenizer), "as long as the data's own"
    else:
        assumed = ANSWER_TOKENS.get(recipe, 300)
        answer, answers_from = Lengths(assumed, assumed, assumed, measured=False), f"assumed; at most {limit}"
    asks = asks_teacher(config)
    if asks:
        capped = (min(each, limit) for each in (answer.mean, answer.p95, answer.longest))
        answer = Lengths(*capped, measured=answer.measured)
    return Volume(
        rows=max(rows, 0),
        counted=counted,
        complete=complete,
        test_rows=test_rows,
        prompt=_prompt_lengths(sample, tokenizer),
        answer=answer,
        answers_from=answers_from,
        shared_tokens=_shared_tokens(config, tokenizer),
        answers_per_prompt=config.sampling.num_samples if asks else 0,
        too_long=_too_long(sample, tokenizer, config, answer),
        sampled=len(sample),
        overlap=overlap,
        note=note,
        texts=tuple((each.completion or each.prompt.messages[-1:])[0]["content"] for each in sample),
    )


def local_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer if it is on this machine; nothing is downloaded."""
    from distill_lab.models.loading import load_tokenizer

    if not is_local(model.model):
        return None
    try:
        return load_tokenizer(model)
    except ModelError:
        return None


def is_local(model: str) -> bool:
    """Whether a model's files are on this machine: a tiny one, a directory, a file, or one in the hub's cache."""
    from distill_lab.models.names import api_engine, resolve

    if api_engine(model):
        return False
    try:
        path = resolve(model)
    except ModelError:
        return False
    if Path(path).exists():
        return True
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(path, name), str) for name in names)


def _read(data: DataConfig, deadline_s: float) -> tuple[list[Record], int, bool, str]:
    """A sample of the records, their number, whether they were read to the end, and why they could not be read."""
    if not data.path:
        return [], 0, False, "no data is given"
    sample: list[Record] = []
    number, start = 0, time.thread_time()
    if isinstance(open_source(data.path), Hub):
        return [], 0, False, f"{data.path} is on the hub, which is not asked"
    for record in Records(data):
        number += 1
        if len(sample) < SAMPLE:
            sample.append(record)
        if number % 256 == 0 and time.thread_time() - start > deadline_s:
            return sample, number, False, ""
    return sample, number, True, ""


def _assumed_rows(data: DataConfig) -> int:
    part = Slice.parse(data.split)
    start, stop = (int(each) if each and each.isdigit() else None for each in (part.start, part.stop))
    return ROWS if stop is None else max(0, stop - (start or 0))


def _test_rows(config: RecipeConfig, rows: int, deadline_s: float) -> int:
    if not config.test.path:
        return min(config.num_test, rows // 10)
    _, number, complete, note = _read(config.test, deadline_s)
    return number if complete and not note else _assumed_rows(config.test)


def _overlap(config: RecipeConfig) -> Counts | None:
    """The counts of the stage that removes training prompts because of the test set."""
    from distill_lab.data.contamination import find_overlaps, remove_overlaps
    from distill_lab.data.records import write_prompts

    with TemporaryDirectory() as folder:
        data, test, overlaps, kept = (
            Path(folder) / f"{name}.jsonl" for name in ("data", "test", "overlaps", "prompts")
        )
        try:
            write_prompts(config.data, data)
            write_prompts(config.test, test)
        except UserError:  # test data that is not on this machine
            return None
        find_overlaps(data, test, overlaps, num_words=config.overlap_words)
        return remove_overlaps(data, overlaps, kept)


def _shared_tokens(config: RecipeConfig, tokenizer: PreTrainedTokenizerBase | None) -> int:
    from distill_lab.training_data.prompt_distillation import read_system_prompt

    name = getattr(config, "prompt_file", "")
    return round(_lengths([read_system_prompt(name)], tokenizer).mean) if name else 0


def _prompt_lengths(sample: Sequence[Record], tokenizer: PreTrainedTokenizerBase | None) -> Lengths:
    """Lengths of the prompts, with the chat template if there is one."""
    from distill_lab.chat import prompt_ids

    if tokenizer is None or not tokenizer.chat_template:
        return _lengths([" ".join(each["content"] for each in record.prompt.messages) for record in sample], tokenizer)
    return _spread([len(prompt_ids(tokenizer, record.prompt.messages)) for record in sample], measured=True)


def _lengths(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> Lengths:
    if tokenizer is None:
        return _spread([len(text) / CHARACTERS_PER_TOKEN for text in texts], measured=False)
    return _spread([len(tokenizer.encode(text, add_special_tokens=False)) for text in texts], measured=True)


def _spread(sizes: Sequence[float], *, measured: bool) -> Lengths:
    if not sizes:
        return Lengths(0, 0, 0, measured=False)
    ordered = sorted(sizes)
    return Lengths(sum(ordered) / len(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1], measured=measured)


def _too_long(
    sample: Sequence[Record], tokenizer: PreTrainedTokenizerBase | None, config: RecipeConfig, answer: Lengths
) -> int:
    """Rows that training would drop: with the data's own answers, or with answers of the expected length."""
    from distill_lab.chat import encode, prompt_ids

    if tokenizer is None:
        return 0
    limit, dropped = config.train.max_length, 0
    for record in sample:
        messages = record.prompt.messages
        if record.completion and not asks_teacher(config):
            size = len(encode(tokenizer, messages, record.completion[:1]).input_ids)
        else:
            size = len(prompt_ids(tokenizer, messages)) + answer.mean
        dropped += size > limit
    return dropped
