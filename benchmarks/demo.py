"""What the demo's two students reach, and in how many seconds of one core: settings beside one another, several seeds.

In: names of variants. Out: for each variant and seed a line with the score, retention and seconds of every stage; the last
line is one JSON object with the means. The teacher's answers count as well: nothing comes from the lab's cache.

    OMP_NUM_THREADS=1 python -m benchmarks.demo --variants system1 system1-logits --seeds 3 --out /tmp/demo
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

WHITE_BOX = {"train.objective": "forward_kl", "train.teacher": {"model": "tiny:teacher"}}
"""The teacher's whole distribution at every token, computed beside the student."""
SMALL_STEPS = {"train.tokens_per_batch": 1024}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "system1": ("system1", {}),
    "system1-half": ("system1", {"data.split": "distill[:8000]", "train.num_epochs": 4, **SMALL_STEPS}),
    "system1-logits": ("logits", {"data.split": "distill[:8000]", "train.num_epochs": 3, **SMALL_STEPS}),
    "system2": ("system2", {"data.split": "distill[:4000]", "train.num_epochs": 5}),
    "system2-own": (
        "system2",
        {"relabel": False, "data.split": "distill[:16000]", "train.num_epochs": 1, **SMALL_STEPS},
    ),
    "system2-logits": (
        "system2",
        {"relabel": False, "data.split": "distill[:8000]", "train.num_epochs": 1, **SMALL_STEPS, **WHITE_BOX},
    ),
}
"""Name -> recipe, and what differs from its preset tiny; a name that is not here is RECIPE,KEY=VALUE,...

-own learns from the data set's worked solutions, -logits from the teacher's probabilities of every token."""


def parse(name: str) -> tuple[str, dict[str, Any]]:
    """A variant by its name, or from `system1,train.num_epochs=2,white_box`."""
    if name in VARIANTS:
        return VARIANTS[name]
    recipe, *changes = name.split(",")
    found: dict[str, Any] = {}
    for change in changes:
        key, _, value = change.partition("=")
        found |= WHITE_BOX if key == "white_box" else {key: _value(value)}
    return recipe, found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def changed(settings: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with `train.num_epochs`-like keys replaced."""
    for key, value in changes.items():
        *path, last = key.split(".")
        place = settings
        for name in path:
            place = place[name]
        place[last] = value
    return settings


def measure(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Run one variant in an empty directory."""
    recipe_name, changes = parse(name)
    recipe = import_module(f"distill_lab.recipes.{recipe_name}")
    settings = recipe.PRESETS["tiny"].model_dump()
    config = recipe.Config.model_validate(
        changed(settings, {"measure": False, "train.seed": seed, **changes}),
    )
    start, cpu = time.monotonic(), time.process_time()
    summary = recipe.run(config, out)
    stages = json.loads((out / "run.json").read_text(encoding="utf-8"))["stages"]
    return {
        "variant": name,
        "seed": seed,
        "teacher": summary.models["teacher"].score,
        "base": summary.models["base"].score,
        "student": summary.models["student"].score,
        "retention": summary.retention,
        "cpu_s": round(time.process_time() - cpu, 1),
        "wall_s": round(time.monotonic() - start, 1),
        "stages": {each: stage["seconds"] for each, stage in stages.items() if stage["seconds"] >= 1},
    }


def main() -> None:
    """Measure every variant with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ["DISTILL_LAB_CACHE"] = "off"
    import torch

    torch.set_num_threads(1)
    means: dict[str, dict[str, float]] = {}
    for number, name in enumerate(arguments.variants):
        rows = []
        for seed in range(42, 42 + arguments.seeds):
            rows.append(measure(name, seed, arguments.out / f"{number}-{seed}"))
            print(json.dumps(rows[-1]), flush=True)
        means[name] = {key: round(statistics.mean(row[key] for row in rows), 4) for key in ("retention", "cpu_s")}
    print(json.dumps(means))


if __name__ == "__main__":
    main()
