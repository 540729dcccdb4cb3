"""Reasoning traces: read them from rows of OmniThought and similar data, filter by thresholds, choose the best.

    question, traces = read_traces(row)                                 several traces per question, or one
    counts = select_traces(prompts, path, rv_min=0.6, cd_min=0.6)       prompts.jsonl -> prompts.jsonl, filtered

A trace has two levels from 0 to 9: reasoning verbosity (RV) and cognitive difficulty (CD) (Cai et al. 2025, "Reasoning
with OmniThought"). Supported row formats:

    {"question", "reasoning": [{"thought", "solution", "full_response", "teacher", "thought_correctness_verify",
                                "Reasoning_Verbosity": {"level"}, "Cognitive_Difficulty": {"level"}}]}
    {"instruction" or "question" or "input", "cot" or "output" or "response" or "answer", and optionally the scores
     "rv_score"/"cd_score" (0 to 1, or a level above 1) or "reasoning_verbosity"/"cognitive_difficulty" (levels),
     "logical_correctness"}
    {"problem", "generations": [texts], "correctness_math_verify": [true or false], "is_reasoning_complete": [...]}

Rows that `distill synthesize rate` wrote have the levels in their meta, by the last three names.

A threshold from 0 to 1 is a fraction of the highest level (0.6 keeps levels 6 and above, because 0.6 * 9 = 5.4); above 1 it
is a level. Missing values filter nothing: a trace without levels passes every threshold, and an unverified trace is kept,
but one that failed verification is not.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_lab.control_tokens import split_thinking
from distill_lab.errors import DataError, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.types import Counts, Fields, JsonObject, Message

MAX_LEVEL = 9
QUESTION = ("question", "instruction", "input", "problem")
ANSWER = ("cot", "output", "response", "answer")
RATED = ("reasoning_verbosity", "cognitive_difficulty", "logical_correctness")
SCORES = ("rv_score", "cd_score", *RATED)
VERDICTS, COMPLETE = ("correctness_math_verify", "correctness_llama"), "is_reasoning_complete"
"""Fields of OpenR1-Math with one value per generation."""
SCHEMA = (
    "Unexpected OmniThought schema, please inspect omni[0]: it has the fields {fields}; it needs a question and a list "
    "`reasoning` of traces, or an instruction and an output with rv_score and cd_score"
)
NOT_VERIFIED, EMPTY, OTHER = "not verified", "empty", "another trace of the question is better"
META = "traces"
"""Key of a prompt's traces in its `meta`."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A teacher's reasoning and solution for one question."""

    thinking: str | None
    """The reasoning without tags; None if the row does not separate it from the solution."""
    solution: str
    """The text after the reasoning."""
    rv: float | None = None
    """Reasoning verbosity, 0 to 9; None if unknown."""
    cd: float | None = None
    """Cognitive difficulty, 0 to 9; None if unknown."""
    verified: bool | None = None
    """Whether a judge found it correct; None if it was not verified."""
    teacher: str | None = None

    def to_json(self) -> JsonObject:
        """As a JSON object."""
        return dataclasses.asdict(self)

    def message(self) -> Message:
        """The trace as an assistant message."""
        turn = {"role": "assistant", "content": self.solution}
        return turn | {"thinking": self.thinking} if self.thinking else turn


def minimum_level(threshold: float) -> int:
    """The lowest level that a threshold keeps: 0.6 -> 6, 1.0 -> 9, 7 -> 7. Raises UserError outside 0 to 9."""
    return math.ceil(_floor(threshold) - 1e-9)


def _floor(threshold: float) -> float:
    if not 0 <= threshold <= MAX_LEVEL:
        raise UserError(f"invalid threshold {threshold}; use a fraction from 0 to 1 or a level up to {MAX_LEVEL}")
    return threshold * MAX_LEVEL if threshold <= 1 else threshold


def read_traces(row: Fields) -> tuple[str, list[Trace]]:
    """A row's question and traces. Raises ValueError naming the field for a row in another format."""
    asked, reasoning = row.get("question"), row.get("reasoning")
    if isinstance(reasoning, list) and isinstance(asked, str):
        return asked, [_nested(item, f"reasoning[{n}]") for n, item in enumerate(reasoning)]
    texts = [None if name is None else row[name] for name in answer_fields(row)]
    question, answer = (text if isinstance(text, str) else None for text in texts)
    if question is None or answer is None:
        raise ValueError(SCHEMA.format(fields=", ".join(row) or "(none)"))
    thinking, solution = split_thinking(answer)
    rv = _score_level(row, "rv_score") if row.get("rv_score") is not None else _level(row, "reasoning_verbosity")
    cd = _score_level(row, "cd_score") if row.get("cd_score") is not None else _level(row, "cognitive_difficulty")
    return question, [Trace(thinking, solution, rv, cd, _truth(row, "logical_correctness"))]


def read_generations(row: Fields) -> list[Trace]:
    """A row's `generations` as traces, each verified by math-verify's verdict, else by the judge's.

    A generation that did not end counts as not verified. Raises ValueError for lists of different lengths.
    """
    texts = row.get("generations")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("field 'generations' must be a list of texts")
    verdicts: dict[str, list[bool | None]] = {}
    for field in (*VERDICTS, COMPLETE):
        given = row.get(field)
        if given is None:
            verdicts[field] = [None] * len(texts)
            continue
        if not isinstance(given, list) or len(given) != len(texts):
            raise ValueError(f"field {field!r} must have one value for each of the {len(texts)} generations")
        verdicts[field] = [_truth({field: value}, field) for value in given]
    traces = []
    for number, text in enumerate(texts):
        verified = next((verdicts[field][number] for field in VERDICTS if verdicts[field][number] is not None), None)
        if verdicts[COMPLETE][number] is False:
            verified = False
        traces.append(Trace(*split_thinking(text), verified=verified))
    return traces


def answer_fields(row: Fields) -> tuple[str | None, str | None]:
    """Names of the fields of a flat row with its question and its trace; None for a missing one."""

    def filled(names: Sequence[str]) -> str | None:
        return next((name for name in names if isinstance(text := row.get(name), str) and text.strip()), None)

    return filled(QUESTION), filled(ANSWER)


def best(traces: Sequence[Trace]) -> Trace | None:
    """The trace to learn from; None if none has a solution that did not fail its verification.

    Prefers verified traces to unverified ones; then the one whose verbosity is closest to its
    difficulty (as long as the problem deserves); then the shorter one; then the first.
    """
    usable = [trace for trace in traces if trace.solution.strip() and trace.verified is not False]
    return min(usable, key=_rank) if usable else None


def _rank(trace: Trace) -> tuple[int, float, int]:
    order = {True: 0, None: 1, False: 2}[trace.verified]
    fit = abs(trace.rv - trace.cd) if trace.rv is not None and trace.cd is not None else MAX_LEVEL
    return order, fit, len(trace.thinking or "") + len(trace.solution)


def reason_against(trace: Trace, *, rv_min: float = 0.0, cd_min: float = 0.0, verified_only: bool = True) -> str | None:
    """Why a trace is dropped; None if it is kept. Raises UserError for an invalid threshold."""
    if not trace.solution.strip():
        return EMPTY
    if verified_only and trace.verified is False:
        return NOT_VERIFIED
    for name, level, threshold in (("RV", trace.rv, rv_min), ("CD", trace.cd, cd_min)):
        if level is not None and level < _floor(threshold) - 1e-9:
            return f"{name} below {minimum_level(threshold)}"
    return None


def select_traces(
    prompts: Path,
    path: Path,
    *,
    rv_min: float = 0.0,
    cd_min: float = 0.0,
    verified_only: bool = True,
    per_question: int = 1,
) -> Counts:
    """Write a prompt to `path` for each trace that passes, with the trace as completion; the counts are of traces.

    per_question: maximum traces per question, best first; 0: all that pass. From the second trace on, the row's id is the
    prompt's id and the trace's rank (train-7.2). A prompt without traces counts as one and keeps its own completion.
    Raises UserError for invalid thresholds, DataError for a malformed row.
    """
    for threshold in (rv_min, cd_min):
        minimum_level(threshold)  # rejects an invalid one before anything is read
    dropped: Counter[str] = Counter()

    def rows() -> Iterator[JsonObject]:
        for number, row in enumerate(read_jsonl(prompts), start=1):
            meta = dict(row.get("meta") or {})
            try:
                if META in meta:
                    traces = [Trace(**trace) for trace in meta.pop(META)]
                else:
                    traces = _rated(row.get("completion") or [], meta)
            except (TypeError, ValueError) as error:
                raise DataError(str(prompts), number, f"its meta contains invalid traces ({error})") from None
            if traces is None:
                if row.get("completion"):
                    yield row
                else:
                    dropped[EMPTY] += 1
                continue
            passed = []
            for trace in traces:
                reason = reason_against(trace, rv_min=rv_min, cd_min=cd_min, verified_only=verified_only)
                if reason:
                    dropped[reason] += 1
                else:
                    passed.append(trace)
            passed.sort(key=_rank)
            for rank, trace in enumerate(passed, start=1):
                if per_question and rank > per_question:
                    dropped[OTHER] += 1
                    continue
                known = {"rv": trace.rv, "cd": trace.cd, "verified": trace.verified, "teacher": trace.teacher}
                known = {key: value for key, value in known.items() if value is not None}
                id = row["id"] if rank == 1 else f"{row['id']}.{rank}"
                yield row | {"id": id, "meta": meta | known, "completion": [trace.message()]}

    kept = write_jsonl(path, rows())
    return Counts(kept + dropped.total(), kept, dict(dropped))


def _rated(completion: Sequence[Message], meta: Fields) -> list[Trace] | None:
    """A row's one answer as a trace with the levels in its meta; None if it has no levels or several turns."""
    if len(completion) != 1 or all(meta.get(name) is None for name in RATED):
        return None
    verbosity, difficulty, correctness = RATED
    rv, cd, verified = _level(meta, verbosity), _level(meta, difficulty), _truth(meta, correctness)
    return [Trace(completion[0].get("thinking"), completion[0]["content"], rv, cd, verified)]


def _nested(item: object, field: str) -> Trace:
    if not isinstance(item, Mapping):
        raise ValueError(f"{field} is {type(item).__name__}, expected an object")
    for name in ("thought", "solution", "full_response", "teacher"):
        if item.get(name) is not None and not isinstance(item[name], str):
            raise ValueError(f"{field}.{name} is {type(item[name]).__name__}, expected text")
    thinking, solution = item.get("thought"), item.get("solution")
    if not (thinking and solution):
        thinking, solution = split_thinking(item.get("full_response") or solution or "")
    else:
        thinking, solution = _bare(thinking), split_thinking(solution)[1]
    levels = []
    for name in ("Reasoning_Verbosity", "Cognitive_Difficulty"):
        score = item.get(name)
        score = score if isinstance(score, Mapping) else {"level": score}
        levels.append(_level(score, "level", field=f"{field}.{name}.level"))
    verified = _truth(item, "thought_correctness_verify", field=f"{field}.thought_correctness_verify")
    return Trace(thinking, solution, levels[0], levels[1], verified, item.get("teacher"))


def _bare(thinking: str) -> str | None:
    """Thinking without the tags around it, if any."""
    inside, outside = split_thinking(thinking)
    return inside or outside.strip("\n") or None


def _level(row: Fields, name: str, *, field: str = "") -> float | None:
    """A level from 0 to 9, given as a number or text; None if it is missing."""
    value = row.get(name)
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_LEVEL:
        raise ValueError(f"field {field or name!r} is {value!r}, expected a level from 0 to {MAX_LEVEL}")
    return value


def _score_level(row: Fields, name: str) -> float | None:
    """A score from 0 to 1 converted to a level; above 1 it is already a level."""
    level = _level(row, name)
    return level if level is None or level > 1 else level * MAX_LEVEL


def _truth(row: Fields, name: str, *, field: str = "") -> bool | None:
    """A true or false value, also given as text; None if it is missing."""
    value = row.get(name)
    if isinstance(value, str):
        known: dict[str, object] = {"true": True, "yes": True, "false": False, "no": False, "": None}
        value = known.get(value.strip().lower(), value)
    if value is not None and not isinstance(value, bool):
        if value not in (0, 1):
            raise ValueError(f"field {field or name!r} is {value!r}, expected true or false")
        value = bool(value)
    return value
