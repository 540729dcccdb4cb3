"""The tiny family's tokenizer: byte-level BPE with single digits, Qwen's chat tokens, and a chat template like Qwen3's.

Template: `enable_thinking=False` prefills an empty thinking block; otherwise the model opens its own. Thinking of earlier
turns is dropped, as in Qwen3. The template reads the reasoning of an assistant turn from `reasoning_content` or from
`<think>...</think>` at the start of its content.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill_lab.config import STEP_BY_STEP
from distill_lab.tiny.labels import RULES
from distill_lab.tiny.tasks import TASKS, items

VOCABULARY_SIZE = 1280
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VISIBLE = ["<think>", "</think>"]
"""Single tokens that stay in decoded text, as in Qwen3."""

CHAT_TEMPLATE = """\
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- set content = message.content if message.content is string else '' -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- set thinking = message.reasoning_content if message.reasoning_content is string else '' -%}
{%- if '</think>' in content -%}
{%- set thinking = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > last.user and (loop.last or thinking) -%}
{{- '<think>\\n' + thinking.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
{{- content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""


def _texts(seed: int) -> Iterator[str]:
    yield from [RULES, STEP_BY_STEP, "You are a helpful assistant.", "system user assistant tool"] * 40
    for task in TASKS:
        for item in itertools.islice(items(task, "train", seed=seed), 3000):
            yield f"{item['question']}\n{item['thinking']}\n{item['output']}"


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the tokenizer on items of the `train` split; the same seed gives the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL) - len(VISIBLE),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in VISIBLE])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
