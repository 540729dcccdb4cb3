r"""Extract the answer that a text states. In: text by a model or from a data set. Out: the answer, or None.

    stated_answer("4 + 4 = 8.\nFinal Answer: 8 apples")   -> "8 apples"
    stated_answer(r"So $x = \boxed{\frac{1}{2}}$.")        -> r"\frac{1}{2}"

Recognizes `\boxed{...}`, `<answer>...</answer>`, `Final Answer: x` and GSM8K's `#### x`; the last one wins. If there is
none, the last `The answer is x` / `Answer: x` / 答案是 x. Only text after thinking counts, thinking that never ends is not
an answer, nor is what follows the answer: a new question, a closing remark, a confidence. An answer that is denied or
taken back is "". Runs in linear time and reads only the last 100,000 characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from distill_lab.control_tokens import SOLUTION_TAGS, THINKING_TAGS

MAX_CHARS = 100_000
MAX_ANSWER_CHARS = 2_000
"""Maximum length of an answer; longer ones are cut off here."""
AROUND_CHARS = 120
"""Characters of a statement's line that are kept before and after it."""


@dataclass(frozen=True, slots=True)
class Statement:
    """An answer as a text states it."""

    text: str
    """The answer; "" if the text denies it or takes it back."""
    before: str = ""
    """What precedes it in its line."""
    after: str = ""
    """What follows it in its line."""


_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\(?:boxed|fbox)\s+(?P<bare>[^\s{}$\\]+)|\\.|[{}]", re.DOTALL)
_MARK = re.compile(r"^####[ \t]{0,4}(?!\d+[.)]\s)(?=[-+−$€£¥￥.\d\\])", re.MULTILINE)
# Followed by a colon, "is", or a line break (a heading); ignores markup around the words.
# Every repetition is bounded; otherwise a long run of spaces would take quadratic time.
_FINAL = re.compile(
    r"final\s{1,4}answer[*_ ]{0,6}(?:is\b)?[*_ ]{0,6}(?:[:：]|(?=\s{0,4}\n))|最终答案[*_ ]{0,6}[是为]?[:：]?",
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"\banswer[*_ ]{0,6}(?:\b(?:is|equals|would be|should be)\b|[:：=])"
    r"|答案[*_ ]{0,6}(?:应该是|应为|是|为)?[:：]?|答[:：]",
    re.IGNORECASE,
)
_TAG = re.compile(r"<(?P<end>/?)(?:final[_ -]?)?answer>", re.IGNORECASE)
_THINKING = {
    **{closing.lower(): True for _, closing in THINKING_TAGS},
    **{opening.lower(): False for opening, _ in THINKING_TAGS},
    **{f"</{name}>": True for name in ("thought", "reasoning", "scratchpad", "reflection")},
    **{f"<{name}>": False for name in ("thought", "reasoning", "scratchpad", "reflection")},
    "[/think]": True,
    "[think]": False,
}
"""Tags of thinking -> whether they close it."""
_THINKING_TAG = re.compile("|".join(map(re.escape, _THINKING)), re.IGNORECASE)
_TURN = re.compile(
    r"^[ \t>#*_]{0,8}(?:(?:new|next|another|follow-?up|bonus)[ \t]{1,3})?"
    r"(?:question|problem|exercise|instruction|example|task|puzzle|human|user|input|q)(?:[ \t]{1,3}#?\d{1,4})?[*_ \t]{0,4}"
    r"(?:[:：]|(?<=\d)[.)])|^[ \t>#*_]{0,8}(?:问题|题目|问|例题?)[ \t]{0,3}\d{0,3}[*_]{0,2}[:：]"
    r"|<\|(?:im_start|im_end|endoftext|eot_id|end_of_text|start_header_id|user|end)\|>|</s>|<end_of_turn>|\[INST\]",
    re.IGNORECASE | re.MULTILINE,
)
"""The beginning of a new question or turn."""
_PREFACE = re.compile(
    r"^(?:[\W_]|(?:sure|okay|ok|certainly|of|course|absolutely|hello|hi|great|here|is|the|my|a|let|lets|me|us|we|s|i|ll|will|"
    r"solve|think|step|by|this|problem|question|solution|answer|first|restate|now|look|at|it|again|read|given)\b)*$",
    re.IGNORECASE,
)
"""Matches text before a question that answers nothing yet: a heading, "Sure, let me solve this."."""
_CLOSING = re.compile(
    r"let me know|hope (?:this|that|it) (?:helps|is (?:correct|clear|helpful))|feel free|(?:if|do|should) you (?:have"
    r"|need|want|"
    r"would like)|any(?:thing| other| more| further)? (?:else|questions?)|happy to help|good luck|thank(?:s| you)|you(?:'"
    r"|’)?re welcome"
    r"|would you like|(?:could|can|may|shall) i (?:help|do|assist|explain)"
    r"|\bi(?:'|’)?(?: a)?m (?:about |only |\d[\d.]*\s?%|very |quite |pretty |fairly )*(?:sure|confident|certain)"
    r"|^\W*(?:\(?\s*)(?:(?:my|overall|total|estimated|self)[ -])?(?:confidence|certainty|tokens?|word count|characters"
    r"|difficulty|sources?|references?|note|n\.?b|p\.?s|disclaimer|check|verif(?:y|ication)|double[- ]check|sanity check"
    r"|remark|hint"
    r"|tip|hashtags?)\b[^:\n]{0,40}[:=]"
    r"|^\W*(?:confidence|certainty|p\.\s?s\b)|\d\s?%\s*(?:sure|confident|certain|confidence|certainty)|如有|希望.{0,6}帮助|置信度|信心",
    re.IGNORECASE,
)
"""Sentences that follow an answer and are not part of it."""
_RETRACTED = re.compile(
    r"\bwait\b|\bscratch that\b|\bon second thoughts?\b|\bapologi[sz]|\bsorry\b|\bcorrection\b|\boops\b|\bhmm+\b"
    r"|\b(?:made|make|was|is|found|contains?)(?: an?| my)? (?:mistake|error)\b|\b(?:that|this|it|which|above|answer|\d"
    r"|\}\$?) "
    r"(?:is|was|would be|must be|seems|looks)n?(?:'t|’t)? (?:not (?:right|correct|the (?:right |correct )?answer|it\b)"
    r"|n't|wrong|"
    r"incorrect|false|a mistake|an error|too (?:high|low|big|small|large|many|much))"
    r"|\bno,? (?:it|that|this)\b|\b(?:let me|let's|i(?:'ll| will| should| need to| must))(?: \w+)? (?:re-?(?!write"
    r"|state)\w+|correct|fix|"
    r"try again)|\bactually,? (?:it|the|that|this|i|no|\$?\d)|\b(?:should|must|ought to) (?:have been|instead be"
    r"|actually be|really be)"
    r"|\bi (?:do not|don't|don’t|cannot|can't|can’t) (?:know|tell|determine|answer|be sure)|\bnot (?:sure|certain)\b"
    r"|\bunsure\b"
    r"|\bnot enough information\b|不对|错了|等等|不确定|抱歉",
    re.IGNORECASE,
)
"""Takes back an answer that precedes it."""
_DENIED_BEFORE = re.compile(
    r"(?:\bnot|n['’]t|\bnever|\bnor|\bneither|\binstead of|\brather than|\bother than|\bunlike|\bexcept(?: for)?"
    r"|\bwithout|\bwrong"
    r"|\bincorrect|\bfalse|不是|并非|≠|\\neq?(?![A-Za-z]))[\s$:({\\\[*]{0,8}(?:(?:equal to|simply|just|be|the answer|exactly"
    r"|=)[\s$({\\\[*]{0,6})?$",
    re.IGNORECASE,
)
_NOT_THE_ANSWER = re.compile(
    r"(?:\bnot|n['’]t|\bnever)\s+(?:\w+\s+){0,2}(?:think|believe|say|claim|mean|sure|certain|know|true|correct|right|case|agree)\b[^.;:!?\n]{0,60}$"
    r"|\b(?:wrong|incorrect|false|mistaken|den(?:y|ies)|doubt|unlikely|impossible|suppose|supposing|imagine|pretend|partial|intermediate"
    r"|tempting|na[iï]ve|whether|unless|if|perhaps|maybe|possibly|possible|alternative|another|other|initial"
    r"|previous)[ \t*_]+(?:\w+[ \t*_]+){0,2}$",
    re.IGNORECASE,
)
"""Before `answer is`: words that deny it or speak of another answer."""
_DENIED_AFTER = re.compile(
    r"^[\s$.)\]\\*}]{0,8}(?:\?\s*no\b|≠|\\neq?\b|(?:is|was|would|can|could|seems|looks)\s*(?:not\b|n['’]t\b|(?:be |to be )?"
    r"(?:wrong|incorrect|false|impossible|too|off|an? (?:mistake|error|wrong))\b))",
    re.IGNORECASE,
)
_BETWEEN_BOXES = re.compile(
    r"[\s$&\\()]{0,12}(?:(?P<or>\bor\b|或)|,\s*(?:and\b|or\b)?|;|\band\b|和|与)[\s$\\()&]{0,12}(?:\\?[A-Za-z]{1,6}[\s]{0,3}=[\s$]{0,4})?",
    re.IGNORECASE,
)
_PART_BEFORE = re.compile(
    r"(?:[\w)\]}%]\s*[-−]|[+*/^_|\d≈~<>≤≥±]|\\(?:times|cdot|div|pm|approx|leq?|geq?|lt|gt)|\\(?:[dt]?frac|sqrt)(?:\{[^{}]*\})?\s*\{|\\(?:sin|cos|tan|log|ln|sqrt))"
    r"[\s({]*$"
)
_PART_AFTER = re.compile(r"^\s*(?:[+*/^]\s*[\w\\({$]|[-−]\s*[\d\\(]|\\(?:pi|times|cdot|div|sqrt|[dt]?frac|pm)|[\dπ√])")
"""A box that is only a part of a formula: 2\\boxed{5}, \\boxed{5}\\pi."""
_OTHER_AFTER = re.compile(
    r"^[\s$)\]\\*}]{0,8}\(?\s*(?:,?\s*(?:or|and|to|maybe|perhaps|possibly|not|but)\b|[-–~/]|或|和|到|至)\W{0,8}\d",
    re.IGNORECASE,
)
"""Right after a box: another number that belongs to the answer."""


def stated_answer(text: str) -> str | None:
    """The answer that `text` states in words or in a box, without markup around it; None if it states none.

    "" if it states one that it denies or takes back, or two in the form that allows only one (`####`).
    """
    statement = find_statement(text)
    return None if statement is None else statement.text


def find_statement(text: str) -> Statement | None:
    """Like `stated_answer`, with what is around the answer in its line."""
    text = answer_part(text)
    strong = [*_tagged(text), *_box_statements(text), *_marked(text)]
    match = _last(_FINAL, text)
    if match:
        strong.append((match.start(), _in_words(text, match)))
    for _, found in sorted(strong, key=lambda item: item[0], reverse=True):
        if found is None:
            return Statement("")
        if found.text:
            weak = _last(_WEAK, found.text)  # "Final Answer: The final answer is 8."
            inner = _statement(found.text, weak.end()) if weak else None
            return Statement(inner.text, found.before, found.after) if inner and inner.text else found
    weak = _last(_WEAK, text)
    found = _in_words(text, weak) if weak else Statement("")
    return Statement("") if found is None else found if found.text else None


def after_thinking(text: str) -> str:
    """The part of `text` after thinking (at most the last 100,000 characters), without solution tags.

    Thinking that is opened and never closed has no part after it.
    """
    start, end = 0, len(text)
    for match in _THINKING_TAG.finditer(text):
        if _THINKING[match[0].lower()]:
            start, end = match.end(), len(text)
        else:
            end = min(end, match.start())
    text = text[max(start, end - MAX_CHARS) : end]
    for tag in SOLUTION_TAGS:
        text = text.replace(tag, "\n")
    return text


def answer_part(text: str) -> str:
    """The part of `text` that can hold its answer: after thinking, before a new question, without closing remarks."""
    text = after_thinking(text)
    for turn in _TURN.finditer(text):
        before = text[: turn.start()].strip()
        if before and not (len(before) < 400 and _PREFACE.match(before)):
            text = before
            break
    head, tail = text[:-MAX_ANSWER_CHARS], text[-MAX_ANSWER_CHARS:]
    lines = tail.split("\n")
    while lines:
        sentences = re.split(r"(?<=[.!?。！？])[ \t]+", lines[-1])
        if re.match(r"\W*(?:p\.\s?s|n\.\s?b)\b", lines[-1], re.IGNORECASE):
            sentences = []
        while sentences and (not sentences[-1].strip(" \t*_-`") or _closes(sentences[-1])):
            sentences.pop()
        lines[-1] = " ".join(sentences)
        if lines[-1].strip() or (len(lines) == 1 and head):
            break
        lines.pop()
    return head + "\n".join(lines)


def _closes(sentence: str) -> bool:
    """Whether a sentence at the end is a closing remark, or a question back."""
    if "\\boxed" in sentence or _FINAL.search(sentence) or _TAG.search(sentence):
        return False
    return bool(_CLOSING.search(sentence)) or bool(
        re.match(r"[^\n]*\b(?:you|your|i|we)\b[^\n]*\?\W*$", sentence, re.IGNORECASE)
    )


def retracted(text: str) -> bool:
    """Whether `text`, which follows an answer, takes it back."""
    return bool(_RETRACTED.search(text[:MAX_ANSWER_CHARS]))


def last_box(text: str) -> tuple[int, str] | None:
    r"""Start and content of the last `\boxed{...}` (or `\fbox`) that is closed and not empty.

    Braces nest; `\{` and `\}` are literal. `\boxed 5` contains 5.
    """
    found = _boxes(text)
    return (found[-1][0], found[-1][2]) if found else None


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of every closed box that is not empty, by start."""
    found: list[tuple[int, int, str]] = []
    opened: list[tuple[int, int] | None] = []
    for match in _BRACES.finditer(text):
        brace, start = match[0], match.start()
        if match["bare"]:
            found.append((start, match.end(), match["bare"].rstrip(".,;")))
        elif brace == "{":
            opened.append(None)
        elif brace == "}":
            box = opened.pop() if opened else None
            inside = text[box[1] : min(start, box[1] + MAX_ANSWER_CHARS)].strip() if box else ""
            if box and inside:
                found.append((box[0], match.end(), inside))
        elif brace.endswith("{") and brace[1] in "bf":
            opened.append((start, match.end()))
    return sorted(found)


def _box_statements(text: str) -> list[tuple[int, Statement | None]]:
    """The last box, with those that are joined to it ("\\boxed{1} or \\boxed{2}"); None if it is denied or taken back."""
    boxes = _boxes(text)
    if not boxes:
        return []
    start, end, inside = boxes[-1]
    for before, before_end, content in reversed(boxes[:-1][-8:]):
        joined = _BETWEEN_BOXES.fullmatch(text[before_end:start]) if before_end <= start < before_end + 40 else None
        if joined is None:
            break
        start, inside = before, f"{content}{' or ' if joined['or'] else ', '}{inside}"
    left = text[max(0, start - AROUND_CHARS) : start].rpartition("\n")[2]
    right = text[end : end + AROUND_CHARS].partition("\n")[0]
    if (
        _DENIED_BEFORE.search(re.sub(r"\\?[\[(]|\$", "", left).rstrip() + " ")
        or _DENIED_BEFORE.search(left)
        or _DENIED_AFTER.match(right)
        or _OTHER_AFTER.match(right)
        or _PART_BEFORE.search(left)
        or _PART_AFTER.match(right)
        or retracted(text[end:])
    ):
        return [(start, None)]
    percent = re.match(r"[\s$]{0,3}\\?%", right)
    minus = re.search(r"(?:^|[^\w)\]}%\s])\s*[-−][\s$]{0,2}$", left) is not None
    return [
        (
            start,
            Statement(
                ("-" if minus else "") + inside + ("%" if percent and inside[-1:].isdigit() else ""), left, right
            ),
        )
    ]


def _marked(text: str) -> list[tuple[int, Statement | None]]:
    """The answer after GSM8K's mark, which ends a solution: two of them with different answers are None."""
    marks = list(_MARK.finditer(text))
    if not marks:
        return []
    first, last = (_statement(text, mark.end()) for mark in (marks[0], marks[-1]))
    return [(marks[-1].start(), last if first and last and first.text == last.text else None)]


def _tagged(text: str) -> list[tuple[int, Statement | None]]:
    """What the last pair of answer tags holds; the closing tag may be missing at the end."""
    tags = list(_TAG.finditer(text))
    opening = next((tag for tag in reversed(tags) if not tag["end"]), None)
    if opening is None:
        return []
    closing = next((tag for tag in tags if tag["end"] and tag.start() >= opening.end()), None)
    inside = text[opening.end() : closing.start() if closing else None].strip()[:MAX_ANSWER_CHARS]
    if _boxes(inside) or _FINAL.search(inside) or _MARK.search(inside) or _WEAK.search(inside):
        return []  # read as a statement in words
    if closing and retracted(text[closing.end() :]):
        return [(opening.start(), None)]
    return [(opening.start(), Statement(inside.strip("*` \n"), "", ""))] if inside else []


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007 - keeps the last match
        pass
    return match


def _in_words(text: str, match: re.Match[str]) -> Statement | None:
    """What follows `The answer is`; None if the words before that deny it, or it is taken back."""
    before = text[max(0, match.start() - AROUND_CHARS) : match.start()]
    return None if _NOT_THE_ANSWER.search(before) else _statement(text, match.end())


def _statement(text: str, start: int) -> Statement | None:
    """The first displayed formula after `start` or, if there is not one, the first non-empty line; None if taken back."""
    rest = text[start : start + 2 * MAX_ANSWER_CHARS].lstrip(" \t\r\n*_`:：")
    for opening, closing in (("$$", "$$"), ("\\[", "\\]")):
        if rest.startswith(opening):
            return Statement(rest[2:].partition(closing)[0].strip())
    line, _, after = _TAG.sub("", rest).partition("\n")
    stated = line.strip().strip("*`").strip().rstrip("!")
    return None if stated and retracted(after) and not _last(_WEAK, after) else Statement(stated)
