"""Data made from data against a server on a socket: what is kept, what is dropped and why, and whose answer is whose."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig
from distill_lab.data.records import Records, write_prompts
from distill_lab.data.traces import select_traces
from distill_lab.errors import NoData, UserError
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.pipeline.synthesis.jobs.balance import SHARES
from distill_lab.pipeline.synthesis.select import shares, write_balanced, write_repeated
from distill_lab.pipeline.synthesis.settings import SynthesisConfig
from distill_lab.pipeline.synthesis.synthesize import Made, preview, run_directory, synthesize
from distill_lab.training_data.training_set import write_training_set
from tests.hostile_server import HostileServer, Reply, Request, answer
from tests.writing_server import sentence, write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("openai_environment")]

Synthesize = Callable[..., Made]


@pytest.fixture
def writer() -> Iterator[HostileServer]:
    with HostileServer(rule=write) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(server: HostileServer, data: str = "data.jsonl", /, **changes: Any) -> SynthesisConfig:
    given: dict[str, Any] = {
        "model": ModelConfig(model="openai:writer"),
        "data": DataConfig(path=data),
        "engine": EngineConfig(base_url=server.url, max_retries=1, max_concurrency=8),
        **changes,
    }
    return SynthesisConfig(**given)


def rows_of(path: Path = Path("out.jsonl")) -> list[dict[str, Any]]:
    return list(read_jsonl(path))


def question(number: int) -> str:
    return f"Question {number}: {sentence(f'question {number}')}?"


def questions(number: int, **more: Any) -> None:
    write_jsonl(Path("data.jsonl"), ({"question": question(n), **more} for n in range(number)))


def number_in(request: Request) -> int:
    found = re.search(r"Question (\d+):", request.text)
    assert found, request.text
    return int(found[1])


def test_each_answer_is_with_its_row_and_the_others_are_counted(folder: Path, server: HostileServer) -> None:
    questions(12)
    good = "<instruction>Refined {}: {}</instruction>"

    def rule(request: Request) -> Reply:
        number = number_in(request)
        text = good.format(number, sentence(f"refined {number}"))
        first = len(server.asked(request.text)) == 1
        if number == 1 and first:
            return Reply(status=429, headers={"Retry-After": "0.01"})
        if number == 2:
            return Reply(body=answer(text, finish_reason="length"))
        if number == 7 and first:
            return Reply(body=answer("I would rather not."))
        bad = {
            3: "", 4: "no tags", 5: text.removesuffix("</instruction>"), 6: f"{text} {good.format('other', 'words')}",
            8: f"<instruction>{question(8)}</instruction>", 9: good.format(0, sentence("refined 0")),
        }  # fmt: skip
        return Reply(body=answer(bad.get(number, text)))

    server.rule = rule
    made = synthesize("refine", settings(server), Path("out.jsonl"))
    rows = rows_of()
    assert {row["meta"]["synthesis"][0]["instruction"] for row in rows} == {question(n) for n in (0, 1, 7, 10, 11)}
    for row in rows:
        (step,) = row["meta"]["synthesis"]
        number = int(step["instruction"].split()[1].rstrip(":"))
        assert row["messages"] == [{"role": "user", "content": f"Refined {number}: {sentence(f'refined {number}')}"}]
        assert (row["id"], step["from"]) == (f"train-{number}", [f"train-{number}"])
        assert (step["job"], step["template"], step["model"]) == ("refine", "refine/1", "openai:writer")
    reasons = {"cut at the token limit": 1, "empty": 1, "no <instruction>": 1, "damaged <instruction>": 1,
               "several <instruction>": 1, "duplicate": 2}  # fmt: skip
    assert (made.counts.rows_in, made.counts.kept, made.counts.dropped) == (12, 5, reasons)
    # What could not be read was asked twice more, with other seeds; nothing else was.
    asked = [number_in(request) for request in server.requests]
    assert [asked.count(n) for n in range(12)] == [1, 2, 3, 3, 3, 3, 3, 2, 1, 1, 1, 1]
    seeds = {request.body["seed"] for request in server.requests if number_in(request) == 4}
    assert len(seeds) == 3
    # The same again asks nothing and changes nothing.
    before, num_asked = Path("out.jsonl").read_bytes(), len(asked)
    assert synthesize("refine", settings(server), Path("out.jsonl")) == made
    assert (Path("out.jsonl").read_bytes(), len(server.requests)) == (before, num_asked)


def test_expand_shows_other_examples_until_there_are_enough(folder: Path, writer: HostileServer) -> None:
    questions(6)
    plain = write

    def rule(request: Request) -> Reply:
        number = len(writer.requests)
        if number <= 3:  # a copy of an example, a good one, and one that cannot be read
            text = {1: f"<instruction>{question(2)}</instruction>", 2: "<instruction>Say b.</instruction>"}.get(number)
            return Reply(body=answer(text or "hm"))
        return plain(request)

    writer.rule = rule
    config = settings(writer, num_rows=5, num_shown=2, engine=EngineConfig(base_url=writer.url, max_concurrency=1))
    made = synthesize("expand", config, Path("out.jsonl"))
    rows = rows_of()
    assert len(rows) == 5
    assert made.counts.kept == 5
    assert made.counts.dropped == {"duplicate": 1, "no <instruction>": 1}
    assert made.counts.rows_in == len(writer.requests) == 7
    for request in writer.requests:
        shown = re.findall(r"Question \d+: .*", request.text)
        assert len(shown) == len(set(shown)) == 2
    ids = {f"train-{n}" for n in range(6)}
    assert all(len(row["meta"]["synthesis"][0]["from"]) == 2 for row in rows)
    assert all(set(row["meta"]["synthesis"][0]["from"]) <= ids for row in rows)
    assert all("completion" not in row for row in rows)
    with pytest.raises(UserError, match=r"--num-shown 7: the data has only 6 rows"):
        synthesize("expand", settings(writer, num_shown=7), Path("other.jsonl"))


def test_the_seed_decides_what_expand_shows(folder: Path, writer: HostileServer) -> None:
    questions(9)
    first = preview("expand", settings(writer, seed=1))[1]
    assert first == preview("expand", settings(writer, seed=1))[1]
    assert first != preview("expand", settings(writer, seed=2))[1]
    assert not writer.requests
    assert [path.name for path in folder.iterdir()] == ["data.jsonl"]


@pytest.mark.parametrize("column", ["data", "text", "content"])
def test_extract_reads_texts_and_takes_several_samples(folder: Path, writer: HostileServer, column: str) -> None:
    Path("texts.json").write_text(json.dumps([{column: sentence(f"text {n}", 40), "n": n} for n in range(3)]))
    sampling = SamplingConfig(temperature=1, num_samples=2)
    made = synthesize("extract", settings(writer, "texts.json", sampling=sampling), Path("out.jsonl"))
    assert (made.counts.rows_in, made.counts.dropped) == (6, {"duplicate": 3})  # this server writes the same again
    for n, row in enumerate(rows_of()):
        (request,) = {each.text for each in writer.requests if sentence(f"text {n}", 40) in each.text}
        assert row["messages"] == [{"role": "user", "content": f"Say {sentence(request)}"}]
        assert row["completion"] == [{"role": "assistant", "content": f"It is {sentence(request)}."}]
        assert row["meta"]["n"] == n


def test_cot_keeps_thinking_and_gold_and_recipes_read_it(folder: Path, server: HostileServer) -> None:
    questions(4, answer="4")
    server.rule = lambda request: Reply(
        body=[
            answer(f"<think>Step {number_in(request)}.</think>\n\nIt is 4."),
            answer("It is 4.", reasoning_content=f"Hm {number_in(request)}."),
            answer("It is 4."),
            answer("<think>Step 3, and no end"),
        ][number_in(request)]
    )
    made = synthesize("cot", settings(server, max_retries=0), Path("out.jsonl"))
    assert made.counts.dropped == {"no reasoning": 1, "empty": 1}
    first, second = rows_of()
    assert first["completion"] == [{"role": "assistant", "content": "It is 4.", "thinking": "Step 0."}]
    assert second["completion"][0]["thinking"] == "Hm 1."
    assert (first["answer"], first["messages"][0]["content"]) == ("4", question(0))
    # Without tags in the request, a whole answer is a worked solution.
    Path("mine.txt").write_text("Solve {question} step by step.")
    made = synthesize("cot", settings(server, max_retries=0, template=Path("mine.txt")), Path("whole.jsonl"))
    assert made.counts.kept == 3
    assert server.requests[-1].text.startswith("Solve Question")
    assert rows_of(Path("whole.jsonl"))[2]["completion"] == [{"role": "assistant", "content": "It is 4."}]
    assert rows_of(Path("whole.jsonl"))[2]["meta"]["synthesis"][0]["template"].startswith("cot/custom-")
    write_prompts(DataConfig(path="out.jsonl"), Path("prompts.jsonl"))
    assert write_training_set(Path("prompts.jsonl"), Path("train.jsonl")).kept == 2
    assert rows_of(Path("train.jsonl"))[0]["completion"] == first["completion"]


def test_shorten_and_lengthen_keep_the_answer(folder: Path, server: HostileServer) -> None:
    long = f"{sentence('long', 40)}. The answer is 4."
    data: list[dict[str, Any]] = [
        {"question": question(0), "response": f"<think>{sentence('long', 40)}</think>\n\nThe answer is 4."},
        {"question": question(1), "response": long},
        {"question": question(2), "response": long},
        {"question": question(3), "response": long, "reasoning_verbosity": 3},
        {"question": question(4)},
        {"messages": [{"role": "user", "content": question(5)}, {"role": "assistant", "content": "4"}] * 2},
    ]
    write_jsonl(Path("data.jsonl"), data)
    replies = ["It is so.", "So it is. The answer is 4.", "The answer is 5.", f"Indeed, {long}"]
    server.rule = lambda request: Reply(
        body=answer(f"<reasoning>{replies[number_in(request)]}</reasoning>", reasoning_content="I think.")
    )
    made = synthesize("shorten", settings(server, max_retries=0), Path("out.jsonl"))
    reasons = {"no completion": 1, "several turns": 1, "another final answer": 1, "not shorter": 1}
    assert (made.counts.rows_in, made.counts.kept, made.counts.dropped) == (6, 2, reasons)
    first, second = rows_of()
    assert first["completion"] == [{"role": "assistant", "content": "The answer is 4.", "thinking": "It is so."}]
    assert second["completion"] == [{"role": "assistant", "content": "So it is. The answer is 4."}]
    made = synthesize("lengthen", settings(server, max_retries=0), Path("longer.jsonl"))
    assert made.counts.kept == 1
    assert made.counts.dropped["not longer"] == 3
    (row,) = rows_of(Path("longer.jsonl"))
    assert row["messages"][0]["content"] == question(3)
    assert "reasoning_verbosity" not in row["meta"]
    assert "traces" not in row["meta"]


def rated_reply(request: Request) -> Reply:
    number = number_in(request)
    if "how capable a reader" in request.text:
        return Reply(body=answer("unclear" if number == 1 else f"Rating: {number + 3}"))
    if "Check every step" in request.text:
        return Reply(body=answer(f"Rating: {int(number != 2)}"))
    return Reply(body=answer(f"<think>Rating: 9</think>Enough steps.\nRating: {number}"))


def test_ratings_are_in_the_rows_and_system2_selects_by_them(folder: Path, server: HostileServer) -> None:
    forged = "Rating: 9 <score>9</score> ==="
    write_jsonl(
        Path("data.jsonl"),
        ({"question": question(n), "cot": f"<think>{forged} {n}</think>\n\nIt is {n}."} for n in range(5)),
    )
    server.rule = rated_reply
    config = settings(server, min_rating=("reasoning_verbosity=3",), max_retries=0)
    made = synthesize("rate", config, Path("out.jsonl"))
    assert len(server.requests) == 15
    assert made.counts.dropped == {"no readable rating: cognitive_difficulty": 1, "reasoning_verbosity below 3": 2}
    assert made.counts.rows_in == 5
    rows = rows_of()
    names = ("reasoning_verbosity", "cognitive_difficulty", "logical_correctness")
    assert [[row["meta"][name] for name in names] for row in rows] == [[3, 6, True], [4, 7, True]]
    assert made.ratings["reasoning_verbosity"] == {0: 1, 1: 0, 2: 1, 3: 1, 4: 1, **dict.fromkeys(range(5, 10), 0)}
    assert made.ratings["logical_correctness"] == {0: 1, 1: 3}
    assert json.loads((run_directory(Path("out.jsonl")) / "ratings.json").read_text())["logical_correctness"] == {
        "0": 1,
        "1": 3,
    }
    synthesize("rate", settings(server, max_retries=0), Path("all.jsonl"))
    write_prompts(DataConfig(path="all.jsonl"), Path("prompts.jsonl"))
    counts = select_traces(Path("prompts.jsonl"), Path("traces.jsonl"), rv_min=3, cd_min=7)
    assert (counts.kept, counts.dropped) == (1, {"RV below 3": 1, "not verified": 1, "CD below 7": 1})
    # A form that other tools read; the ratings are the levels of the adapter for reasoning traces.
    synthesize("rate", settings(server, max_retries=0, form="instruction"), Path("flat.json"))
    flat = json.loads(Path("flat.json").read_text())
    assert flat[0]["output"].startswith("<think>\n")
    assert flat[0]["reasoning_verbosity"] == 0
    assert [record.prompt.meta["traces"][0]["rv"] for record in Records(DataConfig(path="flat.json"))] == [0, 2, 3, 4]


def test_answers_to_instructions_are_rated_without_their_thinking(folder: Path, writer: HostileServer) -> None:
    write_jsonl(Path("data.jsonl"), [{"instruction": question(0), "output": "<think>secret</think>\n\nFour."}])
    made = synthesize("rate", settings(writer, kind="answer"), Path("out.jsonl"))
    assert len(writer.requests) == 4
    assert all("secret" not in request.text and "Four." in request.text for request in writer.requests)
    assert rows_of()[0]["meta"]["correctness"] is True
    assert set(made.ratings) == {"informativeness", "helpfulness", "generalization", "correctness"}
    mixed = [{"instruction": "a", "output": "<think>b</think>\n\nc"}, {"instruction": "d", "output": "e"}]
    write_jsonl(Path("mixed.jsonl"), mixed)
    with pytest.raises(UserError, match="say what to rate: --kind cot or --kind answer"):
        synthesize("rate", settings(writer, "mixed.jsonl"), Path("mixed.out.jsonl"))


def test_balance_takes_each_type_by_its_share(folder: Path, writer: HostileServer) -> None:
    assert sum(SHARES.values()) == pytest.approx(1, abs=0.001)
    questions(30)
    made = synthesize("balance", settings(writer, repeat=True), Path("out.jsonl"))
    wanted = shares(30)
    assert (wanted["Math"], wanted["Law"]) == (6, 1)
    assert made.counts.rows_in == 30
    assert made.counts.dropped == {"over the share of their type": 30 - made.counts.kept}
    found = [row["meta"]["category"] for row in rows_of()]
    assert sorted(found) == ["Law"] + ["Math"] * 6
    assert len({row["id"] for row in rows_of()}) == 7
    few = [{"id": "a", "messages": [], "meta": {"category": "Math"}}]
    write_jsonl(Path("few.jsonl"), few)
    assert write_balanced(Path("few.jsonl"), Path("kept.jsonl"), seed=0).kept == 1
    write_repeated(Path("kept.jsonl"), Path("repeated.jsonl"), total=18)
    assert [row["id"] for row in rows_of(Path("repeated.jsonl"))] == ["a", "a.2", "a.3", "a.4"]


def test_nothing_overlaps_with_the_test(folder: Path, server: HostileServer) -> None:
    questions(4)
    hidden = f"Say {sentence('hidden')}"
    write_jsonl(Path("test.jsonl"), [{"question": question(1)}, {"question": hidden}])
    server.rule = lambda request: Reply(
        body=answer(
            f"<instruction>{hidden if number_in(request) == 2 else sentence(request.text)}, please.</instruction>"
        )
    )
    config = settings(server, test=DataConfig(path="test.jsonl"))
    made = synthesize("refine", config, Path("out.jsonl"))
    assert [row["id"] for row in rows_of()] == ["train-0", "train-3"]
    assert 1 not in [number_in(request) for request in server.requests]
    assert made.counts.rows_in == 4
    assert sum(made.counts.dropped.values()) == 2


def test_what_people_did_to_the_output_stays(folder: Path, writer: HostileServer) -> None:
    questions(3)
    out = Path("out.jsonl")
    out.write_text("mine\n")
    with pytest.raises(UserError, match="was not written by this command"):
        synthesize("refine", settings(writer), out)
    out.unlink()
    synthesize("refine", settings(writer), out)
    with pytest.raises(UserError, match=r"made with other settings: max_retries \(2, now 1\).*--overwrite"):
        synthesize("refine", settings(writer, max_retries=1), out)
    synthesize("refine", settings(writer, max_retries=1), out, overwrite=True)
    assert len(writer.requests) == 3  # the answers are still there
    out.write_text(out.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match="was changed after this lab wrote it"):
        synthesize("refine", settings(writer, max_retries=1), out)
    with pytest.raises(UserError, match="this file is also an input"):
        synthesize("refine", settings(writer, "data.jsonl"), Path("data.jsonl"))


@pytest.mark.parametrize(
    ("job", "changes", "message"),
    [
        ("improve", {}, "no job 'improve'; choose from balance, cot, expand"),
        ("refine", {"num_rows": 7}, "--num-rows is for expand; remove it from refine"),
        ("cot", {"min_rating": ("a=1",)}, "--min-rating is for rate"),
        (
            "rate",
            {"kind": "cot", "min_rating": ("depth=1",)},
            "no rating 'depth' of cot; there are reasoning_verbosity",
        ),
        ("rate", {"kind": "cot", "min_rating": ("logical_correctness=2",)}, "give a whole number from 0 to 1"),
        (
            "refine",
            {"sampling": SamplingConfig(temperature=1, num_samples=2)},
            "several answers to one request are for",
        ),
    ],
)
def test_senseless_settings_are_refused_before_anything_is_asked(
    folder: Path, writer: HostileServer, job: str, changes: dict[str, Any], message: str
) -> None:
    questions(2)
    with pytest.raises(UserError) as caught:
        synthesize(job, settings(writer, **changes), Path("out.jsonl"))
    assert message in str(caught.value)
    assert not writer.requests
    with pytest.raises(UserError, match=r"must end in \.jsonl or \.json"):
        synthesize("refine", settings(writer), Path("out.txt"))


def test_no_row_left_is_said_and_writes_nothing(folder: Path, server: HostileServer) -> None:
    questions(2)
    with pytest.raises(NoData, match=r"no row is left: 2 in, 0 kept, 2 dropped: no <instruction>; .*rounds has the"):
        synthesize("refine", settings(server, max_retries=0), Path("out.jsonl"))
    assert not Path("out.jsonl").exists()
    with pytest.raises(NoData, match="nothing to ask about: 2 in, 0 kept, 2 dropped: no completion; shorten needs"):
        synthesize("shorten", settings(server), Path("short.jsonl"))


def test_the_tiny_family_writes_nonsense_that_is_dropped_and_solutions_that_are_kept(folder: Path) -> None:
    tiny: dict[str, Any] = {
        "model": ModelConfig(model="tiny:teacher", dtype="fp32"),
        "data": DataConfig(path="tiny:problems", split="test[:3]"),
        "sampling": SamplingConfig(max_new_tokens=200),
        "max_retries": 0,
    }
    with pytest.raises(NoData, match=r"no row is left: 3 in, 0 kept"):
        synthesize("refine", SynthesisConfig(**tiny), Path("out.jsonl"))
    Path("mine.txt").write_text("{question}")
    made = synthesize("cot", SynthesisConfig(**tiny, template=Path("mine.txt")), Path("cot.jsonl"))
    assert made.counts.kept == 3
    rows = rows_of(Path("cot.jsonl"))
    assert all("Final Answer:" in row["completion"][0]["content"] for row in rows)
    assert all(row["answer"] for row in rows)
