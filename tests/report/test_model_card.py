"""The model card: what a student was made from, how good it is and how to run it; nothing of this machine, no edit lost."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import ModelConfig
from distill_lab.evaluation.summary import summarize
from distill_lab.report._licenses import UNKNOWN, card_head, license_of_data, license_of_model
from distill_lab.report.model_card import card, short_name, write_run_card
from distill_lab.report.publish import published
from distill_lab.report.run_student import read_run, student_of
from distill_lab.run import Run
from tests.helpers import finished_run, model_folder


def read_card(folder: Path) -> str:
    path = write_run_card(folder)
    assert path is not None
    assert path == folder / "student" / "README.md"
    return path.read_text(encoding="utf-8")


def test_it_says_what_the_student_is_and_how_good_with_intervals(tmp_path: Path) -> None:
    text = read_card(finished_run(tmp_path / "run"))
    assert "# tiny:student, distilled from tiny:teacher\n" in text
    assert "| Data | tiny:instructions, `distill[:800]` |" in text
    assert "| Training rows | 790 |" in text
    assert "| Student | 80.0% | 70.0% to 88.0% |" in text
    assert "exact match on 60 test prompts" in text
    assert "keeps 88.9% of the teacher's score (95% interval 80.0% to 97.0%)" in text
    assert "+25.0 points (95% interval +10.0 to +40.0, p = 0.003)" in text
    assert "learning rate 2e-05" in text
    assert "| teacher | tiny:teacher | apache-2.0 |" in text
    head = card_head(text)
    assert head["tags"] == ["distillation", "qwen-distillation-lab", "system1"]
    assert head["pipeline_tag"] == "text-generation"
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    ast.parse(code)
    assert "enable_thinking=False" in code


def test_names_of_the_hub_are_in_its_head_and_licenses_from_cards(tmp_path: Path) -> None:
    base, teacher = model_folder(tmp_path / "base"), model_folder(tmp_path / "teacher")
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: qwen-research\n---\n# Base\n")
    (teacher / "README.md").write_text("---\nlicense: [mit, apache-2.0]\n---\n")
    data = {"path": "me/data", "split": "train"}
    run = finished_run(tmp_path / "run", student={"model": str(base)}, teacher={"model": str(teacher)}, data=data)
    text = read_card(run)
    assert "| base student | base | qwen-research |" in text
    assert "| teacher | teacher | mit, apache-2.0 |" in text
    assert f"| data | me/data | {UNKNOWN} |" in text
    head = card_head(text)
    assert (head["license"], head["datasets"]) == ("qwen-research", ["me/data"])
    assert "base_model" not in head
    hub = finished_run(tmp_path / "hub", student={"model": "Qwen/Qwen2.5-0.5B-Instruct"})
    head = card_head(read_card(hub))
    assert (head["base_model"], head["base_model_relation"]) == ("Qwen/Qwen2.5-0.5B-Instruct", "finetune")
    assert "license" not in head
    assert "datasets" not in head


def test_no_path_key_or_address_of_this_machine_is_in_it(tmp_path: Path) -> None:
    secret = tmp_path / "home" / "sara" / "private"
    data = secret / "rows.jsonl"
    data.parent.mkdir(parents=True)
    data.write_text("{}")
    run = finished_run(
        tmp_path / "run",
        data={"path": str(data), "split": "train"},
        student={"model": str(model_folder(secret / "base"))},
        teacher={"model": "openai:big"},
        engine={"base_url": "http://10.1.2.3:8000/v1"},
    )
    summary = json.loads((run / "summary.json").read_text())
    summary["notes"] = [f"Speed not measured: {secret} is gone", "10% of the answers were cut"]
    (run / "summary.json").write_text(json.dumps(summary))
    text = read_card(run)
    assert "sara" not in text
    assert str(tmp_path) not in text
    assert "10.1.2.3" not in text
    assert "rows.jsonl" in text
    assert "10% of the answers were cut" in text
    assert f"| teacher | openai:big | {UNKNOWN} |" in text


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    name = 'a|b <script>x</script>\n# c\x1b[31m: "yaml'
    run = finished_run(tmp_path / "run", data={"path": name, "split": "train|x"})
    text = read_card(run)
    assert "<script>" not in text
    assert "\x1b" not in text
    assert not re.search(r"^# c", text, re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("| Data ")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 3
    assert card_head(text)["library_name"] == "transformers"


def test_a_run_without_scores_says_so_and_similarity_is_no_quality(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    found = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(
        json.dumps(found | {"models": {}, "metric": None, "retention": None, "gain": None})
    )
    assert "This student was not scored." in read_card(run)
    metric = {"grader": "overlap", "name": "ROUGE-L overlap", "short": "ROUGE-L", "similarity": True}
    (run / "summary.json").write_text(json.dumps(found | {"metric": metric, "retention": None, "retention_ci95": None}))
    text = read_card(run)
    assert "how alike two texts are, not how good" in text
    assert "keeps" not in text


def test_an_edited_card_stays(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    read_card(run)
    path = run / "student" / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace("# tiny", "# My tiny"), encoding="utf-8")
    assert write_run_card(run) is None
    assert "# My tiny" in path.read_text(encoding="utf-8")


def test_the_card_is_no_reason_to_train_again(tmp_path: Path) -> None:
    """A finished student with a card is skipped; with other inputs its directory is made again, card and all."""
    folder = finished_run(tmp_path / "run")
    read_card(folder)
    made: list[int] = []

    def work(path: Path) -> None:
        made.append(1)
        shutil.copytree(model_folder(tmp_path / f"made{len(made)}"), path)

    config = read_run(folder)[0]["config"]
    with Run.open(folder, recipe="system1", config=config) as run:
        run.stage("student", "student", inputs={}, work=work)
        assert not made
        run.stage("student", "student", inputs={"rows": 2}, work=work)
    assert made == [1]
    assert not (folder / "student" / "README.md").exists()


def test_every_recipe_writes_it_with_its_summary(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    with Run.open(folder, recipe="system1", config=read_run(folder)[0]["config"]) as run:
        published(run, lambda speeds: summarize("system1", 0, scores={}), None)
    assert "This student was not scored." in (folder / "student" / "README.md").read_text()


@pytest.mark.parametrize("chosen", [1, 2])
def test_a_recipe_with_rounds_has_the_student_that_its_summary_chose(chosen: int, tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "run")
    config = read_run(folder)[0]["config"]
    with Run.open(folder, recipe="system1", config=config) as run:
        work: Any = lambda path: shutil.copytree(model_folder(tmp_path / "second"), path) and None  # noqa: E731
        run.stage("student 2", "iteration-2/student", inputs={}, work=work)
    places = {1: folder / "student", 2: folder / "iteration-2" / "student"}
    summary = json.loads((folder / "summary.json").read_text()) | {"student": str(Path("elsewhere") / places[chosen])}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert student_of(folder) == ModelConfig(model=str(places[chosen]))


def test_licenses_are_what_a_card_states(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model")
    for text, expected in (
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\n---\n", UNKNOWN),
        ("---\nlicense: [\n---\n", UNKNOWN),
        ("---\n- a\n---\n", UNKNOWN),
        ("# no head\nlicense: mit\n", UNKNOWN),
    ):
        (model / "README.md").write_text(text)
        assert license_of_model(str(model)) == expected, text
    assert license_of_data(str(tmp_path / "rows.jsonl")) == UNKNOWN
    assert license_of_model("me/not-in-the-cache") == UNKNOWN


def test_short_names() -> None:
    names = {
        "Qwen/Qwen3-8B": "Qwen/Qwen3-8B", "/data/models/base": "base", "runs/first/student": "first",
        "openai:gpt": "openai:gpt", "tiny:teacher": "tiny:teacher", "my/rows.jsonl": "my/rows.jsonl",
    }  # fmt: skip
    assert {name: short_name(name) for name in names} == names


def test_a_model_by_itself_has_a_card_without_scores() -> None:
    text = card({}, {}, model="Qwen/Qwen3-0.6B", kind="gguf")
    assert card_head(text)["base_model_relation"] == "quantized"
    assert "Scores" not in text
    assert "llama-cli" in text
