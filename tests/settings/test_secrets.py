"""Which fields of a request are secrets, and that no record of the settings has them."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from distill_lab.config import AS_GIVEN, EngineConfig
from distill_lab.settings.secrets import MARK, secrets_in, without_secrets


@pytest.mark.parametrize(
    "name",
    ["api_key", "apiKey", "api-key", "X-API-Key", "key", "Authorization", "auth_token", "access_token", "token", "password",
     "client_secret", "aws_secret_access_key", "credentials", "subscription-key", "azure_ad_token_provider_secret"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["abc", {"a": ["abc"]}, [["abc"]]])
def test_values_are_secrets_by_the_name_of_their_field(name: str, value: Any) -> None:
    assert secrets_in({"outer": [{name: value, "top_p": 0.5}]}) == ["abc"]
    assert "abc" not in json.dumps(without_secrets({name: value}))
    assert MARK in json.dumps(without_secrets({name: value}))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 7, "max_completion_tokens": None, "stop_token_ids": [1, 2], "logit_bias": {"50256": -100}},
        {"prompt_cache_key": "run 7", "tokenizer": "x", "author": "me", "skip_special_tokens": True, "monkey": "see"},
        {"chat_template_kwargs": {"enable_thinking": False}, "keywords": ["key"], "stop": ["basic", "token", "sk"]},
        {"guided_regex": "[a-z]+", "metadata": {"note": "the Bearer of bad news"}, "api_key": "", "token": None},
    ],
)
def test_other_fields_are_none(fields: dict[str, Any]) -> None:
    assert secrets_in(fields) == []
    assert without_secrets(fields) == fields


def test_values_are_secrets_by_their_form_and_wherever_else_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "plain words 123")
    fields = {
        "x": "Bearer abcdefgh",
        "y": "sk-abcdefgh12",
        "z": ["plain words 123"],
        "u": {"password": 424242},
        "v": 424242,
    }
    assert secrets_in(fields) == ["Bearer abcdefgh", "plain words 123", "sk-abcdefgh12", "abcdefgh", "424242"]
    assert without_secrets(fields) == {"x": MARK, "y": MARK, "z": [MARK], "u": {"password": MARK}, "v": MARK}


def test_no_record_of_the_settings_has_them() -> None:
    text = json.dumps({"api_key": "zq8-secret", "top_k": 4})
    config = EngineConfig(extra_body=text)
    for record in (str(config.model_dump()), config.model_dump_json(), str(config.model_dump(exclude_defaults=True))):
        assert "zq8" not in record
        assert MARK in record
    assert config.extra_fields == {"api_key": "zq8-secret", "top_k": 4}
    assert config.recorded_fields == {"api_key": MARK, "top_k": 4}
    # What is merged with other settings, or goes to another process, is whole.
    assert config.model_dump(context=AS_GIVEN)["extra_body"] == text
    assert pickle.loads(pickle.dumps(config)) == config
    # Without a secret, the text stays as it was written, and so do the keys of earlier results.
    assert EngineConfig(extra_body='{ "top_k":4 }').model_dump()["extra_body"] == '{ "top_k":4 }'


def test_batches_do_not_take_them() -> None:
    with pytest.raises(ValueError, match="put the key in OPENAI_API_KEY"):
        EngineConfig(batch=True, extra_body='{"api_key": "abc"}')
    assert EngineConfig(batch=True, extra_body='{"top_k": 4}').batch
