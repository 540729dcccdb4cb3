r"""Parse numbers as people and models write them, exactly. In: a short text. Out: a Number, or None if it is not one.

    read_number("$1,234.50")  read_number(r"-1\frac{1}{2}")  read_number("50%")  read_number("1.5 x 10^3 km")

Accepts signs (also −, "minus", 负), separators (see `_numeral`), fractions, mixed numbers, LaTeX, scientific notation,
percent, currencies, units, hundred / million / dozen / 万, full-width digits, ½. Rejects text with several numbers or any
other operation (`5 or 6`, `2\pi`, `3 - 2i`, `(1, 2)`, `4 feet 3 inches`), a number that words qualify (`not 8`, `at least
8`, `half of 4`), and numbers of more than 400 digits.
"""

from __future__ import annotations

import dataclasses
import re

from distill_lab.grading.graders._doubt import denied, doubtful
from distill_lab.grading.graders._plain_text import plain_text
from distill_lab.grading.graders._quantity import MAX_DIGITS, QUANTITY, Number, number_of
from distill_lab.grading.graders._units import is_measure, read_unit

_INEQUALITY = re.compile(r"[<>≤≥≠]|!=|\\(?:leq?|geq?|neq?|lt|gt|pm|mp)(?![A-Za-z])|±")
_ASIDE = re.compile(
    r"[,;]?\s+\(|[,;]\s+(?!(?:or|and)\b)(?=[A-Za-z(]{2})|;|[.?](?=\s|$)|。|，(?=\D)|\s+[—–]\s+(?=[A-Za-z])"
)
_EXPLAINS = re.compile(
    r"(?:because|since|as|which|that|i\.?e|for|per|e\.?g|given|where|when|after|rounded|in total|counting|including"
    r"|namely)\b",
    re.IGNORECASE,
)
_BECAUSE = re.compile(r"[,;(]?\s+\(?(?:because|since|as there|as \d)\b", re.IGNORECASE)
_LETTER = r"(?<![A-Za-z\\])[a-z](?![A-Za-z])"
_EQUATION = re.compile(rf"{_LETTER}\s*[-+*/^]|[-+*/^]\s*\d*{_LETTER}|\d\s*{_LETTER}|=.*,\s*[A-Za-z]\w*\s*$")
"""Matches, left of an equals sign, an equation with unknowns, or one of several values."""
_COMPUTATION = re.compile(
    r"(?:\d[\d.,]*|\d\s*%|\))\s*(?:[A-Za-z]{2,}\s+){0,3}(?:[-+*/×÷]|(?<=[\d\s])x(?=[\s$]*\d))\s*\(?\s*[$€£]?\s*[\d(.][^=]*$"
)
"""Left of an equals sign: a computation with numbers."""
_NEW_PHRASE = re.compile(
    r"\s*(?:[A-Za-z]{2,}['’]?\s+){1,5}?(?:to|for|after|of|in|from|on|at|by|each|per|every|because|when|that|which|who|before|during|since|as|while|more|left)\b(?!.*\b(?:and|or|plus|minus|remainder)\s*$)",
    re.DOTALL,
)
"""Between two numbers: the second belongs to another phrase, as in "18 dollars for 3 days", unlike "4 feet 3 inches"."""
_PREPOSITION = re.compile(
    r"\b(?:after|for|in|per|on|at|by|from|than|before|during|every|each|(?<!equal )(?<!up )(?<!comes )to)\b",
    re.IGNORECASE,
)
_INFINITIVE = re.compile(
    r"\b(?:to|that|which|who|if|when|since|because|after|before|by|of)\s+(?:\w+\s+)?$", re.IGNORECASE
)
_NOT_BEFORE = re.compile(r"[\\^√+*/×(){}\[\]π|_]|-\s*$|[或和到至与、—]")
_VERB = (
    r"is|are|was|were|be|been|being|equals?|has|have|had|having|gets?|got|makes?|made|leaves?|left|leaving|remains?|remaining|totals?|totaling|costs?"
    r"|pays?|paid|earns?|earned|spends?|spent|needs?|needed|takes?|took|becomes?|gives?|gave|giving|saves?|saved|sells?|sold|reads?|drives?|drove"
    r"|runs?|ran|walks?|walked|receives?|collects?|contains?|produces?|uses?|used|requires?|weighs?|owes?|yields?|eats?|ate|buys?|bought|finds?"
    r"|found|counts?|got|keeps?|kept|holds?|does|do|did|will|would|should"
)
_SAYS = re.compile(rf"\b(?:{_VERB})\b(?!n?['’]t)|[=:：]|是|为|有|共|剩|得|等于|需要|还|了", re.IGNORECASE)
"""What an answer follows: She *has* 18, the total *is* 18."""
_DENIED_VERB = re.compile(
    rf"(?:\bnot|n['’]t|\bnever|\bcannot|\bno longer)\s+(?:(?:actually|really|exactly|necessarily|even|ever|simply|just"
    rf"|also)\s+)?(?:{_VERB}|equal|$)"
    r"|\b(?:wrong|incorrect|false|mistaken|untrue|impossible|unlikely|doubt\w*|den(?:y|ies)|suppose|imagine|pretend|maybe|perhaps|possibly|probably"
    r"|presumably|might|may|could|unsure|either|neither|guess|unless|whether|not (?:the case|true|sure|certain)"
    r"|n['’]t (?:think|believe|say))\b",
    re.IGNORECASE,
)
_WORDS_OF_NUMBER = (
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty"
    r"|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|dozen|half|halves|quarters?|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?"
    r"|ninths?|tenths?|hundredths?|thousandths?|fold|score)"
)
_BEFORE_WORDS = re.compile(
    rf"\b(?:{_WORDS_OF_NUMBER}|one|sqrt|root|log|ln|sin|cos|tan|between|either|from|than(?=(?: the| an?)?\s*$))\b"
    r"|\b(?:versions?|chapters?|sections?|steps?|cases?|options?|choices?|questions?|problems?|figures?|equations?|parts?"
    r"|examples?|exercises?|january|february|march|april|may|june|july"
    r"|august|september|october|november|december|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.?\s*#?$|#\s*$|[一二三四五六七八九十百千万亿几第]$",
    re.IGNORECASE,
)
_SPACED_WORD = re.compile(r"(?:[A-Za-z]{2}\s+|[^A-Za-z0-9)\]}%\s]\s*)$")
_NOT_AFTER = re.compile(
    r"\s*(?:[-+*^×÷√!|:_π(\\–~,'’\"″′]|/(?!\s?[A-Za-z]{2})|\.\.|…|\.\\|(?:pi|and|or|to|choose|mod)\b)|[A-Za-z](?![A-Za-z])|(?:st|nd|rd|th)\b|\s+(?!o['’]clock)[b-zB-Z](?![A-Za-z])"
)
_UNIT = re.compile(r"\s*(?:[mgshlLVWNJACKFt](?![A-Za-z])(?!\s*[-+*/(=])|(?:m|cm|km|mm|ft|in|s)\s*/\s*(?:s|h|min)\b)")
_QUALIFIED = re.compile(
    rf"^\W*(?:\w+\W+){{0,3}}?(?:(?:more|less|fewer|greater|larger|smaller|older|younger|longer|shorter|taller) than"
    rf"|times (?:as|more|less|the|that|of)|out of|or (?:more|less|fewer|so|higher|lower|above|below)"
    r"|at (?:most|least)|(?:and|or) (?:up|above|below|over|under)|minimum|maximum|tops|max\b|below|above zero|squared?\b"
    r"|cubed?\b|factorial|remainders?|percent of|of the way"
    r"|(?:to|through|plus|minus|times|divided|multiplied|modulo|mod|into) \S*\d|plus|minus|short of|shy of|(?:if|unless"
    r"|maybe|perhaps|possibly|probably|approximately either|or)\b"
    rf"|and (?:a |an |one )?{_WORDS_OF_NUMBER})"
    rf"|\b(?<!each )(?<!every )(?<!for )(?<!after )(?<!the )(?<!these )(?<!those )(?<!all ){_WORDS_OF_NUMBER}\b"
    r"|\b(?:something|grand|tens|hundreds|thousands|millions|too (?:many|much|few|little))\b"
    r"|以上|以下|左右|多(?!少)|半|倍|^[几成折]",
    re.IGNORECASE,
)
"""After a number: it is a bound, a part of a larger quantity, or one of several."""
_SUBJECT = re.compile(
    r"^\s*(?:is|was|would|will|can|could|cannot|seems|looks|isn['’]t|wasn['’]t|does|doesn['’]t|may|might|must|should|fails)\b"
    r"(?!\s+(?:(?:the|my|our|your|an?|her|his|their)\s+(?:\w+\s+){0,2}(?:answer|result|solution|total|sum|number|value|amount|cost|price)|(?:the\s+)?(?:correct|right)(?!\w)|what\b|how\b))",
    re.IGNORECASE,
)
"""After a number: a sentence about the number that is not "8 is the answer"."""
_JUDGED = re.compile(
    r"\b(?:is|are|was|were|would be|seems?|looks?)(?: \w+)?\s*(?:n['’]t|not)?\s*(?:not (?:the|correct|right|it)|wrong"
    r"|incorrect|false|too (?:high|low|many|much|few|big|small)|impossible|a mistake)",
    re.IGNORECASE,
)
_LAST_DIGIT = re.compile(r"[\d½¼¾⅓⅔⅛](?=[^\d½¼¾⅓⅔⅛]*\Z)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\d\s]|\d+[^\d.])|(?<=[。！？；])|\n+")
_CLAUSE = re.compile(r"[,;:，：](?=\s|\D)|\s[—–-]\s(?=\D)|\b(?:so|therefore|thus|hence|leaving|then)\b", re.IGNORECASE)
_LIST_MARK = re.compile(r"^\s*(?:\d{1,2}[.)]\s+(?=\S)|[*•]\s+)")
_BULLET = re.compile(r"^[ \t]*-[ \t]+", re.MULTILINE)
"""As a text has it; in plain text a minus may be apart from its fraction, too."""
_BULLET_OR_MINUS = re.compile(r"\s*-[ \t]+[^\sA-Za-z][^\n]*\Z")
"""A whole text of one line that could be the only item of a list, or a negative number."""
WINDOW = 600
"""Characters before the last digit of a text in which to search for its last number."""


def read_number(text: str, *, strict: bool = False) -> Number | None:
    """The single number in a short text, ignoring words and units around it; None if there is not exactly one.

    strict: as in a formula. Rejects words before it (October 30), letters right after it (2s) and approximations (≈).
    """
    line = plain_text(text[: 5 * MAX_DIGITS].strip())
    reason = _BECAUSE.search(line)
    if reason and re.search(r"\d", line[: reason.start()]):
        line = line[: reason.start()]
    if _INEQUALITY.search(line) or (strict and "≈" in line):
        return None
    left, equals, line = line.replace("≈", "=").rpartition("=")
    if equals and re.search(r"[|√]\s*$", left):
        return None
    computed = bool(equals and _COMPUTATION.search(left))
    name = _CLAUSE.split(left)[-1] if not re.search(r"\d[^,]*,\s*$|=", left) else left
    if (
        equals
        and not computed
        and (_EQUATION.search(left) or doubtful(name) or re.search(r"\b(?:and|or)\b|,\s*$", name))
    ):
        return None
    if computed and _DENIED_VERB.search(left):
        return None
    if equals and re.fullmatch(r"\s*[A-Za-z]\s*\.?", line):
        left, line = "", left
    core = _core(line)
    if core is None:
        return None
    found = [match for match in QUANTITY.finditer(core) if not _is_exponent(core, match)]
    if strict and len(found) > 1:
        return None
    match = _single(core, found, computed=computed)
    if match is None:
        return None
    before, after = core[: match.start()], core[match.end() :]
    if before.strip() and strict:
        return None
    if _qualified_before(before):
        return None
    if before and match["sign"] and (match[0][1] == " " or not _SPACED_WORD.search(before)):
        return None
    unit, end = read_unit(after)
    if after[:1].isascii() and after[:2].isalpha() and not is_measure(unit):
        return None  # 8ish, 8th
    if end and after[end : end + 1].isdigit():
        return None  # 8h30
    if not strict and end and (is_measure(unit) or _UNIT.match(after)) and not _NOT_AFTER.match(after[end:]):
        rest = after[end:]
    elif (_NOT_AFTER.match(after) and (strict or not _UNIT.match(after))) or (strict and after[:1].isalpha()):
        return None
    else:
        rest = after
    if (
        (not computed and _SUBJECT.match(after))
        or _QUALIFIED.search(rest if is_measure(unit) else after)
        or _JUDGED.search(rest)
    ):
        return None
    return number_of(match, sign=match["sign"] or "", unit=_currency(text) or unit)


def last_number(text: str) -> Number | None:
    """The number that the last sentence with a number states; None if it has several and none is clearly the result."""
    digit = _LAST_DIGIT.search(text)
    if digit is None:
        return None
    if _BULLET_OR_MINUS.match(text.rstrip()):
        return None
    window = plain_text(_BULLET.sub("", text[max(0, digit.end() - WINDOW) : digit.end() + WINDOW // 4]))
    sentences = [part for part in _SENTENCE_END.split(window) if part and re.search(r"\d", _LIST_MARK.sub("", part))]
    while len(sentences) > 1 and re.fullmatch(r"\s*\d{1,2}[.)]\s*", sentences[-1]):
        sentences.pop()  # the mark of a list's next item
    if not sentences:
        return None
    sentence = _LIST_MARK.sub("", sentences[-1]).strip()
    if sentence.endswith("?"):
        return None
    whole = read_number(sentence)
    if whole is not None or "=" in sentence:
        currency = _currency(_SENTENCE_END.split(text[max(0, digit.end() - WINDOW) :])[-1]) if whole else ""
        return dataclasses.replace(whole, unit=currency) if whole and currency else whole
    start, word = 0, False
    for match in _CLAUSE.finditer(sentence):
        if re.search(r"\d", sentence[match.end() :]):
            start, word = match.end(), match[0].strip().isalpha()
    clause = sentence[start:]
    # After punctuation the clause must be one: "2 hours, 15 minutes" is not.
    says = word or _SAYS.search(re.split(r"\d", clause, maxsplit=1)[0])
    if not start or not says or _DENIED_VERB.search(sentence[:start][-60:]):
        return None
    return read_number(clause)


def _core(line: str) -> str | None:
    """`line` without what is said besides the number; None if that offers another answer."""
    line = line.strip().rstrip(",")
    while line.startswith("(") and line.endswith(")") and "," not in line:
        line = line[1:-1].strip()
    parts = _ASIDE.split(line, maxsplit=1)
    if len(parts) == 1:
        return line.strip()
    core, aside = parts[0].strip(), parts[1].strip()
    sign = line[len(parts[0]) :].strip()[:1]
    if sign == "?" or not core:
        return None
    if not aside or _EXPLAINS.match(aside):
        return core
    first = re.split(r"[.?;](?=\s|$)", aside, maxsplit=1)[0]
    if sign in (".", "。"):
        return (
            None
            if re.match(
                r"(?:or|no|not|wait|actually|maybe|perhaps|but|alternatively|otherwise|and)\b", first, re.IGNORECASE
            )
            else core
        )
    others = [number_of(match, sign="", unit="") for match in QUANTITY.finditer(first)]
    mine = [number_of(match, sign="", unit="") for match in QUANTITY.finditer(core)]
    if others and not (len(mine) == 1 and mine[0] and all(other and other.value == mine[0].value for other in others)):
        return None
    return None if doubtful(first) or denied(first) else core


def _is_exponent(core: str, match: re.Match[str]) -> bool:
    """Whether a match is the power of a unit: cm^{2}."""
    return core[: match.start()].rstrip(" {").endswith("^")


def _single(core: str, found: list[re.Match[str]], *, computed: bool = False) -> re.Match[str] | None:
    """The one of the quantities in `core` that it states; None if that is not clear.

    computed: `core` follows the equals sign of a computation, so the first is the result if a new phrase follows.
    """
    if len(found) < 2:
        return found[0] if found else None
    between = core[found[0].end() : found[1].start()]
    if computed:
        return found[0] if not core[: found[0].start()].strip() and _NEW_PHRASE.match(between) else None
    says = None
    for says in _SAYS.finditer(core, 0, found[-1].start()):
        if _INFINITIVE.search(core[: says.start()]):
            says = None
    if (
        says
        and says.start() >= found[-2].end()
        and not _PREPOSITION.search(core[says.end() : found[-1].start()])
        and not re.match(r"\s*:\s*\d", core[says.start() :])
    ):
        return found[-1]
    if _NEW_PHRASE.match(between) and _SAYS.search(core[: found[0].start()]) and not _SAYS.search(between):
        return found[0]
    if len(found) == 2 and re.fullmatch(
        r"\s*[A-Za-z]{2,}(?:\s+[A-Za-z]+){0,3}?\s+(?:for|after|during)\s+(?:the |all |each |every )*", between
    ):
        return found[0] if re.match(r"\s*[A-Za-z]{2}", core[found[1].end() :]) else None
    return None


def _qualified_before(before: str) -> bool:
    """Whether what precedes a number makes it another one, a part of one, or none."""
    if not before.strip():
        return False
    if re.search("不是|并非|没有|不等于|[不非]$", before) or _DENIED_VERB.search(before):
        return True
    tail = before
    for match in _SAYS.finditer(before):
        tail = before[match.end() :]
    return bool(_NOT_BEFORE.search(tail) or _BEFORE_WORDS.search(tail.rstrip()) or doubtful(tail))


def _currency(text: str) -> str:
    """The currency whose sign is in the text; "" for none and for dollar signs around a formula."""
    for sign, name in (("€", "eur"), ("£", "gbp"), ("₹", "inr"), ("\\$", "usd")):
        if sign in text:
            return name
    return "usd" if text.count("$") % 2 else ""
