"""A chat template that writes today's date writes a run's first date for as long as the run lasts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from distill_lab import chat
from distill_lab.errors import UserError
from distill_lab.files.claims import claim, key_path
from distill_lab.run import Run
from distill_lab.settings import template_date

TEMPLATE = "Today is {{ strftime_now('%Y-%m-%d') }}. {% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(autouse=True)
def no_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(template_date.VARIABLE, raising=False)


def rendered() -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(chat.__file__).parent / "tiny" / "family" / "teacher")
    tokenizer.chat_template = TEMPLATE
    ids = chat.prompt_ids(tokenizer, [{"role": "user", "content": "hello"}])
    return str(tokenizer.decode(ids))


def test_a_template_gets_the_date_of_the_run_also_when_it_is_resumed_later(tmp_path: Path) -> None:
    with template_date.frozen("2031-01-02T23:59:30"), Run.open(tmp_path / "run", recipe="r", config={}):
        assert "2031-01-02" in rendered()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["date"] == "2031-01-02T23:59:30"
    with template_date.frozen("2031-01-03T00:10:00"), Run.open(tmp_path / "run", recipe="r", config={}):
        assert "2031-01-02" in rendered()
        assert template_date.now() == datetime(2031, 1, 2, 23, 59, 30)
    assert template_date.VARIABLE not in os.environ


def test_calls_of_all_spellings_are_dated() -> None:
    template = (
        """{{ strftime_now("%d %b %Y") }}{% if strftime_now is defined %}{{strftime_now( '%H:%M' )}}{% endif %}"""
    )
    with template_date.frozen("2031-01-02T23:59:30"):
        dated = template_date.dated(template)
    assert dated == """{{ "02 Jan 2031" }}{% if strftime_now is defined %}{{"23:59"}}{% endif %}"""


def test_without_a_run_it_is_today() -> None:
    before, after = datetime.now(), template_date.now()
    assert before <= after <= datetime.now()


def test_a_process_that_a_run_starts_has_its_date(tmp_path: Path) -> None:
    with template_date.frozen("2031-01-02T23:59:30"):
        printed = subprocess.check_output(
            [sys.executable, "-c", "from distill_lab.settings import template_date; print(template_date.now())"],
            text=True,
        )
    assert printed.strip() == "2031-01-02 23:59:30"


def test_a_command_keeps_its_date_in_the_key_file(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    dates = []
    for today, inputs in (("2031-01-02", {"a": 1}), ("2031-01-03", {"a": 1}), ("2031-01-04", {"a": 2})):
        with template_date.frozen(today), claim(out, "generate", inputs=inputs, files=[out], overwrite=True):
            dates.append(template_date.now().date().isoformat())
            out.write_text("x\n")
    assert dates == ["2031-01-02", "2031-01-02", "2031-01-04"]
    assert json.loads(key_path(out).read_text())["date"] == "2031-01-04T00:00:00"


@pytest.mark.parametrize("recorded", [None, 7, "yesterday", [], "2031-13-40", ""])
def test_a_damaged_date_counts_as_none(recorded: object, tmp_path: Path) -> None:
    with template_date.frozen("2031-01-02"):
        assert template_date.first_date(recorded) == "2031-01-02T00:00:00"
    for text in ("{", "[1]", "[" * 100_000, '{"dates": 1}'):
        (tmp_path / "x.json").write_text(text)
        assert template_date.recorded_in(tmp_path / "x.json") is None
    assert template_date.recorded_in(tmp_path / "absent.json") is None


def test_a_variable_that_is_not_a_date_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(template_date.VARIABLE, "tomorrow")
    with pytest.raises(UserError, match="DISTILL_LAB_DATE=tomorrow is not a date"):
        template_date.now()
    monkeypatch.setenv(template_date.VARIABLE, "2031-05-06")
    assert "2031-05-06" in rendered()
