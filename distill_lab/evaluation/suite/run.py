"""A suite on a model: lm_eval's tasks ask, the lab's engines answer, lm_eval scores -> its results, item by item.

    results, chats = run_suite(suite, answers, chat=True, num_fewshot=None, limit=None)

Texts come from the engines (`SuiteAnswers.texts`), likelihoods from `evaluation/likelihood.py`. A conversation reaches the
engine as messages, and not as the text that lm_eval makes of it: the engine renders it as it renders all others.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distill_lab.chat import template_settings
from distill_lab.errors import UserError
from distill_lab.evaluation.suite._lm_eval import Request, Results
from distill_lab.evaluation.suite.answers import SuiteAnswers, TextRequest
from distill_lab.evaluation.suite.harness import SEEDS, Suite, cause, quiet, seeded
from distill_lab.models.names import api_engine
from distill_lab.models.plain_text import as_prompt
from distill_lab.types import Fields, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOOTSTRAPS = 1_000
"""Resamples of lm_eval's standard errors, of metrics that have no formula for it."""


def run_suite(
    suite: Suite, answers: SuiteAnswers, *, chat: bool, num_fewshot: int | None, limit: int | None
) -> tuple[Results, dict[str, list[Message]]]:
    """lm_eval's results, and the conversations that its rendered prompts stand for.

    chat: ask in the model's chat template. limit: only the first items of each task. Raises UserError for what the model
    cannot be asked.
    """
    with quiet(), seeded():
        harness = importlib.import_module("lm_eval.evaluator")
        for task in suite.tasks.values():
            usual = task.get_config("num_fewshot")
            if num_fewshot is not None and usual != 0:
                task.set_config(key="num_fewshot", value=num_fewshot)
            elif usual is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=SEEDS[1])
        chats: dict[str, list[Message]] = {}
        results: Results = harness.evaluate(
            lm=_model(answers, chats, chat=chat),
            task_dict={"tasks": suite.tasks, "groups": suite.groups},
            limit=limit,
            bootstrap_iters=BOOTSTRAPS,
            log_samples=True,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    return results, chats


def _model(answers: SuiteAnswers, chats: dict[str, list[Message]], *, chat: bool) -> object:
    """The lab's model as lm_eval asks one. chats gets each rendered prompt with the conversation it was rendered from."""
    base = importlib.import_module("lm_eval.api.model").LM
    on_server = api_engine(answers.model.model) is not None

    class LabModel(base):
        """Passes requests on to `SuiteAnswers`."""

        @property
        def tokenizer_name(self) -> str:
            """Part of a cache's key that is not used."""
            return answers.model.model

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True, **_: object
        ) -> str:
            """A conversation as text. Without a generation prompt, the last turn is the beginning of the answer."""
            if on_server:
                text = json.dumps(chat_history, ensure_ascii=False)
            else:
                text = _rendered(answers, chat_history, open_turn=add_generation_prompt)
            if add_generation_prompt:
                chats[text] = [dict(message) for message in chat_history]
            return text

        def loglikelihood(self, requests: Sequence[Request[tuple[str, str]]], **_: object) -> list[tuple[float, bool]]:
            """Log-likelihood of each continuation, and whether it is what greedy decoding would write."""
            found = answers.likelihoods([(request.args[0], request.args[1]) for request in requests])
            return [(each.log_p, each.is_greedy) for each in found]

        def loglikelihood_rolling(self, requests: Sequence[Request[tuple[str]]], **_: object) -> list[float]:
            """Log-likelihood of each whole text."""
            return answers.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: Sequence[Request[tuple[str, Fields]]], **_: object) -> list[str]:
            """What the model writes."""
            return answers.texts([self._request(request) for request in requests])

        def _request(self, request: Request[tuple[str, Fields]]) -> TextRequest:
            context, settings = request.args[:2]
            messages = chats.get(context)
            if messages is None and on_server:
                how = "begins the answer for the model" if chat else "is a text to continue"
                raise UserError(
                    f"{request.task_name}: its prompt {how}, and a server only takes conversations; "
                    + ("choose another task" if chat else "leave out --suite.chat False")
                )
            return TextRequest(
                request.task_name, request.doc_id, request.idx, messages or as_prompt(context), dict(settings)
            )

    return LabModel()


_tokenizers: dict[str, PreTrainedTokenizerBase] = {}


def has_template(answers: SuiteAnswers) -> bool:
    """Whether the model has a chat template; a server applies its own."""
    return api_engine(answers.model.model) is not None or bool(_tokenizer(answers).chat_template)


def _tokenizer(answers: SuiteAnswers) -> PreTrainedTokenizerBase:
    from distill_lab.models.loading import load_tokenizer

    key = answers.model.model_dump_json()
    if key not in _tokenizers:
        _tokenizers.clear()
        _tokenizers[key] = load_tokenizer(answers.model)
    return _tokenizers[key]


def _rendered(answers: SuiteAnswers, messages: Sequence[Mapping[str, str]], *, open_turn: bool) -> str:
    thinking = answers.sampling.thinking
    settings = template_settings(thinking)
    try:
        text = _tokenizer(answers).apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=open_turn,
            continue_final_message=not open_turn,
            **settings,
        )
    except Exception as error:  # a template is a program
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"{answers.model.model}: its chat template rejects the roles [{roles}] ({cause(error)}); ask without it "
            "(--suite.chat False)"
        ) from None
    return str(text)
