"""Make data from data: rows and a model -> new rows in one file; everything else in a run directory next to it.

    made = synthesize("refine", SynthesisConfig(model=..., data=...), Path("refined.jsonl"))
    made.path, made.counts, made.ratings

Rows become requests, requests answers, answers new rows; what cannot be read is asked again. Copies are left out, and with
test data whatever overlaps with it. Every step is a stage of the run `<out>.run`: the same call resumes there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from distill_lab.activity import ProgressReporter
from distill_lab.errors import NoData, UserError
from distill_lab.files.claims import claim
from distill_lab.files.outputs import writing
from distill_lab.generation.model_identity import requested_model_inputs, shown_name
from distill_lab.pipeline.synthesis import select
from distill_lab.pipeline.synthesis.choose import check_settings, own_template, read_template
from distill_lab.pipeline.synthesis.jobs import load
from distill_lab.pipeline.synthesis.line import SynthesisLine
from distill_lab.pipeline.synthesis.requests import first_request
from distill_lab.pipeline.synthesis.settings import SynthesisConfig
from distill_lab.pipeline.synthesis.template import Template
from distill_lab.planning.preflight import check_generation, check_writable
from distill_lab.run import Run
from distill_lab.types import Counts, JsonObject

RECIPE = "synthesize"


@dataclass(frozen=True)
class Made:
    """What a job made."""

    path: Path
    counts: Counts
    """Rows (in expand: requests) in, rows written, and the others by reason, over all stages."""
    ratings: dict[str, dict[int, int]]
    """rate: how many rows have each rating, before any minimum; otherwise empty."""


def run_directory(out: Path) -> Path:
    """The run directory of an output: `<out>.run`."""
    return out.with_name(f"{out.name}.run")


def synthesize(
    job: str,
    config: SynthesisConfig,
    out: Path,
    *,
    directory: Path | None = None,
    template: Template | None = None,
    overwrite: bool = False,
    watch: ProgressReporter | None = None,
) -> Made:
    """Run a job, or resume it, and write its rows to `out` (.jsonl, or .json for an array).

    directory: the run directory. template: in place of `config.template`. overwrite: replace an earlier output that was
    made with other settings. Raises UserError (DataError, ModelError, NoData if no row is left) before `out` is written.
    """
    form = _check(job, config, template)
    if out.suffix not in (".json", ".jsonl"):
        raise UserError(f"{out}: the name of the output must end in .jsonl or .json")
    check_writable(out)
    reads = [Path(config.data.path), *([Path(config.test.path)] if config.test.path else [])]
    holding = claim(
        out,
        RECIPE,
        inputs=_inputs(job, config, form),
        files=[out],
        reads=[*reads, *([config.template] if config.template else [])],
        shown={"model": shown_name(config.model)},
        overwrite=overwrite,
    )
    settings = {"job": job, **config.model_dump(mode="json")}
    with holding, Run.open(directory or run_directory(out), recipe=RECIPE, config=settings, watch=watch) as run:
        line = SynthesisLine(run, job, config, form)
        data = line.data()
        results = line.drawn_rounds(data) if job == "expand" else line.rounds(data)
        rows = line.selected(line.apart(data, line.made(results)))
        counts = line.counts()
        if not counts.kept:
            raise NoData(f"no row is left: {counts}; {run.path('rounds')} has the requests and answers")
        with writing(out):
            select.write_out(rows, out, form=config.form)
        return Made(out, counts, line.ratings)


def preview(job: str, config: SynthesisConfig, *, watch: ProgressReporter | None = None) -> tuple[Counts, str]:
    """What would be asked: rows that give requests, and the first request. Asks nothing and leaves no file."""
    form = _check(job, config, None)
    with TemporaryDirectory() as folder, Run.open(Path(folder) / "run", recipe=RECIPE, config={}, watch=watch) as run:
        line = SynthesisLine(run, job, config, form)
        data = line.data()
        requests = line.requests(0, line.draws(data, []).path if job == "expand" else data)
        assert requests.counts is not None
        return requests.counts, first_request(requests.path)


def _check(job: str, config: SynthesisConfig, template: Template | None) -> Template:
    load(job)
    check_settings(job, config)
    check_generation(config.model, config.engine, config.sampling)
    if config.kind != "auto":
        select.minimum_ratings(config.min_rating, config.kind)
    if template is not None:
        return template
    return own_template(job) if config.template is None else read_template(config.template, job)


def _inputs(job: str, config: SynthesisConfig, form: Template) -> JsonObject:
    """Everything that the output depends on."""
    files = {name: Path(data.path) for name, data in (("data", config.data), ("test", config.test)) if data.path}
    return {
        "job": job,
        **requested_model_inputs(config.model, config.engine),
        **config.model_dump(mode="json", exclude={"model", "engine", "template"}),
        "template": asdict(form),
        "files": {name: path if path.exists() else None for name, path in files.items()},
    }
