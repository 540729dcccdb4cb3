"""A run directory: manifest, lock, resumable JSONL files, atomic writes, stages that are skipped when nothing changed.

    with Run.open("runs/demo", recipe="system1", config={...}) as run:
        prompts = run.stage("prompts", "prompts.jsonl", inputs={"data": "tiny:instructions"}, work=write_prompts)

`run.json` records the recipe, the resolved config, versions, how each model is loaded, and per stage its key, status,
seconds and counts.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from distill_lab import activity
from distill_lab.errors import UserError
from distill_lab.files.fingerprints import MAX_DIFFERENCES, differences, files_of, fingerprint, path_fingerprint, plain
from distill_lab.files.jsonl import write_json
from distill_lab.files.locks import locked, take_lock
from distill_lab.files.outputs import check_work, remove_output, remove_work, writing
from distill_lab.progress import ProgressReporter
from distill_lab.types import Counts

VERSIONED = ("qwen-distillation-lab", "torch", "transformers", "accelerate", "datasets", "bitsandbytes", "peft")


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage of a run."""

    path: Path
    """Its output."""
    counts: Counts | None
    """Rows in, kept and dropped, if the stage counts rows."""

    @property
    def kept(self) -> int:
        """Rows kept, by a stage that counts them."""
        assert self.counts is not None, f"the stage that wrote {self.path} counts no rows"
        return self.counts.kept


class Run:
    """One execution of a recipe and its directory. Open it with `Run.open`; a second process on it is refused."""

    def __init__(self, directory: Path, manifest: dict[str, Any], lock: Any, watch: ProgressReporter) -> None:
        self.directory, self.watch, self._manifest, self._lock = directory, watch, manifest, lock
        self.recipe: str = manifest["recipe"]
        self.skipped: list[str] = []
        """Stages this execution found finished and left alone."""
        self._heard = ExitStack()
        self._heard.enter_context(activity.listening(watch.doing))

    @classmethod
    def open(
        cls, directory: str | Path, *, recipe: str, config: Mapping[str, Any], watch: ProgressReporter | None = None
    ) -> Run:
        """Create or reopen `directory`. Raises UserError where another process holds it, another recipe made it, or
        files that a run would write over are someone else's."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lock = take_lock(
            directory / ".lock",
            busy=f"{directory} is in use by another process; wait for it or choose another --run directory",
        )
        try:
            _check_place(directory)
            stages, models = _old_stages(directory / "run.json", recipe)
            manifest = {
                "recipe": recipe,
                "config": dict(config),
                "versions": {"python": platform.python_version(), **installed_versions()},
                "models": models,
                "stages": stages,
            }
            run = cls(directory, manifest, lock, watch or ProgressReporter())
            run._save()
        except BaseException:
            lock.close()
            raise
        return run

    def path(self, name: str) -> Path:
        """Where `name` stands in the run's directory."""
        return self.directory / name

    def stage(
        self,
        name: str,
        output: str,
        *,
        inputs: Mapping[str, Any],
        work: Callable[[Path], Counts | None],
        about: Mapping[str, Any] | None = None,
    ) -> Stage:
        """Make `output` (a file or directory of this run) by `work(path)`, once.

        `about` goes into run.json beside the stage's key, for people.

        `inputs` is everything the result depends on. Finished with the same inputs and the output still as it was
        left: skipped. Interrupted with the same inputs: `work` is called with what it left, to go on from there. Other
        inputs: the old output is removed first. `output` may be an absolute path outside
        the directory. Raises UserError where something stands there that this run did not make, or where it would have
        to be removed and someone else's files are in it; those are no reason to make it again.
        """
        with self._held(output):
            path = self._stage(name, output, plain(inputs), work, about or {})
        counts = self._manifest["stages"][name]["counts"]
        return Stage(path, Counts(**counts) if counts else None)

    def _stage(
        self, name: str, output: str, inputs: Any, work: Callable[[Path], Counts | None], about: Mapping[str, Any]
    ) -> Path:
        path, key, stages = self.path(output), fingerprint(inputs), self._manifest["stages"]
        last = stages.get(name)
        if last and last["key"] == key and last["status"] == "done" and last["output"] == path_fingerprint(path):
            self.skipped.append(name)
            self.watch.skipped(name)
            return path
        self.check_free(name, output)
        if last and not self._is_at(last, output):
            last = None
        why = ""
        if not (last and last["key"] == key and last["status"] == "running"):
            why = _why_again(last, key, inputs)
            check_work(path)
            remove_output(path, last.get("files") if last else None)
            remove_work(path)
            last = None
        seconds = last["seconds"] if last else 0.0
        stages[name] = {"key": key, "at": output, "status": "running", "seconds": seconds, "inputs": inputs, **about}
        self._save()
        self.watch.stage(name)
        if why:
            self.watch.note(why)
        start = time.monotonic()
        counts = work(path)
        assert path.exists(), f"stage {name} did not write {path}"
        stages[name] |= {
            "status": "done",
            "seconds": round(seconds + time.monotonic() - start, 3),
            "output": path_fingerprint(path),
            **({"files": files_of(path)} if path.is_dir() else {}),
            "counts": counts.to_json() if counts else None,
        }
        self._save()
        self.watch.finished(name)
        if counts:
            self.watch.note(str(counts))
        return path

    def check_free(self, name: str, output: str) -> None:
        """Raise UserError where something stands at `output` that stage `name` of this run did not make."""
        path, last = self.path(output), self._manifest["stages"].get(name)
        if path.exists() and not (last and self._is_at(last, output)):
            raise UserError(f"{path} exists and is not this run's; choose another place for it, or remove it")

    def _is_at(self, stage: Mapping[str, Any], output: str) -> bool:
        # As it was named, so that a run's directory can be moved; earlier versions wrote whole paths.
        return stage["at"] in (output, str(self.path(output).absolute()))

    def recorded(self, model: str) -> dict[str, Any] | None:
        """What `record` noted of a model in this run, by this execution or an earlier one."""
        return self._manifest["models"].get(model)

    def record(self, model: str, settings: Mapping[str, Any]) -> None:
        """Note how a model is loaded in this run, in run.json."""
        self._manifest["models"][model] = dict(settings)
        self._save()

    @contextmanager
    def _held(self, output: str) -> Iterator[None]:
        """The run's lock holds what is in its directory; an output elsewhere has a lock of its own."""
        path = self.path(output)
        if path.is_relative_to(self.directory):
            yield
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            yield

    def seconds(self, stage: str) -> float:
        """How long a finished stage took, in seconds, interrupted attempts excepted."""
        return self._manifest["stages"][stage]["seconds"]

    def _save(self) -> None:
        write_json(self.directory / "run.json", self._manifest)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heard.close()
        self._lock.close()


def _why_again(last: Mapping[str, Any] | None, key: str, inputs: Any) -> str:
    """Why a stage that was done before is done again; empty where it was not, or where that is not known."""
    if last is None:
        return ""
    if last["key"] == key:
        return "made again: what it had written was changed or removed"
    found = differences(last["inputs"], inputs) if isinstance(last.get("inputs"), dict) else []
    more = f" and {len(found) - MAX_DIFFERENCES} more" if len(found) > MAX_DIFFERENCES else ""
    return f"made again, as there are other inputs: {', '.join(found[:MAX_DIFFERENCES])}{more}" if found else ""


def _check_place(directory: Path) -> None:
    """Raise UserError where a directory that is no run's holds a file that a run writes when it ends."""
    for name in ("summary.json", "report.html", "training.json", "evaluation_results.json"):
        if (directory / name).exists() and not (directory / "run.json").exists():
            raise UserError(
                f"{directory / name} exists, and {directory} is not a run's directory: the run would write over it; choose "
                "another --run directory, or move it elsewhere"
            )


def _old_stages(path: Path, recipe: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stages and models an earlier execution recorded in `run.json`, none where there was none."""
    if not path.exists():
        return {}, {}
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        old_recipe, stages, models = old["recipe"], old["stages"], dict(old.get("models", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a run's manifest ({error}); remove it or choose another --run directory"
        ) from None
    if old_recipe != recipe:
        raise UserError(f"{path.parent} holds a {old_recipe} run; give this {recipe} run another --run directory")
    return stages, models


def installed_versions() -> dict[str, str]:
    """Version by name of the packages a result depends on, those that are installed."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
