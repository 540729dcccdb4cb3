"""The way of the data as stages of a run: each method is one arrow, made once, resumed, and skipped when nothing changed.

pipeline = Pipeline(run, engine=config.engine)
data = pipeline.data(config.data, "System 1 distillation")
answers = pipeline.answers("teacher answers", config.teacher, data, config.sampling)
rows = pipeline.training_set(data, answers)
student = pipeline.student(config.student, rows, config.train, thinking=False)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

from distill_lab.config import DataConfig, EngineConfig, ModelConfig, RecipeConfig, SamplingConfig, TrainConfig
from distill_lab.data import splits
from distill_lab.data.contamination import NUM_WORDS, OVERLAPS, find_overlaps, remove_overlaps
from distill_lab.data.records import write_prompts
from distill_lab.errors import NoData
from distill_lab.evaluation.summary_parts import Generated, Paid
from distill_lab.files.jsonl import write_json
from distill_lab.generation.completions import read_completions
from distill_lab.generation.cut_answers import dropped_warning
from distill_lab.generation.engines import Engine, ServerEngine
from distill_lab.generation.generate import Progress, generate
from distill_lab.generation.model_identity import model_inputs
from distill_lab.generation.prices import Spending, spending
from distill_lab.generation.request_cache import RequestCache
from distill_lab.grading.grade import grade
from distill_lab.grading.graders import grading, judge_model, replies_path
from distill_lab.models.names import api_engine
from distill_lab.pipeline.fitting import fit, resolve_model
from distill_lab.run import Run, Stage
from distill_lab.training_data.reasoning import add_instruction
from distill_lab.training_data.training_set import write_training_set
from distill_lab.types import Counts, JsonObject

MANY_OVERLAPS = 0.1
"""Share of training prompts that overlap with the test, from which on a note says so."""


class Pipeline:
    """The stages of one run. Nothing here is special to a recipe."""

    def __init__(self, run: Run, *, engine: EngineConfig) -> None:
        self.run, self.watch, self.engine = run, run.watch, engine
        self.overlap: Counts | None = None
        """Training prompts kept and left out by `training_prompts`."""
        self._said: set[str] = set()
        self._answers: dict[str, Path] = {}
        """Completions, and the replies of judges, by the name of their stage, as far as the recipe has come."""
        self._counted: dict[str, tuple[Generated, Spending]] = {}
        """What those files hold, by the name of their stage: each is read once, at the end of the recipe."""

    def resolve(self, model: ModelConfig) -> ModelConfig:
        """`model` with its dtype and quantization on this machine; see `fitting.resolve_model`."""
        return resolve_model(self.run, model, self.engine)

    def fit(self, config: RecipeConfig) -> tuple[ModelConfig, TrainConfig]:
        """The recipe's student and training settings as they fit this machine; see `fitting.fit`."""
        tokens = config.sampling.max_new_tokens
        return fit(self.run, config.student, config.train, self.engine, teacher=config.teacher, new_tokens=tokens)

    def step(self, name: str, output: str, work: Callable[..., Counts], *files: Path, **settings: object) -> Stage:
        """A stage that reads files and writes one: `work(*files, output, **settings)`, once."""
        inputs = {**{str(number): file for number, file in enumerate(files)}, **settings}
        return self.run.stage(name, output, inputs=inputs, work=lambda path: work(*files, path, **settings))

    def data(self, data: DataConfig, purpose: str) -> Path:
        """Source -> `data.jsonl`. Raises NoData, naming the purpose, if the source has no rows."""
        found = self.prompts("data", data)
        if not found.kept:
            raise NoData(f"No data for {purpose}")
        return found.path

    def prompts(self, name: str, data: DataConfig) -> Stage:
        """Source -> prompts: `<name>.jsonl`. Zero rows are not an error here."""
        local = Path(data.path).expanduser()
        inputs = {"data": data.model_dump(), "file": local if local.exists() else None}
        return self.run.stage(name, f"{name}.jsonl", inputs=inputs, work=lambda path: write_prompts(data, path))

    def test_prompts(self, data: Path, test: DataConfig, num_test: int) -> Path:
        """The prompts scores are taken on: the test data given, else `num_test` rows of `data`."""
        if test.path:
            return self.prompts("test", test).path
        return self.run.stage(
            "test",
            "test.jsonl",
            inputs={"data": data, "num_test": num_test},
            work=lambda path: splits.sample_test(data, path, num_rows=num_test),
        ).path

    def with_instruction(self, name: str, prompts: Path, instruction: str) -> Path:
        """The prompts with `instruction` after each question."""
        inputs = {"prompts": prompts, "instruction": instruction}
        work = partial(add_instruction, prompts, instruction=instruction)
        return self.run.stage(name, f"{name.replace(' ', '_')}.jsonl", inputs=inputs, work=work).path

    def training_prompts(self, data: Path, test: Path, *, num_words: int = NUM_WORDS) -> Path:
        """The rows of `data` that do not overlap with the test: `prompts.jsonl`; `overlap.jsonl` holds the others.

        num_words: see `RecipeConfig.overlap_words`. Raises NoData if no row is left.
        """

        def find(path: Path) -> None:
            find_overlaps(data, test, path, num_words=num_words)  # counted by the next stage, which leaves them out

        inputs = {"0": data, "1": test, "num_words": num_words}
        found = self.run.stage("overlap with the test", OVERLAPS, inputs=inputs, work=find)
        prompts = self.step("prompts", "prompts.jsonl", remove_overlaps, data, found.path)
        assert prompts.counts is not None
        self.overlap = prompts.counts
        if not prompts.kept:
            raise NoData(
                f"no row of the data is left to train on: each overlaps with a test prompt ({prompts.counts}; see "
                f"{found.path}); use other test data, or turn near duplicates off with --overlap-words 0"
            )
        share = 1 - prompts.kept / prompts.counts.rows_in
        if share > MANY_OVERLAPS:
            self.watch.note(
                f"{share:.0%} of the training prompts overlap with the test and are left "
                f"out; {found.path} lists them with the test prompts (--overlap-words 0 keeps near duplicates)"
            )
        return prompts.path

    def answers(
        self,
        name: str,
        model: ModelConfig,
        prompts: Path,
        sampling: SamplingConfig,
        *,
        output: str = "completions.jsonl",
    ) -> Path:
        """Prompts -> completions of `model`, resumed row by row after an interruption.

        The sampling that results from `sampling.from_model` is part of the stage's key, and is in run.json.
        """
        sampling = self.sampled(model, sampling)
        model = self.resolve(model)
        self._answers[name] = self.run.path(output)
        return self.run.stage(
            name,
            output,
            inputs={"prompts": prompts, "sampling": sampling.model_dump(), **model_inputs(model, self.engine)},
            work=lambda path: self._generate(name, model, prompts, sampling, path),
            about={"sampling": sampling.model_dump(mode="json")},
        ).path

    def sampled(self, model: ModelConfig, sampling: SamplingConfig) -> SamplingConfig:
        """What `model` samples with; a note says what becomes of settings that it has itself, once for each model."""
        from distill_lab.models.generation_config import resolve_sampling

        resolved, note = resolve_sampling(model, sampling)
        if note and note not in self._said:
            self.watch.note(note)
            self._said.add(note)
        return resolved

    def _generate(self, name: str, model: ModelConfig, prompts: Path, sampling: SamplingConfig, path: Path) -> Counts:
        from distill_lab.device import memory_returned

        def on_progress(progress: Progress) -> None:
            self.watch.progress(
                progress.done, progress.total, detail=progress.detail, seconds_left=progress.seconds_left
            )

        servers: list[ServerEngine] = []  # no local model, which would stay in memory

        def engine() -> Engine:
            from distill_lab.generation.engines import load_engine

            loaded = load_engine(model, self.engine, on_note=self.watch.note)
            if isinstance(loaded, ServerEngine):
                servers.append(loaded)
            return loaded

        # A student of this run is asked nothing by any other run.
        own = Path(model.model).is_dir() and Path(model.model).resolve().is_relative_to(self.run.directory.resolve())
        cached = nullcontext() if own else RequestCache(model, self.engine, on_note=self.watch.note)
        # A server's model takes no memory here, and collecting garbage takes a quarter of a second.
        with nullcontext() if api_engine(model.model) else memory_returned(), cached as cache:
            others = self._others(path)
            counts = generate(prompts, path, engine, sampling, cache=cache, paid=others, on_progress=on_progress)
        for server in servers:
            self.run.record(f"requests of {name}", server.record(sampling))
            self.watch.note(f"paid for {name}: {spending([path], self.engine.price)}")
        return counts

    def paid_beside(self, name: str, grader: str, output: Path) -> list[Path]:
        """Count what a judge's grades in `output` cost, under the stage's name. Returns the other files that cost money."""
        replies = replies_path(output)
        if judge_model(grader) is not None:
            self._answers[name] = replies
        return self._others(replies)

    def _others(self, path: Path) -> list[Path]:
        return [other for other in self._answers.values() if other != path]

    def spending(self) -> Paid | None:
        """The summary's `spending`: requests, tokens and cost of each stage that asked a server; None if no stage did."""
        stages = {name: spent for name, (_, spent) in self._counts().items() if spent.requests}
        return Paid(stages, sum(stages.values(), Spending())) if stages else None

    def generated(self) -> dict[str, Generated]:
        """The summary's `generated`: answers and tokens of each stage that generated."""
        return {name: generated for name, (generated, _) in self._counts().items()}

    def _counts(self) -> dict[str, tuple[Generated, Spending]]:
        for name in self._answers.keys() - self._counted.keys():
            path, answers, tokens, spent = self._answers[name], 0, 0, Spending()
            for completion, _, _ in read_completions(path) if path.exists() else ():
                answers, tokens = answers + 1, tokens + completion.num_tokens
                if completion.usage:
                    spent = spent.plus(completion.usage, self.engine.price)
            self._counted[name] = Generated(answers, tokens), spent
        return {name: self._counted[name] for name in self._answers}

    def training_set(
        self, prompts: Path, completions: Path | None, *, thinking: Literal["keep", "drop"] = "keep"
    ) -> Path:
        """Prompts and completions (None: the data's own) -> `train.jsonl`. Raises NoData if nothing is left."""
        rows = self.run.stage(
            "training set",
            "train.jsonl",
            inputs={"prompts": prompts, "completions": completions, "thinking": thinking},
            work=lambda path: write_training_set(prompts, path, completions=completions, thinking=thinking),
        )
        assert rows.counts is not None
        self.warn(dropped_warning(rows.counts))
        if not rows.kept:
            remedy = "let the teacher write answers (--relabel)" if completions is None else f"look at {completions}"
            raise NoData(f"no row is left to train on ({rows.counts}); {remedy}")
        return rows.path

    def graded(self, name: str, prompts: Path, completions: Path, grader: str, *, output: str = "graded.jsonl") -> Path:
        """Completions -> graded, in the order of the prompts."""
        paid = self.paid_beside(name, grader, self.run.path(output))

        def work(path: Path) -> None:
            watch = self.watch
            with grading(grader, self.engine) as loaded:
                tally = grade(
                    prompts, completions, path, loaded, paid=paid, on_note=watch.note, on_progress=watch.progress
                )
            watch.note(str(tally))

        inputs = {"prompts": prompts, "completions": completions, "grader": grader}
        return self.run.stage(name, output, inputs=inputs, work=work).path

    def teacher_cache(
        self, base: ModelConfig, rows: Path, train: TrainConfig, *, student: str, thinking: bool | None
    ) -> None:
        """Training set -> the distributions of `train.teacher` in its cache, for the training of `student` (its output).

        The cache may be shared by many runs; the stage's file says where it is and what was added.
        """

        def work(path: Path) -> Counts:
            from distill_lab.train.student import cache_place, capture_teacher

            out = self.run.path(student)
            found = capture_teacher(base, rows, out, train, thinking=thinking, on_log=self.watch.log)
            write_json(path, {"folder": str(cache_place(train, out)), **asdict(found)})
            return Counts(found.num_rows + found.num_known, found.num_rows + found.num_known, {})

        inputs = {"rows": rows, "train": train.model_dump(), "thinking": thinking, **teacher_inputs(train)}
        self.run.stage("teacher cache", "teacher_cache.json", inputs=inputs | model_inputs(base), work=work)

    def student(
        self,
        student: ModelConfig,
        rows: Path,
        train: TrainConfig,
        *,
        name: str = "student",
        output: str = "student",
        thinking: bool | None,
    ) -> Path:
        """Training set -> trained student, a Hugging Face model directory."""
        if train.lora.r and student.quantization == "auto":
            student = student.model_copy(update={"quantization": self.resolve(student).quantization})
        return self.run.stage(
            name,
            output,
            inputs={
                "rows": rows,
                "train": train.model_dump(),
                "thinking": thinking,
                **teacher_inputs(train),
                **model_inputs(student),
            },
            work=lambda path: self._train(student, rows, train, path, thinking),
        ).path

    def _train(self, student: ModelConfig, rows: Path, train: TrainConfig, path: Path, thinking: bool | None) -> Counts:
        from distill_lab.device import best_device, device_name, memory_returned
        from distill_lab.train.student import train_student
        from distill_lab.train.trackers import is_tracked, named, tracker_run
        from distill_lab.train.training_log import NAME as TRAINING_LOG

        beside = path.parent if path.is_relative_to(self.run.directory) else self.run.directory
        log_file = beside / TRAINING_LOG
        tracked = named(tracker_run(self.run.directory)) if is_tracked(train.report_to) else nullcontext()
        with memory_returned(), tracked:
            result = train_student(
                student, rows, path, train, thinking=thinking, on_log=self.watch.log, log_file=log_file
            )
        self.run.record(f"training of {path.name}", {"dtype": result.dtype, "on": device_name(best_device())})
        write_json(beside / "training.json", asdict(result))
        before, after = result.validation_loss_before, result.validation_loss_after
        if before is not None and after is not None:
            self.watch.note(f"validation loss {before:.3f} before training, {after:.3f} after")
        self.watch.note(f"the student is in {path}")
        counts = Counts(result.num_rows + sum(result.dropped.values()), result.num_rows, result.dropped)
        self.warn(dropped_warning(counts))
        return counts

    def warn(self, text: str) -> None:
        """A note, if there is a text."""
        if text:
            self.watch.note(text)

    def tell(self, text: str) -> None:
        """A note for each line of `text`."""
        for line in text.splitlines():
            self.watch.note(line)


def teacher_inputs(train: TrainConfig) -> JsonObject:
    """What a stage depends on if a teacher's distributions are part of the loss."""
    if train.teacher_cache.folders:
        from distill_lab.train.given_teacher import given_inputs

        return {"teacher": given_inputs(train)}
    return {"teacher": model_inputs(train.teacher)} if train.teacher.model else {}
