r"""Units of measure after a number. In: the text after it. Out: the unit in one spelling, and where the unit ends.

    read_unit(" kilometers per hour.")  -> ("km/h", 20)    read_unit(" cm^2")  -> ("cm^2", 5)

Known units (length, weight, time, ...) have one spelling; other nouns are units by their stem.
"""

from __future__ import annotations

import re

_MEASURES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "dm": "decimeter decimetre", "m": "meter metre",
    "km": "kilometer kilometre", "in": "inch inches", "ft": "foot feet", "yd": "yard", "mi": "mile", "nm": "nanometer",
    "mg": "milligram", "g": "gram gramme", "kg": "kilogram kilo", "t": "tonne", "ton": "ton", "lb": "lbs pound",
    "oz": "ounce", "ms": "millisecond msec", "s": "second sec", "min": "minute mins", "h": "hour hr hrs", "d": "day",
    "week": "wk", "month": "mo", "yr": "year", "decade": "", "century": "centuries", "ml": "milliliter millilitre mL",
    "l": "liter litre L", "cl": "centiliter", "gal": "gallon", "qt": "quart", "pt": "pint", "cup": "", "tbsp": "tablespoon",
    "tsp": "teaspoon", "mph": "", "kph": "kmh", "N": "newton", "J": "joule", "kJ": "kilojoule", "W": "watt",
    "kW": "kilowatt", "V": "volt", "A": "ampere amp", "Hz": "hertz", "Pa": "pascal", "cal": "calorie",
    "kcal": "kilocalorie", "K": "kelvin", "°C": "celsius C", "°F": "fahrenheit F", "deg": "degree", "rad": "radian",
    "usd": "dollar buck", "eur": "euro €", "gbp": "£", "jpy": "yen ¥", "cny": "yuan rmb", "inr": "rupee rs",
    "cent": "¢ penny pennies", "byte": "", "bit": "", "kb": "kilobyte", "mb": "megabyte", "gb": "gigabyte", "acre": "",
    "ha": "hectare", "mol": "mole", "am": "a.m", "pm": "p.m",
}  # fmt: skip
_CANONICAL = {name: unit for unit, names in _MEASURES.items() for name in (unit, *names.split())}
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cu": "^3", "cubed": "^3"}
_FILLERS = frozenset(
    "in total altogether all overall more left remaining per each every now long wide tall high old away apart together"
    " exactly ago later only the of for a an is are was were his her their its that this today tomorrow and on at by to"
    " from with so".split()
)
"""Words after a number that are not units."""
_WORD = r"[A-Za-z°µμ][A-Za-zµμ]*(?:\.[A-Za-z]\b)?|[€£¥¢]"
_UNIT = re.compile(
    rf"[\s~-]*(?:(?P<before>square|sq|cubic|cu)\b\.?[\s-]*)?(?P<word>{_WORD})\.?(?P<power>\s*\^?\s*\{{?\s*[23]\s*\}}?(?!\d)|\s+(?:squared|cubed)\b)?"
    rf"(?:\s*(?:/|\bper\b|\ban?\b)\s*(?P<per>{_WORD})(?P<per_power>\s*\^\s*\{{?\s*[23]\s*\}}?)?)?"
)


def read_unit(after: str) -> tuple[str, int]:
    """The unit at the start of `after` and where it ends; ("", 0) if it starts with something else."""
    match = _UNIT.match(after)
    if match is None:
        return "", 0
    word = _spelled(match["word"])
    known = word in _MEASURES and not (match["word"] == "in" and re.match(r"\s+[A-Za-z]", after[match.end("word") :]))
    if (match["word"].lower() in _FILLERS and not known) or (
        not known and match["power"] and "^" not in match["power"]
    ):
        return "", 0
    if word in ("mph", "kph"):
        word = {"mph": "mi/h", "kph": "km/h"}[word]
    power = _POWERS.get((match["before"] or "").lower(), "")
    if match["power"]:
        power = _POWERS.get(match["power"].strip().lower()) or "^" + re.sub(r"\D", "", match["power"])
    if not match["per"] or match["per"].lower() in _FILLERS or not known:
        end = match.end("power") if match["power"] else match.end("word")
        return word + power, end
    per_power = "^" + re.sub(r"\D", "", match["per_power"]) if match["per_power"] else ""
    return f"{word}{power}/{_spelled(match['per'])}{per_power}", match.end()


def is_measure(unit: str) -> bool:
    """Whether it is a known unit of measure."""
    return re.split(r"[\^/]", unit, maxsplit=1)[0] in _MEASURES


def _spelled(word: str) -> str:
    """A unit in its one spelling: the symbol of a measure, the stem of another noun."""
    lower = word.lower()
    for name in (word, lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if name in _CANONICAL and (len(name) > 1 or name == word):
            return _CANONICAL[name]
    if len(word) == 1:
        return word
    if lower.endswith("ies"):
        return lower[:-3] + "y"
    return lower.removesuffix("es") if lower.endswith(("ches", "shes", "xes", "sses")) else lower.removesuffix("s")
