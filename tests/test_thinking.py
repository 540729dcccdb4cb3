"""A student trained without thinking is asked without it by default, wherever it goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer

from distill_lab.chat import encode, prompt_ids
from distill_lab.train.thinking import leave_out_thinking

ASK = [{"role": "user", "content": "Say yes."}]
SAID = [{"role": "assistant", "content": "Yes"}]


def test_the_templates_default_becomes_what_was_trained(random_model: Callable[..., Path]) -> None:
    folder = random_model()
    before = AutoTokenizer.from_pretrained(folder)
    assert prompt_ids(before, ASK) != prompt_ids(before, ASK, thinking=False)
    assert leave_out_thinking(folder)
    after = AutoTokenizer.from_pretrained(folder)
    assert prompt_ids(after, ASK) == prompt_ids(before, ASK, thinking=False)
    for thinking in (True, False):
        assert prompt_ids(after, ASK, thinking=thinking) == prompt_ids(before, ASK, thinking=thinking)
        assert encode(after, ASK, SAID, thinking=thinking) == encode(before, ASK, SAID, thinking=thinking)
    template = after.chat_template
    assert not leave_out_thinking(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == template


def test_templates_that_know_no_thinking_stay_as_they_are(random_model: Callable[..., Path]) -> None:
    folder = random_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer.save_pretrained(folder)
    assert not leave_out_thinking(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template


def test_real_qwen3_template(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "qwen3")
    tokenizer.save_pretrained(tmp_path)
    assert leave_out_thinking(tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert prompt_ids(after, ASK) == prompt_ids(tokenizer, ASK, thinking=False)
    assert prompt_ids(after, ASK, thinking=True) == prompt_ids(tokenizer, ASK, thinking=True)
