"""`distill plan` against what happens: memory and time forecast for a recipe, then the recipe itself in the same process.

    python -m benchmarks.plan --teacher qwen2.5-coder-1.5b --student qwen2.5-coder-0.5b --data DATA

In: the directories of a real teacher and a real student, and a folder with multilingual.txt and
self_instruct_seed_tasks.jsonl anywhere below it. Four cases, each in a process of its own: `prompt` and `system1` with the
real pair, few rows; `narrow` and `logits` with random weights of Qwen2.5-0.5B's widths, 6 layers (whole model, and with a
teacher beside the student). Out: a table, forecast / measured for each, and one JSON object as the last line.

Memory is the largest resident set in the run less what the process held before it (torch loaded, one step of the tiny
student trained), against the forecast's largest stage. Seconds are those of the run's stages, against the forecast's sum;
both leave out the speed measurement.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from benchmarks.memory import _Peak, _warm_up
from benchmarks.real_qwen import find, prompt_config, system1_config
from distill_lab.config import DataConfig, ModelConfig, RecipeConfig, SamplingConfig, TrainConfig
from distill_lab.files.jsonl import read_jsonl, write_jsonl
from scripts.random_qwen import build

CASES = ("prompt", "system1", "narrow", "logits")
NUM_SENTENCES, NUM_TEST_SENTENCES = 120, 60
NUM_INSTRUCTIONS, NUM_ANSWERED = 60, 120
NEW_TOKENS = 128
LAYERS, WIDTH = 6, 896


def first_rows(path: Path, number: int) -> str:
    """The first rows of a file, in a file beside it."""
    part = path.with_name(f"{path.stem}_{number}.jsonl")
    write_jsonl(part, islice(read_jsonl(path), number))
    return str(part)


def prompt_case(teacher: str, student: str, data: Path, out: Path) -> RecipeConfig:
    """Languages under the rules, adapters."""
    config = prompt_config(teacher, student, data, out)
    folder = out / "sentences"
    return config.model_copy(
        update={
            "data": DataConfig(path=first_rows(folder / "train.jsonl", NUM_SENTENCES)),
            "test": DataConfig(path=first_rows(folder / "test.jsonl", NUM_TEST_SENTENCES)),
        }
    )


def system1_case(teacher: str, student: str, data: Path, out: Path) -> RecipeConfig:
    """Instructions answered by the teacher, adapters."""
    config = system1_config(teacher, student, data, out)
    sampling = config.sampling.model_copy(update={"max_new_tokens": NEW_TOKENS})
    tested = config.test_sampling.model_copy(update={"max_new_tokens": NEW_TOKENS})
    rows = DataConfig(path=first_rows(out / "instructions.jsonl", NUM_INSTRUCTIONS))
    return config.model_copy(update={"data": rows, "sampling": sampling, "test_sampling": tested})


def answered(data: Path, out: Path) -> DataConfig:
    """Instructions with the answers of the data set."""

    def rows() -> object:
        for row in read_jsonl(find(data, "self_instruct_seed_tasks.jsonl")):
            given = row["instances"][0]
            yield {"instruction": f"{row['instruction']}\n\n{given['input']}".strip(), "output": given["output"]}

    path = out / "answered.jsonl"
    write_jsonl(path, islice(rows(), NUM_ANSWERED))  # pyright: ignore[reportArgumentType]
    return DataConfig(path=str(path))


def narrow_case(teacher: str, student: str, data: Path, out: Path) -> RecipeConfig:
    """All weights of a model of the student's widths."""
    from distill_lab.recipes import system1

    del teacher, student
    model = random_weights(data, out / "random", layers=LAYERS)
    return system1.Config(
        teacher=ModelConfig(model=model), student=ModelConfig(model=model), data=answered(data, out), num_test=20,
        test_sampling=SamplingConfig(max_new_tokens=16), measure=False,
        train=TrainConfig(num_epochs=1, tokens_per_batch=1024, max_length=512),
    )  # fmt: skip


def logits_case(teacher: str, student: str, data: Path, out: Path) -> RecipeConfig:
    """A teacher of twice the layers beside the student."""
    from distill_lab.recipes import logits

    del teacher, student
    return logits.Config(
        teacher=ModelConfig(model=random_weights(data, out / "random_teacher", layers=2 * LAYERS)),
        student=ModelConfig(model=random_weights(data, out / "random", layers=LAYERS)),
        data=answered(data, out), num_test=20, test_sampling=SamplingConfig(max_new_tokens=16), measure=False,
        train=TrainConfig(objective="forward_kl", num_epochs=1, tokens_per_batch=1024, max_length=512),
    )  # fmt: skip


def random_weights(data: Path, folder: Path, *, layers: int) -> str:
    """A directory with random weights of Qwen2.5-0.5B's widths."""
    tokenizer = next(path for path in sorted(data.rglob("qwen2.5")) if (path / "tokenizer.json").is_file())
    build(tokenizer, folder, hidden=WIDTH, layers=layers)
    return str(folder)


BUILDERS: dict[str, Callable[[str, str, Path, Path], RecipeConfig]] = {
    "prompt": prompt_case,
    "system1": system1_case,
    "narrow": narrow_case,
    "logits": logits_case,
}
RECIPES = {"prompt": "prompt", "system1": "system1", "narrow": "system1", "logits": "logits"}


def child(case: str, teacher: str, student: str, data: Path) -> dict[str, object]:
    """Forecast, then run; bytes and seconds of both."""
    import importlib

    from distill_lab.device import free_memory
    from distill_lab.planning.forecast import make_forecast
    from distill_lab.planning.machine import this_machine
    from distill_lab.terminal import Terminal

    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        config = BUILDERS[case](teacher, student, data, out)
        forecast = make_forecast(RECIPES[case], config, directory=out / "run", machine=this_machine())
        assert not forecast.problems, forecast.problems
        assert forecast.peak is not None
        assert forecast.peak.memory is not None
        assert forecast.seconds is not None
        _warm_up(lora=bool(config.train.lora.r), compute="auto")
        free_memory()
        peak = _Peak()
        peak.reset()
        recipe = importlib.import_module(f"distill_lab.recipes.{RECIPES[case]}")
        recipe.run(config, out / "run", watch=Terminal())
        stages = json.loads((out / "run" / "run.json").read_text(encoding="utf-8"))["stages"]
        measured = {name: round(stage.get("seconds") or 0, 1) for name, stage in stages.items()}
        return {
            "memory": forecast.peak.memory.total,
            "peak_stage": forecast.peak.name,
            "measured_memory": peak.bytes(),
            "seconds": forecast.seconds,
            "measured_seconds": sum(measured.values()),
            "stages": {each.name: round(each.seconds or 0, 1) for each in forecast.stages},
            "measured_stages": {name: seconds for name, seconds in measured.items() if seconds >= 1},
        }


def main() -> None:
    """Run the cases and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="", help="directory of the real teacher")
    parser.add_argument("--student", default="", help="directory of the real student")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the data files")
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.teacher, given.student, given.data)))
        return
    found = {}
    lines = [
        "| case | memory: forecast | measured | ratio | time: forecast | measured | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in given.case:
        command = [sys.executable, "-m", "benchmarks.plan", "--child", case, "--data", str(given.data)]
        command += ["--teacher", given.teacher, "--student", given.student]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[case] = row = json.loads(done.stdout.splitlines()[-1])
        row["memory_ratio"] = row["memory"] / row["measured_memory"]
        row["time_ratio"] = row["seconds"] / row["measured_seconds"]
        lines.append(
            f"| {case} | {row['memory'] / 1e9:.2f} GB | {row['measured_memory'] / 1e9:.2f} GB | {row['memory_ratio']:.2f} "
            f"| {row['seconds']:.0f} s | {row['measured_seconds']:.0f} s | {row['time_ratio']:.2f} |"
        )
        print(lines[-1], flush=True)
    print("\n".join(lines))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
