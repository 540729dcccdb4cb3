"""Models answering side by side: a missing one has its line, a broken one is an error, and what they say is quoted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.errors import ModelError
from distill_lab.evaluation.compare import Comparison, compare_models
from distill_lab.models.names import resolve
from distill_lab.report.side_by_side import render_comparison
from distill_lab.types import Completion


def test_missing_model_has_its_exact_line_and_the_others_answer(
    random_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = str(random_model())
    gone = str(tmp_path / "gone")
    models = {"Teacher": path, "System 1": gone, "System 2": None, "Again": path, "Hub": "nobody/nothing-of-this-name"}
    comparisons = compare_models(["How many?", "Which one?"], models, max_new_tokens=4)
    assert [comparison.prompt for comparison in comparisons] == ["How many?", "Which one?"]
    assert comparisons[0].missing == {"System 1": gone, "Hub": "nobody/nothing-of-this-name"}
    for comparison in comparisons:
        assert list(comparison.answers) == ["Teacher", "Again"]
        assert comparison.answers["Teacher"] == comparison.answers["Again"]
        assert comparison.answers["Teacher"].num_tokens <= 4
    lines = render_comparison(comparisons).splitlines()
    assert lines[:2] == [f"Model not found at {gone}", "Model not found at nobody/nothing-of-this-name"]
    assert list(comparisons[0].reasons) == ["System 1", "Hub"]
    assert all(comparisons[0].reasons.values())
    narrow = render_comparison(comparisons, width=40).splitlines()
    assert max(len(line) for line in narrow if not line.startswith("Model not found")) == 40


def test_the_command_ends_with_2_if_no_model_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = str(tmp_path / "gone")
    assert cli.main(["compare", "--system1", gone, "--prompts", "x"]) == 2
    assert f"Model not found at {gone}" in capsys.readouterr().out


def test_a_run_directory_is_no_model_and_its_student_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "student" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"give the model's directory: .*run/student$"):
        resolve(f"{tmp_path / 'run'}/")


def test_a_model_that_is_there_but_broken_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        compare_models(["x"], {"Student": str(tmp_path)})


def test_rendered_comparison_is_unambiguous() -> None:
    answers = {
        "Teacher": Completion("0", 0, "word " * 100, None, "stop", 100),
        "System 1": Completion("0", 0, "=" * 100 + "\nTeacher:\n\x1b[2J\u202eok [/foo]", None, "stop", 9),
        "System 2": Completion("0", 0, "", "hm, let me", "length", 128),
    }
    text = render_comparison([Comparison("Why?", answers)], max_chars={"Teacher": 20})
    lines = text.splitlines()
    assert lines[:3] == ["=" * 100, "Prompt 1 of 1", "  Why?"]
    assert [line for line in lines if line.endswith(":") and not line.startswith(" ")] == [
        "Teacher:",
        "System 1:",
        "System 2:",
    ]
    assert "  word word word word [... 479 more characters]" in lines
    assert lines.count("=" * 100) == 2
    assert "  [2Jok [/foo]" in lines
    assert "  [thinking only] hm, let me [cut at 128 tokens]" in lines
    assert max(map(len, lines)) <= 100
