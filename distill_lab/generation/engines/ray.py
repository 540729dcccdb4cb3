"""Generate with many workers on a Ray cluster, each using another engine: prompts in, completions out as each is done.

    distill generate --engine ray --engine.ray-engine transformers --engine.num-workers 2 --model tiny:teacher ...
    RAY_ADDRESS=auto distill generate --engine ray --model Qwen/Qwen2.5-7B-Instruct ...

Each worker loads the model once. A bad prompt or a dead worker loses no completions: see `_ray/`. A local model directory
must exist on every machine, at the same path.
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
    """Preferred if RAY_ADDRESS is set; otherwise used only if requested."""
    return 20 if os.environ.get("RAY_ADDRESS") and find_spec("ray") is not None else 0


def load(model: ModelConfig, config: EngineConfig) -> RayEngine:
    """Connect to the cluster; workers load the model on first use. Raises UserError."""
    check(config)
    from distill_lab.generation.engines._ray.pool import RayEngine, connect

    folder = Path(model.model).expanduser()
    if folder.exists():
        # A worker may have another working directory.
        model = model.model_copy(update={"model": str(folder.resolve())})
    connect()
    return RayEngine(model, config)


def check(config: EngineConfig) -> None:
    """Raise UserError if Ray is not installed, or if the workers' engine is Ray itself."""
    if find_spec("ray") is None:
        raise UserError("the engine ray needs Ray, which is not installed here; pip install ray")
    if config.ray_engine == "ray":
        raise UserError("engine.ray_engine is the engine of each worker, so it cannot be ray; use transformers or vllm")
