"""The stages of a job that makes data from data, each one arrow: rows -> requests -> answers -> results -> new rows.

line = SynthesisLine(run, "refine", config, template)
data = line.data()
rows = line.selected(line.apart(data, line.made(line.rounds(data))))
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from distill_lab.data.contamination import find_overlaps, remove_overlaps
from distill_lab.data.near_duplicates import MAX_COMPARED
from distill_lab.errors import NoData
from distill_lab.files.jsonl import write_json
from distill_lab.generation.cut_answers import dropped_warning
from distill_lab.pipeline.stages import Pipeline
from distill_lab.pipeline.synthesis import select
from distill_lab.pipeline.synthesis.answers import write_again, write_made, write_results
from distill_lab.pipeline.synthesis.choose import rating_kind, round_sampling, text_columns
from distill_lab.pipeline.synthesis.distinct import write_distinct
from distill_lab.pipeline.synthesis.jobs import load
from distill_lab.pipeline.synthesis.requests import write_draws, write_requests
from distill_lab.pipeline.synthesis.settings import SynthesisConfig
from distill_lab.pipeline.synthesis.template import Template
from distill_lab.run import Run, Stage
from distill_lab.types import Counts

RATINGS = "ratings.json"


class SynthesisLine:
    """The stages of one job."""

    def __init__(self, run: Run, job: str, config: SynthesisConfig, form: Template) -> None:
        self.run, self.job, self.config, self.form = run, job, config, form
        self.pipeline = Pipeline(run, engine=config.engine)
        self.compared = load(job).COMPARED
        self.kind = ""
        self.test: Path | None = None
        self.ratings: dict[str, dict[int, int]] = {}
        self._dropped: Counter[str] = Counter()
        self._kept = 0

    def data(self) -> Path:
        """The rows to start from, without those that overlap with the test."""
        source = self.pipeline.prompts("data", text_columns(self.job, self.config.data))
        assert source.counts is not None
        if not source.kept:
            raise NoData(f"No data for distill synthesize {self.job}: {source.counts}")
        rows = source.path
        if self.job == "rate":
            self.kind = rating_kind(self.config.kind, rows)
            select.minimum_ratings(self.config.min_rating, self.kind)
        counted = self.job != "expand"  # there the rows are only examples
        if counted:
            self._drop(source.counts)
        if not self.config.test.path:
            return rows
        self.test = self.pipeline.test_prompts(rows, self.config.test, 0)
        rows = self.pipeline.training_prompts(rows, self.test, num_words=self.config.overlap_words)
        assert self.pipeline.overlap is not None
        if counted:
            self._drop(self.pipeline.overlap)
        return rows

    def draws(self, data: Path, results: list[Path]) -> Stage:
        """Draws of examples for the instructions that are still missing."""
        number = len(results)
        return self.pipeline.step(
            _round("examples", number),
            f"rounds/{number}.rows.jsonl",
            write_draws,
            data,
            *results,
            num_rows=self.config.num_rows,
            num_shown=self.config.num_shown,
            seed=self.config.seed,
            num_words=self.config.overlap_words,
        )

    def requests(self, number: int, rows: Path) -> Stage:
        """The requests about `rows`. Raises NoData if there is none."""
        stage = self.pipeline.step(
            _round("requests", number),
            f"rounds/{number}.requests.jsonl",
            write_requests,
            rows,
            job=self.job,
            kind=self.kind,
            template=asdict(self.form),
        )
        if not stage.kept:
            raise NoData(f"nothing to ask about: {stage.counts}; {self.job} needs other data")
        return stage

    def ask(self, number: int, rows: Path) -> Path:
        """One round: rows -> requests -> answers -> results."""
        config = self.config
        requests = self.requests(number, rows)
        assert requests.counts is not None
        self._drop(requests.counts)
        sampling = round_sampling(config.sampling, number, new_requests=self.job == "expand")
        output = f"rounds/{number}.completions.jsonl"
        answers = self.pipeline.answers(_round("answers", number), config.model, requests.path, sampling, output=output)
        return self.pipeline.step(
            _round("reading the answers", number),
            f"rounds/{number}.results.jsonl",
            write_results,
            rows,
            answers,
            job=self.job,
            kind=self.kind,
            template=asdict(self.form),
            num_samples=config.sampling.num_samples,
            model=config.model.model,
        ).path

    def rounds(self, rows: Path) -> list[Path]:
        """The results of all rounds; each asks again about the rows of which the one before could read nothing."""
        results = [self.ask(0, rows)]
        for number in range(1, self.config.max_retries + 1):
            name, output = _round("rows to ask again", number), f"rounds/{number}.rows.jsonl"
            again = self.pipeline.step(name, output, write_again, rows, results[-1])
            if not again.kept:
                break
            rows = again.path
            results.append(self.ask(number, rows))
        return results

    def drawn_rounds(self, data: Path) -> list[Path]:
        """The results of all rounds of expand; each asks for as many instructions as are still missing."""
        results: list[Path] = []
        while len(results) <= self.config.max_retries:
            draws = self.draws(data, results)
            if not draws.kept:
                break
            results.append(self.ask(len(results), draws.path))
        return results

    def made(self, results: list[Path]) -> Path:
        """The new rows of all rounds."""
        stage = self.pipeline.step("new rows", "made.jsonl", write_made, *results)
        assert stage.counts is not None
        self.pipeline.warn(dropped_warning(stage.counts))
        return self._passed(stage)

    def apart(self, data: Path, rows: Path) -> Path:
        """The rows without copies and, if they have new instructions, without those that overlap with the test."""
        words, new = self.config.overlap_words, self.compared in ("new", "instruction")
        if self.compared:
            stage = self.pipeline.step(
                "distinct rows",
                "distinct.jsonl",
                write_distinct,
                data,
                rows,
                compared=self.compared,
                num_words=words,
            )
            rows = self._passed(stage)
            if new and words and stage.kept > MAX_COMPARED:
                self.run.watch.note(f"only the first {MAX_COMPARED:,} were compared for near duplicates")
        if self.test is None or not new:
            return rows
        made, test = rows, self.test

        def find(path: Path) -> None:
            find_overlaps(made, test, path, num_words=words)  # counted by the next stage, which leaves them out

        inputs = {"rows": made, "test": test, "num_words": words}
        found = self.run.stage("overlap of new rows with the test", "new_overlap.jsonl", inputs=inputs, work=find)
        return self._passed(
            self.pipeline.step("new rows apart from the test", "apart.jsonl", remove_overlaps, rows, found.path)
        )

    def selected(self, rows: Path) -> Path:
        """The rows with the ratings wanted, or of each type as many as its share says."""
        config = self.config
        if self.job == "rate":
            self.ratings = self._rated(rows)
            minimum = select.minimum_ratings(config.min_rating, self.kind)
            step = self.pipeline.step("ratings wanted", "rated.jsonl", select.write_rated, rows, minimum=minimum)
            return self._passed(step)
        if self.job != "balance":
            return rows
        total = self._kept
        step = self.pipeline.step("balanced rows", "balanced.jsonl", select.write_balanced, rows, seed=config.seed)
        balanced = self._passed(step)
        if not config.repeat:
            return balanced

        def repeat(path: Path) -> None:
            copies = select.write_repeated(balanced, path, total=total)
            self.run.watch.note(f"{copies} copies of rows of rare types are added")

        inputs = {"rows": balanced, "total": total}
        return self.run.stage("repeated rows", "repeated.jsonl", inputs=inputs, work=repeat).path

    def _rated(self, rows: Path) -> dict[str, dict[int, int]]:
        """The histogram of the ratings, which is also in ratings.json."""
        found = select.histogram(rows, self.kind)
        self.run.stage(
            "ratings",
            RATINGS,
            inputs={"rows": rows, "kind": self.kind},
            work=lambda path: write_json(path, found),
        )
        return found

    def _passed(self, stage: Stage) -> Path:
        assert stage.counts is not None
        self._drop(stage.counts)
        self._kept = stage.kept
        return stage.path

    def _drop(self, counts: Counts) -> None:
        self._dropped.update(counts.dropped)

    def counts(self) -> Counts:
        """Rows in, kept and dropped over all stages."""
        dropped = {reason: number for reason, number in self._dropped.items() if number}
        return Counts(self._kept + sum(dropped.values()), self._kept, dropped)


def _round(name: str, number: int) -> str:
    return f"{name}, round {number + 1}" if number else name
