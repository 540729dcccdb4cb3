"""The label report: a matrix to be added up by hand, worst labels first, live lines, and the command that prints it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from distill_lab.config import SamplingConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.evaluate import evaluate
from distill_lab.evaluation.labels import LiveLines, item_lines, label_report, predictions, render_label_report
from distill_lab.evaluation.summary import summarize
from distill_lab.files.jsonl import write_json, write_jsonl
from distill_lab.generation.generate import generate
from distill_lab.report.labels import labels_section
from distill_lab.types import Completion, Prompt

pytestmark = pytest.mark.slow

LABELS = ["de", "en", "ot"]
# gold label, what the model wrote
ASKED = [
    ("de", "de"),
    ("de", "de."),
    ("de", "en"),
    ("en", "EN"),
    ("en", "en"),
    ("ot", "en"),
    ("ot", "I do not know"),
    ("ot", "de or en"),
]


def items(folder: Path, asked: Sequence[tuple[str, str]] = ASKED, labels: list[str] | None = LABELS) -> Path:
    """An eval file as the lab makes it."""
    meta = {"labels": labels} if labels else {}
    prompts = [
        Prompt(f"t-{number}", [{"role": "user", "content": f"text <b>{number}</b>"}], gold, meta)
        for number, (gold, _) in enumerate(asked)
    ]
    answers = [Completion(f"t-{number}", 0, said, None, "stop", 3) for number, (_, said) in enumerate(asked)]
    write_jsonl(folder / "prompts.jsonl", (prompt.to_json() for prompt in prompts))
    write_jsonl(folder / "answers.jsonl", (answer.to_json() for answer in answers))
    evaluate(folder / "prompts.jsonl", folder / "answers.jsonl", folder / "student.jsonl", "label")
    return folder / "student.jsonl"


def test_the_matrix_adds_up(tmp_path: Path) -> None:
    report = label_report(items(tmp_path))
    assert report.rows == ("de", "en", "ot")
    assert report.columns == ("de", "en", "ot", "?")
    assert report.matrix == ((2, 1, 0, 0), (0, 2, 0, 0), (0, 1, 0, 2))
    assert (report.n, report.correct, report.parsed) == (8, 4, 6)
    assert (report.accuracy, report.parse_rate) == (0.5, 0.75)
    assert [(each.label, each.correct, each.total) for each in report.per_label] == [
        ("ot", 0, 3), ("de", 2, 3), ("en", 2, 2)]  # fmt: skip
    assert [(each.predicted, each.text) for each in report.per_label[1].errors] == [("en", "text <b>2</b>")]


def test_the_json_has_the_matrix_both_ways(tmp_path: Path) -> None:
    path = items(tmp_path)
    write_json(tmp_path / "results.json", label_report(path).to_json() | {"predictions": predictions(path)})
    found = json.loads((tmp_path / "results.json").read_text())
    matrix = found["confusion_matrix"]
    for gold, counts in zip(matrix["rows"], matrix["array"], strict=True):
        for said, number in zip(matrix["columns"], counts, strict=True):
            assert matrix["table"][gold].get(said, 0) == number
    assert sum(map(sum, matrix["array"])) == found["num_samples"] == 8
    assert found["worst"] == ["ot", "de", "en"]
    assert (found["num_unparseable"], found["parse_rate"], found["correct"]) == (2, 0.75, 4)
    assert [row["prediction"] for row in found["predictions"]] == ["de", "de", "en", "en", "en", "en", None, None]
    assert [row["correct"] for row in found["predictions"]].count(True) == 4


def test_without_a_list_other_words_are_other_and_spelling_does_not_count(tmp_path: Path) -> None:
    report = label_report(items(tmp_path, [("De", "de"), ("de", "klingon"), ("en", "de")], None))
    assert report.rows == ("De", "en")
    assert report.columns == ("De", "en", "other")
    assert report.matrix == ((1, 0, 1), (1, 0, 0))
    listed = label_report(items(tmp_path, [("de", "ot")]), LABELS)
    assert (listed.rows, listed.columns, listed.matrix) == (("de",), ("de", "en", "ot"), ((0, 0, 1),))


def test_lines_and_text(tmp_path: Path) -> None:
    path = items(tmp_path)
    lines = list(item_lines(path))
    assert lines[0] == "+ [1/8] Pred: de | GT: de | Acc: 1/1 (100.0%) | text <b>0</b>"
    assert lines[2] == "- [3/8] Pred: en | GT: de | Acc: 2/3 ( 66.7%) | text <b>2</b>"
    assert lines[7] == "- [8/8] Pred: ? | GT: ot | Acc: 4/8 ( 50.0%) | text <b>7</b>"
    text = render_label_report(label_report(path))
    assert "accuracy 50.00% (4/8), parse rate 75.00% (2 unparseable)" in text
    order = [text.index(line) for line in ("  ot    0.0%", "  de   66.7%", "  en  100.0%")]
    assert order == sorted(order)
    assert "1. ot: 0.0% (0/3)\n     said en: text <b>5</b>" in text
    rows = [line for line in text.splitlines() if line.startswith("ot")]
    assert rows[0].split() == ["ot", "|", ".", "1", ".", "2", "|", "3"]
    assert all(len(line) < 120 for line in text.splitlines())


def test_many_items_line_up_and_long_texts_are_cut(tmp_path: Path) -> None:
    path = items(tmp_path, [("de", "de")] * 1200)
    assert next(item_lines(path)).startswith("+ [   1/1200] ")
    prompts = [Prompt("t-0", [{"role": "user", "content": "word\n" * 100}], "de")]
    write_jsonl(tmp_path / "prompts.jsonl", (prompt.to_json() for prompt in prompts))
    write_jsonl(tmp_path / "answers.jsonl", [Completion("t-0", 0, "de", None, "stop", 2).to_json()])
    evaluate(tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl", tmp_path / "long.jsonl", "label")
    [line] = item_lines(tmp_path / "long.jsonl")
    assert line.endswith("word word ...")
    assert len(line) < 120


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty\.jsonl: no items"):
        label_report(tmp_path / "empty.jsonl")
    row = json.loads(items(tmp_path).read_text().splitlines()[0])
    write_jsonl(tmp_path / "free.jsonl", [row | {"answer": None}])
    with pytest.raises(UserError, match="t-0 has no gold label"):
        label_report(tmp_path / "free.jsonl")


class Echo:
    """An engine that answers what stands in the prompt's meta."""

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        for prompt in reversed(list(prompts)):
            yield Completion(prompt.id, 0, prompt.meta["said"], None, "stop", 1)


def test_live_lines_count_what_was_answered_before(tmp_path: Path) -> None:
    prompts = [
        Prompt(f"t-{number}", [{"role": "user", "content": said}], "de", {"said": said})
        for number, said in enumerate(["de", "en", "de"])
    ]
    write_jsonl(tmp_path / "prompts.jsonl", (prompt.to_json() for prompt in prompts))
    done = tmp_path / "done.jsonl"
    write_jsonl(done, [Completion("t-0", 0, "de", None, "stop", 1).to_json()])
    told: list[str] = []
    live = LiveLines(tmp_path / "prompts.jsonl", told.append, done=done)
    counts = generate(tmp_path / "prompts.jsonl", done, Echo, SamplingConfig(), on_completion=live)
    assert counts.kept == 3
    assert told == [
        "+ [2/3] Pred: de | GT: de | Acc: 2/2 (100.0%) | de",
        "- [3/3] Pred: en | GT: de | Acc: 2/3 ( 66.7%) | en",
    ]


def test_the_page_escapes_texts_and_shows_every_model(tmp_path: Path) -> None:
    path = items(tmp_path)
    found = label_report(path).summary()
    summary = summarize("prompt", 9, scores={})
    html = labels_section(replace(summary, labels={"student": found, "teacher": found}))
    assert "text &lt;b&gt;5&lt;/b&gt;" in html
    assert "<b>5" not in html
    assert html.count('<th scope="row">ot</th>') == 2
    assert '<td class="teacher">66.7%</td><td class="student">66.7%</td>' in html
    assert labels_section(summary) == ""


def test_the_command_prints_lines_and_matrix_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "items.jsonl"
    command = [sys.executable, "-m", "distill_lab.cli", "eval", "--model", "tiny:student", "--data", "tiny:labels"]
    command += ["--data.split", "test[:13]", "--grader", "label", "--out", str(out), "--engine", "transformers"]
    command += ["--sampling.max-new-tokens", "8", "--sampling.thinking", "False"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sum(line.strip().startswith(("+ [", "- [")) for line in done.stdout.splitlines()) == 13
    assert "CONFUSION MATRIX" in done.stdout
    found = json.loads((tmp_path / "items.results.json").read_text())
    assert found["num_samples"] == 13
    assert found["correct"] == sum(row["correct"] for row in found["predictions"])
    assert f"accuracy {found['accuracy']:.2%} ({found['correct']}/13)" in done.stdout
