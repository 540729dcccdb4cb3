"""Whatever rows, stages and answers come in whatever order: files, runs and cache say what a simple model of them says."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import DataError, UserError
from distill_lab.files.claims import claim
from distill_lab.files.fingerprints import fingerprint
from distill_lab.files.jsonl import JsonlAppender, read_jsonl, whole_rows, write_jsonl
from distill_lab.formatting import clean
from distill_lab.generation.request_cache import RequestCache
from distill_lab.run import Run
from distill_lab.types import Completion, Counts, Prompt

# All health checks are off: they fail on a busy machine, and no test asserts a time.
fast = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4), max_size=6)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: None)


@contextmanager
def folder() -> Iterator[Path]:
    """A new folder for each example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@fast
@given(ROWS, ROWS, st.integers(0, 10_000))
def test_rows_come_back_after_any_cut(first: list[dict[str, Any]], more: list[dict[str, Any]], cut: int) -> None:
    with folder() as place:
        path = place / "rows.jsonl"
        assert write_jsonl(path, first) == len(first)
        assert list(read_jsonl(path)) == first
        content = path.read_bytes()[: cut % (path.stat().st_size + 1)]
        path.write_bytes(content)
        whole = first[: content.count(b"\n")]
        with suppress(DataError):  # what is left may look like no row at all; then nothing is read
            assert list(whole_rows(path)) == whole
        with JsonlAppender(path) as file:
            file.append(more)
        assert list(read_jsonl(path)) == whole + more


@fast
@given(VALUES, VALUES)
def test_equal_values_have_equal_fingerprints(one: Any, other: Any) -> None:
    assert fingerprint(one) == fingerprint(one)
    if fingerprint(one) == fingerprint(other):
        assert one == other


@fast
@given(TEXT)
def test_clean_text_is_printable_and_stays_clean(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    cleaned.encode()
    assert all(
        letter.isprintable() or letter in "\n\u200c\u200d" or letter.isspace() or ord(letter) > 0x7F
        for letter in cleaned
    )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["stage", "killed", "edit", "remove", "move", "mine"]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 2),
    ),
    max_size=10,
)


@fast
@given(STEPS)
def test_a_stages_output_is_always_that_of_its_inputs(steps: list[tuple[str, str, int]]) -> None:
    with folder() as place:
        run_in, mine = place / "run", set[str]()
        for kind, name, value in steps:
            path = run_in / f"{name}.jsonl"
            if kind == "edit" and path.exists():
                path.write_text('{"edited": 1}\n')
            elif kind == "remove":
                path.unlink(missing_ok=True)
            elif kind == "move" and run_in.exists():
                shutil.move(run_in, place / "moved")
                run_in = place / "moved" if run_in.name == "run" else run_in
                shutil.move(run_in, place / "run")
                run_in = place / "run"
            elif kind == "mine" and run_in.exists():
                (run_in / f"mine-{value}").write_text("mine")
                mine.add(f"mine-{value}")
            elif kind in ("stage", "killed"):
                stage(run_in, name, value, killed=kind == "killed")
        assert all((run_in / name).read_text() == "mine" for name in mine)


def stage(run_in: Path, name: str, value: int, *, killed: bool) -> None:
    """Run a stage of three rows; a kill comes after one. A finished stage has what a fresh one would have."""

    def work(path: Path) -> Counts:
        with JsonlAppender(path) as file:
            for number in range(sum(1 for _ in read_jsonl(path)), 3):
                file.append([{"value": value, "number": number}])
                if killed:
                    raise KeyboardInterrupt
        return Counts(3, 3)

    with suppress(KeyboardInterrupt, UserError), Run.open(run_in, recipe="r", config={}) as run:
        made = run.stage(name, f"{name}.jsonl", inputs={"value": value}, work=work)
        assert list(read_jsonl(made.path)) == [{"value": value, "number": number} for number in range(3)]


@fast
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from(["", "edit", "foreign"])), max_size=8))
def test_an_output_is_never_another_inputs(steps: list[tuple[int, bool, str]]) -> None:
    with folder() as place:
        out, foreign = place / "out.jsonl", False
        for value, overwrite, before in steps:
            if before == "edit" and out.exists() and not foreign:
                out.write_text('{"edited": 1}\n')
            if before == "foreign" and not out.exists():
                out.write_text("notes of a year")
                foreign = True
            try:
                with claim(out, "c", inputs={"value": value}, files=[out], overwrite=overwrite) as claimed:
                    if not claimed.done:
                        write_jsonl(out, [{"value": value}])
            except UserError:
                pass
            else:
                assert list(read_jsonl(out)) == [{"value": value}]
            if foreign:
                assert out.read_text() == "notes of a year"


ANSWERS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), TEXT, st.sampled_from(["stop", "length", "error"])), max_size=12
)


@fast
@given(ANSWERS, st.integers(1, 4))
def test_the_cache_is_a_dictionary_of_answers(answers: list[tuple[int, int, str, Any]], sessions: int) -> None:
    sampling, model = SamplingConfig(num_samples=2), ModelConfig(model="openai:m")
    prompts = [Prompt(f"p-{n}", [{"role": "user", "content": str(n)}]) for n in range(4)]
    expected: dict[bytes, tuple[str, str]] = {}
    with folder() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_LAB_CACHE", str(place))
        notes: list[str] = []
        for session in range(sessions):
            with RequestCache(model, EngineConfig(base_url="http://a/v1"), on_note=notes.append) as cache:
                keys = [key for prompt in prompts for key in cache.keys(prompt, sampling)]
                assert len(set(keys)) == 8
                found = cache.find(keys)
                assert {key: (row["content"], row["finish_reason"]) for key, row in found.items()} == expected
                for number, sample, content, reason in answers[session::sessions]:
                    key = keys[2 * number + sample]
                    cache.add([(key, Completion(f"p-{number}", sample, content, None, reason, 1))])
                    if reason != "error":
                        expected[key] = content, reason
        assert not any("off" in note for note in notes)
