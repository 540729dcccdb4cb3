"""Every bookkeeping file, damaged in a thousand ways: refused by name or passed over, and never a traceback."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_lab.commands import report
from distill_lab.config import EngineConfig, ModelConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.evaluate import read_score
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import write_summary
from distill_lab.files import fingerprints
from distill_lab.files.claims import claim, key_path
from distill_lab.files.jsonl import json_line, read_jsonl, write_json, write_jsonl
from distill_lab.files.outputs import work_folder
from distill_lab.generation.generate import _Todo
from distill_lab.generation.request_cache import KEY_BYTES, CacheFile, RequestCache
from distill_lab.grading.grade import Answers, write_resumable
from distill_lab.grading.graders import metric_of
from distill_lab.report.model_card import read_exports
from distill_lab.report.run_student import student_of
from distill_lab.report.run_table import entries_table, entry_lines, read_entry, short_table
from distill_lab.run import Run
from distill_lab.train import checkpoints
from distill_lab.train.training_log import check_is_log
from distill_lab.types import Completion, Counts, Prompt
from tests.helpers import FAMILY, eval_row, finished_run
from tests.mutations import mutations

NUMBER = 1000


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand files need not survive a power failure."""
    monkeypatch.setattr(os, "fsync", lambda number: None)


def try_all(path: Path, use: Callable[[], Any]) -> tuple[int, int]:
    """Use a file in every damaged form; how often it was used and how often refused. Any other error is a failure."""
    whole, used, refused = path.read_bytes(), 0, 0
    for damaged in mutations(whole, NUMBER):
        path.write_bytes(damaged)
        try:
            use()
            used += 1
        except UserError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{path.name} as {damaged[:500]!r}") from error
    path.write_bytes(whole)
    return used, refused


def one_stage(folder: Path, value: int = 1) -> int:
    """A run of one stage; returns what the stage's output says."""

    def work(path: Path) -> Counts:
        write_jsonl(path, [{"value": value}])
        return Counts(3, 1, {"too long": 2})

    with Run.open(folder, recipe="test", config={}) as run:
        path = run.stage("rows", "rows.jsonl", inputs={"value": value}, work=work).path
        run.record("tiny:teacher", {"dtype": "fp32"})
        assert run.seconds("rows") >= 0
    return next(read_jsonl(path))["value"]


def test_run_json(tmp_path: Path) -> None:
    one_stage(tmp_path)
    manifest, rows = (tmp_path / name for name in ("run.json", "rows.jsonl"))
    whole = rows.read_bytes()

    def use() -> None:
        rows.write_bytes(whole)
        assert one_stage(tmp_path) == 1
        assert one_stage(tmp_path, 2) == 2

    used, refused = try_all(manifest, use)
    assert refused > 600 > used > 20


@pytest.mark.slow
def test_run_json_and_summary_json_in_the_list_of_runs(tmp_path: Path) -> None:
    one_stage(tmp_path)
    summary = tmp_path / "summary.json"
    rows = [eval_row("a"), eval_row("b", 0.0)]
    write_jsonl(tmp_path / "student.jsonl", rows)
    score = read_score(tmp_path / "student.jsonl")
    write_summary(summary, summarize("test", 2, scores={"student": score}, metric=metric_of("exact")))
    problems = 0

    def use() -> None:
        nonlocal problems
        entry = read_entry(tmp_path)
        problems += bool(entry.problem)
        assert list(entry_lines([entry], width=80))
        assert entries_table([entry]).csv()
        assert short_table([entry]).markdown()

    used, refused = try_all(tmp_path / "run.json", use)
    assert min(used, refused) > 20
    assert problems == 0
    used, refused = try_all(summary, use)
    assert refused == 0
    assert min(problems, used - problems) > 20, "the run is listed, with the reason"


def test_the_run_of_a_student_that_is_exported_or_served(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run", made=FAMILY / "student")
    for name in ("run.json", "summary.json"):
        used, refused = try_all(folder / name, lambda: student_of(folder))
        assert min(used, refused) > 20
    exported = tmp_path / "export"
    exported.mkdir()
    write_json(exported / "export.json", {"files": [{"path": "a.gguf", "kind": "gguf"}]})
    assert try_all(exported / "export.json", lambda: read_exports(exported))[1] > 500


def test_summary_and_graded_answers_in_the_report(tmp_path: Path) -> None:
    one_stage(tmp_path)
    write_json(
        tmp_path / "summary.json", {"verdict": {}, "gain_ci95": [0, 1], "gain": 0.5, "models": {}, "metric": None}
    )
    (tmp_path / "eval").mkdir()
    write_jsonl(tmp_path / "eval" / "student.jsonl", [eval_row("a"), eval_row("b", 0.0)])
    for path in (tmp_path / "summary.json", tmp_path / "run.json", tmp_path / "eval" / "student.jsonl"):
        _, refused = try_all(path, lambda: report.main(report.Config(run=tmp_path)))
        assert refused > 20


def test_an_outputs_key(tmp_path: Path) -> None:
    out, mine = tmp_path / "out.jsonl", tmp_path / "mine.jsonl"

    def use(value: int = 1) -> None:
        with claim(out, "test", inputs={"value": value}, files=[out], overwrite=value != 1) as claimed:
            if not claimed.done:
                write_jsonl(out, [{"value": value}])
        assert next(read_jsonl(out)) == {"value": value}

    use()
    whole = out.read_bytes()
    mine.write_text("mine")

    def both() -> None:
        out.write_bytes(whole)
        use()
        use(2)

    used, refused = try_all(key_path(out), both)
    assert min(used, refused) > 20
    assert mine.read_text() == "mine"


def test_a_checkpoints_seal_and_the_key_beside_it(tmp_path: Path) -> None:
    out, key = tmp_path / "student", "a" * 64
    checkpoints.keep_only(out, key)
    work = tmp_path / "student.work"
    checkpoint = work / "checkpoint-8"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"w" * 100)
    checkpoints.seal(checkpoint)
    whole = json.loads((checkpoint / checkpoints.SEAL).read_text())

    def damage() -> None:
        found = checkpoints.damage(checkpoint)
        read = checkpoints.read_json(checkpoint / checkpoints.SEAL)
        assert found or read == whole

    assert try_all(checkpoint / checkpoints.SEAL, damage)[1] == 0

    def keep() -> None:
        removed = checkpoints.keep_only(out, key)
        assert removed == [] or not checkpoint.exists()
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "model.safetensors").write_bytes(b"w" * 100)

    assert try_all(work / checkpoints.KEY, keep)[1] == 0


def completions(*contents: str) -> list[Completion]:
    return [Completion(f"p-{number}", 0, each, None, "stop", 3) for number, each in enumerate(contents)]


def test_completions(tmp_path: Path) -> None:
    prompts, path = tmp_path / "prompts.jsonl", tmp_path / "completions.jsonl"
    write_jsonl(prompts, (Prompt(f"p-{n}", [{"role": "user", "content": "hi"}], "4").to_json() for n in range(3)))
    write_jsonl(path, (each.to_json() for each in completions("a", "b", "c")))
    _, refused = try_all(path, lambda: _Todo(prompts, 1).read(path))
    assert refused > 200
    _, refused = try_all(path, lambda: list(Answers(prompts, path).pairs(missing=True)))
    assert refused > 200


def test_eval_rows(tmp_path: Path) -> None:
    path = tmp_path / "student.jsonl"
    write_jsonl(path, [eval_row("a"), eval_row("b", 0.0), eval_row("c", thinking="x")])
    _, refused = try_all(path, lambda: read_score(path))
    assert refused > 200


def test_grades_that_an_interruption_left(tmp_path: Path) -> None:
    path, rows = tmp_path / "graded.jsonl", [{"id": n, "score": 1.0} for n in range(5)]
    left = work_folder(path) / f"{fingerprints.fingerprint(['k'])[:16]}.jsonl"
    write_jsonl(left, rows[:3])
    whole, number = left.read_bytes(), 0
    for damaged in mutations(whole, NUMBER):
        work_folder(path)
        left.write_bytes(damaged)
        write_resumable(path, ["k"], lambda skip: rows[skip:], total=5)
        number += list(read_jsonl(path)) == rows  # every line is an object; a changed value cannot be noticed
        path.unlink(missing_ok=True)
    assert number > 300


def test_training_log_and_digests(tmp_path: Path) -> None:
    log, store = tmp_path / "training_log.jsonl", tmp_path / "digests.json"
    write_jsonl(log, [{"step": 1, "epoch": 0.5, "loss": 2.0, "seconds": 1.0}])
    assert try_all(log, lambda: check_is_log(log))[1] > 200
    write_json(store, {"/a/model.safetensors": [1, 2, 3, 4, 5, "a" * 64]})
    assert try_all(store, lambda: fingerprints._read(store))[1] == 0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "requests.sqlite"


KEYS = [bytes([n]) * KEY_BYTES for n in range(3)]


def opened(notes: list[str]) -> RequestCache:
    return RequestCache(ModelConfig(model="openai:m"), EngineConfig(base_url="http://a/v1"), on_note=notes.append)


def test_the_cache_file(cache: Path) -> None:
    with opened([]) as file:
        file.find(KEYS)
        file.add(zip(KEYS, completions("a", "b", "c"), strict=True))
    whole, off = cache.read_bytes(), 0
    for damaged in mutations(whole, NUMBER):
        for ending in ("-wal", "-shm"):
            cache.with_name(cache.name + ending).unlink(missing_ok=True)
        cache.write_bytes(damaged)
        notes: list[str] = []
        with opened(notes) as file:
            for row in file.find(KEYS).values():
                Completion.from_json({**row, "id": "p", "sample": 0}).content.encode()
            file.add(zip(KEYS, completions("a", "b", "c"), strict=True))
        off += any("off from now on" in note for note in notes)
    assert off > 200


def test_a_row_of_the_cache_with_wrong_content_is_not_handed_out(cache: Path) -> None:
    model = opened([])
    model.find(KEYS)
    model.add([(KEYS[0], completions("the answer")[0])])
    with CacheFile(cache) as file:
        [(key, whole)] = file._db.execute("SELECT key, answer FROM requests").fetchall()
        for damaged in (*mutations(whole, NUMBER), None, 7, 1.5, "text", json_line({"content": "x"})):
            if damaged is not None:
                file._db.execute("UPDATE requests SET answer = ?", (damaged,))
            for row in model.find(KEYS).values():
                completion = Completion.from_json({**row, "id": "p", "sample": 0})
                assert isinstance(completion.content, str)
                assert completion.finish_reason in ("stop", "length")
                assert isinstance(completion.num_tokens, int)
                assert completion.num_tokens >= 0
                assert isinstance(completion.thinking, (str, type(None)))
    with model:
        pass
    assert key
