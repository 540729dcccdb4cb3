"""Prompt distillation: prompt files and labels read, retries, the whole line on the tiny family, one set of weights."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import DataConfig, LoraConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.data.records import write_prompts
from distill_lab.errors import DataError, NoData, UserError
from distill_lab.evaluation.cost import compare_costs, render_costs
from distill_lab.evaluation.evaluate import Score
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import read_summary
from distill_lab.evaluation.summary_parts import Cost, CostRatio
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.recipes import prompt
from distill_lab.tiny.labels import LABELS, RULES
from distill_lab.training_data.prompt_distillation import (
    read_answer,
    read_labels,
    read_system_prompt,
    tokens_per_batch,
    with_system,
    write_answered,
    write_asked,
    write_gold,
    write_references,
    write_unread,
)
from distill_lab.types import Completion, Prompt

pytestmark = pytest.mark.slow

ONCE = SamplingConfig(max_new_tokens=8, thinking=False)
FAST = TrainConfig(
    learning_rate=1e-2, lr_scheduler_type="cosine_with_min_lr", validation_fraction=0, lora=LoraConfig(r=8, alpha=16)
)


def tiny(**changes: Any) -> prompt.Config:
    """A run of the tiny preset cut down to seconds."""
    settings: dict[str, Any] = {
        "data": DataConfig(path="tiny:labels", split="distill[:24]"),
        "test": DataConfig(path="tiny:labels", split="test[:8]"),
        "sampling": SamplingConfig(max_new_tokens=48, temperature=0.15),
        "test_sampling": ONCE,
        "train": FAST,
        "measure": False,
    }
    return prompt.PRESETS["tiny"].model_copy(update=settings | changes)


def answer(name: str, content: str, reason: Any = "stop") -> Completion:
    return Completion(name, 0, content, None, reason, 3)


def test_the_defaults_are_the_documents() -> None:
    """But for alpha, which the document sets to 16: at half the rank the adapters would learn at half their rate."""
    config = prompt.Config()
    assert config.teacher.model == "Qwen/Qwen3-4B-Thinking-2507"
    assert config.student.model == "Qwen/Qwen3-4B-Instruct-2507"
    train = config.train
    assert (train.lora.r, train.lora.alpha, train.lora.targets) == (32, 32, ("all-linear",))
    assert (train.learning_rate, train.lr_scheduler_type, train.min_lr_rate) == (2e-4, "cosine_with_min_lr", 0.1)
    assert (train.num_epochs, train.max_length, train.warmup_ratio) == (1, 2048, 0.03)
    assert train.gradient_checkpointing
    assert (config.rows_per_batch, train.gradient_accumulation_steps) == (4, 4)
    assert (config.sampling.temperature, config.max_retries) == (0.15, 3)


def test_the_learning_rate_ends_at_a_tenth(tmp_path: Path) -> None:
    import torch
    from transformers import get_scheduler

    from distill_lab.train.plan import training_arguments

    arguments = training_arguments(tmp_path, prompt.TRAIN, 100, validate=False)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, num_warmup_steps=int(arguments.warmup_steps), num_training_steps=100,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    rates = []
    for _ in range(100):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert max(rates) == pytest.approx(2e-4)
    assert rates[-1] == pytest.approx(2e-5)


def test_prompt_files(tmp_path: Path) -> None:
    assert read_system_prompt("tiny:labels") == RULES
    rules = tmp_path / "rules.txt"
    rules.write_bytes("\ufeffLabel the text.\n\nLabels: a, b\n".encode())
    assert read_system_prompt(str(rules)) == "Label the text.\n\nLabels: a, b"
    with pytest.raises(UserError, match="--prompt-file"):
        read_system_prompt("")
    with pytest.raises(UserError, match=r"nowhere\.txt: no such file"):
        read_system_prompt(str(tmp_path / "nowhere.txt"))
    rules.write_text(" \n")
    with pytest.raises(UserError, match=r"rules\.txt: the prompt file is empty"):
        read_system_prompt(str(rules))
    rules.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="not UTF-8"):
        read_system_prompt(str(rules))


def test_where_labels_come_from(tmp_path: Path) -> None:
    assert read_labels("", RULES) == tuple(sorted(LABELS))
    assert read_labels("", "Classify into these labels: spam, not spam.\nBe brief.") == ("spam", "not spam")
    assert read_labels("", "Write like a pirate. Use labels sparingly: never two, as they say (mostly).") == ()
    assert read_labels("", "Answer in French.") == ()
    assert read_labels("a, b ,c", "Labels: x, y") == ("a", "b", "c")
    (tmp_path / "labels.txt").write_text("one\n\ntwo words\n")
    assert read_labels(str(tmp_path / "labels.txt"), "") == ("one", "two words")
    with pytest.raises(UserError, match="'a' is in it twice"):
        read_labels("a,A,b", "")
    with pytest.raises(UserError, match="no such file, and a list of one label"):
        read_labels("spam", "")


def test_answers_are_read() -> None:
    labels = ["de", "en"]
    assert read_answer(answer("t", "The label is DE."), labels) == "de"
    assert read_answer(answer("t", "de or en"), labels) is None
    assert read_answer(answer("t", "de", "length"), labels) is None
    assert read_answer(answer("t", " Free text. \n"), ()) == "Free text."
    assert read_answer(answer("t", " \n"), ()) is None
    assert read_answer(answer("t", "half of", "length"), ()) is None


def test_a_system_message_of_the_row_goes_on_after_the_prompt() -> None:
    user = {"role": "user", "content": "Hi"}
    assert with_system([user], "Rules.") == [{"role": "system", "content": "Rules."}, user]
    own = {"role": "system", "content": "Own."}
    assert with_system([own, user], "Rules.") == [{"role": "system", "content": "Rules.\n\nOwn."}, user]
    assert with_system([own, user], "") == [own, user]


def test_rounds_of_asking_add_up(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    prompts, first, second = (tmp_path / f"{name}.jsonl" for name in ("prompts", "first", "second"))
    write_jsonl(prompts, (Prompt(name, [{"role": "user", "content": name}]).to_json() for name in names))
    said = [("a", "en"), ("b", "well"), ("c", "de", "length"), ("d", ""), ("e", "en, no, de"), ("f", "", "error")]
    write_jsonl(first, (answer(*each).to_json() for each in said))
    asked, again = tmp_path / "asked.jsonl", tmp_path / "again.jsonl"
    write_asked(prompts, asked, system="Rules.", labels=["de", "en"])
    counts = write_unread(asked, first, again, labels=["de", "en"])
    assert (counts.rows_in, counts.kept, counts.dropped) == (6, 5, {"answered": 1})
    assert [row["id"] for row in read_jsonl(again)] == ["b", "c", "d", "e", "f"]
    assert {row["messages"][0]["content"] for row in read_jsonl(again)} == {"Rules."}
    assert next(read_jsonl(again))["meta"] == {"labels": ["de", "en"]}
    said = [("b", "de"), ("c", "de", "length"), ("d", ""), ("e", "well"), ("f", "", "error")]
    write_jsonl(second, (answer(*each).to_json() for each in said))
    counts = write_answered(prompts, first, second, tmp_path / "answered.jsonl", labels=["de", "en"])
    assert counts.kept == 2
    assert counts.dropped == {
        "cut at the token limit": 1, "empty": 1, "unparseable after all retries": 1, "error": 1}  # fmt: skip
    rows = list(read_jsonl(tmp_path / "answered.jsonl"))
    assert [(row["id"], row["completion"][0]["content"]) for row in rows] == [("a", "en"), ("b", "de")]
    assert rows[0]["messages"] == [{"role": "user", "content": "a"}]


def test_gold_answers_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes("\ufeffHallo Welt\r\n\n  Good day \n你好\n".encode())
    data = DataConfig(path=str(tmp_path / "texts.txt"), split="train[1:]")
    prompts, gold = tmp_path / "prompts.jsonl", tmp_path / "gold.txt"
    assert write_prompts(data, prompts).kept == 2
    assert [row["messages"][0]["content"] for row in read_jsonl(prompts)] == ["Good day", "你好"]
    gold.write_text("de\nen\nzh\n")
    write_gold(prompts, tmp_path / "out.jsonl", gold=str(gold))
    assert [row["answer"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["en", "zh"]
    gold.write_text("de\nen\n")
    with pytest.raises(UserError, match=r"gold\.txt: no gold answer in line 3, for row 2"):
        write_gold(prompts, tmp_path / "out.jsonl", gold=str(gold))


def test_text_files_and_labelled_rows(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"fine\n\xff broken\nfine too\n")
    with pytest.raises(DataError, match=r"texts\.txt:2: row 1: .*not UTF-8"):
        write_prompts(DataConfig(path=str(path)), tmp_path / "out.jsonl")
    counts = write_prompts(DataConfig(path=str(path), skip_invalid=True), tmp_path / "out.jsonl")
    assert (counts.rows_in, counts.kept, list(counts.dropped.values())) == (3, 2, [1])
    assert all("not UTF-8" in reason and "line 2" in reason for reason in counts.dropped)
    assert write_prompts(DataConfig(path=str(path), split="train[-1:]"), tmp_path / "out.jsonl").kept == 1
    rows = tmp_path / "rows.jsonl"
    write_jsonl(rows, [{"text": "Hallo", "label": "de"}, {"sentence": "Hi", "label": 3}, {"sentence": "Hi", "n": 1}])
    write_prompts(DataConfig(path=str(rows)), tmp_path / "out.jsonl")
    found = [(row["messages"][0]["content"], row["answer"], row["meta"]) for row in read_jsonl(tmp_path / "out.jsonl")]
    assert found == [("Hallo", "de", {}), ("Hi", "3", {}), ("Hi", None, {"n": 1})]


def test_micro_batches_hold_about_the_rows_asked_for(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    ask, say = [{"role": "user", "content": "today"}], [{"role": "assistant", "content": "en"}]
    write_jsonl(rows, [{"prompt": ask, "completion": say}] * 3)
    one = tokens_per_batch(ModelConfig(model="tiny:student"), rows, num_rows=1, thinking=False)
    assert 10 < one < 30
    assert tokens_per_batch(ModelConfig(model="tiny:student"), rows, num_rows=8, thinking=False) == 8 * one


def test_costs_are_compared() -> None:
    student = Cost(60.0, 2.0, 0.02)
    cost = compare_costs(Cost(900.0, 30.0, 0.5), student, {"teacher": 0.96, "student": 0.94, "base": 0.1})
    assert cost.ratio == CostRatio(pytest.approx(0.94 / 0.96), pytest.approx(15.0), pytest.approx(25.0))  # pyright: ignore
    assert cost.to_json()["teacher"]["tokens"] == 930.0
    scores = {
        name: Score(100, score, (0.8, 1.0), 5.0, 0, 0, 0) for name, score in (("teacher", 0.96), ("student", 0.94))
    }
    text = render_costs(replace(summarize("prompt", 100, scores=scores), cost=cost))
    assert "tokens processed" in text
    assert text.splitlines()[4].split()[-3:] == ["930.0", "62.0", "15.0x"]
    ratio = compare_costs(Cost(9.0, 1.0), student, {"student": 1.0}).ratio
    assert (ratio.accuracy, ratio.seconds, ratio.tokens) == (None, None, pytest.approx(10 / 62))


def test_the_whole_line_with_labels(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary: Any = prompt.run(tiny(), run)
    assert summary == read_summary(run / "summary.json")
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert all(stage["status"] == "done" for stage in stages.values())
    messages = list(read_jsonl(run / "messages.jsonl"))
    assert len(messages) == 24
    for row in messages:
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"] in LABELS
    assert [row["prompt"][0]["role"] for row in read_jsonl(run / "train.jsonl")] == ["user"] * 24
    assert (run / "student" / "adapter_model.safetensors").is_file()
    assert (summary.reference, set(summary.models)) == ("gold", {"teacher", "base", "student"})
    cost = summary.cost
    assert cost.teacher.prompt_tokens > 239 > cost.student.prompt_tokens
    assert cost.teacher.completion_tokens > 3 * cost.student.completion_tokens
    assert cost.ratio.tokens > 4
    results = json.loads((run / "evaluation_results.json").read_text())
    assert results["accuracy"] == summary.models["student"].score
    assert sum(map(sum, results["confusion_matrix"]["array"])) == len(results["predictions"]) == 8
    page = (run / "report.html").read_text()
    assert "What an answer costs" in page
    assert "Worst labels" in page or results["accuracy"] == 1
    asked = list(read_jsonl(run / "eval" / "teacher.jsonl"))
    assert all(row["prompt"][0] == {"role": "system", "content": RULES} and row["thinking"] for row in asked)
    assert all(row["prompt"][0]["role"] == "user" for row in read_jsonl(run / "eval" / "student.jsonl"))

    written = (run / "student" / "adapter_model.safetensors").stat().st_mtime_ns
    assert prompt.run(tiny(), run) == summary
    assert (run / "student" / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_what_cannot_be_read_is_asked_again_with_other_seeds_and_then_dropped(tmp_path: Path) -> None:
    # Half of the thinking is cut off: such answers can never be read.
    sampling = SamplingConfig(max_new_tokens=21, temperature=1.5)
    config = tiny(sampling=sampling, num_test=0, test=DataConfig(path=""), max_retries=2)
    prompt.run(config, tmp_path)
    stages = json.loads((tmp_path / "run.json").read_text())["stages"]
    counts = [stages[name]["counts"] for name in ("to be asked again, 1", "to be asked again, 2", "readable answers")]
    assert 24 == counts[0]["rows_in"] > counts[0]["kept"] >= counts[1]["kept"] > 0
    assert counts[1]["rows_in"] == counts[0]["kept"]
    assert counts[2]["kept"] + sum(counts[2]["dropped"].values()) == 24
    rounds = [{row["id"]: row["content"] for row in read_jsonl(tmp_path / "rounds" / f"{n}.completions.jsonl")}
              for n in range(3)]  # fmt: skip
    assert [len(found) for found in rounds] == [24, counts[0]["kept"], counts[1]["kept"]]
    assert not (tmp_path / "rounds" / "3.completions.jsonl").exists()


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoData, match=r"no row is left to train on|readable"):
        prompt.run(tiny(sampling=SamplingConfig(max_new_tokens=2)), tmp_path)
    assert not (tmp_path / "student").exists()
    assert not (tmp_path / "rounds" / "1.completions.jsonl").exists()


def test_self_distillation_on_free_text_without_gold_holds_one_set_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distill_lab.evaluation.speed
    import distill_lab.generation.engines.transformers
    import distill_lab.models.loading
    import distill_lab.train.student

    real, alive, most = distill_lab.models.loading.load_model, weakref.WeakSet[Any](), [0]

    def counted(*arguments: Any, **settings: Any) -> Any:
        gc.collect()
        loaded = real(*arguments, **settings)
        alive.add(loaded[0])
        most[0] = max(most[0], len(alive))
        return loaded

    for module in (distill_lab.generation.engines.transformers, distill_lab.train.student):
        monkeypatch.setattr(module, "load_model", counted)
    # Each takes long and has its own test in test_measure.
    monkeypatch.setattr(distill_lab.evaluation.speed, "NUM_LATENCIES", 2)
    monkeypatch.setattr(
        distill_lab.evaluation.speed, "peak_memory", lambda models, prompts, **settings: dict.fromkeys(models)
    )
    rules, texts = tmp_path / "style.txt", tmp_path / "texts.txt"
    rules.write_text("Answer briefly.")
    texts.write_text("".join(f"Make this upper case: pear {number}\n" for number in range(30)))
    config = tiny(
        prompt_file=str(rules),
        teacher=ModelConfig(model="tiny:student"),
        data=DataConfig(path=str(texts)),
        test=DataConfig(path=""),
        num_test=3,
        sampling=SamplingConfig(max_new_tokens=24, temperature=0.15, thinking=False),
        test_sampling=SamplingConfig(max_new_tokens=24, thinking=False),
        measure=True,
    )
    summary: Any = prompt.run(config, tmp_path / "run")
    assert most == [1]
    assert summary.reference == "teacher"
    assert set(summary.models) == {"base", "student", "teacher"}
    assert summary.models["teacher"].score is None
    assert summary.retention is None
    assert summary.labels is None
    assert summary.cost.ratio.accuracy is None
    assert summary.cost.ratio.tokens > 1
    assert summary.n == 3
    assert summary.cost.ratio.seconds == pytest.approx(summary.speedup_single)
    assert summary.speedup == min(summary.speedup_batched, summary.speedup_single)
    speeds = json.loads((tmp_path / "run" / "speed.json").read_text())
    assert [row["in_turns_with"] for row in speeds.values()] == [["teacher", "student"]] * 2
    reference = {row["id"]: row["answer"] for row in read_jsonl(tmp_path / "run" / "eval" / "reference.jsonl")}
    said = {row["id"]: row["content"] for row in read_jsonl(tmp_path / "run" / "eval" / "teacher.completions.jsonl")}
    assert reference == said
    assert not (tmp_path / "run" / "evaluation_results.json").exists()


def test_references_that_cannot_be_read_leave_the_test(tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    write_jsonl(prompts, (Prompt(name, [{"role": "user", "content": "?"}]).to_json() for name in "abc"))
    write_jsonl(answers, [answer("a", "so").to_json(), answer("b", "cut", "length").to_json()])
    counts = write_references(prompts, answers, tmp_path / "out.jsonl", labels=())
    assert (counts.rows_in, counts.kept, counts.dropped) == (3, 1, {"the teacher's answer cannot be read": 2})


def test_bad_settings_end_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --data"):
        prompt.run(tiny(data=DataConfig(path="")), tmp_path / "run")
    with pytest.raises(UserError, match="num_samples at 1"):
        prompt.run(tiny(sampling=SamplingConfig(num_samples=2)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(NoData, match="No data for prompt distillation"):
        prompt.run(tiny(data=DataConfig(path="tiny:labels", split="distill[:0]")), tmp_path / "run")
    with pytest.raises(UserError, match="Invalid student model: no/such model\nExample: Qwen/Qwen3-4B-Instruct-2507"):
        prompt.run(tiny(student=ModelConfig(model="no/such model")), tmp_path / "other")


def test_the_command_takes_the_documents_flags(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distill_lab.cli", "prompt", "--preset", "tiny", "--run", str(tmp_path / "run")]
    flags = ["--prompt-file", str(tmp_path / "rules.txt"), "--max-retries", "5", "--labels", "a,b", "--grader", "label"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert (done.returncode, "rules.txt: no such file" in done.stderr) == (2, True)
