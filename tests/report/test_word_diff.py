"""The words in which two texts differ: everything stays readable and escaped, and only what differs is marked."""

from __future__ import annotations

import re
from html import unescape

import pytest

from distill_lab.formatting import shown
from distill_lab.report.word_diff import MAX_WORDS, marked
from tests.made_runs import HOSTILE


def plain(html: str) -> str:
    return unescape(re.sub(r"</?mark>", "", html))


def test_what_only_one_text_has_is_marked() -> None:
    assert marked("the cat sat", "the dog sat") == ("the <mark>cat</mark> sat", "the <mark>dog</mark> sat")
    assert marked("a b c d", "a d") == ("a <mark>b c</mark> d", "a d")
    assert marked("same text", "same text") == ("same text", "same text")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "x"),
        ("a", "b"),
        ("a\n\nb  c", "a b c"),
        (HOSTILE, "and " + HOSTILE),
        ("<b>1</b> x", "x <b>2</b>"),
        ("今天 x", "x"),
    ],
)
def test_no_text_is_lost_or_gets_out(one: str, other: str) -> None:
    for text, html in zip((one, other), marked(one, other), strict=True):
        assert plain(html) == unescape(shown(text))
        assert not re.search(r"<(?!/?mark>)", html)


def test_texts_without_a_common_word_or_too_long_are_not_marked() -> None:
    assert "<mark>" not in "".join(marked("a b", "c d"))
    long = "word " * (MAX_WORDS + 1)
    assert "<mark>" not in "".join(marked(long, "word"))
