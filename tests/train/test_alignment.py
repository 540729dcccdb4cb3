"""Two tokenizations cut into chunks: by examples, by properties on any bytes, and on real tokenizers in many languages."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distill_lab.models.token_bytes import token_bytes
from distill_lab.train.agreement import agreement_lines, agreement_sentence
from distill_lab.train.alignment import OTHER_TEXT, TOO_MANY, Alignment, align
from distill_lab.train.comparison import text_agreement
from tests.other_tokenizer import other_tokenizer

FAST = settings(max_examples=80, deadline=None, derandomize=True)
MULTILINGUAL = (
    "The price of 12,345 apples is 3.50 m²; naïve Größe, über 100 %.",
    "今天天气很好，我们去公园散步吧。東京は大きいです。한국어 문장입니다.",
    "Привет, мир! שלום עולם. مرحبا بالعالم. हिन्दी में पाठ।",
    "🙂👩‍👩‍👧‍👦🇩🇪 e\u0301 \u200d zero\tTab\r\n\n\n  indent\n\tdef f(x):\n\t\treturn x ** 2  # ok",
)


def split(text: bytes, cuts: list[int]) -> list[bytes]:
    ends = [0, *sorted({cut % (len(text) + 1) for cut in cuts} - {0}), len(text)]
    return [text[left:right] for left, right in pairwise(ends) if left < right]


def pieces(tokens: list[bytes], chunks: np.ndarray, number: int) -> list[bytes]:
    """The bytes of each chunk."""
    return [b"".join(tokens[place] for place in np.flatnonzero(chunks == chunk)) for chunk in range(number)]


def bounds(tokens: list[bytes]) -> set[int]:
    return set(accumulate(map(len, tokens), initial=0))


def check(student: list[bytes], teacher: list[bytes], found: Alignment) -> None:
    """What holds of any alignment: chunks in order, of the same text but for white space, on both sides."""
    for chunks in (found.student_N, found.teacher_M):
        kept = chunks[chunks >= 0]
        assert (np.diff(kept) >= 0).all()
        assert set(kept.tolist()) == set(range(found.num_chunks))
    ours, theirs = (
        [piece.strip() for piece in pieces(tokens, chunks, found.num_chunks)]
        for tokens, chunks in ((student, found.student_N), (teacher, found.teacher_M))
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("student", "teacher", "ours", "theirs"),
    [
        ("Hel lo _world", "Hello _wor ld", [0, 0, 1], [0, 1, 1]),
        ("a b c", "a b c", [0, 1, 2], [0, 1, 2]),
        ("", "", [], []),
        ("a", "", [OTHER_TEXT], []),
        ("a", "b", [OTHER_TEXT], [OTHER_TEXT]),
        # A space that only one template adds, as a part of a token and as a token.
        ("The _cat", "_The _cat", [0, 1], [0, 1]),
        ("The _cat", "_ The _cat", [0, 1], [OTHER_TEXT, 0, 1]),
        ("The _cat", "The _cat _", [0, 1], [0, 1, OTHER_TEXT]),
        ("The _cat", "The _cat_", [0, 1], [0, 1]),
        # A think block that only one writes, and a character that one normalizes.
        ("<think> __ </think> __ The _cat", "The _c at", [OTHER_TEXT] * 4 + [0, 1], [0, 1, 1]),
        ("<think> __ </think> __ <b> _c", "<b> _c", [OTHER_TEXT] * 4 + [0, 1], [0, 1]),
        ("a bc d e", "a xy z d e", [0, OTHER_TEXT, 1, 2], [0, OTHER_TEXT, OTHER_TEXT, 1, 2]),
        # White space alone is not the same text.
        ("a _ b", "a __ b", [0, OTHER_TEXT, 1], [0, OTHER_TEXT, 1]),
    ],
)
def test_examples(student: str, teacher: str, ours: list[int], theirs: list[int]) -> None:
    texts, others = ([token.replace("_", " ").encode() for token in text.split()] for text in (student, teacher))
    found = align(texts, others)
    assert found.student_N.tolist() == ours
    assert found.teacher_M.tolist() == theirs
    assert found.num_chunks == max([-1, *ours]) + 1
    check(texts, others, found)


def test_a_chunk_of_too_many_tokens_is_left_out_and_tokens_without_bytes_do_no_harm() -> None:
    letters = [bytes([letter]) for letter in b"abcdefgh"]
    found = align([b"abc", b"defgh"], letters, max_tokens=3)
    assert found.student_N.tolist() == [0, TOO_MANY]
    assert found.teacher_M.tolist() == [0, 0, 0, *[TOO_MANY] * 5]
    assert align([b"abc", b"defgh"], letters, max_tokens=5).num_chunks == 2
    empty = align([b"", b"a", b"", b"b"], [b"a", b"b", b""])
    assert empty.student_N.tolist() == [OTHER_TEXT, 0, 0, 1]
    assert empty.teacher_M.tolist() == [0, 1, 1]


@FAST
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=20), st.lists(st.integers(0, 60), max_size=20))
def test_chunks_tile_any_bytes_and_none_could_be_cut_again(text: bytes, ours: list[int], theirs: list[int]) -> None:
    student, teacher = split(text, ours), split(text, theirs)
    found = align(student, teacher)
    assert b"".join(pieces(student, found.student_N, found.num_chunks)) == text
    assert pieces(student, found.student_N, found.num_chunks) == pieces(teacher, found.teacher_M, found.num_chunks)
    assert found.num_chunks == max(len(bounds(student) & bounds(teacher)) - 1, 0)
    back = align(teacher, student)
    assert (back.student_N.tolist(), back.teacher_M.tolist()) == (found.teacher_M.tolist(), found.student_N.tolist())


@FAST
@given(
    st.binary(max_size=20), st.binary(max_size=8), st.binary(max_size=8), st.binary(max_size=20),
    st.lists(st.integers(0, 50), max_size=20), st.lists(st.integers(0, 50), max_size=20),
)  # fmt: skip
def test_texts_that_differ_in_one_place_are_aligned_around_it(
    before: bytes, left: bytes, right: bytes, after: bytes, ours: list[int], theirs: list[int]
) -> None:
    student, teacher = split(before + left + after, ours), split(before + right + after, theirs)
    found = align(student, teacher)
    check(student, teacher, found)
    if left == right:
        assert found.num_chunks == max(len(bounds(student) & bounds(teacher)) - 1, 0)


@pytest.mark.slow
def test_real_tokenizers_agree_as_far_as_the_bytes_say(shared_data: Path) -> None:
    loaded: dict[str, PreTrainedTokenizerBase] = {
        name: AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name)
        for name in ("qwen2.5", "gpt-neox-20b", "minimind")
    }
    loaded["made here"] = other_tokenizer()
    names = {name: token_bytes(tokenizer) for name, tokenizer in loaded.items()}
    for text in MULTILINGUAL:
        tokens = {
            name: [names[name][id] for id in tokenizer.encode(text, add_special_tokens=False)]
            for name, tokenizer in loaded.items()
        }
        for name, student in tokens.items():
            for other, teacher in tokens.items():
                found = align(student, teacher)
                check(student, teacher, found)
                if b"".join(student) == b"".join(teacher):
                    assert found.num_chunks == len(bounds(student) & bounds(teacher)) - 1, (name, other)
                else:  # both Qwen's and GPT-NeoX's normalize: e and an accent are one character
                    assert "e\u0301" in text
                    assert found.num_chunks > 10
    text = (shared_data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:20_000]
    qwen, neox = loaded["qwen2.5"], loaded["gpt-neox-20b"]
    found = text_agreement(text.split("\n\n"), qwen, neox, names=("neox", "qwen"))
    assert found.student_tokens == found.same + found.parts + sum(found.dropped.values())
    assert (found.shared_tokens, found.dropped) == (40_827, {})
    assert found.compared_bytes == found.text_bytes == len(text.replace("\n\n", "").encode())
    assert found.same / found.student_tokens == pytest.approx(0.88, abs=0.02)
    lines = agreement_lines(found)
    assert lines[0] == "neox and qwen have different tokenizers; what can be compared:"
    assert any("40,827" in line and "27% of the student's" in line and "81% of the teacher's" in line for line in lines)
    assert "are not compared" in agreement_sentence(found)
