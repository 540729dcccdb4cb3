"""The most memory a model takes: models + prompts -> bytes, each loaded and asked in a separate process.

    peak_memory({"teacher": teacher, "student": student}, prompts, sampling=SamplingConfig())

`python -m distill_lab.evaluation.peak_memory` is that process: a job as JSON on standard input, the figure as JSON on
standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distill_lab import activity
from distill_lab.config import ModelConfig, SamplingConfig
from distill_lab.device import free_memory
from distill_lab.errors import ModelError
from distill_lab.evaluation.speed_plan import MEMORY_BUDGET_S, batch_within
from distill_lab.types import Fields, JsonObject, Prompt


def peak_memory(
    models: Mapping[str, ModelConfig],
    prompts: Sequence[Prompt],
    *,
    sampling: SamplingConfig,
    budget_s: float = MEMORY_BUDGET_S,
) -> dict[str, int | None]:
    """Peak memory in bytes of each model loading and answering `prompts` as one batch, each in a separate process.

    One after another, with what this process does not need given back before. budget_s: seconds for the batch of each,
    which has fewer prompts and tokens where that is too short. See `Speed.peak_memory_bytes`. Raises ModelError, with what
    the process said last, where one fails.
    """
    free_memory()
    found = {}
    for name, model in models.items():
        with activity.doing(f"measuring the memory of {model.model} in a separate process"):
            found[name] = _peak_in_process(model, _job(model, prompts, sampling) | {"budget_s": budget_s})
    return found


def _peak_in_process(model: ModelConfig, job: Fields) -> int | None:
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        json.dump(job, file)
        file.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "distill_lab.evaluation.peak_memory"],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        )
    try:
        return _peak_of(child, model.model)
    finally:
        child.kill()
        child.wait()


def _job(model: ModelConfig, prompts: Sequence[Prompt], sampling: SamplingConfig) -> JsonObject:
    return {
        "model": model.model_dump(mode="json"),
        "prompts": [prompt.to_json() for prompt in prompts],
        "sampling": sampling.model_dump(mode="json"),
    }


def _peak_of(child: subprocess.Popen[str], model: str) -> int | None:
    output, errors = child.communicate()
    if child.returncode != 0:
        said = errors.strip().splitlines()[-1] if errors.strip() else "nothing"
        raise ModelError(model, f"measuring its memory ended with exit code {child.returncode}; its last words: {said}")
    return json.loads(output.strip().splitlines()[-1])["peak_memory_bytes"]


def _memory_reader() -> Callable[[], int | None]:
    """What reads this process's peak memory so far, in bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated
    if Path("/proc/self/status").is_file():
        # Not ru_maxrss: on Linux that starts at the peak of the process that started this one.
        return lambda: next(
            1024 * int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM:")
        )
    if sys.platform == "win32":
        return lambda: None
    import resource

    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """One model's peak memory: the job as JSON on standard input, the answer as JSON on standard output."""
    from distill_lab.evaluation._timing import find_pace, load_to_time, timed_call

    job = json.load(sys.stdin)
    read = _memory_reader()
    engine = load_to_time(ModelConfig(**job["model"]))
    prompts, sampling = [Prompt.from_json(row) for row in job["prompts"]], SamplingConfig(**job["sampling"])
    start = time.perf_counter()
    if takes := [prompt for prompt in prompts if not engine.refusal(prompt, sampling)]:
        pace = find_pace(engine, takes, sampling)
        left_s = job["budget_s"] - (time.perf_counter() - start)
        number, tokens = batch_within(pace, left_s, num_prompts=len(takes), max_tokens=sampling.max_new_tokens)
        timed_call(engine, takes[:number], sampling.model_copy(update={"max_new_tokens": tokens}))
    print(json.dumps({"peak_memory_bytes": read()}))


if __name__ == "__main__":
    main()
