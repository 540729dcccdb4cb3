"""Short instructions with exact answers: nine kinds over a small vocabulary of everyday words."""

from __future__ import annotations

import random
from collections.abc import Callable

from distill_lab.tiny.item import Item

CATEGORIES = {
    "animals": "cat dog horse cow sheep fox bear wolf lion duck mouse frog".split(),
    "colors": "red blue green yellow black white pink brown grey purple orange gold".split(),
    "fruits": "apple pear plum cherry lemon grape peach melon banana mango fig kiwi".split(),
    "tools": "hammer saw knife spade rope nail brush ladder drill wrench shovel axe".split(),
    "clothes": "hat coat shirt shoe sock scarf glove belt dress jacket boot skirt".split(),
}
WORDS = [word for words in CATEGORIES.values() for word in words]
_PAIRS = (
    "hot-cold big-small fast-slow old-new long-short high-low light-dark full-empty rich-poor hard-soft early-late "
    "happy-sad open-closed wet-dry loud-quiet strong-weak near-far clean-dirty thick-thin wide-narrow"
).split()
OPPOSITES = {pair.split("-")[0]: pair.split("-")[1] for pair in _PAIRS}
OPPOSITES |= {right: left for left, right in OPPOSITES.items()}
IRREGULAR = {"mouse": "mice", "sheep": "sheep", "wolf": "wolves", "knife": "knives", "scarf": "scarves"}
NAMES = "Tom Mia Ben Ann Sam Eva Leo Zoe Max Ida Jan Lea".split()
CITIES = "Paris Rome Oslo Cairo Delhi Lima Athens Berlin Tokyo Madrid".split()
ORDINALS = ["first", "second", "third", "fourth"]


def plural(word: str) -> str:
    """The English plural of a noun from WORDS."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(("s", "x", "sh", "ch")):
        return word + "es"
    if word.endswith("y"):
        return word[:-1] + "ies"
    return word + ("es" if word == "mango" else "s")


def _listed(rng: random.Random, low: int = 3, high: int = 4, words: list[str] = WORDS) -> list[str]:
    return rng.sample(words, rng.randint(low, high))


def _reverse(rng: random.Random) -> tuple[str, str]:
    words = _listed(rng)
    verb = rng.choice(["Reverse this list", "Write this list backwards"])
    return f"{verb}: {', '.join(words)}", ", ".join(reversed(words))


def _sort(rng: random.Random) -> tuple[str, str]:
    words = _listed(rng, 2, 3)
    verb = rng.choice(["Sort these words from A to Z", "Put these words in alphabetical order"])
    return f"{verb}: {', '.join(words)}", ", ".join(sorted(words))


def _nth(rng: random.Random) -> tuple[str, str]:
    words = _listed(rng, 4, 4)
    index = rng.randrange(4)
    ask = rng.choice(["What is the {} word of this list", "Name the {} word"])
    return f"{ask.format(ORDINALS[index])}: {', '.join(words)}", words[index]


def _opposite(rng: random.Random) -> tuple[str, str]:
    words = _listed(rng, 2, 3, list(OPPOSITES))
    ask = rng.choice(["Give the opposite of each word", "Write the opposites"])
    return f"{ask}: {', '.join(words)}", ", ".join(OPPOSITES[word] for word in words)


def _plural(rng: random.Random) -> tuple[str, str]:
    words = _listed(rng, 2, 3, [word for word in WORDS if word not in CATEGORIES["colors"]])
    ask = rng.choice(["Write the plural of each word", "Give the plurals"])
    return f"{ask}: {', '.join(words)}", ", ".join(map(plural, words))


def _capitals(rng: random.Random) -> tuple[str, str]:
    words = _listed(rng, 2, 3)
    ask = rng.choice(["Write in capital letters", "Make this upper case"])
    return f"{ask}: {', '.join(words)}", ", ".join(words).upper()


def _brackets(rng: random.Random) -> tuple[str, str]:
    words = _listed(rng, 2, 3)
    return f"Put each word in brackets: {', '.join(words)}", " ".join(f"[{word}]" for word in words)


def _json(rng: random.Random) -> tuple[str, str]:
    name, age, city = rng.choice(NAMES), rng.randint(10, 99), rng.choice(CITIES)
    ask = rng.choice(["Write as JSON", "Turn this into JSON"])
    return f"{ask}: {name} is {age} and lives in {city}.", f'{{"name": "{name}", "age": {age}, "city": "{city}"}}'


def _repeat(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(WORDS, 2)
    times = rng.randint(2, 4)
    return f"Say {first} {second} {times} times.", " ".join([f"{first} {second}"] * times)


KINDS: dict[str, tuple[Callable[[random.Random], tuple[str, str]], str]] = {
    "reverse": (_reverse, "I read the list from the end."),
    "sort": (_sort, "I order the words by their letters."),
    "nth": (_nth, "I count the words from the start."),
    "opposite": (_opposite, "I turn each word around."),
    "plural": (_plural, "I add the plural ending."),
    "capitals": (_capitals, "I use capital letters."),
    "brackets": (_brackets, "I put brackets around each word."),
    "json": (_json, "I write the keys and the values."),
    "repeat": (_repeat, "I say it again and again."),
}
"""Each kind of instruction: its generator, and the teacher's thinking before the answer if thinking is on."""


def item(rng: random.Random) -> Item:
    """One instruction, its exact answer and its kind."""
    kind = rng.choice(list(KINDS))
    draw, thinking = KINDS[kind]
    question, answer = draw(rng)
    return {"question": question, "output": answer, "thinking": thinking, "answer": answer, "meta": {"type": kind}}
