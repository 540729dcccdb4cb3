"""Run directories as a recipe leaves them, made in a moment: eval files, test rows, training log, run.json, summary.json."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

from distill_lab.config import TrainConfig
from distill_lab.evaluation.evaluate import read_score
from distill_lab.evaluation.groups import group_scores
from distill_lab.evaluation.speedups import Speed
from distill_lab.evaluation.statistics import outcomes, paired, retention_interval
from distill_lab.evaluation.summary import summarize
from distill_lab.evaluation.summary_file import write_summary
from distill_lab.evaluation.summary_parts import Generated
from distill_lab.evaluation.token_stats import with_tokens
from distill_lab.files.jsonl import write_json
from distill_lab.grading.graders import metric_of

HOSTILE = (
    '</p><script>document.title="hacked"</script></script><img src=x onerror=\'document.title="hacked"\'> \x1b[31mred'
    "\u202e \u2028\u2029 &amp; {0} {title} [/x] =cmd() \ud800 <!-- ]]> javascript:alert(1) | `code` $x$ \\input{/etc}"
)
"""What a model could say to get out of the page."""
WORDS = "pear apple cat house tree seven lion brush sock sum of and then 42 weiß 今天 naïve".split()
RIGHT = {"teacher": 0.95, "base": 0.4, "student": 0.85}


def made_speed(name: str, factor: float) -> Speed:
    """A model's speed, `factor` times a teacher's."""
    latencies = tuple((0.6 + 0.01 * place) / factor for place in range(20))
    rounds = tuple((0.3 * more / factor, 5000.0) for more in (0.99, 1.0, 1.0, 1.0, 1.01))
    return Speed(
        tokens_per_s=4000.0 * factor,
        tokens_per_s_single=200.0 * factor,
        seconds_per_answer=0.02 / factor,
        seconds_per_answer_single=0.4 / factor,
        latency_p50_s=latencies[10],
        latency_p95_s=latencies[18],
        mean_tokens=80.0,
        num_parameters=3_220_000 if name == "teacher" else 420_000,
        peak_memory_bytes=850 << 20,
        device="a CPU",
        dtype="fp32",
        in_turns_with=("teacher", "student"),
        rounds=rounds,
        answer_tokens=(80,) * 64,
        answers_single=tuple((0.4 * more / factor, 80.0) for more in (0.99, 1.0, 1.0, 1.0, 1.01)),
        latencies_s=latencies,
    )


def made_run(
    folder: Path,
    *,
    num: int = 60,
    seed: int = 0,
    right: dict[str, float] = RIGHT,
    output: str = "",
    grader: str = "exact",
    words: int = 12,
    ids: str = "test",
    first: int = 0,
    advice: tuple[str, ...] = (),
) -> Path:
    """A finished run of `num` test prompts.

    right: the share that each model gets right. output: what every output, thinking, gold answer and prompt ends with.
    words: of an answer. ids: what prompt ids begin with. first: the number of the first prompt; prompts of the same number
    are the same in every run.
    """
    draw = random.Random(seed)
    rows: dict[str, list[str]] = {name: [] for name in right}
    test: list[str] = []
    for place in range(first, first + num):
        of_prompt = random.Random(place)
        gold = " ".join(of_prompt.choices(WORDS, k=words)) + output
        turns = [{"role": "user", "content": f"Question {place}: {' '.join(of_prompt.choices(WORDS, k=8))}?{output}"}]
        meta = {"level": 1 + place % 4, "type": ("sort", "reverse", "count")[place % 3]}
        row = {"id": f"{ids}-{place}", "messages": turns, "answer": gold, "meta": meta}
        test.append(json.dumps(row))
        for name, share in right.items():
            is_right, is_cut = draw.random() < share, draw.random() < 0.02
            said = gold if is_right and not is_cut else " ".join(draw.choices(WORDS, k=words)) + output
            grade = {"score": float(is_right and not is_cut), "answer": said[:40], "status": "ok"}
            rows[name].append(
                json.dumps(
                    {
                        "id": f"{ids}-{place}", "sample": 0, "prompt": turns, "output": said,
                        "thinking": f"I think about {gold}" if place % 2 else None, "answer": gold,
                        "finish_reason": "length" if is_cut else "stop", "num_tokens": len(said.split()) + place % 7,
                        "grade": grade,
                    }
                )
            )  # fmt: skip
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    (folder / "test.jsonl").write_text("\n".join(test) + "\n", encoding="utf-8")
    files = {name: folder / "eval" / f"{name}.jsonl" for name in rows}
    for name, path in files.items():
        path.write_text("\n".join(rows[name]) + "\n", encoding="utf-8")
    write_log(folder / "training_log.jsonl", seed=seed)
    summary = summarize(
        "system1",
        num,
        scores={name: read_score(path) for name, path in files.items()},
        speeds={"teacher": made_speed("teacher", 1.0), "student": made_speed("student", 4.2)},
        gain=paired(files["base"], files["student"]),
        retention_ci95=retention_interval(files["teacher"], files["student"]),
        metric=metric_of(grader),
        outcomes=None if metric_of(grader).similarity else outcomes(files["teacher"], files["student"]),
    )
    summary = with_tokens(summary, folder / "eval")
    generated = {"teacher answers": Generated(800, 9600)}
    groups = group_scores(folder / "test.jsonl", files, by_label=grader == "label")
    write_summary(
        folder / "summary.json",
        dataclasses.replace(summary, groups=groups, generated=generated, advice=(*summary.advice, *advice)),
    )
    write_json(folder / "run.json", manifest())
    return folder


def write_log(path: Path, *, seed: int = 0, steps: int = 80) -> None:
    """A training log."""
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step:
            loss = 0.3 + math.exp(-step / 15) + 0.02 * math.sin(step + seed)
            rate = 0.004 * min(step / 8, 1) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
            lines.append(
                {
                    "step": step, "epoch": step / 20, "loss": loss, "learning_rate": rate, "grad_norm": 0.7,
                    "tokens_per_s": 2100.0, "seconds": 0.4 * step,
                }
            )  # fmt: skip
        if step % 20 == 0:
            loss = 0.35 + math.exp(-step / 15) + 0.01 * seed
            lines.append({"step": step, "epoch": step / 20, "validation_loss": loss, "seconds": 0.4 * step})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def manifest() -> dict[str, Any]:
    """The content of a run.json."""

    def stage(at: str, seconds: float, rows_in: int, kept: int, **dropped: int) -> dict[str, Any]:
        counts = {"rows_in": rows_in, "kept": kept, "dropped": dropped}
        return {"key": "k", "at": at, "status": "done", "seconds": seconds, "output": "o", "counts": counts}

    stages = {
        "data": stage("data.jsonl", 1.2, 800, 800),
        "teacher answers": stage("completions.jsonl", 75.0, 800, 800),
        "training set": stage("train.jsonl", 0.4, 800, 790, cut=10),
        "student": stage("student", 36.6, 790, 790),
    }
    config = {
        "teacher": {"model": "tiny:teacher"},
        "student": {"model": "tiny:student", "quantization": "none"},
        "data": {"path": "tiny:instructions", "split": "distill[:800]"},
        "train": TrainConfig(learning_rate=4e-3).model_dump(mode="json"),
    }
    return {
        "recipe": "system1",
        "config": config,
        "date": "2026-11-30T20:15:00",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "models": {"training of student": {"dtype": "fp32", "on": "a CPU"}},
        "stages": stages,
    }
