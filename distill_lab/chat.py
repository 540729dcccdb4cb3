"""Chat templates: messages -> token ids, the span of a conversation that is trained, thinking split from the answer.

Data in: a Hugging Face tokenizer with a chat template, and messages (`types.Message`). Data out: token ids, and for
training a flag per token. Nothing here knows a model by name: what a template does is found by rendering it.

The rule that holds everything together: *the trained tokens are those that generation would have had to produce*. So a
trained turn is always `prompt_ids(everything before it)` followed by the answer and the template's end token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from distill_lab.control_tokens import marked, token_ids, unmarked
from distill_lab.errors import UserError
from distill_lab.types import Message

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

THINKING_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
SOLUTION_TAGS = ("<|begin_of_solution|>", "<|end_of_solution|>")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training sequence."""

    input_ids: list[int]
    """Length T."""
    trained: list[bool]
    """Length T: whether the student learns to produce the token. Not shifted; the last token is always trained."""


@dataclass(frozen=True, slots=True)
class Template:
    """What a tokenizer's chat template does, found by rendering it (`inspect_template`)."""

    end_id: int
    """The token that ends an assistant's turn."""
    tail: str
    """What the template writes after that token at the end of a conversation (often a newline); never trained."""
    renders_thinking: bool
    """Whether it writes a message's `reasoning_content`; otherwise thinking goes into the content, in think tags."""


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, thinking: bool | None = None
) -> list[int]:
    """Token ids of what a model is given to answer `messages`: the conversation and the opening of its own turn.

    Equal to `apply_chat_template(messages, add_generation_prompt=True, tokenize=True)`; `enable_thinking` is passed
    where `thinking` is not None. Control tokens that a message spells are encoded as the plain text they are there
    (`control_tokens`). Raises UserError where the tokenizer has no template or the template refuses.
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

    Trained: every assistant turn of `completion` (its thinking where the message has one, and its end token), nothing
    of `prompt`. With `thinking=False` the completion's thinking is left out, as generation would have none. A
    message without thinking gets the empty think block where the template writes one; it is trained only where it is
    not part of the prompt already (`thinking=False`).

    Several assistant turns: templates such as Qwen3's drop thinking (and think blocks) from earlier turns, so no single
    sequence can hold both what was generated then and what the next turn sees. Here every turn stays as it was
    generated, and later turns see it so. Where later turns must see exactly what they see in use, take `encode_turns`.

    Raises UserError naming the tokenizer where prompt and answer do not continue one another in its template.
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
    """As `encode`, but every trained turn stands in exactly the context generation would give it, token by token.

    A turn goes on in the sequence of the turn before it where the template leaves that one as it was generated
    (Qwen2.5, Llama: one sequence in all), and starts a sequence of its own where it does not (Qwen3, after thinking).
    Each assistant turn of `completion` is trained exactly once.
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
    """Every token that ends a completion: the template's own end of turn first, the tokenizer's, the model's.

    They differ in practice: Qwen2.5's base models name `<|endoftext|>` while their template ends turns with
    `<|im_end|>`. Raises UserError where none is known.
    """
    found: list[int] = []
    if tokenizer.chat_template:
        try:
            found.append(inspect_template(tokenizer).end_id)
        except UserError:
            # A template whose turns end without a token of their own can still generate: the tokenizer's end decides.
            if tokenizer.eos_token_id is None:
                raise
    if isinstance(tokenizer.eos_token_id, int):
        found.append(tokenizer.eos_token_id)
    configured = generation_config.eos_token_id if generation_config is not None else None
    if configured is not None:
        found += [int(token) for token in (configured if isinstance(configured, list) else [configured])]
    if not found:
        raise UserError(f"{_name(tokenizer)}: no end token is known; set eos_token in its tokenizer_config.json")
    return list(dict.fromkeys(found))


def split_thinking(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """`text` as (thinking, content), without tags and the blank lines around them; thinking is None where it is empty.

    Read at the start of `text`: `<think>`, `<thinking>`, `<|begin_of_thought|>`. A closing tag without an opening one
    means that the prompt had opened it; thinking that never closes leaves the content empty. `opened`: the prompt
    ended inside thinking (`opens_thinking`), so that a text cut before its closing tag is all thinking.
    Text without tags comes back unchanged.
    """
    for opening, closing in THINKING_TAGS:
        stripped = text.lstrip()
        if stripped.startswith(opening):
            thought, _, content = stripped[len(opening) :].partition(closing)
            return _thinking(thought), _solution(content)
        before, found, content = text.partition(closing)
        if found and opening not in before:
            return _thinking(before), _solution(content)
    if opened:
        return _thinking(text), ""
    if text.lstrip().startswith(SOLUTION_TAGS[0]):
        return None, _solution(text)
    return None, text


def opens_thinking(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
    """Whether a prompt's token ids end with an opening think tag, so that the completion begins inside thinking."""
    end = str(tokenizer.decode(list(ids[-16:]), skip_special_tokens=False)).rstrip()
    return end.endswith(tuple(opening for opening, _ in THINKING_TAGS))


def _thinking(text: str) -> str | None:
    return text.strip("\n") if text.strip() else None


def _solution(text: str) -> str:
    # Blank lines go, the indentation of the first line of text (code) stays.
    text = re.sub(r"\A(?:\s*\n|[ \t]+)", "", text)
    if text.startswith(SOLUTION_TAGS[0]):
        text = text[len(SOLUTION_TAGS[0]) :].partition(SOLUTION_TAGS[1])[0].strip("\n")
    return text


_templates: WeakKeyDictionary[Any, dict[str, Template]] = WeakKeyDictionary()


def inspect_template(tokenizer: PreTrainedTokenizerBase) -> Template:
    """What the tokenizer's chat template does; remembered per tokenizer and template.

    Raises UserError where assistant turns do not end with a token of the tokenizer.
    """
    known = _templates.setdefault(tokenizer, {})
    source = str(tokenizer.chat_template)
    if source not in known:
        known[source] = _inspect(tokenizer)
    return known[source]


# Words no template contains, that no template trims, and that cannot merge with what stands around them.
_ASK, _ANSWER, _THOUGHT = "qeuzion", "anzwerr", "thougthh"


def _inspect(tokenizer: PreTrainedTokenizerBase) -> Template:
    ask: Message = {"role": "user", "content": _ASK}
    text = _render(tokenizer, [ask, {"role": "assistant", "content": _ANSWER}], thinking=None, open_turn=False)
    _, found, after = text.rpartition(_ANSWER)
    ends = [token for token in token_ids(tokenizer, after) if token in tokenizer.added_tokens_decoder] if found else []
    end_text = tokenizer.added_tokens_decoder[ends[0]].content if ends else ""
    if not ends or not after.lstrip().startswith(end_text):
        raise UserError(
            f"{_name(tokenizer)}: its chat template ends the assistant's turn with {after!r}, which is no special "
            "token of this tokenizer, so a student could not learn where to stop; use the template that belongs to it"
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
    """(everything before it, the turn) of each assistant turn of `completion`."""
    if thinking is False:
        completion = [_without_thinking(message) for message in completion]
    whole = [*prompt, *completion]
    places = [place for place in range(len(prompt), len(whole)) if whole[place]["role"] == "assistant"]
    if not places:
        raise UserError("a completion without an assistant's message has nothing to train on; leave the row out")
    return [(whole[:place], whole[place]) for place in places]


def _extend(
    tokenizer: PreTrainedTokenizerBase,
    encoded: Encoded | None,
    context_ids: list[int],
    before: list[Message],
    message: Message,
    thinking: bool | None,
) -> Encoded:
    """`encoded`, the untrained rest of `context_ids`, and the trained tokens of `message`."""
    answer = _answer_ids(tokenizer, before, message, thinking)
    trained = encoded.trained if encoded is not None else []
    untrained = [False] * (len(context_ids) - len(trained))
    return Encoded(context_ids + answer, trained + untrained + [True] * len(answer))


def _answer_ids(
    tokenizer: PreTrainedTokenizerBase, before: list[Message], message: Message, thinking: bool | None
) -> list[int]:
    """The tokens generation would have to produce after `prompt_ids(before)` to have said `message`, end included."""
    template = inspect_template(tokenizer)
    context = _render(tokenizer, before, thinking=thinking, open_turn=True)
    if not template.renders_thinking:
        message = _thinking_in_content(message)
    whole = _render(tokenizer, [*before, message], thinking=thinking, open_turn=False)
    if not (whole.startswith(context) and whole.endswith(template.tail)):
        raise UserError(_broken(tokenizer, context, whole))
    whole = whole[: len(whole) - len(template.tail)]

    context_ids, whole_ids = token_ids(tokenizer, context), token_ids(tokenizer, whole)
    ends = {template.end_id}
    if isinstance(tokenizer.eos_token_id, int):
        ends.add(tokenizer.eos_token_id)
    if whole_ids[: len(context_ids)] == context_ids:
        answer = whole_ids[len(context_ids) :]
    else:
        # Text at the seam would merge into one token (a prompt ending in a newline, an answer starting with one).
        # Generation starts from the prompt's tokens, so the seam stays.
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
    """What the template writes between the end token of an answer to `before` and the answer to `after`."""
    stand_in: Message = {"role": "assistant", "content": _ANSWER}
    text = _render(tokenizer, [*before, stand_in, *after], thinking=thinking, open_turn=True)
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


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, thinking: bool | None, open_turn: bool
) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UserError(f"{_name(tokenizer)} has no chat template; choose an instruct model or set its chat_template")
    rows = []
    for message in messages:
        row: dict[str, str] = _without_thinking(message)
        if trace := message.get("thinking") or message.get("reasoning_content"):
            row["reasoning_content"] = trace
        for field in ("content", "reasoning_content"):
            if isinstance(row.get(field), str):
                row[field] = marked(tokenizer, row[field])
        rows.append(row)
    settings: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text = tokenizer.apply_chat_template(rows, add_generation_prompt=open_turn, tokenize=False, **settings)
    except TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise UserError(f"{_name(tokenizer)}: its chat template refuses a conversation of [{roles}]: {error}") from None
    assert isinstance(text, str)
    return text


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _broken(tokenizer: PreTrainedTokenizerBase, context: str, whole: str) -> str:
    context, whole = (unmarked(tokenizer, text) for text in (context, whole))
    same = next((n for n in range(len(context)) if context[n] != whole[n : n + 1]), len(context))
    return (
        f"{_name(tokenizer)}: its chat template does not write the answer where the prompt ends (the prompt goes on "
        f"with {context[same : same + 40]!r}, the conversation with {whole[same : same + 40]!r}), so a student would "
        "learn something else than what it is asked. Leave the thinking out of the training set, ask with "
        "thinking=True if the template knows that, or use a chat template that continues its own prompt"
    )


def answer_text(content: str, thinking: str | None) -> str:
    """An answer as one text, its thinking in front of it in think tags; reading it back splits it again."""
    if not thinking:
        return content
    opening, closing = THINKING_TAGS[0]
    return f"{opening}\n{thinking}\n{closing}\n\n{content}"
