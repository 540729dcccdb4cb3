"""An Ollama Modelfile: a tokenizer and sampling settings -> FROM, TEMPLATE (in Go's template language), PARAMETER lines.

Ollama does not read the Jinja template of a model, so the same prompt has to be written once more. Two families are known,
by what they render: ChatML (Qwen2.5 and others), and ChatML with thinking (Qwen3). With any other Go template a student
would be asked in a form it was not trained on, so models of other families are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_lab.chat import template_settings
from distill_lab.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Names in generation_config.json -> in a Modelfile."""
NEUTRAL = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
"""Greedy and without penalties. Written out, because Ollama's own defaults sample and penalize repetition."""
OPENING = "<|im_start|>assistant\n"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
END, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"

SYSTEM = "{{- if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}\n"
TURNS = """\
{{- range .Messages }}
{{- if ne .Role "system" }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}
{{- end }}"""
TURNS_WITH_THINKING = """\
{{- range $i, $message := .Messages }}
{{- if ne .Role "system" }}<|im_start|>{{ .Role }}
{{ if and .Thinking (eq (len (slice $.Messages $i)) 1) }}<think>
{{ .Thinking }}
</think>

{{ end }}{{ .Content }}<|im_end|>
{{ end }}
{{- end }}"""
"""Thinking of earlier turns is left out, as Qwen3's own template does."""
THINKS_UNLESS_OFF = "{{ if and .IsThinkSet (not .Think) }}" + EMPTY_THOUGHT + "{{ end }}"
THINKS_IF_ON = "{{ if not (and .IsThinkSet .Think) }}" + EMPTY_THOUGHT + "{{ end }}"


@dataclass(frozen=True, slots=True)
class Family:
    """What a chat template renders."""

    system: str | None
    """The system message of a conversation that has none; None if there is none."""
    thinks: bool
    """Whether enable_thinking=False writes an empty thought into the prompt."""


def family_of(tokenizer: PreTrainedTokenizerBase) -> Family:
    """The family of the tokenizer's chat template. Raises UserError if it is not one of the known ones."""
    user = {"role": "user", "content": " qeuzion "}
    again = {"role": "user", "content": "qeuzion"}
    answer = {"role": "assistant", "content": "anzwerr"}
    before = _rendered(tokenizer, [user]).partition("<|im_start|>user\n")[0]
    system = before.removeprefix("<|im_start|>system\n").removesuffix(END + "\n") if before else None
    given = {"role": "system", "content": "sysstem"}
    conversations = ([user], [given, user], [user, answer, again], [given, user, answer, again])
    thinks = _rendered(tokenizer, [user], thinking=False) != _rendered(tokenizer, [user])
    for messages in conversations:
        for thinking, opening in ((None, OPENING), (False, OPENING + EMPTY_THOUGHT * thinks)):
            if _rendered(tokenizer, messages, thinking=thinking) != chatml(messages, system) + opening:
                raise UserError(
                    f"{tokenizer.name_or_path}: its chat template is neither ChatML nor Qwen3's, and no other can be "
                    "written for Ollama; use --to gguf, whose file contains the template itself, with llama.cpp or LM Studio"
                )
    return Family(system, thinks)


def chatml(messages: list[dict[str, str]], system: str | None = None) -> str:
    """The turns of a conversation in ChatML. system: for a conversation that has no system message."""
    if system is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    return "".join(f"<|im_start|>{message['role']}\n{message['content']}{END}\n" for message in messages)


def go_template(family: Family, *, thinking: bool | None) -> str:
    """The family's prompt as a Go template. thinking: False writes an empty thought unless the user turns thinking on."""
    if not family.thinks:
        return SYSTEM + TURNS + OPENING
    return SYSTEM + TURNS_WITH_THINKING + OPENING + (THINKS_IF_ON if thinking is False else THINKS_UNLESS_OFF)


def modelfile(
    tokenizer: PreTrainedTokenizerBase, file: str, settings: Mapping[str, float], *, thinking: bool | None
) -> str:
    """The text of a Modelfile next to the GGUF file `file`.

    settings: the model's sampling settings as `generation_settings` gives them; {}: greedy. thinking: how the student was
    tested. Raises UserError like `family_of`, and for a system message that a Modelfile cannot hold.
    """
    family = family_of(tokenizer)
    lines = [f"FROM ./{file}", f'TEMPLATE """{go_template(family, thinking=thinking)}"""']
    if family.system is not None:
        if '"""' in family.system:
            raise UserError(
                f'{tokenizer.name_or_path}: its system message contains """, which ends text in a Modelfile'
            )
        lines.append(f'SYSTEM """{family.system}"""')
    stops = [END, *([END_OF_TEXT] if END_OF_TEXT in tokenizer.get_vocab() else [])]
    lines += [f"PARAMETER stop {json.dumps(stop)}" for stop in stops]
    lines += [f"PARAMETER {PARAMETERS[name]} {value:g}" for name, value in {**NEUTRAL, **settings}.items()]
    return "\n".join(lines) + "\n"


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, thinking: bool | None = None
) -> str:
    settings = template_settings(thinking)
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **settings))
