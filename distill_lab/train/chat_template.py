"""A student trained without thinking is asked without, by every tool: its chat template's default becomes that.

    leave_out_thinking(tokenizer)      chat_template: enable_thinking is false unless it is given

Templates such as Qwen3's open a turn that may think unless `enable_thinking=False` is passed. A student that learned to
answer after a closed think block would then be asked something it has never seen.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from distill_lab.chat import prompt_ids
from distill_lab.types import Message

DEFAULT = "{%- if enable_thinking is not defined -%}{%- set enable_thinking = false -%}{%- endif -%}\n"


def leave_out_thinking(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give a tokenizer's chat template that default if it makes a difference; returns whether it does."""
    ask: list[Message] = [{"role": "user", "content": "Hi"}]
    if not tokenizer.chat_template or prompt_ids(tokenizer, ask) == prompt_ids(tokenizer, ask, thinking=False):
        return False
    template = tokenizer.chat_template
    named = isinstance(template, dict)  # several templates by name, as for tools
    tokenizer.chat_template = {name: DEFAULT + each for name, each in template.items()} if named else DEFAULT + template
    return True
