"""Costs by hand: what requests will cost, what they cost, and that a budget is never exceeded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import EngineConfig, ModelConfig, PriceConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.generation.engines import ServerEngine, load_engine
from distill_lab.generation.generate import generate
from distill_lab.generation.prices import Budget, Spending, announcement, cost, estimate, money, spending, upper_bound
from distill_lab.pipeline.stages import Pipeline
from distill_lab.report.spending import spending_section
from distill_lab.run import Run
from distill_lab.types import Completion, Prompt, Usage
from tests.hostile_server import HostileServer, Reply, answer, prompts

PRICE = PriceConfig(input=2, output=8, cached=0.5)
SAMPLING = SamplingConfig(max_new_tokens=100)
pytestmark = pytest.mark.usefixtures("openai_environment")


def test_the_cost_of_a_request() -> None:
    usage = Usage(1000, 500, cached_tokens=400)
    assert cost(usage, PRICE) == pytest.approx((600 * 2 + 400 * 0.5 + 500 * 8) / 1e6)
    assert cost(Usage(1000, 500, 400, batch=True), PRICE) == pytest.approx(cost(usage, PRICE) / 2)
    assert cost(usage, PriceConfig(input=2, output=8)) == pytest.approx((1000 * 2 + 500 * 8) / 1e6)
    assert cost(usage, PriceConfig()) == 0
    assert [money(amount) for amount in (0, 0.01234, 1, 1234.5)] == ["0.00", "0.0123", "1.00", "1,234.50"]


def test_the_bound_is_never_below_what_a_request_uses() -> None:
    prompt = Prompt("p", [{"role": "user", "content": "äöü" * 10}])
    assert upper_bound(prompt, 7, batch=False) == Usage(60 + 16 + 64, 7, estimated=True)
    assert estimate(60, Completion("p", 0, "x" * 40, None, "stop", 0)) == Usage(15, 10, estimated=True)
    assert estimate(60, Completion("p", 0, "x" * 40, None, "stop", 3)).output_tokens == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input": 1}, "give price.input and price.output together"),
        ({"output": 1}, "give price.input and price.output together"),
        ({"max_cost": 1}, "need price.input and price.output"),
        ({"cached": 1}, "need price.input and price.output"),
        ({"input": -1, "output": 1}, "greater than or equal to 0"),
        ({"input": float("inf"), "output": 1}, "finite"),
    ],
)
def test_prices_that_mean_nothing_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PriceConfig(**values)


def test_what_the_announcement_says() -> None:
    found = announcement(prompts("a" * 400, "b" * 400), SAMPLING, PRICE, batch=False)
    # Two prompts of 400 / 4 + 16 tokens, and twice 100 tokens at the most.
    assert found == "2 requests, about 232 prompt tokens and at most 200 answer tokens: cost 0.0005 to 0.0021"
    limited = PRICE.model_copy(update={"max_cost": 3})
    assert announcement(prompts("a"), SAMPLING, limited, batch=True).endswith(
        "at half the price in batches; stops at 3.00"
    )


def test_a_budget_counts_what_is_under_way() -> None:
    budget = Budget(PRICE.model_copy(update={"max_cost": 0.002}), spent=0.0005)
    bound = Usage(0, 100)
    assert budget.fits(bound)
    budget.send(bound)
    assert not budget.fits(bound)
    budget.settle(bound, Usage(0, 10))
    assert budget.spent == pytest.approx(0.00058)
    assert budget.fits(bound)
    assert Budget(PRICE).fits(Usage(10**9, 10**9))


def fill(folder: Path, server: HostileServer, count: int = 40, **price: float) -> tuple[Path, list[str]]:
    notes: list[str] = []
    rows, out = folder / "prompts.jsonl", folder / "answers.jsonl"
    write_jsonl(rows, (prompt.to_json() for prompt in prompts(*range(count))))
    config = EngineConfig(base_url=server.url, max_concurrency=8, price=PriceConfig(**price))
    try:
        generate(rows, out, lambda: load_engine(ModelConfig(model="openai:m"), config, on_note=notes.append), SAMPLING)
    except UserError as error:
        notes.append(str(error))
    return out, notes


def charge(server: HostileServer, read: int = 50, written: int = 100) -> None:
    usage = {"prompt_tokens": read, "completion_tokens": written}
    server.rule = lambda request: Reply(body={**answer(f"re: {request.text}"), "usage": usage})


def test_a_run_stops_below_its_maximum_and_keeps_what_it_has(server: HostileServer, tmp_path: Path) -> None:
    charge(server)
    out, notes = fill(tmp_path, server, input=2, output=8, max_cost=0.01)
    price = PriceConfig(input=2, output=8)
    paid = spending([out], price)
    assert paid.cost is not None
    # Each answer costs 0.0009, and one that is under way counts with up to 0.00098.
    assert 0.01 - 0.0009 - 0.00098 < paid.cost <= 0.01
    assert len(server.requests) == paid.requests == len(list(read_jsonl(out)))
    assert "engine.price.max_cost 0.01" in notes[-1]
    assert "--max-cost" in notes[-1]
    before = len(server.requests)
    out, notes = fill(tmp_path, server, input=2, output=8, max_cost=0.01)
    assert len(server.requests) <= before + 1
    out, notes = fill(tmp_path, server, input=2, output=8, max_cost=1)
    assert Counter(request.text for request in server.requests) == Counter(str(n) for n in range(40))
    assert str(spending([out], price)).endswith("2,000 prompt and 4,000 answer tokens: cost 0.0360")


def test_tokens_that_a_server_does_not_report_are_estimated(server: HostileServer, tmp_path: Path) -> None:
    server.rule = lambda request: Reply(body=answer("x" * 400, tokens=None))
    out, _ = fill(tmp_path, server, 3, input=2, output=8)
    paid = spending([out], PRICE)
    assert (paid.requests, paid.estimated, paid.output_tokens) == (3, 3, 300)
    assert "3 requests estimated" in str(paid)


def test_without_prices_tokens_are_counted_all_the_same(server: HostileServer, tmp_path: Path) -> None:
    charge(server)
    out, notes = fill(tmp_path, server, 3)
    assert notes == []
    assert spending([out], PriceConfig()) == Spending(3, 150, 0, 300)
    assert str(spending([out], PriceConfig())) == "3 requests, 150 prompt and 300 answer tokens"


def test_a_run_shows_what_it_paid(server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    charge(server)
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, (prompt.to_json() for prompt in prompts(*"abc")))
    engine = EngineConfig(base_url=server.url, price=PriceConfig(input=2, output=8))
    found: list[Any] = []
    for name in ("first", "second"):
        with Run.open(tmp_path / name, recipe="r", config={}) as run:
            pipeline = Pipeline(run, engine=engine)
            assert pipeline.spending() is None
            pipeline.answers("teacher <answers>", ModelConfig(model="openai:m"), path, SAMPLING)
            found.append(pipeline.spending())
    assert len(server.requests) == 3
    assert found[1] is None  # from the cache: the first run paid
    assert found[0].total.cost == pytest.approx(3 * 0.0009)
    section = spending_section(found[0])
    assert "teacher &lt;answers&gt;" in section
    assert "<td>0.0027</td>" in section
    assert spending_section(None) == ""


def test_costs_of_all_stages_count_toward_the_maximum(server: HostileServer, tmp_path: Path) -> None:
    charge(server)
    path = tmp_path / "prompts.jsonl"
    write_jsonl(path, (prompt.to_json() for prompt in prompts(*"abc")))
    engine = EngineConfig(base_url=server.url, price=PriceConfig(input=2, output=8, max_cost=0.004))
    with Run.open(tmp_path / "run", recipe="r", config={}) as run:
        pipeline = Pipeline(run, engine=engine)
        pipeline.answers("teacher answers", ModelConfig(model="openai:m"), path, SAMPLING)
        with pytest.raises(UserError, match=r"so far 0\.0036"):
            pipeline.answers("test answers", ModelConfig(model="openai:m"), path, SAMPLING, output="eval/teacher.jsonl")


def test_only_servers_have_prices_and_batches() -> None:
    from distill_lab.planning.preflight import check_server_settings

    here, there = ModelConfig(model="tiny:teacher"), ModelConfig(model="openai:m")
    for engine in (EngineConfig(batch=True), EngineConfig(price=PRICE)):
        with pytest.raises(UserError, match="is for a model on a server"):
            check_server_settings([here], engine)
        check_server_settings([here, there], engine)
    check_server_settings([here], EngineConfig())
    assert isinstance(load_engine(there, EngineConfig(base_url="http://127.0.0.1:9/v1")), ServerEngine)
