"""What a student writes while it is trained: prompts -> the rollouts of a round -> the rows of the round.

    asked = read_asked(Path("prompts.jsonl"), tokenizer, settings, max_length=1024)
    rollouts = Rollouts(asked.training, settings, work, engine=lambda: engine, control_ids=..., known=..., on_note=print)
    rows = rollouts.rows(3)            the rows of the fourth round, of `rollouts-3.jsonl` if that is whole

Rollouts are trained as the tokens that were sampled; their text would not always become the same tokens again. Prompts are
taken in a new order in every pass over them. Each request has random numbers that follow from its pass, prompt and sample,
so a round that has to be generated again on the same weights comes out the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from distill_lab.chat import Encoded, prompt_ids
from distill_lab.config import Config, SamplingConfig
from distill_lab.data.prompts import read_prompts
from distill_lab.device import return_gpu_memory
from distill_lab.errors import NoData, UserError
from distill_lab.generation.decoding.sequence import DecodingSequence
from distill_lab.generation.engines.transformers import TransformersEngine
from distill_lab.train.packing import Row
from distill_lab.train.rollout_file import (
    Damaged,
    Rollout,
    read_rollouts,
    remove_later,
    rollouts_path,
    write_rollouts,
)
from distill_lab.train.rollout_stats import RoundStats
from distill_lab.train.rows import MIN_ROWS_TO_SPLIT, REFUSED
from distill_lab.training_data.prompt_distillation import with_system
from distill_lab.types import FinishReason, Prompt

NO_ROOM = "prompt and rollout may be longer than max_length"
NO_ROOM_FOR_TEACHER = "prompt and rollout may be longer than the teacher's context"
FOREIGN = "it has a token that the teacher does not know"
NOTHING = "it has no token to learn from"
UNANSWERED = "the student cannot answer the prompt"


class RolloutSettings(Config):
    """How rollouts are made and how many are learned from at once."""

    sampling: SamplingConfig
    """How the student writes them."""
    steps_per_round: Annotated[int, Field(ge=1)] = 4
    """Optimizer steps on the rollouts of one round, each of which is in one of them."""
    rollouts_per_step: Annotated[int, Field(ge=1)] = 64
    system: str = ""
    """A system prompt that the teacher reads and the student does not."""
    teacher_top_k: Annotated[int, Field(ge=1)] = 20
    """For a teacher on a server: how many of its most likely ids it names at each position."""

    @property
    def per_round(self) -> int:
        """Rollouts of a round."""
        return self.steps_per_round * self.rollouts_per_step


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """A prompt as the student reads it, and as the teacher does."""

    prompt: Prompt
    ids: list[int]
    teacher_ids: list[int] | None
    """None: the same."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompts of a training."""

    training: list[AskedPrompt]
    held_out: list[AskedPrompt]
    """Never trained on: what the student writes for them is measured before and after."""
    dropped: dict[str, int]
    """Prompts left out, by reason."""


@dataclass(frozen=True, slots=True)
class TeacherView:
    """How the teacher reads a prompt."""

    tokenizer: PreTrainedTokenizerBase
    system: str
    """A system prompt that only it reads; empty: it reads what the student reads."""
    context: int
    """Tokens of its longest text."""


def read_asked(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: RolloutSettings,
    *,
    max_length: int,
    held_out_fraction: float,
    seed: int,
    teacher: TeacherView | None = None,
) -> Asked:
    """Read the prompts of a file. One whose rollout may not fit is left out now and counted, before anything is generated.

    held_out_fraction: share of the prompts that is not trained on, none if there are fewer than MIN_ROWS_TO_SPLIT. Raises
    NoData if no prompt is left.
    """
    thinking, room = settings.sampling.thinking, settings.sampling.max_new_tokens
    found: list[AskedPrompt] = []
    dropped: Counter[str] = Counter()
    reason = ""
    for prompt in read_prompts(path):
        try:
            ids = prompt_ids(tokenizer, prompt.messages, thinking=thinking)
            other = None
            if teacher is not None and teacher.system:
                other = prompt_ids(teacher.tokenizer, with_system(prompt.messages, teacher.system), thinking=thinking)
        except UserError as error:
            dropped[REFUSED] += 1
            reason = reason or str(error)
            continue
        if len(ids) + room > max_length:
            dropped[NO_ROOM] += 1
        elif teacher is not None and len(other or ids) + room > teacher.context:
            dropped[NO_ROOM_FOR_TEACHER] += 1
        else:
            found.append(AskedPrompt(prompt, ids, other))
    if not found:
        counts = ", ".join(f"{number} prompts: {why}" for why, number in dropped.items()) or "no prompts"
        remedy = f"the first refused one is {reason}" if reason else "lower --rollout.max-new-tokens"
        if NO_ROOM in dropped:
            remedy += ", or raise --train.max-length"
        raise NoData(f"{path}: nothing to write rollouts for ({counts}); {remedy}")
    splits = held_out_fraction and len(found) >= MIN_ROWS_TO_SPLIT
    number = min(max(1, round(held_out_fraction * len(found))), len(found) - 1) if splits else 0
    order = np.random.default_rng(seed).permutation(len(found)).tolist()
    apart = set(order[:number])
    return Asked(
        [asked for place, asked in enumerate(found) if place not in apart],
        [found[place] for place in sorted(apart)],
        dict(dropped),
    )


def sample(
    engine: TransformersEngine, requests: Sequence[tuple[int, Prompt]], sampling: SamplingConfig
) -> tuple[list[Rollout], int]:
    """What the model writes for each prompt, in the order of the requests, and how many it could not answer.

    requests: pairs of the prompt's place in some list and the prompt, whose id is unique here.
    """
    places = {prompt.id: place for place, prompt in requests}
    found: dict[tuple[str, int], Rollout] = {}

    def keep(sequence: DecodingSequence, reason: FinishReason) -> None:
        id, number = sequence.prompt.id, sequence.sample
        found[id, number] = Rollout(places[id], id, number, list(sequence.tokens), reason)

    model = engine.model
    was_training = model.training
    model.eval()
    try:
        failed = sum(
            completion.finish_reason == "error"
            for completion in engine.generate([prompt for _, prompt in requests], sampling, on_tokens=keep)
        )
    finally:
        model.train(was_training)
    keys = [(prompt.id, number) for _, prompt in requests for number in range(sampling.num_samples)]
    return [found[key] for key in keys if key in found], failed


class RowMaker:
    """Rollouts -> training rows: which of their tokens are trained, and which rollouts cannot be used."""

    def __init__(self, control_ids: Collection[int], known: np.ndarray | None) -> None:
        """control_ids: special tokens that are not trained. known: bool, by id: those the teacher has; None: all."""
        self._masked, self._known = frozenset(control_ids), known

    def row(self, asked: AskedPrompt, rollout: Rollout) -> tuple[Row, Row] | str:
        """The row as the student reads it and as the teacher does, or why there is none."""
        if self._known is not None and not all(id < len(self._known) and self._known[id] for id in rollout.tokens):
            return FOREIGN
        mask = [token not in self._masked for token in rollout.tokens]
        if not any(mask):
            return NOTHING
        row = _row(asked.ids, rollout.tokens, mask)
        return row, row if asked.teacher_ids is None else _row(asked.teacher_ids, rollout.tokens, mask)


def _row(prompt: list[int], tokens: list[int], mask: list[bool]) -> Row:
    return Row.from_encoded(Encoded([*prompt, *tokens], [False] * len(prompt) + mask))


class Rollouts:
    """The rounds of a training, each made when it is needed, or read if it was made before an interruption."""

    def __init__(
        self,
        prompts: Sequence[AskedPrompt],
        settings: RolloutSettings,
        work: Path,
        *,
        engine: Callable[[], TransformersEngine],
        rows: RowMaker,
        seed: int,
        on_note: Callable[[str], None],
    ) -> None:
        """work: the folder for the files of rounds. engine: with the student as it is now. seed: of the order of prompts."""
        self.prompts, self.settings, self.work = prompts, settings, work
        self._engine, self._rows, self._seed, self._note = engine, rows, seed, on_note
        self._orders: dict[int, np.ndarray] = {}

    def rows(self, number: int) -> list[tuple[Row, Row]]:
        """The rows of a round, as the student and as the teacher reads them. Raises NoData if too few can be used."""
        stats, rollouts = self._read(number) or self._make(number)
        made = [self._rows.row(self.prompts[rollout.prompt], rollout) for rollout in rollouts]
        rows = [each for each in made if not isinstance(each, str)]
        if len(rows) < self.settings.steps_per_round:
            reasons = ", ".join(f"{number} rollouts: {why}" for why, number in stats.dropped.items())
            raise NoData(
                f"round {number + 1}: {len(rows)} of {stats.rollouts} rollouts can be learned from ({reasons})"
            )
        return rows

    def stats(self, number: int) -> RoundStats | None:
        """The figures of a round that was made, now or before an interruption; None if its file was damaged since."""
        try:
            return read_rollouts(self.work, number)[0]
        except (Damaged, FileNotFoundError):
            return None

    def _read(self, number: int) -> tuple[RoundStats, list[Rollout]] | None:
        try:
            return read_rollouts(self.work, number)
        except FileNotFoundError:
            return None
        except Damaged as error:
            self._note(f"{rollouts_path(self.work, number)}: {error}; the round is generated again")
            return None

    def _make(self, number: int) -> tuple[RoundStats, list[Rollout]]:
        remove_later(self.work, number)
        start = time.monotonic()
        rollouts, failed = sample(self._engine(), self._requests(number), self.settings.sampling)
        seconds = time.monotonic() - start
        return_gpu_memory()  # the KV cache's, for the steps that follow; no cycle holds it
        dropped: Counter[str] = Counter({UNANSWERED: failed} if failed else {})
        row_tokens = 0
        for rollout in rollouts:
            made = self._rows.row(self.prompts[rollout.prompt], rollout)
            if isinstance(made, str):
                dropped[made] += 1
            else:
                row_tokens += len(made[0])
        num = len(rollouts) + failed
        stats = RoundStats(
            round=number,
            rollouts=num,
            kept=num - sum(dropped.values()),
            tokens=sum(len(rollout.tokens) for rollout in rollouts),
            truncated=sum(rollout.finish_reason == "length" for rollout in rollouts),
            row_tokens=row_tokens,
            seconds=round(seconds, 3),
            dropped=dict(dropped),
        )
        write_rollouts(self.work, stats, rollouts)
        return stats, rollouts

    def _requests(self, number: int) -> list[tuple[int, Prompt]]:
        """The prompts of a round; those of one pass over all prompts come after those of the pass before."""
        per_round = self.settings.per_round // self.settings.sampling.num_samples
        requests: list[tuple[int, Prompt]] = []
        for position in range(number * per_round, (number + 1) * per_round):
            epoch, index = divmod(position, len(self.prompts))
            place = int(self._order(epoch)[index])
            prompt = self.prompts[place].prompt
            requests.append((place, replace(prompt, id=f"{epoch}/{prompt.id}")))
        return requests

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng((self._seed, epoch)).permutation(len(self.prompts))}
        return self._orders[epoch]
