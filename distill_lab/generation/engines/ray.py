"""Generation by many workers on a Ray cluster, each holding another engine: prompts in, completions out as each is done.

    distill generate --engine ray --engine.ray-engine transformers --engine.num-workers 2 --model tiny:teacher ...
    RAY_ADDRESS=auto distill generate --engine ray --model Qwen/Qwen2.5-7B-Instruct ...

Each worker loads the model once. One bad prompt or one dead worker loses nothing: see `cluster/`.
A local directory of a model must be there on every machine, under the same path.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lab.config import EngineConfig, ModelConfig
from distill_lab.errors import UserError

if TYPE_CHECKING:
    from distill_lab.generation.engines._ray.pool import RayEngine


def preference() -> int:
    """First where RAY_ADDRESS names a cluster, else only where it is asked for."""
    return 20 if os.environ.get("RAY_ADDRESS") and find_spec("ray") is not None else 0


def load(model: ModelConfig, config: EngineConfig) -> RayEngine:
    """Find the cluster; workers load the model when they are first asked. Raises UserError."""
    check(config)
    from distill_lab.generation.engines._ray.pool import RayEngine, connect

    folder = Path(model.model).expanduser()
    if folder.exists():
        # A worker may have another current folder.
        model = model.model_copy(update={"model": str(folder.resolve())})
    connect()
    return RayEngine(model, config)


def check(config: EngineConfig) -> None:
    """Raise UserError where Ray is not installed, or where workers are to hold Ray itself."""
    if find_spec("ray") is None:
        raise UserError("the engine ray needs Ray, which is not installed here; pip install ray")
    if config.ray_engine == "ray":
        raise UserError("engine.ray_engine is what each worker holds, so it cannot be ray; take transformers or vllm")
