"""Chat templates: messages -> token ids and the loss mask for training.

Data in: a Hugging Face tokenizer with a chat template, and messages (`types.Message`). Data out: token ids, and for
training a flag per token. Nothing here knows models by name: rendering a template shows what it does.

The rule behind everything: *the trained tokens are those that generation would have had to produce*. So a trained turn is
always `prompt_ids(everything before it)` followed by the answer and the template's end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict
from weakref import WeakKeyDictionary

from distill_lab.control_tokens import THINKING_TAGS, mark, token_ids, unmark
from distill_lab.control_tokens import split_thinking as split_thinking  # engines use it as a part of the chat format
from distill_lab.errors import UserError
from distill_lab.settings import template_date
from distill_lab.types import Message

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

MAX_ADDED_CHARS, MAX_REPEATED = 1_000_000, 20
"""Maximum characters that a chat template may add, besides writing each message this many times."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training sequence."""

    input_ids: list[int]
    """Length T."""
    loss_mask: list[bool]
    """Length T: whether the student is trained to produce the token. Not shifted; the last token is always trained."""


@dataclass(frozen=True, slots=True)
class Template:
    """What a tokenizer's chat template does, determined by rendering it (`inspect_template`)."""

    end_id: int
    """The token that ends an assistant's turn."""
    tail: str
    """Text the template adds after that token at the end of a conversation (often a newline); never trained."""
    renders_thinking: bool
    """Whether it renders a message's `reasoning_content`; if not, thinking goes into the content, in think tags."""


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, thinking: bool | None = None
) -> list[int]:
    """Token ids of the prompt for `messages`: the conversation and the start of the assistant's turn.

    Equals `apply_chat_template(messages, add_generation_prompt=True, tokenize=True)`; passes `enable_thinking` if
    `thinking` is not None. Control tokens spelled out in a message are encoded as plain text (`control_tokens`). Raises
    UserError if the tokenizer has no template or the template rejects the conversation.
    """
    return token_ids(tokenizer, _render(tokenizer, messages, thinking=thinking, open_turn=True))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    *,
    thinking: bool | None = None,
) -> Encoded:
    """The whole conversation as one sequence that starts with `prompt_ids(prompt)` and ends with the last end token.

    Trains every assistant turn of `completion` (including its thinking, if any, and its end token) except those with
    `"weight": 0`, and nothing of `prompt`.
    `thinking=False` drops the completion's thinking, because generation would have none. A message without thinking
    gets an empty think block if the template writes one; the block is trained unless it is already part of the prompt
    (`thinking=False`).

    Several assistant turns: templates such as Qwen3's drop thinking (and think blocks) from earlier turns, so no single
    sequence can contain both what was generated then and what the next turn sees. This function keeps every turn as it
    was generated, and later turns see it like that. If later turns must see exactly what they see at inference, use
    `encode_turns`.

    Raises UserError naming the tokenizer if its template does not put the answer right after the prompt, or changes it.
    """
    turns = _turns(prompt, completion, thinking)
    encoded: Encoded | None = None
    for number, (before, message) in enumerate(turns):
        context_ids = prompt_ids(tokenizer, before, thinking=thinking)
        if encoded is not None and context_ids[: len(encoded.input_ids)] != encoded.input_ids:
            earlier = turns[number - 1][0]
            between = before[len(earlier) + 1 :]
            context_ids = encoded.input_ids + _bridge(tokenizer, earlier, between, thinking)
        encoded = _extend(tokenizer, encoded, context_ids, before, message, thinking)
    assert encoded is not None
    return encoded


def encode_turns(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    *,
    thinking: bool | None = None,
) -> list[Encoded]:
    """Like `encode`, but every trained turn has exactly the context it would have in generation, token by token.

    A turn continues the sequence of the previous turn if the template leaves that one as it was generated (Qwen2.5,
    Llama: a single sequence); otherwise it starts a new sequence (Qwen3, after thinking). Each assistant turn of
    `completion` is trained exactly once.
    """
    sequences: list[Encoded] = []
    for before, message in _turns(prompt, completion, thinking):
        context_ids = prompt_ids(tokenizer, before, thinking=thinking)
        last = sequences.pop() if sequences else None
        if last is not None and context_ids[: len(last.input_ids)] != last.input_ids:
            sequences.append(last)
            last = None
        sequences.append(_extend(tokenizer, last, context_ids, before, message, thinking))
    return sequences


def end_token_ids(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None = None) -> list[int]:
    """All tokens that end a completion: first the template's end of turn, then the tokenizer's and the model's.

    They differ in practice: Qwen2.5's base models name `<|endoftext|>` while their template ends turns with
    `<|im_end|>`. Raises UserError if none is known.
    """
    found: list[int] = []
    if tokenizer.chat_template:
        try:
            found.append(inspect_template(tokenizer).end_id)
        except UserError:
            # A template without an end-of-turn token can still generate: the tokenizer's end token stops it.
            if tokenizer.eos_token_id is None:
                raise
    if isinstance(tokenizer.eos_token_id, int):
        found.append(tokenizer.eos_token_id)
    configured = generation_config.eos_token_id if generation_config is not None else None
    if configured is not None:
        configured = configured if isinstance(configured, list) else [configured]
        if not all(type(token) is int for token in configured):
            raise UserError(
                f"{_name(tokenizer)}: eos_token_id in its generation_config is not a token's number; fix it"
            )
        found += configured
    if not found:
        raise UserError(f"{_name(tokenizer)}: no end token is defined; set eos_token in its tokenizer_config.json")
    return list(dict.fromkeys(found))


def opens_thinking(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether a prompt's token ids end with an opening think tag, so that the completion starts inside thinking."""
    end = str(tokenizer.decode(list(ids[-16:]), skip_special_tokens=False)).rstrip()
    return end.endswith(tuple(opening for opening, _ in THINKING_TAGS))


_templates: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, Template]] = WeakKeyDictionary()


def inspect_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """What the tokenizer's chat template does; cached per tokenizer and template.

    Raises UserError if assistant turns do not end with a special token of the tokenizer.
    """
    known = _templates.setdefault(tokenizer, {})
    source = str(tokenizer.chat_template)
    if source not in known:
        known[source] = _inspect(tokenizer)
    return known[source]


# Words that no template contains or trims, and that do not merge with the text around them.
_ASK, _ANSWER, _THOUGHT = "qeuzion", "anzwerr", "thougthh"


def _inspect(tokenizer: PreTrainedTokenizerBase) -> Template:
    ask: Message = {"role": "user", "content": _ASK}
    text = _render(tokenizer, [ask, {"role": "assistant", "content": _ANSWER}], thinking=None, open_turn=False)
    _, found, after = text.rpartition(_ANSWER)
    ends = [token for token in token_ids(tokenizer, after) if token in tokenizer.added_tokens_decoder] if found else []
    end_text = tokenizer.added_tokens_decoder[ends[0]].content if ends else ""
    if not ends or not after.lstrip().startswith(end_text):
        raise UserError(
            f"{_name(tokenizer)}: its chat template ends the assistant's turn with {after!r}, which is not a special "
            "token of this tokenizer, so a student could not learn where to stop; use the tokenizer's own template"
        )
    thought: Message = {"role": "assistant", "content": _ANSWER, "thinking": _THOUGHT}
    with_thinking = _render(tokenizer, [ask, thought], thinking=None, open_turn=False)
    return Template(
        end_id=ends[0],
        tail=after.partition(end_text)[2],
        renders_thinking=_THOUGHT in with_thinking,
    )


def _turns(
    prompt: Sequence[Message], completion: Sequence[Message], thinking: bool | None
) -> list[tuple[list[Message], Message]]:
    """(messages before the turn, the turn) for each assistant turn of `completion`."""
    if thinking is False:
        completion = [_without_thinking(message) for message in completion]
    whole = [*prompt, *completion]
    positions = [index for index in range(len(prompt), len(whole)) if is_trained(whole[index])]
    if not positions:
        raise UserError("a completion without an assistant message to train has nothing to train on; remove the row")
    return [(whole[:index], whole[index]) for index in positions]


def is_trained(message: Message) -> bool:
    """Whether a turn of a completion is trained: an assistant's, unless its weight is 0."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def _extend(
    tokenizer: PreTrainedTokenizerBase,
    encoded: Encoded | None,
    context_ids: list[int],
    before: list[Message],
    message: Message,
    thinking: bool | None,
) -> Encoded:
    """`encoded`, followed by the untrained rest of `context_ids` and the trained tokens of `message`."""
    answer = _answer_ids(tokenizer, before, message, thinking)
    mask = encoded.loss_mask if encoded is not None else []
    untrained = [False] * (len(context_ids) - len(mask))
    return Encoded(context_ids + answer, mask + untrained + [True] * len(answer))


def _answer_ids(
    tokenizer: PreTrainedTokenizerBase, before: list[Message], message: Message, thinking: bool | None
) -> list[int]:
    """The tokens that generation must produce after `prompt_ids(before)` to answer `message`, including the end token."""
    template = inspect_template(tokenizer)
    if THINKING_TAGS[0][1] in (message.get("thinking") or ""):
        raise UserError(f"{_name(tokenizer)}: the thinking has a closing thinking tag in it, where it would end")
    context = _render(tokenizer, before, thinking=thinking, open_turn=True)
    if not template.renders_thinking:
        message = _thinking_in_content(message)
    whole = _render(tokenizer, [*before, message], thinking=thinking, open_turn=False)
    if not (whole.startswith(context) and whole.endswith(template.tail)):
        raise UserError(_broken(tokenizer, context, whole))
    whole = whole[: len(whole) - len(template.tail)]
    for field in ("content", "thinking"):
        # Qwen3's template takes what is before a `</think>` in an answer for thinking.
        if mark(tokenizer, str(message.get(field) or "")).strip() not in whole[len(context) :]:
            raise UserError(
                f"{_name(tokenizer)}: its chat template changes the answer's {field} (is a thinking tag in it?)"
            )

    context_ids, whole_ids = token_ids(tokenizer, context), token_ids(tokenizer, whole)
    ends = {template.end_id}
    if isinstance(tokenizer.eos_token_id, int):
        ends.add(tokenizer.eos_token_id)
    if whole_ids[: len(context_ids)] == context_ids:
        answer = whole_ids[len(context_ids) :]
    else:
        # Text at the boundary would merge into one token (a prompt ending in a newline, an answer starting with one).
        # Generation starts from the prompt's tokens, so the boundary stays.
        answer = token_ids(tokenizer, whole[len(context) :])
    same_text = context_ids + answer == whole_ids or _text(tokenizer, context_ids + answer) == _text(
        tokenizer, whole_ids
    )
    if not same_text or answer[-1:] != [template.end_id] or not ends.isdisjoint(answer[:-1]):
        raise UserError(_broken(tokenizer, context, whole))
    return answer


def _bridge(
    tokenizer: PreTrainedTokenizerBase, before: list[Message], after: list[Message], thinking: bool | None
) -> list[int]:
    """Token ids the template puts between the end token of an answer to `before` and the answer to `after`."""
    dummy: Message = {"role": "assistant", "content": _ANSWER}
    text = _render(tokenizer, [*before, dummy, *after], thinking=thinking, open_turn=True)
    end_text = tokenizer.added_tokens_decoder[inspect_template(tokenizer).end_id].content
    _, found, between = text.rpartition(_ANSWER)[2].partition(end_text)
    if not found:
        raise UserError(
            f"{_name(tokenizer)}: its chat template ends earlier turns without {end_text!r}; use single turns"
        )
    return token_ids(tokenizer, between)


def _thinking_in_content(message: Message) -> Message:
    thinking = message.get("thinking") or message.get("reasoning_content")
    if not thinking:
        return message
    content = answer_text(message["content"], thinking.strip("\n"))
    return {**_without_thinking(message), "content": content}


def _without_thinking(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in ("thinking", "reasoning_content")}


class TemplateSettings(TypedDict, total=False):
    """Arguments of `apply_chat_template` that are not given if the template is to decide."""

    enable_thinking: bool
    chat_template: str


def template_settings(thinking: bool | None) -> TemplateSettings:
    """thinking: whether the template turns it on; None: its default."""
    return {} if thinking is None else {"enable_thinking": thinking}


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, thinking: bool | None, open_turn: bool
) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(f"{_name(tokenizer)} has no chat template; use an instruct model or set its chat_template")
    rows = []
    for message in messages:
        row = _without_thinking(message)
        row.pop("weight", None)
        if trace := message.get("thinking") or message.get("reasoning_content"):
            row["reasoning_content"] = trace
        for field in ("content", "reasoning_content"):
            if isinstance(row.get(field), str):
                row[field] = mark(tokenizer, row[field])
        rows.append(row)
    settings = template_settings(thinking)
    if "strftime_now" in str(tokenizer.chat_template):
        settings["chat_template"] = template_date.dated(tokenizer.get_chat_template())
    try:
        text = tokenizer.apply_chat_template(rows, add_generation_prompt=open_turn, tokenize=False, **settings)
    except Exception as error:  # a template is a program: it may divide by zero, call itself without end, include files
        roles = ", ".join(str(message.get("role")) for message in messages)
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        reason = f"{kind}{str(error)[:300]}".rstrip(": ")
        raise UserError(f"{_name(tokenizer)}: its chat template rejects the roles [{roles}]: {reason}") from None
    if not isinstance(text, str):
        raise UserError(f"{_name(tokenizer)}: its chat template makes no text; use the tokenizer's own template")
    # Checked before it becomes tokens: for hundreds of megabytes that takes minutes and heeds no Ctrl-C.
    length = sum(len(str(value)) for row in rows for value in row.values())
    if len(text) > MAX_ADDED_CHARS + MAX_REPEATED * length:
        raise UserError(
            f"{_name(tokenizer)}: its chat template makes {len(text):,} characters of {length:,}; use the tokenizer's own "
            "template"
        )
    return text


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _broken(tokenizer: PreTrainedTokenizerBase, context: str, whole: str) -> str:
    context, whole = (unmark(tokenizer, text) for text in (context, whole))
    same = next((n for n in range(len(context)) if context[n] != whole[n : n + 1]), len(context))
    return (
        f"{_name(tokenizer)}: its chat template does not put the answer right after the prompt (the prompt continues "
        f"with {context[same : same + 40]!r}, the conversation with {whole[same : same + 40]!r}), so training would not "
        "match generation. Remove the thinking from the training set, set thinking=True if the template supports it, or "
        "use a chat template that continues its own prompt"
    )


def answer_text(content: str, thinking: str | None) -> str:
    """An answer as one text, preceded by its thinking in think tags; `split_thinking` splits it again."""
    if not thinking:
        return content
    opening, closing = THINKING_TAGS[0]
    return f"{opening}\n{thinking}\n{closing}\n\n{content}"
