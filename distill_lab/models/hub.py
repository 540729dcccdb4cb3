"""Ask the Hugging Face hub about a model, once and briefly: a name -> its commit, or why there is none.

hub_arguments("Qwen/Qwen2.5-0.5B-Instruct", config)     arguments for every from_pretrained call
ask_hub("Qwen/Qwen2.5-0.5B-Instruct", None)             the commit of the default branch
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill_lab.config import ModelConfig
from distill_lab.errors import ModelError
from distill_lab.formatting import one_line
from distill_lab.models.names import is_gguf
from distill_lab.types import JsonObject

HUB_TIMEOUT_S = 10.0
"""Timeout in seconds for asking the hub whether it has a model."""
GATED = "gated; accept its terms on its hub page, then run hf auth login"

_answers: dict[tuple[str, str | None], str | Exception | None] = {}
"""What the hub said in this process, by name and revision: the commit, or the error of a hub that does not answer."""


def ask_hub(name: str, revision: str | None) -> str | None:
    """The commit of a model's revision on the hub. Raises the hub client's errors.

    The hub is asked once per process, so that a model cannot change during a run, and a hub that accepts connections but
    never answers costs one timeout, not one for each question.
    """
    from huggingface_hub import model_info
    from huggingface_hub.errors import HfHubHTTPError

    key = (name, revision)
    if key not in _answers:
        try:
            _answers[key] = model_info(name, revision=revision, timeout=HUB_TIMEOUT_S).sha
        except HfHubHTTPError:
            raise  # an answer: the name may be right, or the user logged in, the next time
        except Exception as error:
            _answers[key] = error
    answer = _answers[key]
    if isinstance(answer, Exception):
        raise answer
    return answer


def hub_arguments(path: str, config: ModelConfig) -> dict[str, Any]:
    """Arguments for every from_pretrained call. Asks the hub once, briefly, whether it has the model (HUB_TIMEOUT_S)."""
    arguments: JsonObject = {"trust_remote_code": config.trust_remote_code}
    if Path(path).exists() and config.revision:
        raise ModelError(config.model, f"is on this machine and has no revision {config.revision!r}; remove revision")
    if Path(path).is_dir():
        return arguments
    if is_gguf(path):
        if find_spec("gguf") is None:
            raise ModelError(config.model, "GGUF files need the package gguf; pip install gguf")
        return {**arguments, "gguf_file": Path(path).name}
    from huggingface_hub import constants, try_to_load_from_cache

    # From the hub client, because the client switched to another HTTP library between versions.
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cached = isinstance(try_to_load_from_cache(path, "config.json", revision=config.revision), str)
    remedy = f"use a local directory, or run `hf download {path}` with a network connection"
    offline = constants.HF_HUB_OFFLINE
    if offline and not cached:
        raise ModelError(config.model, f"no such directory and not in the cache, and HF_HUB_OFFLINE is set; {remedy}")
    reason = ""
    try:
        if not offline:
            ask_hub(path, config.revision)
    except RevisionNotFoundError:
        reason = f"has no revision {config.revision!r}; use an existing branch, tag or commit"
    except GatedRepoError:
        reason = GATED
    except RepositoryNotFoundError:
        reason = "no such directory and no such model on the hub; check the name (private: hf auth login)"
    except (HTTPError, OSError) as error:
        offline = True
        if not cached:
            cause = one_line(error)
            reason = f"no such directory, and the hub does not answer ({cause}); check the network, or {remedy}"
    if reason:
        raise ModelError(config.model, reason)
    return {**arguments, "revision": config.revision, "local_files_only": offline}
