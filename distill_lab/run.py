"""A run directory: manifest, lock, resumable JSONL files, atomic writes, and stages that are skipped if nothing changed.

    with Run.open("runs/demo", recipe="system1", config={...}) as run:
        prompts = run.stage("prompts", "prompts.jsonl", inputs={"data": "tiny:instructions"}, work=write_prompts)

`run.json` records the recipe, the resolved config, package versions, how each model is loaded, and the key, status, seconds
and counts of each stage.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypedDict

from distill_lab import activity
from distill_lab.activity import ProgressReporter
from distill_lab.errors import DataError, UserError
from distill_lab.files.bookkeeping import read_record
from distill_lab.files.fingerprints import (
    MAX_DIFFERENCES,
    differences,
    files_of,
    fingerprint,
    path_fingerprint,
    plain_object,
)
from distill_lab.files.jsonl import write_json
from distill_lab.files.locks import locked, take_lock
from distill_lab.files.outputs import check_work, remove_output, remove_work, writing
from distill_lab.settings.template_date import first_date, frozen, recorded_in
from distill_lab.types import Counts, CountsRecord, Fields, JsonObject

VERSIONED = ("qwen-distillation-lab", "torch", "transformers", "accelerate", "datasets", "bitsandbytes", "peft")


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage of a run."""

    path: Path
    """Its output."""
    counts: Counts | None
    """Rows read, kept and dropped, if the stage counts rows."""

    @property
    def kept(self) -> int:
        """Number of rows kept; only for stages that count rows."""
        assert self.counts is not None, f"the stage that wrote {self.path} counts no rows"
        return self.counts.kept


class _StageRecord(TypedDict):
    key: str
    at: str
    status: str
    """running or done."""
    seconds: float


class StageNotes(TypedDict, total=False):
    """What a stage in run.json says to people; it does not decide whether the stage runs again."""

    sampling: JsonObject


class StageRecord(_StageRecord, StageNotes, total=False):
    """A stage in run.json."""

    inputs: JsonObject
    output: str
    """Fingerprint of what a finished stage wrote."""
    files: list[str]
    counts: CountsRecord | None


class Manifest(TypedDict):
    """A run.json."""

    recipe: str
    config: dict[str, Any]
    date: str
    versions: dict[str, str]
    models: dict[str, JsonObject]
    """What `Run.record` stored, by model."""
    stages: dict[str, StageRecord]


class Run:
    """One execution of a recipe in its directory. Open it with `Run.open`, which rejects a second process."""

    def __init__(self, directory: Path, manifest: Manifest, lock: TextIO, watch: ProgressReporter) -> None:
        self.directory, self.watch, self._manifest, self._lock = directory, watch, manifest, lock
        self.recipe: str = manifest["recipe"]
        self.skipped: list[str] = []
        """Stages that were already finished and that this execution skipped."""
        self._heard = ExitStack()
        self._heard.enter_context(activity.listening(watch.doing))
        self._heard.enter_context(frozen(manifest["date"]))

    @classmethod
    def open(cls, directory: str | Path, *, recipe: str, config: Fields, watch: ProgressReporter | None = None) -> Run:
        """Create or reopen `directory`. Raises UserError if another process uses it, another recipe created it, or it
        contains files of the user that the run would overwrite."""
        directory = Path(directory)
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            lock = take_lock(
                directory / ".lock",
                busy=f"{directory} is in use by another process; wait for it or choose another --run directory",
            )
        try:
            _check_place(directory)
            stages, models = _old_stages(directory / "run.json", recipe)
            manifest: Manifest = {
                "recipe": recipe,
                "config": dict(config),
                "date": first_date(recorded_in(directory / "run.json")),
                "versions": {"python": platform.python_version(), **installed_versions()},
                "models": models,
                "stages": stages,
            }
            run = cls(directory, manifest, lock, watch or ProgressReporter())
            with writing(directory):
                run._save()
        except BaseException:
            lock.close()
            raise
        return run

    @property
    def config(self) -> Fields:
        """The resolved settings, as they are in run.json."""
        return self._manifest["config"]

    def path(self, name: str) -> Path:
        """Path of `name` in the run directory."""
        return self.directory / name

    def stage(
        self,
        name: str,
        output: str,
        *,
        inputs: Fields,
        work: Callable[[Path], Counts | None],
        about: StageNotes | None = None,
    ) -> Stage:
        """Create `output` (a file or directory of this run) by calling `work(path)` once.

        `inputs` is everything the result depends on. A stage that finished with the same inputs and whose output is
        unchanged is skipped. After an interruption with the same inputs, `work` continues from what it left. If the
        inputs differ, the old output is removed first. `about` goes into run.json next to the stage's key, for people.
        `output` may be an absolute path outside the directory. Raises UserError if this run did not create what is
        there, or if the user's files in it keep it from being removed; files that the user adds do not make a stage
        run again.
        """
        with self._locked(output):
            path = self._stage(name, output, plain_object(inputs), work, about or {})
        counts = self._manifest["stages"][name].get("counts")
        return Stage(path, Counts(**counts) if counts else None)

    def _stage(
        self, name: str, output: str, inputs: JsonObject, work: Callable[[Path], Counts | None], about: StageNotes
    ) -> Path:
        path, key, stages = self.path(output), fingerprint(inputs), self._manifest["stages"]
        last = stages.get(name)
        if last and last["key"] == key and last["status"] == "done" and last.get("output") == path_fingerprint(path):
            if last["at"] != output:
                last["at"] = output
                self._save()
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
        begun: StageRecord = {
            "key": key,
            "at": output,
            "status": "running",
            "seconds": seconds,
            "inputs": inputs,
            **about,
        }
        stages[name] = begun
        self._save()
        self.watch.stage(name)
        if why:
            self.watch.note(why)
        start = time.monotonic()
        counts = work(path)
        assert path.exists(), f"stage {name} did not write {path}"
        done: StageRecord = {
            **begun,
            "status": "done",
            "seconds": round(seconds + time.monotonic() - start, 3),
            "output": path_fingerprint(path),
        }
        if path.is_dir():
            done["files"] = files_of(path)
        done["counts"] = counts.to_json() if counts else None
        stages[name] = done
        self._save()
        self.watch.finished(name)
        if counts:
            self.watch.note(str(counts))
        return path

    def check_free(self, name: str, output: str) -> None:
        """Raise UserError if `output` exists and stage `name` of this run did not create it."""
        path, last = self.path(output), self._manifest["stages"].get(name)
        if path.exists() and not (last and self._is_at(last, output)):
            raise UserError(f"{path} already exists and was not created by this run; remove it or choose another path")

    def _is_at(self, stage: StageRecord, output: str) -> bool:
        # The path as given, so that a run directory can be moved; earlier versions wrote absolute paths.
        return stage["at"] in (output, str(self.path(output).absolute())) or self._moved_along(stage, output)

    def _moved_along(self, stage: StageRecord, output: str) -> bool:
        """Whether an output outside the directory was moved or copied together with it: the same name and content."""
        before, now = Path(stage["at"]), Path(output)
        if not (before.is_absolute() and now.is_absolute() and before.name == now.name):
            return False
        return stage["status"] == "done" and stage.get("output") == path_fingerprint(now)

    def recorded(self, model: str) -> JsonObject | None:
        """Settings that `record` stored for a model in this run, in this execution or an earlier one."""
        return self._manifest["models"].get(model)

    def record(self, model: str, settings: Fields) -> None:
        """Store in run.json how this run loads a model."""
        self._manifest["models"][model] = dict(settings)
        self._save()

    @contextmanager
    def _locked(self, output: str) -> Iterator[None]:
        """The run's lock covers its directory; take a separate lock for an output elsewhere."""
        path = self.path(output)
        if path.is_relative_to(self.directory):
            yield
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            yield

    def seconds(self, stage: str) -> float:
        """How long a finished stage took, in seconds, without interrupted attempts."""
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


def _why_again(last: StageRecord | None, key: str, inputs: object) -> str:
    """Why a finished stage runs again; empty if it never ran, or if the reason is unknown."""
    if last is None:
        return ""
    if last["key"] == key:
        return "running again: its output was changed or removed"
    before = last.get("inputs")
    found = differences(before, inputs) if isinstance(before, dict) else []
    more = f" and {len(found) - MAX_DIFFERENCES} more" if len(found) > MAX_DIFFERENCES else ""
    return f"running again with changed inputs: {', '.join(found[:MAX_DIFFERENCES])}{more}" if found else ""


def _check_place(directory: Path) -> None:
    """Raise UserError if `directory` is not a run directory but contains a file that a run would overwrite at its end."""
    for name in ("summary.json", "report.html", "report.md", "training.json", "evaluation_results.json"):
        if (directory / name).exists() and not (directory / "run.json").exists():
            raise UserError(
                f"{directory / name} exists, but {directory} is not a run directory: the run would overwrite it; choose "
                "another --run directory, or move the file elsewhere"
            )


def _old_stages(path: Path, recipe: str) -> tuple[dict[str, StageRecord], dict[str, JsonObject]]:
    """The stages and models that an earlier execution recorded in `run.json`; empty if there was none."""
    if not path.exists() and not path.is_symlink():
        return {}, {}
    remedy = "put back an undamaged copy, or choose another --run directory"
    try:
        old = read_manifest(path)
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from None
    if old["recipe"] != recipe:
        raise UserError(
            f"{path.parent} contains a {old['recipe']} run; choose another --run directory for this {recipe} run"
        )
    return old["stages"], old["models"]


def read_manifest(path: Path) -> Manifest:
    """The content of a run.json, with a `recipe`, `stages` and `models` of the right form. Raises DataError if damaged."""
    try:
        manifest = {"models": {}, **read_record(path)}
    except DataError as error:
        raise DataError(str(path), None, f"not the run.json of a run: {error.reason}") from None
    reason = ""
    if not isinstance(manifest.get("recipe"), str):
        reason = "`recipe` is not text"
    for field in ("stages", "models"):
        if not isinstance(manifest.get(field), dict) or not all(isinstance(e, dict) for e in manifest[field].values()):
            reason = reason or f"`{field}` is not an object of objects"
    if not reason:
        problems = ((name, _wrong_in(stage)) for name, stage in manifest["stages"].items())
        reason = next((f"stage {name!r}: {problem}" for name, problem in problems if problem), "")
    if reason:
        raise DataError(str(path), None, f"not the run.json of a run: {reason}")
    return manifest_of(manifest)


def manifest_of(found: Mapping[str, Any]) -> Manifest:
    """A run.json that was read; what it does not have is empty."""
    return Manifest(
        recipe=found.get("recipe", ""),
        config=found.get("config", {}),
        date=found.get("date", ""),
        versions=found.get("versions", {}),
        models=found.get("models", {}),
        stages=found.get("stages", {}),
    )


def _wrong_in(stage: Fields) -> str:
    """What is wrong with the record of a stage; empty if it is as `Run.stage` writes it."""
    seconds, status = stage.get("seconds"), stage.get("status")
    if status not in ("running", "done"):
        return "`status` is neither running nor done"
    for field in ("key", "at", *(["output"] if status == "done" else [])):
        if not isinstance(stage.get(field), str):
            return f"`{field}` is not text"
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
        return "`seconds` is not a number of seconds"
    files = stage.get("files")
    if files is not None and not (isinstance(files, list) and all(isinstance(name, str) for name in files)):
        return "`files` is not a list of names"
    counts = stage.get("counts")
    if counts is None:
        return ""
    if not isinstance(counts, dict):
        return "`counts` are not counts of rows"
    try:
        dropped = counts["dropped"]
        numbers = [counts["rows_in"], counts["kept"], *dropped.values()]
        whole = len(counts) == 3 and all(type(number) is int and number >= 0 for number in numbers)
        return "" if whole and sum(numbers[1:]) == numbers[0] else "`counts` do not add up"
    except (TypeError, KeyError, AttributeError):
        return "`counts` are not counts of rows"


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that a result depends on, by name."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
