"""A model's answers to a benchmark's requests: kept as they come, sampled as the task says, refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.evaluation.suite.answers import SuiteAnswers, TextRequest, task_sampling
from distill_lab.evaluation.suite.results import choose_metric
from distill_lab.models.plain_text import as_prompt

STUDENT = ModelConfig(model="tiny:student", dtype="fp32")
ENGINE = EngineConfig(engine="transformers")


def answers(work: Path, **sampling: Any) -> SuiteAnswers:
    return SuiteAnswers(STUDENT, ENGINE, SamplingConfig(thinking=False, **sampling), work)


def ask(text: str, doc: int = 0, *, plain: bool = False, **settings: Any) -> TextRequest:
    messages = as_prompt(text) if plain else [{"role": "user", "content": text}]
    return TextRequest("own", doc, 0, messages, {"max_gen_toks": 8, **settings})


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_engine(*_: Any, **__: Any) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("distill_lab.generation.engines.load_engine", load_engine)


def test_what_is_there_is_not_computed_again(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    requests = [ask("Say pear.", 0), ask("Say fox.", 1), ask("2 + 2 =", 2, plain=True, until=["\n"])]
    pairs = [("2 + 2 =", " 4"), ("2 + 2 =", " 5"), ("", "pear")]
    with answers(tmp_path) as first:
        texts, found, rolled = first.texts(requests), first.likelihoods(pairs), first.rolling(["Say pear."])
    assert len(set(texts)) > 1
    assert all(each.log_p < 0 for each in found)
    assert rolled[0] < 0
    assert first.completions["own/0"][0].num_tokens > 0
    request.getfixturevalue("no_model")
    with answers(tmp_path) as again:
        assert again.texts(requests) == texts
        assert again.likelihoods(pairs[::-1]) == found[::-1]
        assert again.rolling(["Say pear."]) == rolled


def test_one_request_several_times_is_sampled_unless_it_is_greedy(tmp_path: Path) -> None:
    with answers(tmp_path) as asked:
        greedy = asked.texts([ask("Say pear.")] * 3)
        sampled = asked.texts([ask("Say pear.", do_sample=True, temperature=3.0)] * 3)
    assert len(set(greedy)) == 1
    assert len(set(sampled)) == 3
    assert [each.sample for each in asked.completions["own/0"]] == [0, 1, 2]


def test_a_prompt_that_is_too_long_is_an_error_and_not_cut(tmp_path: Path) -> None:
    with answers(tmp_path) as asked:
        texts = asked.texts([ask("pear " * 5000, 0), ask("Say pear.", 1)])
    assert texts[0] == ""
    assert asked.completions["own/0"][0].finish_reason == "error"
    assert texts[1]


@pytest.mark.parametrize(
    ("settings", "given", "wanted"),
    [
        ({}, {}, {"max_new_tokens": 256, "temperature": 0.0, "stop": ()}),
        ({"until": "\n", "max_gen_toks": 32}, {}, {"max_new_tokens": 32, "stop": ("\n",)}),
        ({"until": ["Q:", "</s>"], "max_tokens": 9}, {}, {"stop": ("Q:", "</s>"), "max_new_tokens": 9}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, {}, {"temperature": 0.0, "top_p": 1.0}),
        ({"do_sample": True}, {}, {"temperature": 1.0}),
        ({"temperature": 0.7, "top_p": 0.9}, {}, {"temperature": 0.7, "top_p": 0.9}),
        ({"until": ["Q:"]}, {"max_new_tokens": 2048, "temperature": 0.6}, {"max_new_tokens": 2048, "temperature": 0.6}),
        ({"num_beams": 1, "use_cache": True}, {"thinking": False}, {"thinking": False}),
    ],
)
def test_a_task_says_how_to_sample(settings: dict[str, Any], given: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = task_sampling(settings, SamplingConfig(**given), task="own")
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize("settings", [{"num_beams": 4}, {"logits_processor": "x"}])
def test_a_setting_that_the_lab_does_not_have_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"own: its generation setting {next(iter(settings))}"):
        task_sampling(settings, SamplingConfig(), task="own")


SAMPLES = [
    {
        "doc_id": doc,
        "filter": filter_,
        "metrics": ["exact_match", "ppl", "f1"],
        "exact_match": doc,
        "ppl": -3.0,
        "f1": (1, 2),
    }
    for filter_ in ("strict", "flexible")
    for doc in (0, 1)
]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("", ("exact_match", "strict")),
        ("exact_match", ("exact_match", "strict")),
        ("exact_match,flexible", ("exact_match", "flexible")),
    ],
)
def test_the_first_metric_that_is_a_score_is_taken(wanted: str, chosen: tuple[str, str]) -> None:
    assert choose_metric(SAMPLES, wanted, lower_is_better=frozenset(), task="own") == chosen


def test_a_metric_that_is_no_score_is_refused_and_perplexity_is_none() -> None:
    with pytest.raises(UserError, match=r"f1: not a score of own; .* exact_match,strict, exact_match,flexible"):
        choose_metric(SAMPLES, "f1", lower_is_better=frozenset(), task="own")
    assert choose_metric(SAMPLES, "", lower_is_better=frozenset({"exact_match"}), task="own") is None
