"""What the lab uses of lm-evaluation-harness, as types: the package is optional and has few types. Nothing is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar

from distill_lab.types import Fields

Arguments = TypeVar("Arguments", covariant=True)
Figures = Mapping[str, Mapping[str, object]]
"""Name of a task or group -> its figures by metric and filter, besides others such as its alias."""
Sample = Mapping[str, Any]
"""A task's item as it was scored: `doc_id`, `doc` and `target`; `arguments` and `resps` of its requests; `filter` and
`filtered_resps`; `metrics`, and the value of each metric under its name."""
_Measured = TypedDict(
    "_Measured",
    {
        "results": Figures,
        "samples": Mapping[str, Sequence[Sample]],
        "versions": Mapping[str, object],
        "n-shot": Mapping[str, int | None],
    },
)


class Results(_Measured, total=False):
    """What `lm_eval.evaluate` returns, by task; `groups` by group of tasks."""

    groups: Figures
    higher_is_better: Mapping[str, Mapping[str, bool | None]]
    """By metric."""


class TaskSettings(Protocol):
    """A task's YAML file."""

    doc_to_choice: object
    """None if the task has no choices."""


class Task(Protocol):
    """A task with its items."""

    OUTPUT_TYPE: str
    """The kind of its requests."""
    config: TaskSettings
    multiple_input: object
    """Whether the choices are contexts, and not continuations."""

    @property
    def eval_docs(self) -> Sequence[Fields]:
        """The items."""
        ...

    def doc_to_text(self, doc: Fields) -> str | int:
        """An item's question; the number of the right choice if each choice is a context."""
        ...

    def doc_to_target(self, doc: Fields) -> object:
        """An item's gold answer."""
        ...

    def doc_to_choice(self, doc: Fields) -> Sequence[object]:
        """An item's choices."""
        ...

    def dump_config(self) -> Fields:
        """All settings."""
        ...

    def get_config(self, key: str) -> object:
        """A setting."""
        ...

    def set_config(self, key: str, value: object) -> None:
        """Change a setting."""
        ...

    def set_fewshot_seed(self, seed: int) -> None:
        """Choose the examples before a question."""
        ...


class Loaded(TypedDict):
    """Tasks and groups by name."""

    tasks: dict[str, Task]
    groups: dict[str, object]


class TaskFile(Protocol):
    """Where a task is from."""

    yaml_path: str | Path | None


class TaskManager(Protocol):
    """All tasks that can be loaded."""

    task_index: Mapping[str, TaskFile]

    @property
    def all_tasks(self) -> Sequence[str]:
        """Names of tasks and groups."""
        ...

    @property
    def all_subtasks(self) -> Sequence[str]:
        """Names of tasks."""
        ...

    def load(self, specs: Sequence[str], /) -> Loaded:
        """Tasks by their names or files."""
        ...


class TaskModule(Protocol):
    """`lm_eval.api.task`."""

    tqdm: Callable[..., Iterable[object]]


class Request(Protocol[Arguments]):
    """What a task wants to know of a model."""

    task_name: str
    doc_id: int
    """The item."""
    idx: int
    """Among the requests of the item."""

    @property
    def args(self) -> Arguments:
        """Context and continuation; a whole text; or context and generation settings."""
        ...
