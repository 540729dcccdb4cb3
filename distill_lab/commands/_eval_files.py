"""Helpers of `distill eval`: which prompts, gains over other outputs, and the files of labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill_lab.config import DataConfig, ModelConfig
    from distill_lab.terminal import Terminal


def first_samples(data: DataConfig, max_samples: int | None) -> DataConfig:
    """The data with `max_samples` as a slice of its split. Raises UserError if the split is a slice already."""
    from distill_lab.errors import UserError

    if max_samples is None:
        return data
    if "[" in data.split:
        raise UserError(
            f"--max-samples {max_samples}: --data.split {data.split} is a slice already; give one of the two"
        )
    return data.model_copy(update={"split": f"{data.split}[:{max_samples}]"})


def refuse_given(settings: Mapping[str, object], why: str) -> None:
    """Raise UserError for the first setting that has a value. settings: flag -> value; why: what follows the flag."""
    from distill_lab.errors import UserError

    for flag, value in settings.items():
        if value:
            raise UserError(f"{flag} {why}")


def check_against(path: Path | None) -> None:
    """Raise UserError if the output to compare with does not exist."""
    from distill_lab.errors import UserError

    if path is not None and not path.is_file():
        raise UserError(f"--against {path}: no such file; give the --out of an earlier `distill eval`")


def print_gains(model: str, out: Path, others: Mapping[str, Path], terminal: Terminal) -> None:
    """Print what `out` gains over each of the other outputs, prompt by prompt. Raises UserError for other prompts."""
    from distill_lab.evaluation.statistics import paired
    from distill_lab.evaluation.verdict import CHANCE

    for name, other in others.items():
        result = paired(other, out)
        low, high = result.ci95
        terminal.print(
            f"gain over {name}: {100 * result.gain:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}], "
            f"p = {result.p_value:.2g}"
        )
        if result.gain < 0:
            chance = ", but the difference may be chance" if result.p_value >= CHANCE else ""
            terminal.print(f"{model} scores below {name}{chance}")


def write_label_results(model: ModelConfig, items: Path, path: Path, terminal: Terminal) -> None:
    """Write and print what the label grader found: predictions, confusion matrix, accuracy per label, errors."""
    from distill_lab.evaluation.labels import label_report, predictions, render_label_report
    from distill_lab.files.jsonl import write_json

    report, names = label_report(items), model_names(model)
    write_json(path, names | report.to_json() | {"predictions": predictions(items)})
    terminal.print(render_label_report(report))
    terminal.print(", ".join(f"{name}: {value}" for name, value in names.items()))
    terminal.note(f"confusion matrix, accuracy per label, errors and predictions are in {path}")


def model_names(model: ModelConfig) -> dict[str, str]:
    """The model by name and, if it is adapters, the base model that they are for."""
    from distill_lab.models.names import api_engine, base_of, is_adapter, resolve

    if api_engine(model.model) or not is_adapter(resolve(model.model)):
        return {"model": model.model}
    return {"model": base_of(model).model, "adapter": model.model}
