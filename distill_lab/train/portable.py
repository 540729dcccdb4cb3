"""A saved model that other tools read as this one does: transformers 4, vLLM, TGI, llama.cpp's converter.

    model.save_pretrained(folder)
    make_portable(folder, tokenizer, model.generation_config)

In: a folder that transformers 5 has written a model or adapters to. Out: the same folder with the tokenizer, and with
configurations that also have the names of transformers 4, the end of turn the model was trained on, and nothing of how
or where the model was loaded. What transformers 5 reads from the folder stays as it was, except for the end tokens.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from distill_lab.chat import inspect_template
from distill_lab.errors import UserError
from distill_lab.types import JsonObject

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

ADAPTER = "adapter"
"""Folder of the adapters, beside the weights they were merged into."""
OF_LOADING = (
    "backend is_local local_files_only trust_remote_code revision cache_dir token force_download proxies subfolder "
    "name_or_path tokenizer_file device_map _commit_hash"
).split()
"""Arguments of a `from_pretrained` call that transformers 5 keeps with a tokenizer's settings."""
PADDING = tuple(
    re.compile(pattern) for pattern in (r"\W*(\w+_right_)?pad(ding)?\W*", r"\W*(end_?of_?text|eos|s)\W*", r"\W*unk\W*")
)
"""Special tokens to pad with, the best first: made for it, the end of a text (not of a turn), unknown."""
NAMES_OF_THEIR_OWN = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
"""What GPT-NeoX calls them in transformers 4."""


def make_portable(folder: Path, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> None:
    """Write the tokenizer into `folder`, and settings there that every tool reads alike.

    generation: of the model, or of the base model of adapters; its sampling defaults are kept. Ends of completions are, in
    this order, the end of turn of the chat template and what ended a text before; a text's end in the tokenizer is the end
    of turn, and padding is another token where the tokenizer has one.
    """
    write_tokenizer(folder, tokenizer)
    config = folder / "config.json"
    settings = _read(config)
    end = end_of_turn(tokenizer)
    ends = _end_ids(end, tokenizer, settings, generation)
    padding = _padding(tokenizer, end)
    if settings:
        _write(config, _with_ends(with_old_names(settings), ends, padding))
    if generation is not None:
        values = generation.to_diff_dict()
        if values.pop("_from_model_config", False):
            values = {name: value for name, value in values.items() if not name.startswith("output_")}
        _write(folder / "generation_config.json", _with_ends(values, ends, padding, several=True))


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the tokenizer's files: the class its base names, the chat template in both places, end of turn and padding."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {name: value for name, value in _read(path).items() if name not in OF_LOADING}
    base = _base_settings(tokenizer)
    settings |= {name: base[name] for name in ("add_bos_token", "add_eos_token") if name in base}
    known = (base.get("tokenizer_class"), settings["tokenizer_class"], "PreTrainedTokenizerFast")
    settings["tokenizer_class"] = next(name for name in known if name and name != "TokenizersBackend")
    if isinstance(settings.get("extra_special_tokens"), list):
        # transformers 4 knows a list of them by this name only, and stops at the other.
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings["added_tokens_decoder"] = {
        str(token): {
            name: getattr(text, name)
            for name in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        }
        for token, text in sorted(tokenizer.added_tokens_decoder.items())
    }
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        settings["chat_template"] = template
    end = end_of_turn(tokenizer)
    for name, token in (("eos_token", end), ("pad_token", _padding(tokenizer, end))):
        if token is not None:
            settings[name] = tokenizer.convert_ids_to_tokens(token)
    _write(path, settings)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token a student learns to end its answers with; the tokenizer's own if no template says it."""
    own = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else None
    try:
        return inspect_template(tokenizer).end_id if tokenizer.chat_template else own
    except UserError:
        return own


def with_old_names(settings: JsonObject) -> JsonObject:
    """A config as transformers 5 writes it, with the names of transformers 4 beside those of transformers 5.

    `rope_parameters` is there also as rope_theta, rope_scaling and partial_rotary_factor (of the full layers, where kinds
    of layers differ; rope_local_base_freq is the base of the sliding ones), `dtype` as torch_dtype. Readers that do not
    know the new names fall back to a base of 10,000 without a word. Where the old names would change what transformers 5
    reads, they are left out.
    """
    settings = {
        name: with_old_names(value) if name.endswith("_config") and isinstance(value, dict) else value
        for name, value in settings.items()
    }
    if settings.get("dtype"):
        settings["torch_dtype"] = settings["dtype"]
    if "num_local_experts" in settings and settings.get("model_type") == "qwen3_moe":
        settings["num_experts"] = settings["num_local_experts"]
    both = settings | _old_rope(settings)
    return both if _rope_read(both) == _rope_read(settings) else settings


def _old_rope(settings: JsonObject) -> JsonObject:
    """The rotary embedding of a config as transformers 4 names it."""
    rope = _part(settings, "rope_parameters")
    full, sliding = _part(rope, "full_attention") or rope, _part(rope, "sliding_attention")
    if full.get("rope_theta") is None:
        return {}
    old = {name: full[name] for name in ("rope_theta", "partial_rotary_factor") if full.get(name) is not None}
    if str(settings.get("model_type")).startswith("gpt_neox"):
        old |= {NAMES_OF_THEIR_OWN[name]: value for name, value in old.items()}
    scaling = {name: value for name, value in full.items() if name not in old}
    if scaling.get("rope_type") == "longrope" and "original_max_position_embeddings" in settings:
        scaling = {name: scaling[name] for name in ("rope_type", "short_factor", "long_factor")}
    if scaling.get("rope_type", "default") != "default":
        # Phi-3 refuses a fourth name, and reads the older of the two.
        both = {**scaling, "type": scaling["rope_type"]}
        if scaling["rope_type"] == "longrope":
            del both["rope_type"]
        old["rope_scaling"] = both
    elif len(scaling) > 1:
        old["rope_scaling"] = scaling
    if sliding:
        old["rope_local_base_freq"] = sliding["rope_theta"]
    return old


def _part(settings: JsonObject, name: str) -> JsonObject:
    """The settings that are together under this name; empty if there are none."""
    part = settings.get(name)
    return part if isinstance(part, dict) else {}


def _rope_read(settings: JsonObject) -> object:
    """The rotary embedding that transformers 5 reads from a config; None for a kind of model it does not know."""
    from logging import CRITICAL

    from transformers import CONFIG_MAPPING
    from transformers.utils import logging as transformers_logging

    kind, verbosity = str(settings.get("model_type")), transformers_logging.get_verbosity()
    if kind not in CONFIG_MAPPING:
        return None
    transformers_logging.set_verbosity(CRITICAL)
    try:
        read = getattr(CONFIG_MAPPING[kind].from_dict(copy.deepcopy(settings)), "rope_parameters", None)
    except (ValueError, KeyError, TypeError):
        return "refused"
    finally:
        transformers_logging.set_verbosity(verbosity)
    for rope in (read, *read.values()) if read else ():
        if isinstance(rope, dict):
            rope.pop("type", None)  # another name for rope_type
    return read


def _end_ids(
    end: int | None,
    tokenizer: PreTrainedTokenizerBase,
    settings: JsonObject,
    generation: GenerationConfig | None,
) -> list[int]:
    """The end of turn, then every other token that ended a text: for the model, its config and its tokenizer."""
    found = [] if end is None else [end]
    for known in (
        generation.eos_token_id if generation is not None else None,
        cast("int | list[int] | None", settings.get("eos_token_id")),
        tokenizer.eos_token_id,
    ):
        found += [] if known is None else known if isinstance(known, list) else [known]
    return list(dict.fromkeys(int(token) for token in found))


def _padding(tokenizer: PreTrainedTokenizerBase, end: int | None) -> int | None:
    """A token to pad with that is not the end of a turn; the end if there is no other.

    A collator that leaves padding out of the loss would leave out the end as well, and the next student never stop.
    """
    special = {text.content: token for token, text in tokenizer.added_tokens_decoder.items() if text.special}
    fitting = [token for pattern in PADDING for text, token in special.items() if pattern.fullmatch(text)]
    own = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    tokens = (own[0], *fitting, own[1], tokenizer.unk_token_id)
    return next((token for token in tokens if isinstance(token, int) and token != end), end)


def _with_ends(settings: JsonObject, ends: list[int], padding: int | None, *, several: bool = False) -> JsonObject:
    """Settings whose texts end with `ends`: all of them where readers take several, else the first."""
    if not ends:
        return settings
    several = several or isinstance(settings.get("eos_token_id"), list)
    settings = settings | {"eos_token_id": ends if several and len(ends) > 1 else ends[0]}
    if isinstance(text := settings.get("text_config"), dict):
        settings["text_config"] = _with_ends(text, ends, padding)
    if settings.get("pad_token_id") in (*([None] if several else []), ends[0]) and padding is not None:
        settings["pad_token_id"] = padding
    return settings


def _base_settings(tokenizer: PreTrainedTokenizerBase) -> JsonObject:
    """The tokenizer_config.json that the tokenizer came from; empty where it has none."""
    from transformers.utils.hub import cached_file

    name = tokenizer.name_or_path
    if not name:
        return {}
    if Path(name).exists():
        return _read(Path(name) / "tokenizer_config.json")
    try:
        found = cached_file(name, "tokenizer_config.json", local_files_only=True)
    except (OSError, ValueError):
        return {}
    return _read(Path(found)) if found else {}


def _read(path: Path) -> JsonObject:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, settings: JsonObject) -> None:
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
