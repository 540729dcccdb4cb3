"""GPU checks of whole commands: recipes that fit a T4, measuring within its time, vLLM before a training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.evaluation.speed import measure
from distill_lab.generation.engines import load_engine
from distill_lab.generation.engines._vllm_install import installed
from tests.gpu import shapes
from tests.gpu.checks import T4_BYTES, Setting, check
from tests.helpers import ROOT

LIMIT = """\
import os
share = float(os.environ["GPU_SHARE"])
if share < 1:
    import torch
    torch.cuda.set_per_process_memory_fraction(share)
"""
"""A sitecustomize.py: every Python of the command keeps to its share of the GPU, as they all would on a smaller one."""


def command(setting: Setting, *words: str, limit: int = T4_BYTES, timeout_s: int = 900) -> float:
    """Run `distill WORDS` with every process held to a share of the GPU; its seconds. Asserts that it ends well."""
    start = time.monotonic()
    module(setting, "distill_lab.cli", *words, limit=limit, timeout_s=timeout_s)
    return time.monotonic() - start


def data(setting: Setting, name: str, number: int) -> Path:
    """A file of question rows."""
    path = setting.scratch / f"{name}.jsonl"
    rows = ({"instruction": row.messages[0]["content"]} for row in shapes.prompts(number, most_words=30))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def folders(setting: Setting) -> tuple[str, str]:
    """A teacher and a student."""
    places = {"small": setting.small, "device": setting.device, "dtype": setting.dtype}
    names = ("qwen2.5-7b", "qwen2.5-0.5b")
    teacher, student = (str(shapes.folder(name, setting.scratch, **places)) for name in names)
    return teacher, student


@check("stage-memory")
def stage_memory(setting: Setting) -> dict[str, Any]:
    """System 1 with a 7B teacher ends in the memory of a T4, speeds included: each stage gives its memory back."""
    teacher, student = folders(setting)
    run = setting.scratch / "stage-memory"
    words = ["system1", "--teacher", teacher, "--student", student, "--data.path", str(data(setting, "stage", 60))]
    words += ["--run", str(run), "--sampling.max-new-tokens", "8" if setting.small else "64"]
    words += ["--train.num-epochs", "1", "--train.max-length", "256"]
    seconds = command(setting, *words)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (run / "report.html").is_file()
    return {"seconds": round(seconds), "keys": sorted(summary)}


@check("judge")
def judge(setting: Setting) -> dict[str, Any]:
    """A judge is loaded once and freed: grading ends in a share of the GPU that holds one model at a time."""
    teacher, student = folders(setting)
    out = setting.scratch / "judge.jsonl"
    out.unlink(missing_ok=True)
    words = ["eval", "--model", student, "--data.path", str(data(setting, "judge", 6)), "--grader", f"judge:{teacher}"]
    seconds = command(setting, *words, "--out", str(out), "--sampling.max-new-tokens", "8")
    return {"seconds": round(seconds)}


@check("measure-time")
def measure_time(setting: Setting) -> dict[str, Any]:
    """Timing a model that never ends its answers takes minutes, whatever the limit of tokens."""
    teacher, student = folders(setting)
    sampling = SamplingConfig(max_new_tokens=16 if setting.small else 4096)
    models = {"teacher": ModelConfig(model=teacher), "student": ModelConfig(model=student)}
    start = time.monotonic()
    speeds = measure(models, shapes.prompts(4 if setting.small else 64), sampling=sampling, rounds=1)
    seconds = time.monotonic() - start
    assert speeds.keys() == models.keys()
    assert all(speed.tokens_per_s > 0 for speed in speeds.values())
    if setting.on_gpu:
        assert seconds < 600, f"{seconds:.0f} s"
    return {"seconds": round(seconds), "tokens_per_s": {name: row.tokens_per_s for name, row in speeds.items()}}


@check("vllm")
def vllm(setting: Setting) -> dict[str, Any]:
    """VLLM answers as transformers does, and the GPU's memory is free for a training once its engine has ended."""
    if installed() is None:
        return {"skipped": "vLLM is not in this environment"}
    _, student = folders(setting)
    rows, sampling = shapes.prompts(32), SamplingConfig(max_new_tokens=32)
    free = torch.cuda.mem_get_info()[0] if setting.on_gpu else 0
    found = []
    for name in ("transformers", "vllm"):
        engine = load_engine(ModelConfig(model=student), EngineConfig(engine=name, max_model_len=2048))
        found.append({row.id: row.content for row in engine.generate(rows, sampling)})
        del engine
    same = sum(found[0][name] == found[1][name] for name in found[0]) / len(rows)
    assert same >= 0.9, same
    if setting.on_gpu:
        from distill_lab.device import free_memory

        free_memory()
        assert torch.cuda.mem_get_info()[0] > free - 1_500_000_000
    return {"same": same}


def module(setting: Setting, *words: str, limit: int | None = None, timeout_s: int = 1500) -> str:
    """What `python -m WORDS` prints, run in the repository and held to `limit` bytes of the GPU."""
    folder = setting.scratch / "limited"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(LIMIT)
    share = 1.0
    if setting.on_gpu and limit:
        share = min(1.0, limit / torch.cuda.get_device_properties(setting.device).total_memory)
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "GPU_SHARE": str(share), "DISTILL_LAB_CACHE": "off"}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@check("suite")
def suite(setting: Setting) -> dict[str, Any]:
    """Every test of the lab passes where its models compute on a GPU."""
    out = module(setting, "pytest", "-q", "tests", "--ignore", "tests/gpu", "--ignore", "tests/interop")
    return {"last": out.strip().splitlines()[-1]}


@check("notebook")
def notebook(setting: Setting) -> dict[str, Any]:
    """The notebook's cells run on a GPU with a T4's memory."""
    out = module(setting, "pytest", "-q", "tests/test_notebook.py", limit=T4_BYTES)
    return {"last": out.strip().splitlines()[-1]}


@check("train-speed")
def train_speed(setting: Setting) -> dict[str, Any]:
    """Tokens a second of the lab's training, full and with adapters, beside plain transformers."""
    shared = Path(os.environ.get("DISTILL_LAB_SHARED", ROOT.parent / "shared")) / "data"
    if not shared.is_dir():
        return {"skipped": "the benchmark's rows are not here (set DISTILL_LAB_SHARED)"}
    out = module(setting, "benchmarks.sft", "--mode", "both", "--rounds", "1", "--trl", "--skip", "gemm")
    return {"table": [line for line in out.splitlines() if "|" in line]}
