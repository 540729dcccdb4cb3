"""Failures are sorted by what the answers say: short ones word by word, long ones by numbers, names, content and form."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill_lab.config import EngineConfig, PriceConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import EvalRow
from distill_lab.evaluation.failures import FORM, INVENTED, MISSING, OTHER, count_kinds, failure_kinds, find_failures
from distill_lab.evaluation.judged_failures import judge_failures, read_kinds
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from tests.helpers import eval_row
from tests.hostile_server import HostileServer, Reply, answer

LONG = (
    "Photosynthesis uses light to make sugar from carbon dioxide and water. Oxygen is released, and the sugar stores the "
    "energy of the light for the plant."
)


def row(output: str, gold: str, prompt: str = "Sort these words from A to Z: pear, cat", **fields: object) -> EvalRow:
    messages = [{"role": "user", "content": prompt}]
    return EvalRow.from_json(eval_row("p", 0.0, output=output, answer=gold, prompt=messages, **fields))


@pytest.mark.parametrize(
    ("output", "kinds"),
    [
        ("dog, pear", (INVENTED, MISSING)),
        ("cat", (MISSING,)),
        ("pear, cat", (FORM,)),
        ("Cat, Pear", (FORM,)),
        ("cat pear", (FORM,)),
        ("cat, pear", ()),
        ("cat, pear, elephant", (INVENTED,)),
    ],
)
def test_short_answers_are_compared_word_by_word(output: str, kinds: tuple[str, ...]) -> None:
    assert failure_kinds(row(output, "cat, pear"), None) == kinds


@pytest.mark.parametrize(
    ("output", "kinds"),
    [
        (LONG, ()),
        ("Plants use light to make sugar from carbon dioxide and water, and release oxygen; it stores energy.", ()),
        ("It was found by Albert Miller in 1873. " + LONG, (INVENTED,)),
        ("Plants do it.", (MISSING,)),
        ("Plants do it.\n" * 4, (MISSING, FORM)),
        (f"```\n{LONG}", (FORM,)),
    ],
)
def test_long_answers_are_compared_by_facts_content_and_form(output: str, kinds: tuple[str, ...]) -> None:
    assert failure_kinds(row(output, LONG, "What is photosynthesis?"), None) == kinds


def test_a_cut_answer_and_missing_code_are_matters_of_form() -> None:
    text = "Here is a function of one line that sums the even numbers of a list:"
    code = f"{text}\n```python\nsum(n for n in x if n % 2 == 0)\n```"
    asked = "Write a Python function that sums the even numbers."
    assert failure_kinds(row(code, code, asked), None) == ()
    assert failure_kinds(row(code.replace("```python\n", "").replace("\n```", ""), code, asked), None) == (FORM,)
    assert failure_kinds(row(LONG, LONG, "?", finish_reason="length"), None) == (FORM,)


def test_graded_answers_fail_against_the_teacher_and_likeness_by_rules_alone(tmp_path: Path) -> None:
    def write(name: str, rows: list[tuple[str, float, str]]) -> Path:
        found = [eval_row(key, score, output=text, answer="cat, pear") for key, score, text in rows]
        write_jsonl(tmp_path / name, found)
        return tmp_path / name

    student = write(
        "s.jsonl", [("a", 0.0, "cat"), ("b", 1.0, "cat, pear"), ("c", 0.0, "pear"), ("d", 0.4, "cat, pear")]
    )
    teacher = write(
        "t.jsonl", [("a", 1.0, "cat, pear"), ("b", 1.0, "cat, pear"), ("c", 0.0, "pear"), ("d", 1.0, "cat, pear")]
    )
    assert find_failures(student, teacher, graded=True) == {"a": (MISSING,), "d": (OTHER,)}
    assert find_failures(student, teacher, graded=False) == {"a": (MISSING,)}
    assert find_failures(student, None, graded=True).keys() == {"a", "c", "d"}
    counts = count_kinds({"a": (MISSING,), "d": (OTHER, FORM)})
    assert counts == {INVENTED: 0, MISSING: 1, FORM: 1, OTHER: 1}


@pytest.mark.parametrize(
    ("reply", "kinds"),
    [
        ("It is wrong.\nKinds: invented, missing", (INVENTED, MISSING)),
        ("Kinds: form\nIt is late.\n**Kinds:** other", (OTHER,)),
        ("<think>Kinds: form</think>It is fine.", ()),
        ("I cannot say.", ()),
    ],
)
def test_a_judges_kinds_are_read_from_the_last_line_that_names_some(reply: str, kinds: tuple[str, ...]) -> None:
    assert read_kinds(reply) == kinds


def test_a_judge_that_names_no_kind_changes_nothing(tmp_path: Path) -> None:
    rows = {"p": (row("cat", "cat, pear"), None)}
    engine, replies = EngineConfig(engine="transformers"), tmp_path / "replies.jsonl"
    assert judge_failures("tiny:student", rows, engine, replies=replies) == {}
    assert len(list(read_jsonl(replies))) == 1
    assert judge_failures("tiny:student", {}, EngineConfig(), replies=replies) == {}


@pytest.mark.usefixtures("openai_environment")
@pytest.mark.slow
def test_a_judge_is_paid_once_for_each_failure_and_up_to_the_maximum(server: HostileServer, tmp_path: Path) -> None:
    usage = {"prompt_tokens": 50, "completion_tokens": 100}
    server.rule = lambda request: Reply(body={**answer("Wrong.\nKinds: form"), "usage": usage})
    rows = {f"p{n}": (row(f"cat {n}", "cat, pear"), None) for n in range(6)}
    replies, notes = tmp_path / "replies.jsonl", list[str]()

    def judged(max_cost: float | None) -> dict[str, tuple[str, ...]]:
        price = PriceConfig(input=2.0, output=8.0, max_cost=max_cost)
        engine = EngineConfig(base_url=server.url, max_concurrency=1, price=price)
        return judge_failures("openai:m", rows, engine, replies=replies, on_note=notes.append)

    # A reply costs 0.0009; what a request may cost at most is far more, so the limit stops after some of them.
    with pytest.raises(UserError, match=r"max[-_]cost"):
        judged(0.0085)
    paid = len(server.requests)
    assert 0 < paid < 6
    assert judged(None) == dict.fromkeys(rows, (FORM,))
    assert len(server.requests) == 6
    assert any(note.startswith("paid for sorting failures by openai:m: 6 requests") for note in notes)
    judged(None)
    assert len(server.requests) == 6
