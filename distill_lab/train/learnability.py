"""How much a training row can still teach a student: rows, a student and a teacher cache -> nats per token of each row.

    write_learnability(student, Path("train.jsonl"), Path("student"), config, Path("learnability.jsonl"), thinking=None)

The learnability gap of a row is the mean over its tokens of log p(token) - log q(token), p the teacher's probability and
q the student's: the student's cross-entropy less the teacher's. For rows that the teacher sampled it estimates KL(p, q).
Near 0 the student knows the row already; a row that surprises the teacher itself is a poor example, however far the student
is from it. Source: Mindermann et al. 2022 (arXiv:2206.07137), who take a trainee's loss less that of a model trained on
other data as what it can still learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model, load_tokenizer
from distill_lab.train.cached_teacher import cache_identity, cache_place
from distill_lab.train.capture import label_nats
from distill_lab.train.loss_module import decoder_and_head
from distill_lab.train.packing import Row
from distill_lab.train.rows import EncodedRow, encoded_rows
from distill_lab.train.teacher_cache import TeacherCache
from distill_lab.train.teachers import LiveTeacher
from distill_lab.types import JsonObject


def write_learnability(
    student: ModelConfig,
    rows: Path,
    out: Path,
    config: TrainConfig,
    path: Path,
    *,
    thinking: bool | None,
    measure: bool = True,
) -> None:
    """A line for each row of `rows`: `{"tokens", "student", "teacher", "gap"}`, or `{"dropped": reason}` of the trainer.

    student, teacher and gap are nats per trained token. out: the student that `config` trains; its cache holds all rows.
    measure: False leaves all three out, and needs no model. Raises UserError for rows that are not in the cache.
    """
    tokenizer = load_tokenizer(student)
    encoded = list(encoded_rows(rows, tokenizer, max_length=config.max_length, thinking=thinking))
    own, teachers = dict[bytes, float](), dict[bytes, float]()
    if measure:
        unique = list({row.id: row for each in encoded for row in each.sequences}.values())
        cache = TeacherCache.open(cache_place(config, out), cache_identity(config))
        found = cache.read([row.id for row in unique])
        teachers = {row.id: -float(nats) for row, nats in zip(unique, found.log_p_R, strict=True)}
        own = _nats_of(student, unique, config, temperature=cache.identity.temperature)
    write_jsonl(path, _lines(encoded, own, teachers))


def _nats_of(student: ModelConfig, rows: list[Row], config: TrainConfig, *, temperature: float) -> dict[bytes, float]:
    from distill_lab.device import memory_returned

    with memory_returned():
        model, _ = load_model(student)
        reader = LiveTeacher(model, decoder_and_head(model)[1].linear.out_features)
        found = label_nats(reader, rows, tokens_per_batch=config.tokens_per_batch, temperature=temperature)
        del model, reader
    return found


def _lines(encoded: list[EncodedRow], own: dict[bytes, float], teachers: dict[bytes, float]) -> Iterator[JsonObject]:
    for each in encoded:
        if each.dropped:
            yield {"dropped": each.dropped}
            continue
        tokens = sum(int(row.loss_mask.sum()) for row in each.sequences)
        line: JsonObject = {"tokens": tokens}
        if own:
            mean = _mean_of(each.sequences, tokens)
            student, teacher = mean(own), mean(teachers)
            line |= {"student": round(student, 6), "teacher": round(teacher, 6), "gap": round(student - teacher, 6)}
        yield line


def _mean_of(rows: list[Row], tokens: int) -> Callable[[dict[bytes, float]], float]:
    ids = [row.id for row in rows]
    return lambda nats: sum(nats[id] for id in ids) / max(1, tokens)
