"""Words that make an answer ambiguous: denials, alternatives, bounds, operations. In: the words around it. Out: yes or no.

    doubtful("at least")  -> True        doubtful("It is not")  -> True        doubtful("She has exactly")  -> False

What these words qualify is not the plain answer, so the graders count it as unparseable.
"""

from __future__ import annotations

import re

_DENIED = (
    r"not?|never|neither|nor|none|cannot|\w+n['’]t|without|except(?:ing)?|exclud(?:es?|ing)|excluded|rather|instead|unlike|wrong(?:ly)?"
    r"|incorrect(?:ly)?|false(?:ly)?|mistake(?:n|nly)?|error|anything but|everything but|nothing but|all but|far from"
    r"|hardly|barely|deny|denies"
    r"|fails?|different from|other than|impossible|rules? out|ruled out|reject(?:s|ed)?|unlikely|isnt|wasnt|doesnt"
    r"|no longer|nothing|avoid(?:s|ed)?|eliminat(?:e|es|ed|ing)|discard(?:s|ed)?|dismiss(?:es|ed)?|ignor(?:e|es|ed)"
    r"|lack(?:s|ing)?|absence"
)
_HEDGED = (
    r"maybe|perhaps|likely|possibly|probably|presumably|might|may|could|can be|either|or|guess(?:ing)?|unsure|uncertain"
    r"|unclear"
    r"|between|depends?"
    r"|depending|approximately either|somewhere|around \d+ or|if|unless|assuming|suppose|supposing|whether|both|versus|vs"
)
_BOUNDED = (
    r"as many as|as few as|as much as|as little as|at least|at most|at minimum|at maximum|more than|less than|fewer than"
    r"|greater than|bigger than|larger than"
    r"|smaller than|higher than"
    r"|lower than|over|under|above|below|beyond|exceed(?:s|ing|ed)?|up to|upwards? of|no more|no less|no fewer|minimum"
    r"|maximum|"
    r"older than|younger than|longer than|shorter than|taller than|heavier than|lighter than|within|nearly|almost"
    r"|just short of|close to|limit(?:ed)?"
    r"|or more|or less|or fewer|or so|and up|and above|and below|and over|and under|plus or minus|give or take"
)
_COMPUTED = (
    r"(?:cube|square|negative|fraction|multiple|factor|inverse|reciprocal)s? of|half|halves|twice|thrice|doubled?"
    r"|tripled?|quadrupled?|third of|fourth of|fifth of|quarters? of|tenth of|hundredth of"
    r"|percent of|% of|squared|cubed|square root|cube root|root of|sum of|product of|difference|quotient of|ratio"
    r"|factorial|reciprocal"
    r"|inverse|opposite of|logarithm|log of|power of|multipl(?:e|es|y|ied|ying)|divid(?:e|ed|es|ing)|subtract(?:ed|ing)?"
    r"|add(?:ed|ing)"
    r"|plus|minus|modulo|mod|increase of|decrease of|loss of|remainder|remainders?|base|cos|sin|tan|log|ln|sqrt"
)
_CHINESE = (
    "不是|并非|没有|不等于|不超过|不到|或|可能|也许|大概是|至少|至多|最多|最少|超过|少于|多于|大于|小于|低于|高于"
    "|以上|以下|之间|一半|倍"
)
_DOUBT = re.compile(
    rf"\b(?:{_DENIED}|{_HEDGED}|{_BOUNDED}|{_COMPUTED})(?![\w'’])|[±≠≤≥<>~∼≲≳]|{_CHINESE}", re.IGNORECASE
)
_HEDGE = re.compile(
    rf"\b(?:{_HEDGED}|but|however|although|though|wait|actually|not sure|not certain|roughly|approximately|close to"
    rf"|nearly|almost|less"
    rf"|somewhat)(?![\w'’])|[?？]|或|可能|也许|不确定",
    re.IGNORECASE,
)
_DENIAL = re.compile(rf"\b(?:{_DENIED})(?![\w'’])|不是|并非|没有", re.IGNORECASE)


def hedged(words: str) -> bool:
    """Whether words leave open what they say, or offer another answer."""
    return bool(_HEDGE.search(words))


def doubtful(words: str) -> bool:
    """Whether words around an answer qualify it."""
    return bool(_DOUBT.search(words))


def denied(words: str) -> bool:
    """Whether words deny what they are about."""
    return bool(_DENIAL.search(words))
