"""A student trained without thinking is asked without it by default, wherever it goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer

from distill_lab.chat import encode, prompt_ids
from distill_lab.cli import main
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from distill_lab.tiny import FAMILY
from distill_lab.train.chat_template import leave_out_thinking

ASK = [{"role": "user", "content": "Say yes."}]
SAID = [{"role": "assistant", "content": "Yes"}]


def test_the_templates_default_becomes_what_was_trained(random_model: Callable[..., Path]) -> None:
    folder = random_model()
    before = AutoTokenizer.from_pretrained(folder)
    assert prompt_ids(before, ASK) != prompt_ids(before, ASK, thinking=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert leave_out_thinking(tokenizer)
    tokenizer.save_pretrained(folder)
    after = AutoTokenizer.from_pretrained(folder)
    assert prompt_ids(after, ASK) == prompt_ids(before, ASK, thinking=False)
    for thinking in (True, False):
        assert prompt_ids(after, ASK, thinking=thinking) == prompt_ids(before, ASK, thinking=thinking)
        assert encode(after, ASK, SAID, thinking=thinking) == encode(before, ASK, SAID, thinking=thinking)
    template = after.chat_template
    assert not leave_out_thinking(after)
    assert after.chat_template == template


def test_templates_that_know_no_thinking_stay_as_they_are(random_model: Callable[..., Path]) -> None:
    folder = random_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    template = tokenizer.chat_template
    assert not leave_out_thinking(tokenizer)
    assert tokenizer.chat_template == template


def test_distill_train_leaves_a_template_that_asks_as_it_trained(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": ASK, "completion": SAID}] * 4)
    flags = ["--student", "tiny:student", "--rows", str(tmp_path / "rows.jsonl"), "--train.max-steps", "1"]
    for thinking in ([], ["--thinking", "False"]):
        out = tmp_path / f"student{len(thinking)}"
        assert main(["train", *flags, "--out", str(out), *thinking]) == 0
        after, before = AutoTokenizer.from_pretrained(out), AutoTokenizer.from_pretrained(FAMILY / "student")
        assert prompt_ids(before, ASK) != prompt_ids(before, ASK, thinking=False)
        assert prompt_ids(after, ASK) == prompt_ids(before, ASK, thinking=False if thinking else None)
        log = list(read_jsonl(tmp_path / f"{out.name}.training_log.jsonl"))
        assert [row["step"] for row in log] == [1]


def test_real_qwen3_template(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen3")
    after = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen3")
    assert leave_out_thinking(after)
    assert prompt_ids(after, ASK) == prompt_ids(tokenizer, ASK, thinking=False)
    assert prompt_ids(after, ASK, thinking=True) == prompt_ids(tokenizer, ASK, thinking=True)
