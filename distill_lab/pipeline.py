"""The way of the data as stages of a run: each method is one arrow, made once, resumed, and skipped when nothing changed.

pipeline = Pipeline(run, engine=config.engine)
data = pipeline.prompts("data", config.data)
answers = pipeline.answers("teacher answers", config.teacher, data, config.sampling)
rows = pipeline.training_set(data, answers)
student = pipeline.student(config.student, rows, config.train)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from distill_lab.config import DataConfig, EngineConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.data import splits
from distill_lab.data.prompts import read_prompts
from distill_lab.data.records import write_prompts
from distill_lab.errors import ModelError, NoData, UserError
from distill_lab.evaluation.evaluate import Score, cut_share, evaluate
from distill_lab.evaluation.speed import LATENCY_TOKENS, REASONING_TOKENS
from distill_lab.evaluation.statistics import paired
from distill_lab.evaluation.steps import count_steps
from distill_lab.evaluation.summary import summarize
from distill_lab.files.jsonl import read_jsonl, write_json
from distill_lab.generation.cut_answers import cut_warning, dropped_warning
from distill_lab.generation.engines import settled
from distill_lab.generation.generate import Progress, generate
from distill_lab.generation.model_identity import model_inputs
from distill_lab.generation.request_cache import RequestCache
from distill_lab.grading.grade import grade
from distill_lab.grading.graders import grading, metric_of
from distill_lab.models.names import api_engine
from distill_lab.report.publish import Speeds, published, training_losses
from distill_lab.run import Run
from distill_lab.training_data.prompt_distillation import write_references
from distill_lab.training_data.training_set import write_training_set
from distill_lab.types import Counts, Prompt

LABELS = {"teacher": "the teacher", "base": "the base student", "student": "the student"}
NUM_MEASURED = 64
"""Test prompts that speed is measured on."""


class Pipeline:
    """The stages of one run. Nothing here is special to a recipe."""

    def __init__(self, run: Run, *, engine: EngineConfig) -> None:
        self.run, self.watch, self.engine = run, run.watch, engine
        self._said: set[str] = set()

    def settled(self, model: ModelConfig) -> ModelConfig:
        """`model` with its dtype and quantization, chosen once in a run and recorded in run.json.

        Raises UserError where an earlier execution on another machine computed it otherwise: its answers are kept, and
        never mixed with those of what is another model.
        """
        chosen = settled(model, self.engine)
        if chosen == model:
            return model
        from distill_lab.device import best_device, device_name

        name = json.dumps(model.model_dump(exclude_defaults=True), sort_keys=True)
        here = device_name(best_device())
        before = self.run.recorded(name)
        if before is None or before["on"] != here:
            found = {"dtype": chosen.dtype, "quantization": chosen.quantization}
            if before is not None and any(before[field] != value for field, value in found.items()):
                raise UserError(
                    f"{self.run.directory}: {model.model} was computed here in {before['dtype']} (quantization "
                    f"{before['quantization']}) on {before['on']}; on {here} it would be {chosen.dtype} (quantization "
                    f"{chosen.quantization}). Name the first as its settings dtype and quantization to go on as before, "
                    "or give another --run directory"
                )
            self.run.record(name, {**found, "on": here})
            if found != {"dtype": "fp32", "quantization": "none"}:
                self.watch.note(f"{model.model} computes in {chosen.dtype}" + _bits(chosen))
            return chosen
        return model.model_copy(update={field: before[field] for field in ("dtype", "quantization")})

    def fitted(
        self, student: ModelConfig, train: TrainConfig, *, teacher: ModelConfig | None = None, new_tokens: int = 512
    ) -> tuple[ModelConfig, TrainConfig]:
        """Student and training settings that fit this machine, chosen once in a run and recorded in run.json.

        Before the first answer is paid for; teacher: also checked, if it runs here. Raises UserError with the remedy where
        nothing fits, and where what an earlier execution on another machine chose does not fit this one.
        """
        from distill_lab.device import best_device, device_name
        from distill_lab.planning.machine import this_machine
        from distill_lab.planning.method import check_answering, choose_method, still_fits

        machine, here = this_machine(), device_name(best_device())
        if teacher and not api_engine(teacher.model) and self.engine.engine != "ray":
            vllm = self.engine.engine == "vllm"
            gpus = self.engine.tensor_parallel_size if vllm else machine.num_gpus
            # Without a config nothing can be said of it: who loads it will, and answers that are there need no teacher.
            with suppress(ModelError):
                settled = self.settled(teacher)
                check_answering(settled, machine=machine, new_tokens=new_tokens, role="teacher", num_gpus=gpus)
        settings = {
            "student": student.model_dump(exclude_defaults=True),
            "train": train.model_dump(exclude_defaults=True),
        }
        name = f"training {json.dumps(settings, sort_keys=True)}"
        before = self.run.recorded(name)
        if before is None:
            found = choose_method(student, train, machine=machine)
            self.run.record(name, {**found.to_json(), "on": here})
            if found.changed or found.memory.total > found.usable / 2:
                self.watch.note(f"training {student.model}: {found.line}")
            return found.student, found.train
        kept = ModelConfig.model_validate(before["student"]), TrainConfig.model_validate(before["train"])
        need = still_fits(*kept, machine=machine) if before["on"] != here else None
        if need is not None:
            raise UserError(
                f"{self.run.directory}: the training was laid out on {before['on']} ({before['line']}), and needs "
                f"{need.total / 1e9:.1f} GB of the {machine.usable / 1e9:.1f} GB here ({here}); go on there, or give "
                "another --run directory"
            )
        return kept

    def prompts(self, name: str, data: DataConfig) -> Path:
        """Source -> prompts: `<name>.jsonl`. Zero rows are not an error here."""
        local = Path(data.path).expanduser()
        inputs = {"data": data.model_dump(), "file": local if local.is_file() else None}
        return self.run.stage(name, f"{name}.jsonl", inputs=inputs, work=lambda path: write_prompts(data, path))

    def test_prompts(self, data: Path, test: DataConfig, num_test: int) -> Path:
        """The prompts scores are taken on: the test data given, else `num_test` rows of `data`."""
        if test.path:
            return self.prompts("test", test)
        return self.run.stage(
            "test",
            "test.jsonl",
            inputs={"data": data, "num_test": num_test},
            work=lambda path: splits.sample(data, path, num_rows=num_test),
        )

    def training_prompts(self, data: Path, test: Path) -> Path:
        """The rows of `data` that do not stand in the test: `prompts.jsonl`. Raises NoData where none is left."""
        prompts = self.run.stage(
            "prompts",
            "prompts.jsonl",
            inputs={"data": data, "test": test},
            work=lambda path: splits.without(data, test, path),
        )
        if not self.run.counts("prompts").kept:
            raise NoData(
                "every row of the data stands in the test too, nothing is left to train on; use other test data"
            )
        return prompts

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

        The sampling that results from `sampling.from_model` is part of the stage's key, and stands in run.json.
        """
        sampling = self.sampled(model, sampling)
        model = self.settled(model)
        return self.run.stage(
            name,
            output,
            inputs={"prompts": prompts, "sampling": sampling.model_dump(), **model_inputs(model, self.engine)},
            work=lambda path: self._generate(model, prompts, sampling, path),
            about={"sampling": sampling.model_dump(mode="json")},
        )

    def sampled(self, model: ModelConfig, sampling: SamplingConfig) -> SamplingConfig:
        """What `model` samples with; a note says what becomes of settings that it has itself, once for each model."""
        from distill_lab.models.generation_config import resolve_sampling

        resolved, note = resolve_sampling(model, sampling)
        if note and note not in self._said:
            self.watch.note(note)
            self._said.add(note)
        return resolved

    def _generate(self, model: ModelConfig, prompts: Path, sampling: SamplingConfig, path: Path) -> Counts:
        from distill_lab.device import memory_returned

        def on_progress(progress: Progress) -> None:
            self.watch.progress(
                progress.done, progress.total, detail=progress.detail, seconds_left=progress.seconds_left
            )

        def engine() -> Any:
            from distill_lab.generation.engines import load_engine

            return load_engine(model, self.engine, on_note=self.watch.note)

        # A student of this run is asked nothing by any other run.
        own = Path(model.model).is_dir() and Path(model.model).resolve().is_relative_to(self.run.directory.resolve())
        cached = nullcontext() if own else RequestCache(model, self.engine, on_note=self.watch.note)
        with memory_returned(), cached as cache:
            return generate(prompts, path, engine, sampling, cache=cache, on_progress=on_progress)

    def training_set(
        self, prompts: Path, completions: Path | None, *, thinking: Literal["keep", "drop"] = "keep"
    ) -> Path:
        """Prompts and completions (the data's own where None) -> `train.jsonl`. Raises NoData where nothing is left."""
        rows = self.run.stage(
            "training set",
            "train.jsonl",
            inputs={"prompts": prompts, "completions": completions, "thinking": thinking},
            work=lambda path: write_training_set(prompts, path, completions=completions, thinking=thinking),
        )
        counts = self.run.counts("training set")
        self.warn(dropped_warning(counts))
        if not counts.kept:
            raise NoData(f"no row is left to train on ({counts}); let the teacher write answers (--relabel)")
        return rows

    def graded(self, name: str, prompts: Path, completions: Path, grader: str, *, output: str = "graded.jsonl") -> Path:
        """Completions -> graded, in the order of the prompts."""

        def work(path: Path) -> None:
            with grading(grader, self.engine) as loaded:
                self.watch.note(str(grade(prompts, completions, path, loaded, on_progress=self.watch.progress)))

        inputs = {"prompts": prompts, "completions": completions, "grader": grader}
        return self.run.stage(name, output, inputs=inputs, work=work)

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
            student = student.model_copy(update={"quantization": self.settled(student).quantization})
        return self.run.stage(
            name,
            output,
            inputs={"rows": rows, "train": train.model_dump(), "thinking": thinking, **model_inputs(student)},
            work=lambda path: self._train(student, rows, train, path, thinking),
        )

    def _train(self, student: ModelConfig, rows: Path, train: TrainConfig, path: Path, thinking: bool | None) -> Counts:
        from distill_lab.device import best_device, device_name, memory_returned
        from distill_lab.train.student import train_student
        from distill_lab.train.training_log import NAME as TRAINING_LOG

        beside = path.parent if path.is_relative_to(self.run.directory) else self.run.directory
        log_file = beside / TRAINING_LOG
        with memory_returned():
            result = train_student(
                student, rows, path, train, thinking=thinking, on_log=self.watch.log, log_file=log_file
            )
        self.run.record(f"training of {path.name}", {"dtype": result.dtype, "on": device_name(best_device())})
        write_json(beside / "training.json", asdict(result))
        if result.validation_loss_before is not None and result.validation_loss_after is not None:
            self.watch.note(
                f"validation loss {result.validation_loss_before:.3f} -> {result.validation_loss_after:.3f} nats per token"
            )
        self.watch.note(f"the student is in {path}")
        counts = Counts(result.num_rows + sum(result.dropped.values()), result.num_rows, result.dropped)
        self.warn(dropped_warning(counts))
        return counts

    def prove(
        self,
        models: Mapping[str, ModelConfig],
        test: Path,
        sampling: SamplingConfig,
        *,
        grader: str,
        measure_speed: bool,
        several_steps: bool = False,
        extend: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Score and time `models` ("teacher", "base", "student") on `test`: eval/, summary.json and report.html.

        Where neither gold answers nor reference texts are known, the teacher's answers are the reference of a score by
        likeness, and it has none of its own. several_steps: also the share of answers that reason in several steps before
        their final answer; latency is then that of answers twice as long. extend: what the recipe adds to the summary.
        """
        num_prompts = sum(1 for _ in read_jsonl(test))
        scores: dict[str, Score] = {}
        metric = None
        if num_prompts:
            grader = choose_grader(test) if grader == "auto" else grader
            alone = metric_of(grader).similarity and not has_references(test)
            answers: dict[str, Path] = {}
            asked = test
            for name, model in models.items():
                title, output = f"test answers of {LABELS.get(name, name)}", f"eval/{name}.completions.jsonl"
                answers[name] = self.answers(title, model, asked, sampling, output=output)
                if alone and name == "teacher":
                    asked = self._teachers_as_reference(test, answers[name])
            metric = metric_of(grader, reference="teacher" if alone else "gold")
            self.watch.note(f"graded by: {grader}" + (", against the teacher's answers" if alone else ""))
            # All answers first: the judge, if it is one, is never in memory beside what it judges, and is loaded once.
            with grading(grader, self.engine) as loaded:
                for name in models if asked.stat().st_size else ():
                    if not (alone and name == "teacher"):
                        path = self.run.path(f"eval/{name}.jsonl")
                        scores[name] = evaluate(asked, answers[name], path, loaded)
            for name, path in answers.items():
                self.warn(cut_warning(LABELS.get(name, name), cut_share(path)))
        else:
            self.watch.note("no test rows: no scores (give --test, or more data)")
        gain = paired(self.run.path("eval/base.jsonl"), self.run.path("eval/student.jsonl")) if scores else None
        steps = {name: count_steps(test, self.run.path(f"eval/{name}.jsonl")) for name in scores if several_steps}
        losses, num_scored = (
            training_losses(self.run, models.get("student")),
            next((score.n for score in scores.values()), 0),
        )

        def summarized(speeds: Speeds) -> dict[str, Any]:
            summary = summarize(
                self.run.recipe, num_scored, scores=scores, speeds=speeds, gain=gain, steps=steps,
                metric=metric if scores else None, losses=losses,
            )  # fmt: skip
            return extend(summary) if extend else summary

        num_tokens = REASONING_TOKENS if several_steps else LATENCY_TOKENS
        timing = (lambda: self._speeds(models, test, sampling, num_tokens)) if scores and measure_speed else None
        return published(self.run, summarized, timing)

    def _teachers_as_reference(self, test: Path, answers: Path) -> Path:
        """The test with the teacher's answers as gold ones; those that were cut or empty are left out, and counted."""
        return self.run.stage(
            "reference",
            "eval/reference.jsonl",
            inputs={"test": test, "answers": answers},
            work=lambda path: write_references(test, answers, path, labels=()),
        )

    def warn(self, text: str) -> None:
        """A note, where there is a text."""
        if text:
            self.watch.note(text)

    def timed(self, models: Mapping[str, ModelConfig]) -> dict[str, ModelConfig]:
        """Those of `models` whose speed is taken: not the base student's, and no server's, which is told."""
        timed = {name: model for name, model in models.items() if name != "base" and not api_engine(model.model)}
        for name in models.keys() - timed.keys() - {"base"}:
            self.watch.note(f"no speed of {LABELS.get(name, name)}: {models[name].model} runs on a server, not here")
        return timed

    def _speeds(
        self, models: Mapping[str, ModelConfig], test: Path, sampling: SamplingConfig, num_tokens: int
    ) -> dict[str, Any]:
        from distill_lab.evaluation.speed import Speed, measure

        timed = {name: self.settled(model) for name, model in self.timed(models).items()}
        if not timed:
            return {}
        inputs = {name: model_inputs(model) for name, model in timed.items()}

        budget_s = self.engine.measure_budget_s

        def work(path: Path) -> None:
            self.watch.note(timing_note(len(timed), budget_s))
            prompts = [Prompt.from_json(row) for _, row in zip(range(NUM_MEASURED), read_jsonl(test), strict=False)]
            speeds = measure(timed, prompts, sampling=sampling, latency_tokens=num_tokens, budget_s=budget_s)
            write_json(path, {name: speed.to_json() for name, speed in speeds.items()})

        path = self.run.stage(
            "speed",
            "speed.json",
            inputs={
                **inputs,
                "test": test,
                "sampling": sampling.model_dump(),
                "latency_tokens": num_tokens,
                "budget_s": budget_s,
            },
            work=work,
        )
        return {name: Speed.from_json(row) for name, row in json.loads(path.read_text(encoding="utf-8")).items()}


def timing_note(num_models: int, budget_s: float) -> str:
    """How long timing takes, said before it begins."""
    minutes = num_models * budget_s / 60
    return (
        f"timing takes about {minutes:.1f} min at most, besides loading {'the model' if num_models == 1 else 'the models'} "
        f"twice ({budget_s:g} s a model: engine.measure-budget-s)"
    )


def choose_grader(prompts: Path) -> str:
    """`exact` where every prompt has a gold answer, else `overlap` with the data's own completion."""
    return "exact" if all(row.get("answer") for row in read_jsonl(prompts)) else "overlap"


def has_references(prompts: Path) -> bool:
    """Whether every prompt has a gold answer, or a completion that came with the data."""
    return all(prompt.answer for prompt in read_prompts(prompts, references=True))


def student_path(out: str) -> str:
    """Where the student goes: the run directory's student/, or the place the user chose, seen from where they stand."""
    return str(Path(out).absolute()) if out else "student"


def trained(out: Path, student: ModelConfig, train: TrainConfig) -> ModelConfig:
    """How the student in `out` is loaded: adapters on the weights they were trained on, anything else as it is."""
    adapters = train.lora.r and not train.lora.merge
    quantization = student.quantization if adapters else "none"
    return ModelConfig(model=str(out), quantization=quantization, dtype=student.dtype)


def untrained(asked: ModelConfig, fitted: ModelConfig, train: TrainConfig) -> ModelConfig:
    """The base student beside a trained one: as it was asked for, or on the quantized weights that its adapters stay on."""
    return fitted if train.lora.r and not train.lora.merge else asked


def _bits(model: ModelConfig) -> str:
    return "" if model.quantization == "none" else f", its weights in {model.quantization.replace('bit', ' bits')}"
