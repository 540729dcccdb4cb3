"""A judge on a server costs money: shown before and after, stopped at the maximum, and no reply is paid for twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill_lab import cli
from distill_lab.activity import ProgressReporter
from distill_lab.config import EngineConfig, ModelConfig, PriceConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.prices import spending
from distill_lab.grading.grade import Tally, grade
from distill_lab.grading.graders import grading, replies_path
from distill_lab.pipeline.proof import ask_alike, evaluate_models
from distill_lab.pipeline.stages import Pipeline
from distill_lab.run import Run
from distill_lab.types import Completion
from tests.hostile_server import HostileServer, Reply, Request, answer, prompts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("openai_environment")]

PRICE = {"input": 2.0, "output": 8.0}
READ, WRITTEN = 50, 100
COST = (READ * 2 + WRITTEN * 8) / 1e6
"""Of each request."""
NUM = 30


def is_asked_for_a_grade(request: Request) -> bool:
    return request.text.startswith("Grade an answer")


def verdicts(request: Request) -> Reply:
    """A teacher that answers, and a judge that grades by the answer's number; both are paid."""
    usage = {"prompt_tokens": READ, "completion_tokens": WRITTEN}
    if not is_asked_for_a_grade(request):
        return Reply(body={**answer(f"re: {request.text}"), "usage": usage})
    number = int(request.text.split("re: ")[1].split("\n")[0])
    return Reply(body={**answer(f"Well.\nGrade: {1 + number % 5}"), "usage": usage})


class Notes(ProgressReporter):
    """Keeps what it is to say."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def note(self, text: str) -> None:
        self.notes.append(text)


def files(folder: Path) -> tuple[Path, Path]:
    """Prompts, and a local model's answers to them."""
    asked, answers = folder / "prompts.jsonl", folder / "answers.jsonl"
    write_jsonl(asked, (prompt.to_json() for prompt in prompts(*range(NUM))))
    write_jsonl(answers, (Completion(f"p-{n}", 0, f"re: {n}", None, "stop", 3).to_json() for n in range(NUM)))
    return asked, answers


def judged(folder: Path, server: HostileServer, notes: list[str], **price: float) -> Tally:
    engine = EngineConfig(base_url=server.url, max_concurrency=8, price=PriceConfig(**price))
    with grading("judge:openai:m", engine) as judge:
        return grade(
            folder / "prompts.jsonl", folder / "answers.jsonl", folder / "graded.jsonl", judge, on_note=notes.append
        )


def test_costs_are_said_before_and_after_and_nothing_is_paid_for_twice(server: HostileServer, tmp_path: Path) -> None:
    server.rule = verdicts
    files(tmp_path)
    notes: list[str] = []
    first = judged(tmp_path, server, notes, **PRICE)
    assert first.score == pytest.approx(0.5)
    assert notes[0].startswith(f"judge:openai:m: {NUM} requests, about ")
    assert notes[0].endswith("a reply without a verdict is requested again, at most twice")
    assert (
        notes[-1]
        == f"paid for grades by judge:openai:m: {NUM} requests, 1,500 prompt and 3,000 answer tokens: cost 0.0270"
    )
    rows = (tmp_path / "graded.jsonl").read_bytes()
    assert judged(tmp_path, server, notes, **PRICE) == first
    assert len(server.requests) == NUM
    assert (tmp_path / "graded.jsonl").read_bytes() == rows
    replies = list(read_jsonl(replies_path(tmp_path / "graded.jsonl")))
    assert sorted(Counter(row["content"] for row in replies).values()) == [6] * 5


def test_a_judge_stops_below_the_maximum_and_goes_on_with_a_higher_one(server: HostileServer, tmp_path: Path) -> None:
    server.rule = verdicts
    files(tmp_path)
    notes: list[str] = []
    limit = 0.02
    with pytest.raises(UserError, match=r"engine\.price\.max_cost 0\.02 .*higher --max-cost"):
        judged(tmp_path, server, notes, **PRICE, max_cost=limit)
    assert not (tmp_path / "graded.jsonl").exists()
    paid = spending([replies_path(tmp_path / "graded.jsonl")], PriceConfig(**PRICE))
    assert paid.requests == len(server.requests)
    assert 0 < paid.requests < NUM
    assert paid.cost is not None
    assert paid.cost == pytest.approx(paid.requests * COST)
    assert paid.cost <= limit
    # The same again asks nothing: what was paid before counts.
    with pytest.raises(UserError, match="so far"):
        judged(tmp_path, server, notes, **PRICE, max_cost=limit)
    assert len(server.requests) == paid.requests
    assert judged(tmp_path, server, notes, **PRICE, max_cost=1).ok == NUM
    assert set(Counter(request.text for request in server.requests).values()) == {1}
    assert len(server.requests) == NUM


def test_replies_without_a_verdict_are_paid_for_and_kept_too(server: HostileServer, tmp_path: Path) -> None:
    usage = {"prompt_tokens": READ, "completion_tokens": WRITTEN}
    server.rule = lambda request: Reply(body={**answer("I would rather not say."), "usage": usage})
    files(tmp_path)
    notes: list[str] = []
    assert judged(tmp_path, server, notes, **PRICE).unparseable == NUM
    assert len(server.requests) == 3 * NUM
    assert f"{3 * NUM} requests" in notes[-1]
    assert judged(tmp_path, server, notes, **PRICE).unparseable == NUM
    assert len(server.requests) == 3 * NUM


def test_a_reply_that_a_kill_tore_is_asked_for_again(server: HostileServer, tmp_path: Path) -> None:
    server.rule = verdicts
    files(tmp_path)
    whole = judged(tmp_path, server, [])
    place = replies_path(tmp_path / "graded.jsonl")
    place.write_bytes(place.read_bytes()[:-20])
    assert judged(tmp_path, server, []) == whole
    assert len(server.requests) == NUM + 1
    assert len(list(read_jsonl(place))) == NUM


def test_another_judge_or_answer_is_another_request(server: HostileServer, tmp_path: Path) -> None:
    server.rule = verdicts
    asked, answers = files(tmp_path)
    judged(tmp_path, server, [])
    with grading("judge:openai:other", EngineConfig(base_url=server.url)) as judge:
        grade(asked, answers, tmp_path / "graded.jsonl", judge)
    assert len(server.requests) == 2 * NUM
    rows = list(read_jsonl(answers))
    write_jsonl(answers, [rows[0] | {"content": "re: 7 "}, *rows[1:]])
    judged(tmp_path, server, [])
    assert len(server.requests) == 2 * NUM + 1


def test_the_teachers_and_the_judges_costs_are_one_sum(server: HostileServer, tmp_path: Path) -> None:
    server.rule = verdicts
    path, _ = files(tmp_path)
    notes: list[str] = []

    def run(max_cost: float) -> Any:
        engine = EngineConfig(base_url=server.url, max_concurrency=4, price=PriceConfig(**PRICE, max_cost=max_cost))
        with Run.open(tmp_path / "run", recipe="r", config={}, watch=Notes(notes)) as opened:
            pipeline = Pipeline(opened, engine=engine)
            answers = pipeline.answers(
                "teacher answers", ModelConfig(model="openai:m"), path, SamplingConfig(max_new_tokens=100)
            )
            pipeline.graded("grades", path, answers, "judge:openai:m")
            return pipeline.spending()

    # The teacher alone costs 0.027, which leaves 0.013 for a judge whose requests may cost 0.01 each.
    with pytest.raises(UserError, match="so far"):
        run(0.04)
    graded = [request for request in server.requests if is_asked_for_a_grade(request)]
    assert 0 < len(graded) < NUM
    assert len(server.requests) * COST <= 0.04
    found = run(1)
    assert len(server.requests) == 2 * NUM
    assert {name: stage.requests for name, stage in found.stages.items()} == {
        "teacher answers": NUM,
        "grades": NUM,
    }
    assert found.total.cost == pytest.approx(2 * NUM * COST)
    assert any(note.startswith("paid for grades by judge:openai:m") for note in notes)


def test_a_proof_counts_what_its_judge_costs(server: HostileServer, tmp_path: Path) -> None:
    server.rule = verdicts
    path, _ = files(tmp_path)
    engine = EngineConfig(base_url=server.url, price=PriceConfig(**PRICE))
    models = ask_alike({"teacher": ModelConfig(model="openai:m")}, SamplingConfig(max_new_tokens=100))
    for _ in range(2):  # the second time nothing is asked
        with Run.open(tmp_path / "run", recipe="r", config={}) as run:
            pipeline = Pipeline(run, engine=engine)
            summary = evaluate_models(pipeline, models, path, grader="judge:openai:m", measure_speed=False)
        assert len(server.requests) == 2 * NUM
        assert summary.spending is not None
        assert summary.spending.stages["grades of the teacher"].requests == NUM
        assert summary.spending.total.cost == pytest.approx(2 * NUM * COST)


def test_commands_count_the_judge_too(
    server: HostileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server.rule = verdicts
    asked, answers = files(tmp_path)
    prices = ["--engine.base-url", server.url, "--engine.price.input", "2", "--engine.price.output", "8"]
    graded = ["grade", "--prompts", str(asked), "--completions", str(answers), "--out", "graded.jsonl"]
    assert cli.main([*graded, "--grader", "judge:openai:m", *prices, "--max-cost", "0.02"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "engine.price.max_cost 0.02" in told
    assert cli.main([*graded, "--grader", "judge:openai:m", *prices, "--max-cost", "1"]) == 0
    assert "paid for grades by judge:openai:m: 30 requests" in " ".join(capsys.readouterr().out.split())
    assert len(server.requests) == NUM
    # A price without a model on a server, and batches, which a judge does not take, are refused.
    other = [*graded[:-1], "other.jsonl"]
    assert cli.main([*other, "--grader", "exact", *prices]) == 2
    assert "no model is asked" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*other, "--grader", "judge:openai:m", *prices, "--engine.batch"]) == 2
    assert "not asked in batches" in " ".join(capsys.readouterr().err.split())
    # A local model may have a judge on a server.
    data = tmp_path / "data.jsonl"
    write_jsonl(data, ({"messages": [{"role": "user", "content": f"re: {n}"}], "answer": "x"} for n in range(3)))
    server.rule = lambda request: Reply(body=answer("Grade: 3"))
    flags = [
        "--model",
        "tiny:student",
        "--data",
        str(data),
        "--engine",
        "transformers",
        "--sampling.max-new-tokens",
        "4",
    ]
    evaluated = ["eval", *flags, "--grader", "judge:openai:m", *prices, "--out", "eval.jsonl"]
    for _ in range(2):
        assert cli.main(evaluated) == 0
    number = len(server.requests) - NUM
    assert number <= 3  # an answer that was cut is not judged
    assert json.loads((tmp_path / "eval.jsonl").read_text().splitlines()[0])["grade"]["status"] in ("ok", "unparseable")
    assert len(list(read_jsonl(tmp_path / "eval.judge.jsonl"))) == number
