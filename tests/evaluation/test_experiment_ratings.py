"""Ratings of an experiment: every set of prompts keeps its own, with the judge that graded it and without instructions."""

from __future__ import annotations

from pathlib import Path

from distill_lab.evaluation.experiment import ExperimentResult, OnPrompts, Reached, VariantResult, write_result
from distill_lab.evaluation.experiment_ratings import rate_all
from distill_lab.evaluation.ratings import make_cards
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.grading.graders import metric_of
from distill_lab.report.rated import find_rated, publish_ratings
from tests.helpers import eval_row

SETS = {"first": "exact", "second": "judge:tiny:teacher"}
ASKED = {"plain": "", "steps": "Step by step."}


def variant(name: str) -> VariantResult:
    reached = Reached(n=3, score=0.5, ci95=(0.1, 0.9), mean_tokens=3.0, cut_share=0.0)
    on = [
        OnPrompts(prompts=prompts, metric=metric_of(grader), models={"student": reached}, by_seed=(0.5,),
                  instruction=ASKED[name])
        for prompts, grader in SETS.items()
    ]  # fmt: skip
    return VariantResult(
        name=name, value=None, about="", runs=("students/x",), rows=5, steps=1, train_seconds=1.0, losses=None,
        teacher=None, num_parameters=None, tokens_per_s=None, latency_p50_s=None, latency_p95_s=None,
        latency_tokens=None, on=tuple(on),
    )  # fmt: skip


def experiment(folder: Path) -> ExperimentResult:
    """Two variants that differ in their instruction, on two sets of prompts, of which a judge graded the second."""
    answers: dict[str, dict[str, str]] = {}
    for prompts in SETS:
        for name, instruction in ASKED.items():
            path = f"eval/{prompts}/{name}.jsonl"
            rows = [
                eval_row(
                    f"p{n}",
                    prompt=[
                        {"role": "user", "content": f"{prompts} {n}" + (f"\n{instruction}" if instruction else "")}
                    ],
                    output=f"{name} {n}",
                )
                for n in range(3)
            ]
            write_jsonl(folder / path, rows)
            answers.setdefault(prompts, {})[name] = path
    found = ExperimentResult(
        name="x", title="X", question="X?", axis="x", ordered=False, shows=(), preset="tiny", setup=(), seeds=1,
        variants=(variant("plain"), variant("steps")), differences=(), conclusion=(), next_steps=(), notes=(),
        examples=(), answers=answers,
    )  # fmt: skip
    write_result(folder / "experiment.json", found)
    return found


def test_every_set_of_prompts_keeps_its_ratings_and_its_judge(tmp_path: Path) -> None:
    result = experiment(tmp_path)
    path = tmp_path / "ratings.jsonl"
    for prompts, rating in (("first", 2), ("second", 4)):
        rated = find_rated(tmp_path, prompts=prompts)
        cards = make_cards(rated.answers, seed=0, number=9, instructions=rated.instructions)
        assert not any("Step by step" in card.prompt for card in cards)
        before = list(read_jsonl(path)) if path.is_file() else []
        write_jsonl(
            path, [*before, *({"rater": "me", "id": c.id, "answer": c.digest, "rating": rating} for c in cards)]
        )
        found = publish_ratings(tmp_path, rated)
        assert found is not None
        assert found.models["steps"].mean == rating
    again = rate_all(result, tmp_path)
    assert {prompts: each.models["plain"].mean for prompts, each in again.items()} == {"first": 2, "second": 4}
    assert again["first"].agreement is None
    assert again["second"].agreement is not None
    assert again["second"].agreement.judge == "tiny:teacher"
    page = (tmp_path / "report.html").read_text()
    assert "Rated by people: first" in page
    assert "Rated by people: second" in page
