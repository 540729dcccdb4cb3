"""Word problems with one to four steps, worked solutions and gold answers.

Solutions have one of two styles, full sentences or only equations; both are correct, but one is shorter, so that token
budgets have something to select.
"""

from __future__ import annotations

import random

from distill_lab.tiny.instructions import NAMES
from distill_lab.tiny.item import Item

THINGS = "apples coins books marbles stamps pens shells cards cookies eggs stones tickets".split()
MAX_NUMBER, MAX_CHANGE = 150, 20
"""Maximum of all numbers, and maximum that is added or subtracted at once."""


def item(rng: random.Random) -> Item:
    """One problem: `output` is the worked solution ending in `Final Answer: N`, `thinking` has the same steps."""
    kind = rng.choices(list(KINDS), weights=[5, 1, 1, 1])[0]
    question, steps = KINDS[kind](rng)
    full = rng.random() < 0.65
    lines = [f"Step {i}: {text} {sum_}." if full else f"{sum_}." for i, (text, sum_) in enumerate(steps, start=1)]
    answer = steps[-1][1].rsplit(" ", 1)[1]
    return {
        "question": question,
        "output": "\n".join([*lines, f"Final Answer: {answer}"]),
        "thinking": "\n".join(lines),
        "answer": answer,
        "meta": {"type": kind, "level": len(steps), "style": "full" if full else "short"},
    }


Steps = list[tuple[str, str]]
"""The sentence and the equation of each step, `("Tom buys 5 more:", "12 + 5 = 17")`."""


def _story(rng: random.Random) -> tuple[str, Steps]:
    """Someone has things; one to four events change their number."""
    name, other = rng.sample(NAMES, 2)
    things, value = rng.choice(THINGS), rng.randint(3, 60)
    length = rng.randint(1, 4)
    sentences, steps = [f"{name} has {value} {things}."], []
    while len(steps) < length:
        event = rng.choice(["get", "give", "times", "share", "boxes"])
        if event == "get" and value < MAX_NUMBER - 10:
            k = rng.randint(2, min(MAX_CHANGE, MAX_NUMBER - value))
            verb = rng.choice(["buys", "finds"])
            sentences.append(f"{name} {verb} {k} more.")
            steps.append((f"{name} {verb} {k} more:", f"{value} + {k} = {value + k}"))
            value += k
        elif event == "give" and value > 4:
            k = rng.randint(2, min(MAX_CHANGE, value - 1))
            verb = rng.choice([f"gives {k} to {other}", f"loses {k}"])
            sentences.append(f"{name} {verb}.")
            steps.append((f"{name} {verb}:", f"{value} - {k} = {value - k}"))
            value -= k
        elif event == "times" and value * 2 <= MAX_NUMBER:
            k = rng.randint(2, min(4, MAX_NUMBER // value))
            sentences.append(f"Then the number grows to {k} times as many.")
            steps.append((f"There are {k} times as many:", f"{value} * {k} = {value * k}"))
            value *= k
        elif event == "share":
            divisors = [k for k in (2, 3, 4, 5) if value % k == 0 and value // k > 1]
            if not divisors:
                continue
            k = rng.choice(divisors)
            sentences.append(f"{name} splits them into {k} equal piles and keeps one pile.")
            steps.append((f"One of {k} piles:", f"{value} / {k} = {value // k}"))
            value //= k
        elif event == "boxes" and length - len(steps) >= 2:
            k, m = rng.randint(2, 9), rng.randint(2, 9)
            if value + k * m > MAX_NUMBER:
                continue
            sentences.append(f"{name} buys {k} boxes with {m} {things} each.")
            steps.append((f"The {k} boxes hold", f"{k} * {m} = {k * m}"))
            steps.append(("With the boxes:", f"{value} + {k * m} = {value + k * m}"))
            value += k * m
    return " ".join([*sentences, f"How many {things} does {name} have now?"]), steps


def _together(rng: random.Random) -> tuple[str, Steps]:
    """Two people, one with more or fewer things than the other; how many they have together."""
    name, other = rng.sample(NAMES, 2)
    things, value, k = rng.choice(THINGS), rng.randint(12, 40), rng.randint(2, 11)
    word, sign = rng.choice([("more", "+"), ("fewer", "-")])
    second = value + k if sign == "+" else value - k
    question = (
        f"{name} has {value} {things}. {other} has {k} {word} than {name}. How many {things} do they have together?"
    )
    return question, [
        (f"{other} has", f"{value} {sign} {k} = {second}"),
        ("Together they have", f"{value} + {second} = {value + second}"),
    ]


def _change(rng: random.Random) -> tuple[str, Steps]:
    """Buying several things and paying more than they cost; how much change there is."""
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    price, number = rng.randint(2, 9), rng.randint(2, 9)
    paid = rng.choice([p for p in (20, 50, 90, 100) if p > price * number])
    question = (
        f"One of the {things} costs {price} dollars. {name} buys {number} {things} and pays with {paid} dollars. "
        f"How many dollars does {name} get back?"
    )
    cost = price * number
    return question, [
        (f"The {number} {things} cost", f"{number} * {price} = {cost}"),
        (f"{name} gets back", f"{paid} - {cost} = {paid - cost}"),
    ]


def _travel(rng: random.Random) -> tuple[str, Steps]:
    """Distance from speed and time, or speed from distance and time."""
    vehicle = rng.choice(["train", "bus", "car", "boat", "bike"])
    speed, hours = rng.randint(4, 30), rng.randint(2, 5)
    if rng.random() < 0.5:
        question = f"A {vehicle} travels {speed} km in one hour. How many km does it travel in {hours} hours?"
        return question, [(f"In {hours} hours it travels", f"{speed} * {hours} = {speed * hours}")]
    question = f"A {vehicle} travels {speed * hours} km in {hours} hours. How many km does it travel in one hour?"
    return question, [("In one hour it travels", f"{speed * hours} / {hours} = {speed}")]


KINDS = {"story": _story, "together": _together, "change": _change, "travel": _travel}
