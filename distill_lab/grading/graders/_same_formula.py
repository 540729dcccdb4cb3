"""Compare two answers part by part. In: two Formulas, and the algebra for leaves. Out: True, False, or None if unknown.

same(read_formula("x=1 or x=2"), read_formula("1,2"), equal)  -> True          against "(1,2)"  -> None
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from distill_lab.grading.graders._doubt import denied
from distill_lab.grading.graders._formula import Formula, spaceless
from distill_lab.grading.graders._units import is_measure

Equal = Callable[[str, str], bool | None]
"""Whether two leaves, answer and gold, are equal; None if that cannot be decided."""
MAX_PARTS = 12
"""Maximum length of a list that is compared in any order."""


def same(answer: Formula, gold: Formula, equal: Equal) -> bool | None:
    """Whether two answers are equal; None if their structures cannot be compared, so that neither is known."""
    if answer.kind == "word" or gold.kind == "word":
        return _same_words(answer, gold)
    if answer.kind == "equation" and answer.marks == "computed":
        return _computed(answer, gold, equal)
    if "equation" in (answer.kind, gold.kind):
        return _same_equations(answer, gold, equal)
    if answer.name and gold.name and not _same_name(answer.name, gold.name):
        return False
    if answer.unit and gold.unit and answer.unit != gold.unit:
        return False if is_measure(answer.unit) and is_measure(gold.unit) else None
    if len(answer.parts) == 1 and answer.kind == "list" and gold.kind == "value":
        return same(answer.parts[0], gold, equal)
    if len(gold.parts) == 1 and gold.kind == "list" and answer.kind == "value":
        return same(answer, gold.parts[0], equal)
    if answer.kind != gold.kind:
        return None
    if answer.kind == "based":
        return answer.text.casefold() == gold.text.casefold()
    if answer.kind == "relation":
        return True if spaceless(answer.text) == spaceless(gold.text) else None
    if answer.kind == "value":
        return equal(answer.text, gold.text)
    if len(answer.parts) != len(gold.parts) or answer.marks != gold.marks:
        return False
    if answer.kind == "tuple":
        return _all(same(one, other, equal) for one, other in zip(answer.parts, gold.parts, strict=True))
    return _same_in_any_order(list(answer.parts), list(gold.parts), equal)


def _same_words(answer: Formula, gold: Formula) -> bool | None:
    if answer.kind != gold.kind:
        one, other = (re.sub(r"\W", "", formula.text).casefold() for formula in (answer, gold))
        return True if one and one == other else None
    if denied(answer.text) != denied(gold.text):
        return False
    one, other = (re.sub(r"[^a-z0-9]", "", formula.text.casefold()) for formula in (answer, gold))
    return one == other


def _computed(answer: Formula, gold: Formula, equal: Equal) -> bool | None:
    """2 + 3 = 5: right if all sides are the gold answer."""
    if gold.kind not in ("value", "equation") or gold.name:
        return None
    other = gold if gold.kind == "value" else gold.parts[-1]
    verdicts = [equal(part.text, other.text) for part in answer.parts]
    if verdicts[-1] is False:
        return False
    return True if all(verdicts) else None


def _same_equations(answer: Formula, gold: Formula, equal: Equal) -> bool | None:
    sides = [_sides(formula) for formula in (answer, gold)]
    if sides[0] is None or sides[1] is None:
        return None
    return equal(f"{sides[0][0]}={sides[0][1]}", f"{sides[1][0]}={sides[1][1]}")


def _sides(formula: Formula) -> tuple[str, str] | None:
    if formula.kind == "equation" and len(formula.parts) == 2:
        return formula.parts[0].text, formula.parts[1].text
    return (formula.name, formula.text) if formula.kind == "value" and re.fullmatch(r"[A-Za-z]", formula.name) else None


def _same_name(one: str, other: str) -> bool:
    return one == other or {one, other} == {"y", "f(x)"}


def _same_in_any_order(answers: list[Formula], golds: list[Formula], equal: Equal) -> bool | None:
    if len(golds) > MAX_PARTS:
        return None
    if len({part.name for part in answers if part.name}) > 1 and not any(part.name for part in golds):
        return None  # x = 1, y = 2 against 1, 2
    unknown = False
    for gold in golds:
        verdicts = [(one, same(one, gold, equal)) for one in answers[:1]]
        if not verdicts[0][1]:
            verdicts += [(one, same(one, gold, equal)) for one in answers[1:]]
        match = next((one for one, verdict in verdicts if verdict), None)
        if match is None:
            unknown = unknown or any(verdict is None for _, verdict in verdicts)
            return None if unknown else False
        answers = [one for one in answers if one is not match]
    return True


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    if any(verdict is False for verdict in found):
        return False
    return None if any(verdict is None for verdict in found) else True
