"""Standard benchmarks: tasks of our own writing through lm_eval, as its own model scores them; what is refused, and where.

The tests that need lm_eval are skipped where it is not installed (`pip install 'lm_eval[ifeval,math]'`).
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from distill_lab import cli
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.eval_rows import read_eval_rows
from distill_lab.evaluation.evaluate import read_score
from distill_lab.evaluation.run_pairs import pair_runs
from distill_lab.evaluation.suite import harness
from distill_lab.evaluation.suite.answers import SuiteAnswers
from distill_lab.evaluation.suite.harness import load_suite
from distill_lab.evaluation.suite.results import read_results
from distill_lab.evaluation.suite.run import run_suite
from distill_lab.files.jsonl import write_jsonl
from distill_lab.models.loading import load_model
from distill_lab.tiny.tasks import items

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
STUDENT = ModelConfig(model="tiny:student", dtype="fp32")
WRITE = """\
task: own_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
CHOOSE = """\
task: own_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
fewshot_split: test
num_fewshot: 1
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "no"]
doc_to_target: "{{{{label}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
ROLL = """\
task: own_roll
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
"""
NUM = 12


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tasks on the tiny family's instructions."""
    folder = tmp_path_factory.mktemp("tasks")
    source = items("instructions", "test")
    rows = [next(source) for _ in range(NUM)]
    data = folder / "items.jsonl"
    write_jsonl(
        data, ({"question": row["question"], "answer": row["output"], "label": n % 3} for n, row in enumerate(rows))
    )
    for name, text in (("write", WRITE), ("choose", CHOOSE), ("roll", ROLL)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


def run_own(tasks: str, model: Any, tmp_path: Path, *, chat: bool) -> tuple[Any, SuiteAnswers]:
    suite = load_suite(tasks, on_server=False)
    with SuiteAnswers(model, EngineConfig(engine="transformers"), SamplingConfig(), tmp_path) as answers:
        results, chats = run_suite(suite, answers, chat=chat, num_fewshot=None, limit=None)
    return read_results(suite, results, chats, answers, metric=""), answers


@needs_lm_eval
def test_scores_and_likelihoods_are_those_of_lm_evals_own_model(tasks: Path, tmp_path: Path) -> None:
    from lm_eval.evaluator import evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    suite = load_suite(str(tasks), on_server=False)
    assert sorted(suite.tasks) == ["own_choose", "own_roll", "own_write"]
    with SuiteAnswers(STUDENT, EngineConfig(engine="transformers"), SamplingConfig(), tmp_path) as answers:
        ours, _ = run_suite(suite, answers, chat=False, num_fewshot=None, limit=None)
    model, tokenizer = load_model(STUDENT)
    with harness.quiet(), harness.seeded():
        for task in suite.tasks.values():
            task.set_fewshot_seed(seed=harness.SEEDS[1])
        theirs = evaluate(
            lm=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
            task_dict={"tasks": suite.tasks, "groups": {}},
            bootstrap_iters=0,
        )
    assert theirs is not None
    for name, samples in theirs["samples"].items():
        for mine, other in zip(ours["samples"][name], samples, strict=True):
            assert mine["arguments"] == other["arguments"]
            assert _numbers(mine["resps"]) == pytest.approx(_numbers(other["resps"]), abs=1e-4)
            assert _texts(mine["resps"]) == _texts(other["resps"])
    for name, metric in (
        ("own_write", "exact_match,none"),
        ("own_choose", "acc,none"),
        ("own_choose", "acc_norm,none"),
    ):
        assert ours["results"][name][metric] == theirs["results"][name][metric]
    roll = "word_perplexity,none"
    assert ours["results"]["own_roll"][roll] == pytest.approx(theirs["results"]["own_roll"][roll], rel=1e-4)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (list, tuple)):
        return [number for each in value for number in _numbers(each)]
    return [float(value)] if isinstance(value, (int, float)) else []


def _texts(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


@needs_lm_eval
def test_rows_are_eval_rows_with_the_conversation_and_the_choice(tasks: Path, tmp_path: Path) -> None:
    (rows, figures), _ = run_own(str(tasks), STUDENT, tmp_path, chat=True)
    by_id = {row.id: row for row in rows}
    assert len(rows) == 2 * NUM  # perplexity is no score
    assert figures["own_roll"].score is None
    assert figures["own_roll"].harness["word_perplexity,none"] > 1
    written, chosen = by_id["own_write/0"], by_id["own_choose/1"]
    assert [message["role"] for message in written.prompt] == ["user"]
    assert written.num_tokens > 0
    assert written.answer
    assert written.score == float(written.output == written.answer)
    assert [message["role"] for message in chosen.prompt] == ["user", "assistant", "user"]
    assert chosen.answer == "B"
    assert chosen.output in ("A", "B", "no")
    assert chosen.score == float(chosen.output == "B")
    result = figures["own_choose"]
    assert (result.metric, result.n, result.num_fewshot) == ("acc,none", NUM, 1)
    assert result.score == result.harness["acc,none"]
    assert result.ci95 is not None
    assert result.ci95[0] <= result.score <= result.ci95[1]  # pyright: ignore[reportOperatorIssue]


@needs_lm_eval
def test_the_command_scores_compares_resumes_and_tells_what_was_trained_on(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    items_of = [json.loads(line) for line in (tasks / "items.jsonl").read_text().splitlines()]
    trained = {"prompt": [{"role": "user", "content": items_of[3]["question"]}]}
    write_jsonl(tmp_path / "train.jsonl", [trained | {"completion": [{"role": "assistant", "content": "x"}]}])
    out = tmp_path / "own.jsonl"
    command = ["eval", "--suite", str(tasks / "write.yaml"), "--model", "tiny:teacher", "--base", "tiny:student"]
    command += ["--suite.rows", str(tmp_path / "train.jsonl"), "--out", str(out), "--sampling.thinking", "False"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    score, base = read_score(out), read_score(tmp_path / "own.base.jsonl")
    assert score.n == NUM
    assert score.score > base.score
    assert f"own_write: exact_match,none {score.score:.1%}" in printed
    assert f"lm_eval: {score.score:.4f} ± " in printed
    assert "gain over tiny:student: +" in printed
    assert "contamination: 1 items overlap with 1 of the 1 rows" in printed
    assert "own_write without those items: " in printed
    assert not (tmp_path / "own.jsonl.work").exists()
    found = json.loads((tmp_path / "own.results.json").read_text())
    assert found["contamination"]["items"] == {"own_write": ["own_write/3"]}
    assert pair_runs(tmp_path / "own.base.jsonl", out).n == NUM
    assert all(row.prompt[0]["role"] == "user" for row in read_eval_rows(out))

    def no_model(*_: Any, **__: Any) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("distill_lab.generation.engines.load_engine", no_model)
    assert cli.main(command) == 0
    assert "nothing was computed again" in capsys.readouterr().out
    other = [*command[:4], "tiny:student", "--out", str(out)]
    assert cli.main(other) == 2
    assert "was made with other settings" in capsys.readouterr().err


@needs_lm_eval
def test_an_interrupted_command_goes_on(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [
        "eval",
        "--suite",
        str(tasks / "write.yaml"),
        "--model",
        "tiny:student",
        "--out",
        str(tmp_path / "own.jsonl"),
    ]

    def stopped(*_: Any, **__: Any) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr("distill_lab.evaluation.suite.results.read_results", stopped)
        assert cli.main(command) == 2
    assert list((tmp_path / "own.jsonl.work").glob("*.completions.jsonl"))
    monkeypatch.setattr("distill_lab.generation.engines.load_engine", stopped)
    assert cli.main(command) == 0
    assert read_score(tmp_path / "own.jsonl").n == NUM


@needs_lm_eval
def test_items_that_changed_are_another_result(tasks: Path, tmp_path: Path) -> None:
    before = load_suite(str(tasks / "write.yaml"), on_server=False).key
    assert load_suite(str(tasks / "write.yaml"), on_server=False).key == before
    lines = (tasks / "items.jsonl").read_text().splitlines()
    (tmp_path / "items.jsonl").write_text("\n".join(lines[::-1]))
    text = (tasks / "write.yaml").read_text().replace(str(tasks / "items.jsonl"), str(tmp_path / "items.jsonl"))
    (tmp_path / "write.yaml").write_text(text)
    after = load_suite(str(tmp_path / "write.yaml"), on_server=False).key
    assert after["items"] != before["items"]


@needs_lm_eval
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gsm8k", "its items come from the Hugging Face hub: check the network"),
        ("gsm9k", "lm_eval has no task of this name; did you mean gsm8k"),
        ("no/such.yaml", "no such file or folder"),
    ],
)
def test_what_is_not_there_is_said_before_a_model_is_loaded(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)

    def no_model(*_: Any, **__: Any) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("distill_lab.generation.engines.load_engine", no_model)
    monkeypatch.setattr("distill_lab.models.loading.load_model", no_model)
    out = str(tmp_path / "x.jsonl")
    assert cli.main(["eval", "--suite", name, "--model", "tiny:student", "--out", out]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path(out).exists()


@needs_lm_eval
def test_a_server_writes_texts_and_is_refused_likelihoods_by_name(tasks: Path) -> None:
    assert load_suite(str(tasks / "write.yaml"), on_server=True).tasks
    with pytest.raises(UserError, match=r"own_choose, own_roll: this needs the probabilities"):
        load_suite(str(tasks), on_server=True)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill_lab.evaluation.suite.harness.find_spec", lambda name: None)
    assert cli.main(["eval", "--suite", "gsm8k", "--model", "tiny:student", "--out", str(tmp_path / "x.jsonl")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "pip install 'qwen-distillation-lab[suites]'" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "tiny:labels"], "--data belongs to your own prompts"),
        (["--grader", "exact"], "--grader belongs to your own prompts"),
        (["--against", "no.jsonl"], "--against no.jsonl: no such file"),
    ],
)
def test_settings_of_other_prompts_are_refused(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "--suite", "gsm8k", "--model", "tiny:student", "--out", str(tmp_path / "x.jsonl")]
    assert cli.main([*command, *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
