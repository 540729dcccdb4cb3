"""Tasks of lm-evaluation-harness: names, files or folders -> tasks with their items. No model is loaded for it.

    suite = load_suite("gsm8k,ifeval", on_server=False)

Its tasks, prompts, filters and metrics are used as they are (Gao et al., github.com/EleutherAI/lm-evaluation-harness).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict, cast

from distill_lab.errors import UserError
from distill_lab.evaluation.suite._lm_eval import Loaded, Task, TaskManager, TaskModule
from distill_lab.types import Fields

NAMES = {"math500": "minerva_math500"}
"""What people call a task -> its name in lm_eval."""
WRITTEN, ROLLING = "generate_until", "loglikelihood_rolling"
"""The kinds of task in which the model writes, and in which whole texts are scored; all but the first need likelihoods."""
SEEDS = 0, 1234
"""Of Python's random numbers while tasks are loaded, and of all other random numbers; lm_eval's defaults."""
NUM_NAMED = 3
HUB_TIMEOUT_S = 10.0


class SuiteKey(TypedDict):
    """What tasks and their items are."""

    lm_eval: str
    """Its version."""
    tasks: dict[str, str]
    """Name -> digest of the settings."""
    items: dict[str, str]
    """Name -> digest of the items."""


@dataclass(frozen=True)
class Suite:
    """Tasks with their items."""

    names: tuple[str, ...]
    """As the user gave them."""
    tasks: dict[str, Task]
    """Name -> lm_eval's task, in the order of the results."""
    groups: dict[str, object] = field(repr=False)
    """Name -> lm_eval's group."""
    key: SuiteKey = field(repr=False)
    """The tasks and their items as they were loaded, for the key of a result. A run changes the tasks' settings."""

    @property
    def version(self) -> str:
        """Of lm_eval."""
        return self.key["lm_eval"]

    def questions(self, limit: int | None) -> Iterator[tuple[str, str]]:
        """(id, question without examples) of every item, for a search for contamination; ids are those of eval rows."""
        for name, task in self.tasks.items():
            for number, doc in enumerate(task.eval_docs):
                if limit is not None and number >= limit:
                    break
                text = task.doc_to_target(doc) if task.OUTPUT_TYPE == ROLLING else task.doc_to_text(doc)
                choices = task.doc_to_choice(doc) if isinstance(text, int) else []  # the question is in its choices
                yield f"{name}/{number}", " ".join(map(str, choices)) if choices else str(text)


def check_installed() -> None:
    """Raise UserError if lm_eval is not installed."""
    if find_spec("lm_eval") is None:
        raise UserError(
            "--suite needs lm-evaluation-harness, which is not installed; install the extra suites: pip install "
            "'qwen-distillation-lab[suites]', or pip install 'lm_eval[ifeval,math]'"
        )


def load_suite(names: str, *, on_server: bool) -> Suite:
    """The tasks of `names`, with commas between them, and their items.

    A name may be a YAML file or a folder of them. on_server: the model runs on a server, which gives no likelihoods. Raises
    UserError if the package, a task, or its items are not there, and for tasks that the lab does not run.
    """
    check_installed()
    given = tuple(name.strip() for name in names.split(",") if name.strip())
    if not given:
        raise UserError("--suite is empty; give a task, such as gsm8k")
    with quiet(), seeded():
        tasks = importlib.import_module("lm_eval.tasks")
        own = [Path(name) for name in given if _is_path(name)]
        for path in own:
            if not path.exists():
                raise UserError(
                    f"--suite {path}: no such file or folder; give a task's YAML file, or the name of a task"
                )
        folders = [path for path in own if path.is_dir()]
        try:
            # Reading all of its own tasks takes seconds.
            manager: TaskManager = tasks.TaskManager(
                include_path=folders or None, include_defaults=len(own) < len(given)
            )
        except Exception as error:  # it reads every YAML file in the folders, whatever is in them
            raise UserError(f"lm_eval's tasks cannot be read: {cause(error)}; install it again") from error
        found: dict[str, Task] = {}
        groups: dict[str, object] = {}
        for name in given:
            for spec in _specs(name, manager):
                loaded = _loaded(manager, name, spec)
                found |= loaded["tasks"]
                groups |= loaded["groups"]
    _check_runnable(found, on_server=on_server)
    key: SuiteKey = {
        "lm_eval": str(importlib.import_module("lm_eval").__version__),
        "tasks": {name: _digest([task.dump_config()]) for name, task in found.items()},
        "items": {name: _digest(task.eval_docs) for name, task in found.items()},
    }
    return Suite(given, found, groups, key)


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or Path(name).is_dir() or "/" in name


def _specs(name: str, manager: TaskManager) -> list[str]:
    """What a name stands for: itself, a file, or the tasks of a folder."""
    path = Path(name)
    if not _is_path(name):
        known = NAMES.get(name, name)
        if known in manager.all_tasks:
            return [known]
        close = get_close_matches(known, manager.all_tasks, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "lm_eval ls tasks lists all of them"
        raise UserError(f"--suite {name}: lm_eval has no task of this name; {hint}")
    if path.is_file():
        return [str(path)]
    inside = [
        each
        for each in manager.all_subtasks
        if (place := manager.task_index[each].yaml_path) and Path(place).resolve().is_relative_to(path.resolve())
    ]
    if not inside:
        raise UserError(f"--suite {name}: no YAML file in this folder is a task of lm_eval (`task: NAME`)")
    return inside


def _loaded(manager: TaskManager, name: str, spec: str) -> Loaded:
    """Tasks and groups of one spec, items included. Raises UserError with the reason and a remedy."""
    from distill_lab import activity

    try:
        with activity.doing(f"loading the items of {spec}"), _cache_if_hub_is_away(is_asked=not _is_path(spec)):
            return manager.load([spec])
    except ModuleNotFoundError as error:
        raise UserError(
            f"--suite {name}: this task needs the package {error.name}; pip install 'lm_eval[ifeval,math]' has those of "
            "the suites that the lab names"
        ) from error
    except Exception as error:  # a task is a program, and its items come from anywhere
        remedy = (
            "check the file, its dataset_path and data_files (paths are relative to the folder that you are in)"
            if _is_path(name)
            else "its items come from the Hugging Face hub: check the network, or run the command once on a machine that "
            "reaches it and copy its cache (HF_HOME). A task in your own file needs no hub (--suite task.yaml)"
        )
        raise UserError(f"--suite {name}: {spec} cannot be loaded ({cause(error)}); {remedy}") from error


@contextlib.contextmanager
def _cache_if_hub_is_away(*, is_asked: bool) -> Iterator[None]:
    """Ask the hub once, briefly; if it does not answer, `datasets` looks into its cache at once instead of retrying."""
    import datasets.config
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if is_asked and not any(before):
        try:
            HfApi().dataset_info("openai/gsm8k", timeout=HUB_TIMEOUT_S)
        except HfHubHTTPError:
            pass  # an answer
        except Exception:  # each library below has its own errors for a network that is away
            datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _check_runnable(tasks: Mapping[str, Task], *, on_server: bool) -> None:
    def refuse(names: Sequence[str], why: str) -> None:
        if names:
            more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
            raise UserError(f"--suite: {', '.join(names[:NUM_NAMED])}{more}: {why}")

    refuse(
        [name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)],
        "this runs code that the model writes, which the lab does not do; use lm_eval in a sandbox",
    )
    refuse(
        [name for name, task in tasks.items() if getattr(task, "MULTIMODAL", False)],
        "this has images or sound, which the lab's models do not read",
    )
    scored = [name for name, task in tasks.items() if task.OUTPUT_TYPE != WRITTEN]
    if on_server:
        refuse(
            scored,
            "this needs the probabilities of given texts (loglikelihood), and a server only writes texts; choose tasks in "
            "which the model writes (gsm8k, math500, ifeval, bbh, mmlu_generative), or a model that is loaded here",
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no log lines of the libraries; only the faces print."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    task = cast(TaskModule, importlib.import_module("lm_eval.api.task"))
    before = task.tqdm
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    task.tqdm = lambda items=(), **_: items
    try:
        yield
    finally:
        task.tqdm = before
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """The random numbers with which lm_eval loads and runs tasks; those of the process go on afterwards."""
    import numpy as np

    before, others = random.getstate(), np.random.get_state()
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(others)


def _digest(rows: Iterable[Fields]) -> str:
    """Of a task's settings or items."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=_named).encode())
    return digest.hexdigest()[:32]


def _named(value: object) -> str:
    """A value without a JSON form: a function of a task by its name, which is the same in every process."""
    return str(getattr(value, "__qualname__", value))


def cause(error: BaseException) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
