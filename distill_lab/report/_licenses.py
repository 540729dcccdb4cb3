"""Licenses of models and data as their own cards state them: a name -> "apache-2.0" or UNKNOWN. Asks no server.

license_of_model("Qwen/Qwen2.5-0.5B-Instruct")     from README.md in its directory or in the hub's cache
license_of_data("alibaba-pai/DistilQwen_100k")
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from distill_lab.models.names import HUB_ID, api_engine
from distill_lab.types import JsonObject

UNKNOWN = "unknown, check"
OWN = "apache-2.0"
"""Of the embedded tiny family and its data, which are part of the lab."""
HEAD = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)


def license_of_model(name: str, revision: str | None = None) -> str:
    """The license in the model's card; UNKNOWN if there is no card or it names none."""
    return OWN if name.startswith("tiny:") else _stated(name, revision, "model")


def license_of_data(path: str) -> str:
    """The license in the data set's card; UNKNOWN for a local file."""
    return OWN if path.startswith("tiny:") else _stated(path, None, "dataset")


def is_on_hub(name: str) -> bool:
    """Whether a name is a Hugging Face id (owner/name) rather than a path here or a server's model."""
    return bool(HUB_ID.fullmatch(name)) and "/" in name and not api_engine(name) and not Path(name).exists()


def card_head(text: str) -> JsonObject:
    """The YAML at the start of a card; {} if there is none or it cannot be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    found = HEAD.match(text)
    try:
        head = YAML(typ="safe").load(found[1]) if found else None
    except YAMLError:
        return {}
    return head if isinstance(head, dict) else {}


def _stated(name: str, revision: str | None, kind: Literal["model", "dataset"]) -> str:
    if api_engine(name):
        return UNKNOWN
    card = Path(name).expanduser() / "README.md"
    if not card.is_file() and is_on_hub(name):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "README.md", revision=revision, repo_type=kind)
        card = Path(cached) if isinstance(cached, str) else card
    if not card.is_file():
        return UNKNOWN
    head = card_head(card.read_text(encoding="utf-8", errors="replace"))
    stated = head.get("license_name") if head.get("license") in (None, "other") else head.get("license")
    if isinstance(stated, list):
        stated = ", ".join(map(str, stated))
    return str(stated) if stated else UNKNOWN
