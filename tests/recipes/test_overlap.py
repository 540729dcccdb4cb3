"""Test and training apart in every recipe: 25 planted near duplicates of 25 are left out before the teacher is asked.

The run is stopped at the stage after; `tests/data/test_contamination.py` has the rules.
"""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig, ModelConfig
from distill_lab.errors import NoData
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.pipeline.stages import Pipeline
from distill_lab.report.overlap import overlap_note, overlap_section
from tests.helpers import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "distill_lab" / "recipes").glob("[a-z]*.py"))
ADDED = ["Please take care.", "The weather is nice.", "Show the result.", "It was a Monday.", "Think first."]
PEOPLE = "Amara Bruno Chidi Dagny Elif Farid Greta Hamza Ilse Jorge Kenji Lucia".split()
PLACES = "harbor bakery orchard museum library stadium airport castle vineyard clinic".split()
GOODS = "lanterns scarves barrels violins carpets anchors kettles saddles telescopes candles".split()
DEEDS = "carries hides paints repairs ships polishes counts wraps borrows measures".split()


def question(draw: random.Random) -> str:
    """A problem with words of its own, so that two of them share little."""
    name, place, goods, deeds = draw.choice(PEOPLE), draw.choice(PLACES), draw.choice(GOODS), draw.sample(DEEDS, 3)
    numbers = [draw.randint(2, 99) for _ in range(3)]
    return (
        f"{name} {deeds[0]} {numbers[0]} {goods} behind the {place} and {deeds[1]} {numbers[1]} {draw.choice(GOODS)} "
        f"at the {draw.choice(PLACES)}. Then {draw.choice(PEOPLE)} {deeds[2]} {numbers[2]} of the {goods}. What is left?"
    )


def planted(texts: list[str]) -> list[list[dict[str, str]]]:
    """Five changes of each kind: case, spacing, punctuation, system prompt, and a changed word or an added sentence."""
    rows = []
    for number, text in enumerate(texts):
        words = text.split()
        words[number % 7 + 4] = "somehow"
        changed = [
            text.upper(), "  ".join(words if number % 2 else text.split()) + "\n", text.replace(".", " ").strip("?"),
            text, f"{ADDED[number // 5]} {text}" if number % 2 else f"{text} {ADDED[number // 5]}",
        ][number % 5]  # fmt: skip
        system = [{"role": "system", "content": "You are a calm tutor."}] if number % 5 == 3 else []
        rows.append([*system, {"role": "user", "content": changed}])
    return rows


class Stop(Exception):
    """The recipe has its training prompts."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_leaves_out_25_of_25(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    texts = list(dict.fromkeys(question(draw) for _ in range(260)))[:225]
    test, training = tmp_path / "test.jsonl", tmp_path / "training.jsonl"
    answer = {"role": "assistant", "content": "Final Answer: 4"}
    write_jsonl(test, ({"messages": [{"role": "user", "content": text}, answer], "answer": "4"} for text in texts[:25]))
    rows = [[{"role": "user", "content": text}] for text in texts[25:]] + planted(texts[:25])
    draw.shuffle(rows)
    write_jsonl(training, ({"messages": [*messages, answer], "answer": "4"} for messages in rows))
    found: dict[str, Any] = {}
    original = Pipeline.training_prompts

    def stop(self: Pipeline, *arguments: Any, **settings: Any) -> Path:
        found["path"], found["counts"] = original(self, *arguments, **settings), self.overlap
        raise Stop

    monkeypatch.setattr(Pipeline, "training_prompts", stop)
    module = importlib.import_module(f"distill_lab.recipes.{recipe}")
    config = module.PRESETS["tiny"].model_copy(
        update={"data": DataConfig(path=str(training)), "test": DataConfig(path=str(test))}
        | ({"relabel": True} if "relabel" in module.Config.model_fields else {})
    )
    with pytest.raises(Stop):
        module.run(config, tmp_path / "run")
    counts = found["counts"]
    assert (counts.rows_in, counts.kept, sum(counts.dropped.values())) == (225, 200, 25)
    assert len(list(read_jsonl(found["path"]))) == 200
    # Counted in run.json, with the pairs in a file.
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    assert stages["prompts"]["counts"]["dropped"] == counts.dropped
    pairs = list(read_jsonl(tmp_path / "run" / "overlap.jsonl"))
    assert len(pairs) == 25
    assert len({pair["test_id"] for pair in pairs}) == 25
    assert overlap_note(counts).startswith("25 of 225 training prompts overlap with the test")
    assert overlap_section(counts, tmp_path / "run" / "overlap.jsonl").count("<article") >= 3


def test_the_setting_turns_it_off_and_no_row_left_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill_lab.recipes import system1

    text = question(random.Random(0))
    for name, content in (("test", text), ("training", text.upper())):
        answer = {"role": "assistant", "content": "4"}
        write_jsonl(tmp_path / f"{name}.jsonl", [{"messages": [{"role": "user", "content": content}, answer]}])
    config = system1.PRESETS["tiny"].model_copy(
        update={
            name: DataConfig(path=str(tmp_path / f"{file}.jsonl"))
            for name, file in (("data", "training"), ("test", "test"))
        }
    )
    with pytest.raises(NoData, match="--overlap-words 0"):
        system1.run(config, tmp_path / "run")

    def stop(*arguments: Any, **settings: Any) -> Path:
        raise Stop

    monkeypatch.setattr(Pipeline, "answers", stop)
    with pytest.raises(Stop):
        system1.run(config.model_copy(update={"overlap_words": 0}), tmp_path / "run")
    assert len(list(read_jsonl(tmp_path / "run" / "prompts.jsonl"))) == 1


@pytest.mark.slow
def test_distill_train_leaves_out_rows_of_a_test(tmp_path: Path) -> None:
    from distill_lab.commands import train
    from distill_lab.config import TrainConfig

    draw = random.Random(2)
    texts = [question(draw) for _ in range(30)]
    write_jsonl(tmp_path / "test.jsonl", ({"question": text, "answer": "4"} for text in texts[:5]))
    rows = [
        {"prompt": messages, "completion": [{"role": "assistant", "content": "4"}]} for messages in planted(texts[:5])
    ]
    rows += [
        {"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": "4"}]}
        for text in texts[5:]
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    config = train.Config(
        student=ModelConfig(model="tiny:student"), rows=tmp_path / "rows.jsonl", out=tmp_path / "out",
        test=DataConfig(path=str(tmp_path / "test.jsonl")), train=TrainConfig(max_steps=1, validation_fraction=0),
    )  # fmt: skip
    train.main(config)
    assert list(read_jsonl(tmp_path / "out.rows.jsonl")) == rows[5:]
    assert [pair["id"] for pair in read_jsonl(tmp_path / "out.overlap.jsonl")] == [0, 1, 2, 3, 4]
    train.main(config)  # nothing to do
