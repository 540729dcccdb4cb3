"""Properties of what is trained of a conversation, on any text: the answer and its end, after exactly the prompt."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from distill_lab.chat import encode, encode_turns, inspect_template, prompt_ids
from distill_lab.errors import UserError
from distill_lab.tiny import FAMILY
from distill_lab.types import Message

pytestmark = pytest.mark.slow

FAST = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
PIECES = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "<|endoftext|>",
        "<think>",
        "</think>",
        "\n",
        " ",
        "assistant",
        "{{ x }}",
        "{% if %}",
    ]
)
TEXT = st.one_of(st.text(max_size=30), st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=6).map("".join))
ANSWER = TEXT.filter(lambda text: bool(text.strip()))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FAMILY / "student")


def trained(found: object) -> list[int]:
    ids, mask = getattr(found, "input_ids"), getattr(found, "loss_mask")  # noqa: B009 - typed as object
    return [token for token, flag in zip(ids, mask, strict=True) if flag]


@FAST
@given(st.lists(TEXT, max_size=2), TEXT, ANSWER, st.booleans())
def test_the_answer_and_its_end_are_trained_after_exactly_the_prompt(
    tokenizer: PreTrainedTokenizerBase, earlier: list[str], question: str, answer: str, has_system: bool
) -> None:
    prompt: list[Message] = [{"role": "system", "content": "Be brief."}] if has_system else []
    for text in earlier:
        prompt += [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
    prompt.append({"role": "user", "content": question})
    completion: list[Message] = [{"role": "assistant", "content": answer}]
    try:
        found = encode(tokenizer, prompt, completion, thinking=False)
    except UserError:
        # The template takes a closing thinking tag for the end of the thinking.
        assert "think>" in answer
        return
    start = prompt_ids(tokenizer, prompt, thinking=False)
    assert found.input_ids[: len(start)] == start
    assert not any(found.loss_mask[: len(start)])
    assert all(found.loss_mask[len(start) :])
    end = inspect_template(tokenizer).end_id
    span = trained(found)
    assert span[-1] == end
    assert end not in span[:-1]
    text = tokenizer.decode(span[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert str(text).strip() == answer.encode(errors="replace").decode().strip()


@FAST
@given(st.lists(ANSWER, min_size=1, max_size=4), st.data())
def test_every_turn_is_trained_once_in_both_ways_unless_it_has_no_weight(
    tokenizer: PreTrainedTokenizerBase, answers: list[str], data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.sampled_from([None, 0]), min_size=len(answers), max_size=len(answers)))
    completion: list[Message] = []
    for answer, weight in zip(answers, weights, strict=True):
        completion += [{"role": "user", "content": "And?"}] if completion else []
        completion.append({"role": "assistant", "content": answer} | ({} if weight is None else {"weight": weight}))
    prompt: list[Message] = [{"role": "user", "content": "Well?"}]
    if 0 in weights and None not in weights:
        return
    try:
        whole = encode(tokenizer, prompt, completion, thinking=False)
        turns = encode_turns(tokenizer, prompt, completion, thinking=False)
    except UserError:
        assert any("think>" in answer for answer in answers)
        return
    end = inspect_template(tokenizer).end_id
    assert trained(whole).count(end) == weights.count(None)
    assert [token for each in turns for token in trained(each)] == trained(whole)
