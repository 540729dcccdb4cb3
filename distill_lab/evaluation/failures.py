"""How a student's answers fail, by rules: eval rows of student and teacher -> invented facts, missing details, wrong form.

    failures = find_failures(run.path("eval/student.jsonl"), run.path("eval/teacher.jsonl"), graded=True)
    failures["t-7"]                                             ("missing details",)

An answer of a few words is compared word by word: a word that occurs in neither the prompt, the gold answer nor the
teacher's answer is invented, a word of the gold answer that is not there is missing, and the right words in the wrong case,
order or punctuation are a matter of form. In a longer answer only numbers and names are compared, because wording may
differ: those that occur nowhere else may be invented. Details are missing if the answer has less than half of the
reference's content words, and of the teacher's share of them. The form is wrong if a code block is not closed, if code or a
list is missing that the prompt asks for and the reference has, if lines repeat, or if the answer was cut. The rules see
words, not meaning: they sort candidates for a person or a judge to read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from distill_lab.evaluation.eval_rows import BAD_GOLD, EvalRow, first_samples
from distill_lab.grading.graders.overlap import words

INVENTED, MISSING, FORM, OTHER = "invented facts", "missing details", "formatting", "other"
KINDS = (INVENTED, MISSING, FORM, OTHER)
MAX_SHORT = 12
"""Words up to which a gold answer is compared word by word."""
MIN_SHARE = 0.5
"""Of the reference's content words: below it, details are missing."""
MIN_REPEATS = 3
"""Equal lines from which on an answer repeats itself."""
MIN_LETTERS = 4
"""Of a content word."""
COMMON = frozenset(
    "about after also because been before being both each from have into just like more most much only other over same "
    "some such than that their them then there these they this those through used very when where which while with would "
    "your".split()
)
_NUMBER = re.compile(r"\d[\d.,]*\d|\d")
_NAME = re.compile(r"(?<![.!?:\n\"'(\[*#-]\s)(?<!^)(?<=\s)[A-Z][\w'-]+")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.MULTILINE)
_ASKS_CODE = re.compile(
    r"\b(?:code|function|query|regular expression|script|command|program|dockerfile)\b", re.IGNORECASE
)
_ASKS_LIST = re.compile(r"\b(?:list (?:of|the|three|five|some)|bullet|steps|name (?:three|four|five))\b", re.IGNORECASE)


def find_failures(student: Path, teacher: Path | None, *, graded: bool) -> dict[str, tuple[str, ...]]:
    """Prompt -> kinds of failure of the student's first answer; only answers that failed.

    graded: grades say what is right, and an answer fails if its grade is below the teacher's, or below 1 if the teacher's
    is not known; such an answer that fits no rule is `other`. Otherwise, as for likeness to a reference, an answer fails if
    a rule applies that does not apply to the teacher's answer.
    """
    taught = {row.id: row for row in first_samples(teacher)} if teacher else {}
    found: dict[str, tuple[str, ...]] = {}
    for row in counted(student):
        other = taught.get(row.id)
        if graded and row.score >= (other.score if other else 1.0):
            continue
        kinds = failure_kinds(row, other)
        if not graded and other:
            theirs = failure_kinds(other, None)
            kinds = tuple(kind for kind in kinds if kind not in theirs)
        if kinds or graded:
            found[row.id] = kinds or (OTHER,)
    return found


def counted(student: Path) -> Iterator[EvalRow]:
    """The first answers that could fail: not those whose gold answer cannot be read."""
    return (row for row in first_samples(student) if row.grade.status != BAD_GOLD)


def failure_kinds(row: EvalRow, teacher: EvalRow | None) -> tuple[str, ...]:
    """The kinds of failure that the rules see in an answer."""
    gold = row.answer or (teacher.output if teacher else "")
    known = f"{row.text}\n{gold}\n{teacher.output if teacher else ''}"
    if 0 < len(words(gold)) <= MAX_SHORT:
        invented, missing, form = _short(row, gold, known)
    else:
        invented = bool(_facts(_CODE.sub(" ", row.output)) - _facts(known) - {word.casefold() for word in words(known)})
        missing = _misses(row.output, gold, teacher.output if teacher else "")
        form = _wrong_form(row, gold)
    kinds = ((INVENTED, invented), (MISSING, missing), (FORM, form or row.finish_reason == "length"))
    return tuple(kind for kind, applies in kinds if applies)


def count_kinds(found: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Kind -> number of answers that have it, in the order of KINDS, then any others."""
    counts = Counter(kind for kinds in found.values() for kind in kinds)
    return {kind: counts.pop(kind, 0) for kind in KINDS} | dict(counts)


def _short(row: EvalRow, gold: str, known: str) -> tuple[bool, bool, bool]:
    """An answer against a gold answer of a few words."""
    said, wanted = Counter(words(row.output)), Counter(words(gold))
    invented = bool(set(said) - set(words(known)))
    missing = bool(wanted - said)
    return invented, missing, said == wanted and row.output.strip() != gold.strip()


def _facts(text: str) -> set[str]:
    """Numbers, and names inside of sentences."""
    numbers = {number.rstrip(".,").replace(",", "") for number in _NUMBER.findall(text)}
    return numbers | {name.casefold() for name in _NAME.findall(text)}


def _content(text: str) -> set[str]:
    return {word for word in words(text) if len(word) >= MIN_LETTERS and word not in COMMON}


def _misses(answer: str, gold: str, teacher: str) -> bool:
    wanted = _content(gold)
    if not wanted:
        return not answer.strip()
    share = len(wanted & _content(answer)) / len(wanted)
    theirs = len(wanted & _content(teacher)) / len(wanted) if teacher else 1.0
    return share < MIN_SHARE * min(1.0, theirs or 1.0)


def _wrong_form(row: EvalRow, gold: str) -> bool:
    answer = row.output
    if answer.count("```") % 2:
        return True
    lines = Counter(line.strip() for line in answer.splitlines() if len(line.strip()) > 1)
    if lines and max(lines.values()) >= MIN_REPEATS and "```" not in answer:
        return True
    if _ASKS_CODE.search(row.text) and "```" in gold and "```" not in answer:
        return True
    return bool(_ASKS_LIST.search(row.text) and _LIST.search(gold) and not _LIST.search(answer))
