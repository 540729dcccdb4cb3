"""words.py: texts that are the same for comparisons, and texts that are not."""

from __future__ import annotations

import unicodedata

import pytest

from distill_lab.data.words import one_text, width, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Tom’s price: $1,000.50 - 3 = ?", ["toms", "price", "1000.50", "-", "3", "="]),
        ("小明有3个，２个。", ["小", "明", "有", "3", "个", "2", "个"]),
        ("- item 5\n- well-known", ["item", "5", "wellknown"]),
        ("x^2 - y/3, 50 %", ["x", "^", "2", "-", "y", "/", "3", "50", "%"]),
        ("1,2,3 and 1,5", ["1", "2", "3", "and", "1,5"]),
        ("and/or **bold** Straße", ["and", "or", "bold", "strasse"]),
        ("3 × 4 − 2 ≤ 5 😀😀", ["3", "×", "4", "-", "2", "≤", "5", "😀", "😀"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("a\x00b\x01c", ["a", "b", "c"]),
        ("?!", []),
    ],
)
def test_words(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-5", "5"), ("3 - 5", "3 + 5"), ("0.5", "5"), ("12 3", "1 23"), ("50%", "50"), ("x < y", "x > y"), ("1,5", "15"),
        ("2 * 3", "2 / 3"),
    ],
)  # fmt: skip
def test_signs_that_change_the_meaning_stay(one: str, other: str) -> None:
    assert one_text(words(one)) != one_text(words(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5kg", "5 kg"), ("well-known", "well known"), ("don’t", "dont"), ("3-5", "3 – 5"), ("ＡＢＣ１", "abc 1"),
        ("KIZ", "kız"), ("İyi", "iyi"),
    ],
)  # fmt: skip
def test_spellings_of_the_same(one: str, other: str) -> None:
    assert one_text(words(one)) == one_text(words(other))


@pytest.mark.parametrize("text", ["naïve café", "가나다 라마", "Ångström", "ﬁnal №5"])
def test_unicode_forms_are_one(text: str) -> None:
    forms = [one_text(words(unicodedata.normalize(form, text))) for form in ("NFC", "NFD", "NFKC", "NFKD")]  # pyright: ignore[reportArgumentType]
    assert len(set(forms)) == 1


def test_letters_of_scripts_without_spaces_are_less_than_a_word() -> None:
    assert [width(letter) for letter in ("果", "か", "ท", "word", "a", "5")] == [0.5, 0.5, 0.25, 1, 1, 1]
