"""A student trained without thinking is asked without, by every tool: its chat template's default becomes that.

    leave_out_thinking(Path("runs/first/student"))      chat_template.jinja: enable_thinking is false unless it is given

Templates such as Qwen3's open a turn that may think unless `enable_thinking=False` is passed. A student that learned to
answer after a closed think block would then be asked something it has never seen.
"""

from __future__ import annotations

from pathlib import Path

from distill_lab.chat import prompt_ids
from distill_lab.train.portable import write_tokenizer
from distill_lab.types import Message

DEFAULT = "{%- if enable_thinking is not defined -%}{%- set enable_thinking = false -%}{%- endif -%}\n"


def leave_out_thinking(student: Path) -> bool:
    """Give the template in a model's directory that default, where it makes a difference; returns whether it does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    ask: list[Message] = [{"role": "user", "content": "Hi"}]
    if not tokenizer.chat_template or prompt_ids(tokenizer, ask) == prompt_ids(tokenizer, ask, thinking=False):
        return False
    tokenizer.chat_template = DEFAULT + tokenizer.chat_template
    write_tokenizer(student, tokenizer)
    return True
