"""The scripts of prompt distillation, typed as their document types them: data alone, and the evaluation of labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_lab import cli
from distill_lab.commands._generate_messages import write_messages_form
from distill_lab.config import SamplingConfig
from distill_lab.errors import NoData
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.tiny.labels import LABELS
from distill_lab.tiny.tasks import rows
from distill_lab.types import Completion


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    source = rows("labels", "test")
    lines = [next(source)["messages"][0]["content"] for _ in range(6)]
    path = tmp_path / "multilingual.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_data_is_made_alone(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "generate --model_name tiny:teacher --temperature 0.15 --tensor_parallel_size 1 --max_retries 1"
    arguments = [*command.split(), "--prompt-file", "tiny:labels", "--input_file", str(texts)]
    arguments += ["--output_file", str(tmp_path / "data.jsonl"), "--sampling.max-new-tokens", "64"]
    assert cli.main(arguments) == 0
    made = [row["messages"] for row in read_jsonl(tmp_path / "data.jsonl")]
    said = texts.read_text(encoding="utf-8").splitlines()
    assert made
    for user, assistant in made:
        assert user["role"] == "user"
        assert user["content"] in said
        assert assistant == {"role": "assistant", "content": assistant["content"]}
        assert assistant["content"] in LABELS
    assert f"6 in, {len(made)} kept" in capsys.readouterr().out
    before = (tmp_path / "data.completions.jsonl").read_bytes()
    assert cli.main(arguments) == 0
    assert (tmp_path / "data.completions.jsonl").read_bytes() == before


def test_what_cannot_be_read_is_asked_for_again_with_another_seed(tmp_path: Path) -> None:
    questions, out, path = (tmp_path / name for name in ("q.jsonl", "data.completions.jsonl", "data.jsonl"))
    write_jsonl(questions, ({"id": str(n), "messages": [{"role": "user", "content": f"text {n}"}]} for n in range(3)))
    said = {0: ["en", "?", "both en and fr"], 1: ["", "fr", "?"], 2: ["", "", "?"]}
    seeds: list[int] = []

    def answer(prompts: Path, file: Path, sampling: SamplingConfig) -> None:
        seeds.append(sampling.seed)
        ids = [int(row["id"]) for row in read_jsonl(prompts)]
        content = said[sampling.seed]
        write_jsonl(file, (Completion(str(n), 0, content[n], None, "stop", 1).to_json() for n in ids))

    sampling = SamplingConfig(temperature=0.5)
    answer(questions, out, sampling)
    labels = ("en", "fr")
    counts = write_messages_form(
        questions, questions, out, path, labels=labels, retries=2, sampling=sampling, answer=answer
    )
    assert seeds == [0, 1, 2]
    assert [row["messages"][-1]["content"] for row in read_jsonl(path)] == ["en", "fr"]
    assert (counts.rows_in, counts.kept) == (3, 2)
    assert [row["id"] for row in read_jsonl(tmp_path / "data.completions.retry1.prompts.jsonl")] == ["1", "2"]
    greedy = SamplingConfig()
    answer(questions, out, greedy)
    seeds.clear()
    write_messages_form(questions, questions, out, path, labels=labels, retries=2, sampling=greedy, answer=answer)
    assert seeds == []
    with pytest.raises(NoData, match="no answer can be read"):
        write_messages_form(
            questions, questions, out, path, labels=("x", "y"), retries=0, sampling=greedy, answer=answer
        )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--form", "messages", "--out", "x.jsonl"], "--form messages: no file for the rows"),
        (["--retries", "2", "--cot", "x.jsonl"], "they need --form messages"),
    ],
)
def test_settings_that_say_nothing_are_refused(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "--model", "tiny:student", "--data", "tiny:labels", *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_evaluation_takes_the_first_samples_and_writes_one_file_of_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "eval",
        "--model_path",
        "tiny:student",
        "--data",
        "tiny:labels",
        "--data.split",
        "test",
        "--max_samples",
        "5",
    ]
    command += ["--output_file", str(tmp_path / "results.json"), "--sampling.max-new-tokens", "16"]
    assert cli.main(command) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["model"] == "tiny:student"
    assert found["num_samples"] == 5
    assert len(found["predictions"]) == 5
    assert (tmp_path / "results.items.jsonl").is_file()
    printed = capsys.readouterr().out
    assert "model: tiny:student" in printed
    assert "parse rate" in printed
    sliced = [*command[:6], "test[:9]", *command[7:]]
    assert cli.main(sliced) == 2
    assert "is a slice already; give one of the two" in " ".join(capsys.readouterr().err.split())
