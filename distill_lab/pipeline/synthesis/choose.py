"""What a job is run with, found out or refused before anything is asked: template, kind of rating, columns of the texts."""

from __future__ import annotations

from pathlib import Path

from distill_lab.config import DataConfig, SamplingConfig
from distill_lab.data import adapters
from distill_lab.data.records import first_row
from distill_lab.errors import UserError
from distill_lab.files.fingerprints import fingerprint
from distill_lab.files.jsonl import read_jsonl
from distill_lab.pipeline.synthesis.jobs import load, names
from distill_lab.pipeline.synthesis.settings import RETRY_TEMPERATURE, SynthesisConfig
from distill_lab.pipeline.synthesis.template import MARK, PLACE, Template

MAX_BYTES = 1 << 20
TEXT_COLUMNS = ("data", "text", "content", "document", "passage", "body")
"""Columns that hold a text to extract from, if no adapter reads the row as something else."""


def own_template(job: str) -> Template:
    """The lab's template of a job."""
    found = load(job)
    return Template(found.TEMPLATE, found.PLACEHOLDERS, f"{job}/{found.VERSION}")


def read_template(path: Path, job: str) -> Template:
    """A person's template. Raises UserError for a file that cannot be a template of this job."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--template {path}: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--template {path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    if not text.strip() or len(text) > MAX_BYTES:
        raise UserError(f"--template {path}: {'empty' if not text.strip() else 'larger than 1 MiB'}; give a request")
    known = (*load(job).PLACEHOLDERS, MARK)
    unknown = [name for name in PLACE.findall(text) if name not in known]
    if unknown:
        raise UserError(
            f"--template {path}: {job} has no {{{unknown[0]}}}; its places are {', '.join(f'{{{n}}}' for n in known)}"
        )
    return checked(Template(text, load(job).PLACEHOLDERS, custom_name(job, text)), job, f"--template {path}")


def custom_name(job: str, text: str) -> str:
    """The name of a template that is not the lab's: the job and the beginning of its digest."""
    return f"{job}/custom-{fingerprint(text)[:8]}"


def checked(template: Template, job: str, where: str) -> Template:
    """The template. Raises UserError if it lacks what the job cannot do without."""
    missing = [need for need in load(job).NEEDED if need not in template.text]
    if missing:
        raise UserError(f"{where}: a request of {job} must contain {' and '.join(missing)}")
    return template


def check_settings(job: str, config: SynthesisConfig) -> None:
    """Raise UserError for settings that belong to another job, and for several samples of what is one row."""
    used, fields = load(job).SETTINGS, SynthesisConfig.model_fields
    others = {name: other for other in names() for name in load(other).SETTINGS}
    for name in others:
        if name not in used and getattr(config, name) != fields[name].default:
            owners = ", ".join(other for other in names() if name in load(other).SETTINGS)
            raise UserError(f"--{name.replace('_', '-')} is for {owners}; remove it from {job}")
    if config.sampling.num_samples > 1 and not load(job).SEVERAL:
        several = ", ".join(other for other in names() if load(other).SEVERAL)
        hint = "raise --num-rows" if job == "expand" else "leave it at 1"
        raise UserError(f"--sampling.num-samples: several answers to one request are for {several}; {hint}")


def text_columns(job: str, data: DataConfig) -> DataConfig:
    """The data; for extract, if no adapter reads its rows, with the column that holds the texts as the prompt."""
    if job != "extract" or data.columns or data.adapter != adapters.AUTO:
        return data
    row = first_row(data) or {}
    if adapters.choose(row) is not None:
        return data
    name = next((name for name in TEXT_COLUMNS if isinstance(row.get(name), str)), None)
    return data if name is None else data.model_copy(update={"columns": f"prompt={name}"})


def rating_kind(kind: str, rows: Path) -> str:
    """The kind, cot or answer; auto is decided by whether the rows have thinking. Raises UserError if only some have."""
    if kind != "auto":
        return kind
    thinks = {
        any(message.get("thinking") for message in row["completion"])
        for row in read_jsonl(rows)
        if row.get("completion")
    }
    if len(thinks) > 1:
        raise UserError("some rows have thinking and some have not; say what to rate: --kind cot or --kind answer")
    return "cot" if True in thinks else "answer"


def round_sampling(sampling: SamplingConfig, number: int, *, new_requests: bool) -> SamplingConfig:
    """How round `number` samples: the same request again needs another seed, and a temperature at which that matters."""
    if number == 0:
        return sampling
    update: dict[str, float] = {"seed": (sampling.seed + number) % 2**32}
    if not new_requests and not sampling.from_model:
        update["temperature"] = max(sampling.temperature, RETRY_TEMPERATURE)
    return sampling.model_copy(update=update)
