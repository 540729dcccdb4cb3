"""The report page and the result picture: right numbers, well-formed, self-contained, and nothing a model says gets out."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from distill_lab.errors import UserError
from distill_lab.evaluation.evaluate import Score, read_score
from distill_lab.evaluation.speed import Speed
from distill_lab.evaluation.statistics import outcomes, paired, retention_interval
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import Summary, read_summary, write_summary
from distill_lab.evaluation.verdict import percent
from distill_lab.files.jsonl import write_json, write_jsonl
from distill_lab.formatting import times
from distill_lab.grading.graders import metric_of
from distill_lab.report.document import digest
from distill_lab.report.figure import count, result_svg
from distill_lab.report.page import VIEWER, write_report

VOID = {"meta", "br"}
SVG = "{http://www.w3.org/2000/svg}"
TURNS = ("teacher", "student")
WIGGLE = (0.99, 1.0, 1.0, 1.0, 1.01)
SPEED = Speed(
    *(4000.0, 200.0, 0.02, 0.4, 0.6, 0.7, 80.0, 3_220_000, 850 << 20),
    in_turns_with=TURNS,
    rounds=tuple((1.28 * more, 5120.0) for more in WIGGLE),
    answer_tokens=(80,) * 64,
    answers_single=tuple((0.4 * more, 80.0) for more in WIGGLE),
    latencies_s=(0.6,) * 18 + (0.7, 0.7),
)
STUDENT_SPEED = dataclasses.replace(
    SPEED,
    tokens_per_s=18_000.0,
    tokens_per_s_single=562.5,
    seconds_per_answer=0.005,
    seconds_per_answer_single=0.16,
    latency_p50_s=0.25,
    latency_p95_s=0.3,
    num_parameters=420_000,
    rounds=tuple((0.32 * more, 5760.0) for more in reversed(WIGGLE)),
    answer_tokens=(90,) * 64,
    answers_single=tuple((0.16 * more, 90.0) for more in reversed(WIGGLE)),
    latencies_s=(0.25,) * 18 + (0.3, 0.3),
)
HOSTILE = '</p><script>alert(1)</script><img src="http://evil.example/x"> \x1b[2J\u202e&amp; {0} {title} [/foo] \ud800'


class Page(HTMLParser):
    """Parses strictly: every element closes in order. Collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def row(index: int, score: float, output: str = "out", **more: Any) -> dict[str, Any]:
    return {
        "id": f"test-{index}",
        "sample": 0,
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"question {index}"}],
        "output": output,
        "thinking": None,
        "answer": "gold",
        "finish_reason": "stop",
        "num_tokens": 7,
        "grade": {"score": score, "answer": output, "status": "ok"},
        **more,
    }


def make_run(
    folder: Path,
    *,
    speeds: bool = True,
    teacher: list[float] | None = None,
    base: list[float] | None = None,
    student: list[float] | None = None,
    output: str = "out",
    grader: str = "exact",
) -> Path:
    grades = {
        "teacher": teacher or [1.0] * 9 + [0.0],
        "base": base or [1.0, 0.0] * 5,
        "student": student or [1.0] * 8 + [0.0, 1.0],
    }
    for name, scores in grades.items():
        rows = [row(i, score, output, thinking=output if i % 2 else None) for i, score in enumerate(scores)]
        text = "".join(json.dumps(item) + "\n" for item in rows)
        (folder / "eval").mkdir(parents=True, exist_ok=True)
        (folder / "eval" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    summary = summarize(
        "system1",
        10,
        scores={name: read_score(folder / "eval" / f"{name}.jsonl") for name in grades},
        speeds={"teacher": SPEED, "student": STUDENT_SPEED} if speeds else None,
        gain=paired(folder / "eval/base.jsonl", folder / "eval/student.jsonl"),
        retention_ci95=retention_interval(folder / "eval/teacher.jsonl", folder / "eval/student.jsonl"),
        metric=metric_of(grader),
        outcomes=None
        if metric_of(grader).similarity
        else outcomes(folder / "eval/teacher.jsonl", folder / "eval/student.jsonl"),
    )
    write_summary(folder / "summary.json", summary)
    stages = {
        "prompts": {
            "key": "k",
            "status": "done",
            "seconds": 130.0,
            "output": "o",
            "counts": {"rows_in": 1200, "kept": 1190, "dropped": {"in<valid>": 10}},
        },
        "student": {"key": "k", "status": "running", "seconds": 2.5},
    }
    run = {"recipe": "system1", "config": {"learning_rate": 2e-5}, "versions": {"python": "3.11.1"}, "stages": stages}
    write_json(folder / "run.json", run)
    return folder


def page_of(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_page_says_what_the_run_reached(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path)).text
    assert "The student keeps 100% of the teacher's score (exact match) and answers 2.5× as fast." in text
    assert "+40.0 points" in text
    assert "exact McNemar test on 10 prompts" in text
    assert "Score kept ? open 100% exact match goal: at least 90% of the teacher's score the base student: 56%" in text
    assert "95% interval 58% to 172% about 360" in text
    assert "test prompts would settle it; this run has 10" in text
    assert "Speedup ✗ missed 2.5× goal: at least 3× the teacher's speed 95% interval 2.4× to 2.5×" in text
    assert "In batches 4.0× (3.9× to 4.0×) 4.5× (4.4× to 4.6×)" in text
    assert "One at a time 2.5× (2.4× to 2.5×) 2.8× (2.7× to 2.8×)" in text
    assert "Latency ✓ met 0.30 s" in text
    assert "420,000 parameters, the teacher 3.22M" in text
    assert "8 both right 1 only the teacher right 1 only the student right 0 neither right" in text
    assert "Score: exact match 90.0% 50.0% 90.0%" in text
    assert "Peak memory 850 MiB – 850 MiB" in text
    assert "prompts 1,200 1,190 10 in<valid> 2.2 min" in text
    assert "student – – – 2.50 s (unfinished)" in text
    assert '"learning_rate": 2e-05' in text
    assert "python 3.11.1" in text


def test_examples_show_failures_first(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path)).text
    kinds = re.findall(r"(Lost|Learned|Won|Wrong|Kept) (?:the|neither)[^.]*? (test-\d+)", text)
    assert kinds == [("Lost", "test-8"), ("Learned", "test-1"), ("Learned", "test-3"), ("Won", "test-9"), *kinds[4:]]
    assert {kind for kind, _ in kinds[4:]} == {"Kept"}
    assert "[system] Be brief. question 8" in text


def test_page_is_self_contained_and_runs_only_its_own_script(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path, output=HOSTILE))
    assert not {"img", "link", "iframe", "object", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "style") or name.startswith("on")]
    assert all(str(value).startswith("#") for name, value in page.attributes if name == "href")
    assert "<script>alert(1)</script>" in page.text
    assert "&amp; {0} {title} [/foo]" in page.text
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://(?!evil)", source)
    assert "default-src 'none'" in source
    runs = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    assert runs == [VIEWER.read_text(encoding="utf-8")]
    assert f"script-src '{digest(runs[0])}';" in source
    assert not set("\x1b\u202e") & set(source)


def test_page_without_speeds_or_with_a_teacher_at_zero(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path / "a", speeds=False)).text
    assert "Speedup not measured –" in text
    assert "Latency not measured –" in text
    text = page_of(make_run(tmp_path / "b", teacher=[0.0] * 10)).text
    assert "The student scores 90% (exact match) on 10 prompts and answers 2.5× as fast." in text
    assert "The teacher scores 0 here" in text
    assert "Score kept ✗ missed – exact match goal: at least 90% of the teacher's score the teacher scores 0" in text


def test_likeness_to_a_reference_is_never_called_kept_or_met(tmp_path: Path) -> None:
    # What was seen with a real pair: nothing learned, and the page said that 101% of the quality was kept.
    teacher, base, student = [0.202] * 10, [0.204] * 10, [0.204] * 10
    run = make_run(tmp_path, teacher=teacher, base=base, student=student, grader="overlap", speeds=False)
    text = page_of(run).text
    name = "ROUGE-L overlap with the reference text"
    assert f"The student's {name} is 20.4% (teacher 20.2%, base student 20.4%)." in text
    assert f"{name} no verdict 20.4% Teacher 20.2% Base student 20.4% Student 20.4%" in text
    assert f"Score: {name} 20.2% 20.4% 20.4%" in text
    assert "ROUGE-L overlap, 10 prompts" in text
    assert "rewards shared wording, not truth" in text
    for claim in ("kept", "Score kept", "keeps", "met", "right", "goal: 90%", "at least 90%"):
        assert not re.search(rf"\b{claim}\b", text), claim


def test_a_goal_that_the_base_reaches_is_no_verdict(tmp_path: Path) -> None:
    run = make_run(tmp_path, base=[1.0] * 9 + [0.0], student=[1.0] * 9 + [0.0], speeds=False)
    text = page_of(run).text
    assert (
        "The base student already reaches 100% of the teacher's score (exact match), the trained student 100%." in text
    )
    assert "Score kept no verdict 100%" in text
    assert "✓ met" not in text


def test_a_student_below_its_base_is_called_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, base=[1.0] * 9 + [0.0], student=[0.0] * 10, speeds=False)
    text = page_of(run).text
    assert "Training made the student worse: exact match 90.0% before, 0.0% after." in text
    assert "Training lowered the score (exact match): -90.0 points over the base student" in text
    assert "What to do next In training the score fell below the base student's" in text
    assert "Score kept ✗ missed 0%" in text


def test_a_summary_that_does_not_say_what_was_scored_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    for change, said in (
        ({"version": None}, r"is of another version \(None, this one is 2\)"),
        ({"version": 1}, r"is of an earlier version \(1, this one is 2\)"),
        ({"version": 3}, r"is of another version \(3, this one is 2\)"),
        ({"n": "many"}, r"is not the summary of a run \(n: "),
        ({"kpis": {"speedup >= 3": True}}, r"is not the summary of a run \(kpis\.speedup >= 3: "),
    ):
        write_json(run / "summary.json", summary | change)
        with pytest.raises(UserError, match=said) as error:
            write_report(run)
        assert str(run / "summary.json") in str(error.value)
    # As the first version wrote it: without a number.
    write_json(run / "summary.json", {name: value for name, value in summary.items() if name != "version"})
    with pytest.raises(UserError, match="is of an earlier version"):
        write_report(run)
    for text in ("", "[]", "{", "null"):
        (run / "summary.json").write_text(text)
        with pytest.raises(UserError, match="is not the summary of a run"):
            write_report(run)


def test_page_without_evaluation_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    for path in (folder / "eval").iterdir():
        path.unlink()
    text = page_of(folder).text
    assert "Score: exact match 90.0% 50.0% 90.0%" in text
    assert "Side by side" not in text


def test_long_answers_are_cut_with_a_mark(tmp_path: Path) -> None:
    assert "[… 98,500 more characters]" in page_of(make_run(tmp_path, output="x" * 100_000)).text


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json is missing"):
        write_report(tmp_path)
    write_json(tmp_path / "run.json", {})
    with pytest.raises(UserError, match=r"summary\.json is missing"):
        write_report(tmp_path)


def test_samples_after_the_first_and_graded_scores(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    for name in ("teacher", "base", "student"):
        rows = [row(i, 0.25 * i, sample=sample) for i in range(4) for sample in range(2)]
        write_jsonl(folder / "eval" / f"{name}.jsonl", rows)
    summary = read_summary(folder / "summary.json")
    write_summary(folder / "summary.json", dataclasses.replace(summary, test="sign-flip permutation"))
    text = page_of(folder).text
    assert "Teacher 0.50" in text
    assert "sign-flip permutation test" in text


def summary_of(**scores: Score) -> Summary:
    speeds = {"teacher": SPEED, "student": STUDENT_SPEED}
    return summarize("system1", 10, scores=scores, speeds=speeds, metric=metric_of("exact"))


def test_picture_is_well_formed_and_to_scale() -> None:
    scores = {
        "teacher": Score(10, 1.0, (0.8, 1.0), 5.0, 0, 0, 0),
        "base": Score(10, 0.25, (0.1, 0.5), 5.0, 0, 0, 0),
        "student": Score(10, 0.5, (0.3, 0.7), 5.0, 0, 0, 0),
    }
    root = ElementTree.fromstring(result_svg(summary_of(**scores)))
    panels = root.findall(f"{SVG}g")
    assert len(panels) == 2
    bars = [
        [(bar.get("class"), float(bar.get("width", "nan"))) for bar in panel.findall(f"{SVG}rect")] for panel in panels
    ]
    assert [kind for kind, _ in bars[0]] == ["teacher", "base", "student"]
    whole = bars[0][0][1]
    assert [width / whole for _, width in bars[0]] == pytest.approx([1, 0.25, 0.5], abs=0.002)
    assert [kind for kind, _ in bars[1]] == ["teacher", "student", "student"]
    assert [width / bars[1][0][1] for _, width in bars[1]] == pytest.approx([1, 4, 2.5], rel=0.005)
    interval = next(path for path in panels[0].findall(f"{SVG}path") if path.get("class") == "interval")
    low, high = map(float, re.findall(r"M([\d.]+) \d+H([\d.]+)", interval.get("d", ""))[0])
    left = float(panels[0].findall(f"{SVG}rect")[0].get("x", "nan"))
    assert [(low - left) / whole, (high - left) / whole] == pytest.approx([0.8, 1.0], abs=0.002)
    text = " ".join(root.itertext())
    assert "50.0%" in text
    assert "goal: 90% of the teacher" in text
    assert "The student keeps 50% of the teacher's score (exact match) and answers 2.5× as fast." in text


def test_picture_of_less() -> None:
    alone = summarize("system1", 10, scores={"student": Score(10, 0.5, (0.3, 0.7), 5.0, 0, 0, 0)})
    root = ElementTree.fromstring(result_svg(alone))
    assert len(root.findall(f"{SVG}g")) == 1
    assert "goal" not in " ".join(text for text in root.itertext() if "{" not in text)
    ElementTree.fromstring(result_svg(summarize("system1", 0, scores={})))


@pytest.mark.parametrize("factor", [0.001, 0.3, 3, 40, 5000])
def test_picture_of_extreme_speeds_has_few_ticks(factor: float) -> None:
    fast = dataclasses.replace(SPEED, seconds_per_answer=0.02 / factor, seconds_per_answer_single=0.4 / factor)
    summary = summarize("system1", 10, scores={}, speeds={"teacher": SPEED, "student": fast})
    root = ElementTree.fromstring(result_svg(summary))
    assert 3 <= len(root.findall(f".//{SVG}line[@class='grid']")) <= 10


def test_numbers_are_never_rounded_into_a_claim() -> None:
    assert [times(value) for value in (2.99, 3.0, 4.1, 0.999, 25.9)] == ["2.9×", "3.0×", "4.1×", "0.99×", "25×"]
    shares = [percent(share) for share in (0.934, 0.8996, 0.9, 0.996, 1.0, 0.002, 0.0, 1.04)]
    assert shares == ["93%", "89.9%", "90%", "99.6%", "100%", "0.2%", "0%", "104%"]
    assert [count(number) for number in (9.44, 950, 17_940, 1_850_000, 7.6e9)] == [
        "9.4",
        "950",
        "17,940",
        "1.85M",
        "7.6B",
    ]
