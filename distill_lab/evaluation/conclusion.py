"""What an experiment's intervals allow to be said: differences -> sentences, and what to do next.

    conclude(differences, ordered=True)      ["The score grows up to 2,000 rows. From 2,000 rows to 8,000 rows no difference
                                               is found: +1.2 points [-0.9, +3.3]."]

A difference is claimed only if it was found (`Difference.found`). That none is found does not mean that there is none: the
sentence gives the interval, and the number of prompts that would settle a difference of that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from distill_lab.evaluation.experiment import Difference, VariantResult
from distill_lab.evaluation.goals import num_to_settle
from distill_lab.formatting import rounded_up

LIKENESS = "the likeness to the reference text"


def conclude(differences: Sequence[Difference], *, ordered: bool) -> list[str]:
    """Sentences on the differences between variants, those of each set of prompts and measure together.

    ordered: the differences of each group are steps from one variant to the next, from less to more.
    """
    lines: list[str] = []
    for (prompts, measure), group in groupby(differences, key=lambda each: (each.prompts, each.measure)):
        found = list(group)
        name = LIKENESS if found[0].similarity else f"the {measure}"
        on = f"On the prompts `{prompts}` "
        lines += [on + line for line in (_trend(found, name) if ordered else _pairs(found, name))]
    return lines


def shown(difference: Difference) -> str:
    """A difference with its interval: +12.0 points [+8.1, +15.8]."""
    low, high = difference.ci95
    return f"{100 * difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def _trend(steps: Sequence[Difference], name: str) -> list[str]:
    """Steps between neighbors, followed by the step from the first to the last variant if there are more than two."""
    whole = None
    if len(steps) > 2 and (steps[-1].first, steps[-1].second) == (steps[0].first, steps[-2].second):
        *steps, whole = steps
    rises = 0
    while rises < len(steps) and steps[rises].found and steps[rises].value > 0:
        rises += 1
    rest = steps[rises:]
    if rises and not any(step.found for step in rest):
        lines = [f"{name} grows up to {steps[rises - 1].second} ({'; '.join(map(_step, steps[:rises]))})."]
        return lines + [f"no further difference in {name} is found: {_step(step)}." for step in rest]
    if not any(step.found for step in steps):
        if whole and whole.found:
            way = "grows" if whole.value > 0 else "falls"
            return [f"{name} {way} from {whole.first} to {whole.second} by {shown(whole)}; no single step is found."]
        return [f"no difference in {name} is found at this size: {'; '.join(map(_step, steps))}."]
    return [
        f"{name} {'grows' if step.value > 0 else 'falls'}: {_step(step)}."
        if step.found
        else f"no difference in {name} is found: {_step(step)}."
        for step in steps
    ]


def _step(step: Difference) -> str:
    return f"from {step.first} to {step.second} {shown(step)}"


def _pairs(pairs: Sequence[Difference], name: str) -> list[str]:
    lines = []
    for pair in pairs:
        if pair.found:
            way = "higher" if pair.value > 0 else "lower"
            lines.append(f"{name} is {way} with {pair.second} than with {pair.first}: {shown(pair)}.")
        else:
            lines.append(f"no difference in {name} is found between {pair.first} and {pair.second}: {shown(pair)}.")
    return lines


def next_steps(differences: Sequence[Difference], variants: Sequence[VariantResult], *, ordered: bool) -> list[str]:
    """What would settle open differences, and what the variants' figures suggest. differences: all of the experiment."""
    lines = []
    steps = [each for each in differences if not each.found and each.value]
    for step in steps[:3]:
        needed = num_to_settle(step.value, 0.0, step.ci95, step.n, comparisons=len(differences))
        if needed and needed > step.n:
            lines.append(
                f"A difference as large as that between {step.first} and {step.second} on `{step.prompts}` would take about "
                f"{rounded_up(needed):,} prompts to settle; there were {step.n:,}."
            )
    if ordered and len(variants) > 1:
        lines += _further(differences, (variants[-2].name, variants[-1].name))
    for variant in variants:
        if variant.losses and round(variant.losses[1], 3) > round(variant.losses[0], 3):
            lines.append(
                f"The validation loss of {variant.name} rose from {variant.losses[0]:.3f} to {variant.losses[1]:.3f}: try "
                "fewer epochs or a lower learning rate."
            )
    return lines


def _further(differences: Sequence[Difference], ends: tuple[str, str]) -> list[str]:
    """Where the last step of the variants still gained, and where it lost."""
    last = [
        each for each in differences if each.found and (each.first, each.second) == ends and each.measure == "score"
    ]
    grows, falls = ([each for each in last if (each.value > 0) is up] for up in (True, False))
    if not grows:
        return []
    text = f"At the last step, to {ends[1]}, {' and '.join(map(_named, grows))} still grow{'s' * (len(grows) == 1)}"
    if falls:
        return [f"{text}, and {' and '.join(map(_named, falls))} fall{'s' * (len(falls) == 1)}."]
    return [f"{text}: go further."]


def _named(each: Difference) -> str:
    return f"{LIKENESS if each.similarity else 'the score'} on `{each.prompts}`"


def limits(differences: Sequence[Difference], *, seeds: int) -> list[str]:
    """What limits the result."""
    lines = []
    if any(each.similarity for each in differences):
        lines.append(
            "Likeness to a reference text (ROUGE-L) rewards shared wording, not truth. It does not measure quality; a judge "
            "(--judge MODEL) or a person (`distill rate`) does."
        )
    if seeds == 1:
        lines.append(
            "Each variant was trained once. The intervals are over prompts; how much another random order of the rows would "
            "change is not in them. --seeds 3 shows it."
        )
    else:
        lines.append(f"Each variant was trained {seeds} times; a prompt counts with its mean over the trainings.")
    lines.append(
        "A difference counts as found if its 95% interval excludes 0 and its p-value is below 0.05 divided by the number of "
        "comparisons."
    )
    return lines
