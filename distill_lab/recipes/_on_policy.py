"""The two trainings of on-policy distillation: a warm-up on the teacher's answers, then rounds on the student's own.

In: prompts, models and settings as they fit this machine. Out: the student, and what the summary says of its rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from distill_lab.config import AS_GIVEN, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.errors import UserError
from distill_lab.files.jsonl import write_json
from distill_lab.generation.cut_answers import dropped_warning
from distill_lab.generation.model_identity import model_inputs
from distill_lab.grading.choose_grader import final_answer_grader, has_references
from distill_lab.models.names import api_engine
from distill_lab.pipeline.proof import EvalSetup, ask_alike
from distill_lab.pipeline.stages import Pipeline
from distill_lab.recipes._choosing import PromptChoiceConfig
from distill_lab.train.on_policy import scoring_inputs
from distill_lab.train.rollout_stats import OnPolicyStats
from distill_lab.train.rollouts import RolloutSettings
from distill_lab.train.training_log import NAME as TRAINING_LOG
from distill_lab.training_data.prompt_distillation import read_system_prompt, write_asked
from distill_lab.types import Counts, JsonObject

MANY_TRUNCATED = 0.1
"""Share of rollouts cut at the token limit from which on a note says so."""


class RolloutConfig(PromptChoiceConfig):
    """What the student writes, how much of it a step learns from, and by what measure."""

    objective: str = "reverse_kl"
    """How far student and teacher are apart at each token: reverse_kl, jsd, entropy_aware, skew_reverse_kl, forward_kl,
    skew_kl or acceptance; for a teacher on a server sampled_reverse_kl."""
    temperature: float = 1.0
    """Both models' logits are divided by it in the loss; rollout.temperature is for writing."""
    rollout: SamplingConfig = SamplingConfig(max_new_tokens=512, temperature=1.0, thinking=False)
    """How the student writes its rollouts; num_samples: how many for each prompt of a round."""
    steps_per_round: Annotated[int, Field(ge=1)] = 4
    """Optimizer steps on the rollouts of one round; each rollout is in one of them."""
    rollouts_per_step: Annotated[int, Field(ge=1)] = 64
    """Rollouts that one step learns from. train.tokens-per-batch decides into how many micro-batches they are split."""
    teacher_top_k: Annotated[int, Field(ge=1)] = 20
    """For a teacher on a server (objective sampled_reverse_kl): how many of its most likely ids it names for each token. 20
    is the most that vLLM gives if it is not started with --max-logprobs."""
    teacher_prompt: str = ""
    """A file with a system prompt that the teacher reads and the student does not (context distillation)."""
    warm_up_epochs: Annotated[float, Field(ge=0, le=10_000)] = 1.0
    """Passes over the teacher's answers before the rounds, with cross-entropy; 0: none, for a student that has been
    trained on such answers before."""
    warm_up_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the warm-up; None: train.learning-rate."""

    @property
    def relabel(self) -> bool:
        """Whether the teacher writes answers."""
        return self.warm_up_epochs > 0

    def train_settings(self, teacher: ModelConfig) -> TrainConfig:
        """`train` with the recipe's objective and this teacher. Raises ValidationError for impossible ones."""
        own = dict(each.split("=", 1) for each in self.train.objective_settings)
        given = self.train.model_dump(context=AS_GIVEN) | {
            "objective": self.objective,
            "objective_settings": own | ({"temperature": self.temperature} if self.temperature != 1 else {}),
            "teacher": teacher,
        }
        return TrainConfig.model_validate(given)

    def rollout_settings(self) -> RolloutSettings:
        """What the trainer needs to know. Raises UserError for a file that cannot be read, and for wrong settings."""
        if self.relabel and self.sampling.thinking != self.rollout.thinking:
            raise UserError(
                f"--rollout.thinking {self.rollout.thinking} and --sampling.thinking {self.sampling.thinking}: the warm-up "
                "would teach the student another kind of answer than the one that it writes afterwards; set both alike, or "
                "use --warm-up-epochs 0"
            )
        return RolloutSettings(
            sampling=self.rollout,
            steps_per_round=self.steps_per_round,
            rollouts_per_step=self.rollouts_per_step,
            teacher_top_k=self.teacher_top_k,
            system=read_system_prompt(self.teacher_prompt) if self.teacher_prompt else "",
        )


def probe_server(pipeline: Pipeline, config: RolloutConfig) -> None:
    """Ask a teacher on a server for some scores, once, before anything is paid for. Raises UserError if it has none."""
    if not api_engine(config.teacher.model):
        return

    def work(path: Path) -> None:
        from distill_lab.models.loading import load_tokenizer
        from distill_lab.train.scoring_server import ScoringServer

        server = ScoringServer(config.teacher, pipeline.engine, size=config.teacher_top_k)
        server.probe(load_tokenizer(config.student))
        write_json(path, {"model": server.name, "url": server.url, "ids_named": server.size})

    inputs = {"size": config.teacher_top_k, "student": model_inputs(config.student)}
    inputs |= scoring_inputs(config.teacher, pipeline.engine)
    pipeline.run.stage("scores of the teacher", "teacher_server.json", inputs=inputs, work=work)


def warmed_up(
    pipeline: Pipeline, config: RolloutConfig, student: ModelConfig, train: TrainConfig, prompts: Path
) -> ModelConfig:
    """The student after its warm-up on the teacher's answers; the student itself if there is none.

    Adapters are merged, so that the rounds start new ones on the warmed-up weights.
    """
    if not config.relabel:
        return student
    asked, system = prompts, config.rollout_settings().system
    if system:
        name, output = "prompts for the teacher", "teacher_prompts.jsonl"
        asked = pipeline.step(name, output, write_asked, prompts, system=system, labels=()).path
    rows = pipeline.training_set(prompts, pipeline.answers("teacher answers", config.teacher, asked, config.sampling))
    changes: JsonObject = {
        "objective": "cross_entropy", "objective_settings": (), "teacher": ModelConfig(model=""), "max_steps": -1,
        "num_epochs": config.warm_up_epochs, "lora": train.lora.model_copy(update={"merge": train.lora.r > 0}),
    }  # fmt: skip
    if config.warm_up_learning_rate is not None:
        changes["learning_rate"] = config.warm_up_learning_rate
    path = pipeline.student(
        student, rows, train.model_copy(update=changes),
        name="warm-up", output="warm-up/student", thinking=config.rollout.thinking,
    )  # fmt: skip
    return student.model_copy(update={"model": str(path), "revision": None})


def setups(
    pipeline: Pipeline, models: Mapping[str, ModelConfig], sampling: SamplingConfig, system: str
) -> dict[str, EvalSetup]:
    """How the models are asked in the test: alike, but for a system prompt that only the teacher reads."""
    alike = ask_alike(models, sampling)
    if not system:
        return alike

    def with_prompt(test: Path) -> Path:
        output = "eval/for_teacher.jsonl"
        return pipeline.step("test for the teacher", output, write_asked, test, system=system, labels=()).path

    return alike | {"teacher": EvalSetup(models["teacher"], sampling, with_prompt)}


def prompt_grader(config: RolloutConfig, prompts: Path) -> str:
    """The grader of the samples that prompts are chosen by. Raises UserError if it needs gold answers that are not there."""
    if config.choose_prompts == "all" or config.grader != "auto":
        return config.grader
    if not has_references(prompts):
        raise UserError(
            f"--choose-prompts {config.choose_prompts} grades the student's samples, and some prompts have no gold answer; "
            "give data with gold answers, a --grader that needs none, such as judge:MODEL, or --choose-prompts all"
        )
    return "numeric" if final_answer_grader(prompts) == "numeric" else "exact"


def on_policy_student(
    pipeline: Pipeline,
    student: ModelConfig,
    prompts: Path,
    train: TrainConfig,
    settings: RolloutSettings,
    *,
    output: str,
) -> tuple[Path, OnPolicyStats]:
    """Prompts -> the student trained on its own answers, and the summary's `on_policy`."""
    if train.lora.r and student.quantization == "auto":
        student = student.model_copy(update={"quantization": pipeline.resolve(student).quantization})
    run, watch = pipeline.run, pipeline.watch

    def beside(path: Path) -> Path:
        return path.parent if path.is_relative_to(run.directory) else run.directory

    def work(path: Path) -> Counts:
        from distill_lab.device import best_device, device_name, memory_returned
        from distill_lab.train.on_policy import train_on_policy
        from distill_lab.train.trackers import is_tracked, named, tracker_run

        log_file = beside(path) / TRAINING_LOG
        tracked = named(tracker_run(run.directory)) if is_tracked(train.report_to) else nullcontext()
        with memory_returned(), tracked:
            found = train_on_policy(
                student, prompts, path, train, settings, server=pipeline.engine, on_log=watch.log, log_file=log_file
            )
        result = found.training
        run.record(f"training of {path.name}", {"dtype": result.dtype, "on": device_name(best_device())})
        write_json(beside(path) / "training.json", asdict(result))
        write_json(beside(path) / "on_policy.json", asdict(found.stats))
        counts = Counts(result.num_rows + sum(result.dropped.values()), result.num_rows, result.dropped)
        pipeline.warn(dropped_warning(counts))
        watch.note(f"the student is in {path}")
        return counts

    inputs = {"prompts": prompts, "train": train.model_dump(), "rollouts": settings.model_dump()}
    inputs |= scoring_inputs(train.teacher, pipeline.engine)
    made = run.stage("student", output, inputs=inputs | model_inputs(student), work=work).path
    file = beside(made) / "on_policy.json"
    try:
        found = TypeAdapter(OnPolicyStats).validate_json(file.read_bytes())
    except (OSError, ValueError):
        raise UserError(
            f"{file} is missing or damaged; put it back, or remove {made} and give the same command again, which trains the "
            "student again"
        ) from None
    pipeline.tell("\n".join(sentences(found)))
    return made, found


def sentences(found: OnPolicyStats) -> list[str]:
    """What a user should know of the rounds."""
    lines = [f"{found.num_rounds} rounds, {found.rollouts:,} rollouts, {found.tokens_generated:,} tokens generated"]
    if found.truncated_share > MANY_TRUNCATED:
        lines.append(
            f"{found.truncated_share:.0%} of the rollouts were cut at the token limit; raise --rollout.max-new-tokens"
        )
    before, after = found.before, found.after
    if before and after:
        lines.append(
            "on the student's own text: the teacher's nats per token "
            f"{before.teacher_nats:.3f} -> {after.teacher_nats:.3f}, "
            f"divergence {before.divergence:.3f} -> {after.divergence:.3f}"
        )
    return lines
