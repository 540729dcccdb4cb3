"""Experiments on the tiny family, on a few rows each: figures, pages, what is shared, and what a second call does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill_lab.activity import ProgressReporter
from distill_lab.commands.experiment import find_recipe
from distill_lab.evaluation.experiment import ExperimentResult, read_result
from distill_lab.evaluation.ratings import make_cards
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.pipeline.experiments.arms import Options
from distill_lab.pipeline.experiments.definition import Experiment, read_experiment
from distill_lab.pipeline.experiments.sweep import run_experiment
from distill_lab.report.experiment_page import write_experiment, write_index
from distill_lab.report.rated import find_rated, publish_ratings
from tests.helpers import well_formed

pytestmark = pytest.mark.slow
QUICK = {"train": {"num_epochs": 1}, "measure": False, "test_sampling": {"max_new_tokens": 24}}


class Notes(ProgressReporter):
    """Keeps what is said and which stages ran."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ran: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stage(self, title: str) -> None:
        self.ran.append(title)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quick(name: str, *, variants: int | None = None, **settings: Any) -> Experiment:
    """A shipped experiment, with a short training."""
    experiment = read_experiment(name)
    preset = experiment.presets["tiny"]
    own = preset.settings | QUICK | settings
    chosen = preset.variants if variants is None else preset.variants[:variants]
    return experiment.model_copy(
        update={"presets": {"tiny": preset.model_copy(update={"settings": own, "variants": chosen})}}
    )


def run(experiment: Experiment, folder: Path, *, watch: Notes | None = None, **options: Any) -> ExperimentResult:
    chosen = Options(preset="tiny", scale=options.pop("scale", 0.01), **options)
    return run_experiment(experiment, chosen, folder, find=find_recipe, watch=watch or Notes())


def test_data_size_from_yaml_to_page(tmp_path: Path) -> None:
    experiment, notes = quick("a"), Notes()
    result = run(experiment, tmp_path, watch=notes)
    assert [variant.name for variant in result.variants] == ["500 rows", "2,000 rows", "8,000 rows"]
    assert [variant.on[0].models["student"].n for variant in result.variants] == [8, 8, 8]
    rows = [variant.rows for variant in result.variants]
    assert rows == sorted(rows)
    assert rows[0] <= 8 < rows[2] <= 80
    steps = [(each.first, each.second) for each in result.differences]
    assert steps[:3] == [("500 rows", "2,000 rows"), ("2,000 rows", "8,000 rows"), ("500 rows", "8,000 rows")]
    assert steps[3:] == [(f"the base student ({name})", name) for name in ("500 rows", "2,000 rows", "8,000 rows")]
    assert result.conclusion
    assert any("A trial on 1% of the rows" in line for line in result.setup)
    assert any("nothing about Qwen" in line for line in result.notes)
    assert read_result(tmp_path / "a" / "experiment.json") == result
    # The teacher's answers to 500 rows are among those to 2,000, and so on: each is generated once.
    answers = [variant.teacher.answers for variant in result.variants if variant.teacher]
    for before, after in ((answers[0], answers[1]), (answers[1], answers[2])):
        assert f"{before} of {after} from the cache" in notes.notes
    for page in (write_experiment(tmp_path / "a"), write_index(tmp_path)):
        text = page.read_text()
        well_formed(text)
        assert "<svg" in text
        assert "Data size" in text
    for run_dir in (link for variant in result.variants for link in variant.runs):
        assert (tmp_path / run_dir / "report.html").is_file()

    again = Notes()
    assert run(experiment, tmp_path, watch=again) == result
    assert again.ran == []


def test_a_second_student_asks_the_teacher_nothing_again(tmp_path: Path) -> None:
    first, second = Notes(), Notes()
    run(quick("e", variants=1), tmp_path, watch=first)
    assert not [note for note in first.notes if "from the cache" in note]
    result = run(quick("e"), tmp_path, watch=second)
    assert [variant.name for variant in result.variants] == ["1 layer", "2 layers"]
    paid = {variant.runs[0]: variant for variant in result.variants}
    assert len(paid) == 2
    # The second run's teacher stages found every answer: those to learn from, and those to the test.
    answered = result.variants[1].teacher
    assert answered is not None
    found = [note for note in second.notes if note.endswith("from the cache")]
    assert f"{answered.answers:,} of {answered.answers:,} from the cache" in found
    assert "8 of 8 from the cache" in found
    small, large = (variant.on[0].models["student"] for variant in result.variants)
    assert small.num_steps is not None
    assert large.num_steps is not None
    assert {each.measure for each in result.differences} == {"score", "share of answers in several steps"}
    model = json.loads((tmp_path / "models" / "tiny-student-layers-0" / "config.json").read_text())
    assert model["num_hidden_layers"] == 1


def test_prompting_asks_one_student_in_three_ways(tmp_path: Path) -> None:
    notes = Notes()
    result = run(quick("f"), tmp_path, watch=notes)
    assert len({variant.runs for variant in result.variants}) == 1
    assert notes.ran.count("student") == 1
    asked = []
    # Teacher and base were asked in three ways, too, so none of their answers stands beside all variants.
    assert list(result.answers["problems"]) == ["none", "step by step", "facts first"]
    for path in result.answers["problems"].values():
        rows = list(read_jsonl(tmp_path / "f" / path))
        asked.append(rows[0]["prompt"][-1]["content"])
    assert (
        asked[1] == asked[0] + "\nPlease think step by step and explain your reasoning before giving the final answer."
    )
    assert asked[2] == asked[0] + "\nFirst list the known facts, then compute, then decide."
    assert "teacher" in result.variants[0].on[0].models
    assert len(result.differences) == 2 * 3 + 3


def test_failures_are_counted_and_listed_and_two_seeds_are_trained(tmp_path: Path) -> None:
    result = run(quick("c"), tmp_path, seeds=2)
    (variant,) = result.variants
    assert len(variant.runs) == 2
    assert len(variant.on[0].by_seed) == 2
    assert variant.on[0].models["student"].score == pytest.approx(sum(variant.on[0].by_seed) / 2)
    (counts,) = variant.failures
    rows = list(read_jsonl(tmp_path / "c" / "failed.jsonl"))
    assert counts.failed == len(rows)
    assert sum(counts.kinds.values()) == sum(len(row["kinds"]) for row in rows) >= counts.failed
    assert {row["by"] for row in rows} <= {"rules"}
    assert any("the base student" in each.first for each in result.differences)
    assert any("failed" in line for line in result.conclusion)
    well_formed(write_experiment(tmp_path / "c").read_text())


def test_own_answers_thresholds_and_other_tasks(tmp_path: Path) -> None:
    own, new = run(quick("b"), tmp_path).variants
    assert own.teacher is None
    assert new.teacher is not None
    assert new.teacher.answers >= new.rows
    assert [each.prompts for each in own.on] == ["test", "likeness to the teacher"]
    assert own.on[1].metric.similarity
    assert "teacher" not in own.on[1].models

    strict = run(quick("d", variants=2), tmp_path)
    rows = [variant.rows for variant in strict.variants]
    assert rows[0] > rows[1] > 0

    other = run(quick("g", variants=1), tmp_path)
    assert [each.prompts for each in other.variants[0].on] == ["instructions", "word problems", "languages"]
    assert other.variants[0].runs == new.runs, "the students of b and g are one"
    text = write_index(tmp_path).read_text()
    well_formed(text)
    assert [letter for letter in "ABCDEFG" if f">{letter}. " in text] == ["B", "D", "G"]


def test_open_answers_are_likeness_or_a_judges_grades_and_ratings_join_them(tmp_path: Path) -> None:
    experiment = quick("c")
    preset = experiment.presets["tiny"]
    prompts = [{"name": "instructions", "data": {"path": "prompts:instructions", "split": "train[:4]"}}]
    preset = type(preset).model_validate(preset.model_dump() | {"prompts": prompts})
    experiment = experiment.model_copy(update={"presets": {"tiny": preset}})
    result = run(experiment, tmp_path, scale=0.01)
    assert result.variants[0].on[0].metric.similarity
    assert any("the likeness to the reference text" in line for line in result.conclusion)
    assert any("does not measure quality" in line for line in result.notes)

    rated = find_rated(tmp_path / "c")
    assert set(rated.answers) == {"teacher", "base", "System 1"}
    cards = make_cards(rated.answers, seed=0, number=2)
    write_jsonl(
        tmp_path / "c" / "ratings.jsonl", [{"rater": "me", "id": c.id, "answer": c.digest, "rating": 2} for c in cards]
    )
    found = publish_ratings(tmp_path / "c", rated)
    assert found is not None
    assert found.models["System 1"].mean == 2
    assert "Rated by people" in (tmp_path / "c" / "report.html").read_text()
    assert run(experiment, tmp_path, scale=0.01).ratings == {"instructions": found}

    judged = run(experiment, tmp_path, scale=0.01, judge="tiny:student")
    assert judged.variants[0].on[0].metric.name.startswith("judge score")
    assert any("Judge of open answers: tiny:student" in line for line in judged.setup)
