"""What the cells of notebook.ipynb call: estimates, a recipe with one line of progress, its result with figures.

    recipe("cot", "tiny", {"data.split": "distill[:600]"})       the command, an estimate, one line of progress, the result
    estimate("system1", "qwen2.5", {"relabel": True})
    show_result("runs/cot"), show_page("runs/cot")

A recipe is given its settings by name, as flags without their dashes. With tiny models it runs in this process, which is
quick; with others in a separate process, which gives all memory back at its end.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic import ValidationError

from distill_lab.commands._cell_output import CellLine, CellReporter, keep_line
from distill_lab.commands._usage import Usage
from distill_lab.config import AS_GIVEN, Config, DataConfig, RecipeConfig, SamplingConfig
from distill_lab.errors import UserError
from distill_lab.formatting import clean
from distill_lab.planning.presets import is_tiny
from distill_lab.types import Fields

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Settings = Fields
"""Setting -> value: {"data.split": "train[:500]", "relabel": True}."""
ESTIMATE_ONLY, AUTO = "estimate only", "auto"
MAX_CHARS = 240
"""Of a row's field, as it is shown."""
LAST_LINES = 15
"""Of a process that failed."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Something to look at: HTML in a notebook, text anywhere else."""

    text: str
    html: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def machine_line() -> str:
    """This machine in a line: GPU or processor, memory, disk, torch."""
    import shutil

    import torch

    from distill_lab.device import best_device, device_name, host_memory

    free = shutil.disk_usage(".").free
    return (
        f"{device_name(best_device())}; {host_memory() / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB of disk free; "
        f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    )


def recipe_config(name: str, preset: str, settings: Settings) -> tuple[ModuleType, RecipeConfig]:
    """A recipe and its settings: those of the preset, with `settings` in their place. Raises UserError for a wrong one."""
    module = import_module(f"distill_lab.recipes.{name.replace('-', '_')}")
    if preset not in module.PRESETS:
        raise UserError(f"{name} has no preset {preset}; choose from {', '.join(module.PRESETS)}")
    base: RecipeConfig = module.PRESETS[preset]
    found = base.model_dump(context=AS_GIVEN)
    for key, value in settings.items():
        *groups, last = key.split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    try:
        return module, module.Config.model_validate(found)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, each['loc']))}: {_problem(each)}" for each in error.errors())
        raise UserError(f"{name}: {'; '.join(problems)}") from None


def _problem(error: ErrorDetails) -> str:
    return "no such key" if error["type"] == "extra_forbidden" else error["msg"]


def flags(settings: Settings) -> list[str]:
    """The settings as they are typed: --data.split "train[:500]" --relabel."""
    words: list[str] = []
    for key, value in settings.items():
        *groups, last = key.replace("_", "-").split(".")
        if isinstance(value, bool):
            words.append("--" + ".".join([*groups, last if value else f"no-{last}"]))
        else:
            words += [f"--{key.replace('_', '-')}", str(value)]
    return words


def estimate(name: str, preset: str, settings: Settings, *, directory: str = "") -> bool:
    """Print what a recipe would take here: time, memory, downloads; returns whether nothing speaks against it."""
    with sentences():
        _, config = recipe_config(name, preset, settings)
        return _estimate(name, config, Path(directory or f"runs/{name}"))
    return False


def _estimate(name: str, config: RecipeConfig, directory: Path) -> bool:
    from distill_lab.commands.plan import brief
    from distill_lab.planning.forecast import make_forecast
    from distill_lab.planning.machine import this_machine

    forecast = make_forecast(name, config, directory=directory, machine=this_machine())
    print("Estimate:", *brief(forecast), sep="\n  ")
    return not forecast.problems


def recipe(
    name: str, preset: str, settings: Settings | None = None, *, run: str = AUTO, directory: str = ""
) -> Shown | None:
    """Print the command and an estimate, run the recipe and return its result.

    run: auto runs tiny models at once, and of others prints the estimate alone; yes; estimate only. The same call again
    goes on where it stopped. Errors that the user can fix are printed.
    """
    settings, place = dict(settings or {}), Path(directory or f"runs/{name}")
    with sentences():
        module, config = recipe_config(name, preset, settings)
        words = [name, "--preset", preset, *flags(settings), "--run", str(place)]
        print(f"In a terminal: distill {shlex.join(words)}")
        done = (place / "summary.json").is_file()
        fits = done or _estimate(name, config, place)
        tiny = is_tiny(config.teacher.model) and is_tiny(config.student.model)
        if run == ESTIMATE_ONLY or (run == AUTO and not tiny):
            print('This was the estimate alone; choose "yes" above to run it.')
            return None
        if not fits:
            return None
        with Usage() as usage:
            if tiny:
                with CellLine() as line:
                    module.run(config, place, watch=CellReporter(line))
            elif run_command(words):
                return None
        print(usage)
        return show_result(place)
    return None


def run_command(words: list[str]) -> int:
    """Run `distill WORDS` as a process, with one line of progress; print its last lines if it fails. Returns its code."""
    from distill_lab.easydistill.process import run_process

    heard: list[str] = []
    with CellLine() as line:

        def on_line(text: str) -> None:
            heard.append(text)
            line.show(text.strip())

        code = run_process([sys.executable, "-m", "distill_lab.cli", *words], on_line=on_line)
    if code:
        print(*[text for text in heard if keep_line(text)][-LAST_LINES:], sep="\n")
        print(f"distill {words[0]} ended with code {code}; the same cell again goes on where it stopped.")
    return code


@contextmanager
def cell_lines() -> Iterator[Callable[[str], None]]:
    """A reader of a process's lines: in a notebook progress takes one line, elsewhere each is printed as it comes."""
    with CellLine() as line:

        def read(text: str) -> None:
            if keep_line(text) or not line.in_place:
                print(clean(text), flush=True)
            else:
                line.show(text.strip())

        yield read


def score(
    config: str, data: str, split: str, *, teacher: str = "", instruction: str = "", max_new_tokens: int = 512,
    grader: str = AUTO, measure: bool = True,
) -> Shown | None:  # fmt: skip
    """Test the student of an EasyDistill config beside its teacher and the base student, and return the result.

    config: what `distill_system1` or `distill_system2` wrote. data, split: rows that were not trained on. Errors that the
    user can fix are printed.
    """
    from distill_lab.easydistill.config import read_job
    from distill_lab.easydistill.job import run_directory

    with sentences():
        job = read_job(Path(config))
        directory = run_directory(job.out)
        if not directory.is_dir():
            raise UserError(
                f"{directory} is missing: the student was not trained by the lab, which tests only its own here; "
                f"`distill eval --model {job.out}` scores any model"
            )
        given = {
            "test.path": data, "test.split": split, "max_new_tokens": max_new_tokens, "grader": grader,
            "teacher": teacher, "instruction": instruction,
        }  # fmt: skip
        settings = {key: value for key, value in given.items() if value} | ({} if measure else {"measure": False})
        words = ["run", config, *flags(settings)]
        print(f"In a terminal: distill {shlex.join(words)}")
        asked = teacher or (job.teacher.model if job.teacher else "")
        with Usage() as usage:
            if is_tiny(asked) and is_tiny(job.student.model):
                from distill_lab.easydistill.proof import Test, prove

                test = Test(
                    data=DataConfig(path=data, split=split), teacher=teacher, instruction=instruction,
                    max_new_tokens=max_new_tokens, grader=grader, measure=measure,
                )  # fmt: skip
                with CellLine() as line:
                    prove(config, test, typed=f"distill {shlex.join(words)}", watch=CellReporter(line))
            elif run_command(words):
                return None
        print(usage)
        return show_result(directory)
    return None


def show_result(directory: str | Path) -> Shown:
    """Print what a run reached, and return its figures. Raises UserError if it has no result yet."""
    from distill_lab.report.inline import figures_html, result_lines

    place = Path(directory)
    print(*result_lines(place), sep="\n")
    return Shown(f"figures: {place / 'report.html'}", figures_html(place))


def show_page(directory: str | Path) -> Shown:
    """The report of a run, to be shown in a frame."""
    from distill_lab.report.inline import page_html

    return Shown(f"the report is in {Path(directory) / 'report.html'}", page_html(Path(directory)))


def show_rows(path: str, *, number: int = 2) -> None:
    """Print how many rows a JSON file of the lab has, and the first ones, each field shortened."""
    from distill_lab.easydistill.prepare import read_json

    with sentences():
        if not Path(path).is_file():
            raise UserError(f"{path} is not there yet; run the cell that prepares it")
        rows = read_json(path)
        print(f"{path}: {len(rows):,} rows, for example")
        for row in rows[:number]:
            print()
            for name, value in row.items():
                if value:
                    print(f"  {name}: {shortened(str(value))}")


def shortened(text: str) -> str:
    """A text on one line, cut at MAX_CHARS."""
    text = " ".join(clean(text).split())
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} ... ({len(text):,} characters)"


def ask_student(model: str, question: str, *, instruction: str = "", max_new_tokens: int = 256) -> None:
    """Print a model's answer as it is written. model: a directory, a name, or a run directory."""
    from distill_lab.commands.chat import printable
    from distill_lab.config import EngineConfig
    from distill_lab.device import memory_returned
    from distill_lab.export._source import find_source
    from distill_lab.generation.streaming import load_speaker

    with sentences(), memory_returned():
        source = find_source(model)
        thinking = (source.config.get("test_sampling") or {}).get("thinking")
        sampling = SamplingConfig(max_new_tokens=max_new_tokens, thinking=thinking)
        content = f"{question}\n{instruction}" if instruction else question
        speaker = load_speaker(source.model, EngineConfig())
        print(f"{question}\n")
        start = time.monotonic()
        for piece in speaker.answer([{"role": "user", "content": content}], sampling):
            print(printable(piece), end="", flush=True)
        del speaker
        print(f"\n\n({time.monotonic() - start:.1f} s)")


def take_home(directory: str, to: str, *, repo: str = "", check: int = 20) -> None:
    """Export a run's student: safetensors, gguf, ollama, mlx or hub; "none" exports nothing. Prints the files."""
    if to == "none":
        print("Nothing is exported; choose a form above.")
        return
    words = ["export", directory, "--to", to, "--check", str(check), *(["--repo", repo] if repo else [])]
    print(f"In a terminal: distill {shlex.join(words)}")
    with sentences():
        from distill_lab.export import Options
        from distill_lab.export._export import export_student
        from distill_lab.export._source import find_source

        source = find_source(directory)
        out = source.place / to
        if is_tiny(str((source.config.get("student") or {}).get("model", ""))):
            options = Options(repo=repo)
            with CellLine() as line:
                export_student(to, source, out, options, num_prompts=check, on_note=line.keep)
        elif run_command(words):
            return
        print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
        print(f"How to use it, and how it compares with the student: {out / 'README.md'}")


@contextmanager
def sentences() -> Iterator[None]:
    """Print errors that the user can fix, in place of a traceback."""
    try:
        yield
    except UserError as error:
        print(error)


def print_errors(work: Callable[[], str | None], keys: type[Config]) -> str | None:
    """Return what `work` returns; print an error that the user can fix, and return None."""
    try:
        return work()
    except ValidationError as error:
        for each in error.errors():
            print(f"config key {'.'.join(map(str, each['loc']))!r}: {_problem(each)}")
        print(f"Known keys: {', '.join(keys.model_fields)}")
    except UserError as error:
        print(error)
    return None
