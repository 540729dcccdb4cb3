"""On-policy distillation: a student learns from texts that it writes itself while it is trained, scored by the teacher.

    result = train_on_policy(student, Path("prompts.jsonl"), Path("student"), config, settings)
    result.stats.before, result.stats.after        on the student's own text, in nats per token

Each round the student writes rollouts (`rollouts.py`), and learns from them for `steps_per_round` steps: the teacher reads
what the student reads, and the objective compares their distributions at every token of the answer. A divergence of whole
distributions is exact at any prefix, whoever wrote it, so rollouts that are some steps old need no importance weights.

Sources: Agarwal et al. 2023, "On-Policy Distillation of Language Models" (GKD); Gu et al. 2023, "MiniLLM"; Lu 2025,
"On-Policy Distillation" (Thinking Machines).
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import PartialState

from distill_lab import activity
from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig, TrainConfig
from distill_lab.device import best_device, free_memory
from distill_lab.errors import UserError
from distill_lab.generation.engines._token_io import TokenIO
from distill_lab.generation.model_identity import model_inputs
from distill_lab.models.loading import load_tokenizer, without_weights
from distill_lab.models.names import api_engine
from distill_lab.models.token_bytes import token_bytes
from distill_lab.run import fingerprint
from distill_lab.train.chat_template import leave_out_thinking
from distill_lab.train.loss_module import causal_model, decoder_and_head
from distill_lab.train.objectives import load_objective, signals_of
from distill_lab.train.on_policy_rounds import OnPolicyRounds
from distill_lab.train.packing import Row
from distill_lab.train.prompted_teacher import PromptedTeacher
from distill_lab.train.result import TrainResult
from distill_lab.train.rollout_stats import OnPolicyStats
from distill_lab.train.rollouts import RolloutSettings, TeacherView, read_asked
from distill_lab.train.rows import Rows
from distill_lab.train.scoring_server import ScoringServer
from distill_lab.train.server_teacher import ServerTeacher
from distill_lab.train.student import load_student, train_model, training_inputs
from distill_lab.train.teachers import check_teacher, known_ids, live_teacher, reads_other_tokens
from distill_lab.train.training_log import OnLog, check_is_log
from distill_lab.types import JsonObject


@dataclass(frozen=True, slots=True)
class OnPolicyResult:
    """What an on-policy training did."""

    training: TrainResult
    stats: OnPolicyStats


def check_on_policy(config: TrainConfig, settings: RolloutSettings) -> None:
    """Raise UserError for settings that cannot work together, or would give a gradient with a bias."""
    name, signals = config.objective, signals_of(config.objective)
    if signals == ("scored",):
        _check_sampled(config, settings)
    elif reads_other_tokens(name):
        raise UserError(
            f"the objective {name} compares texts that are there before training, and on-policy the student writes new ones "
            "in every round; use `distill logits`, or a teacher with the student's tokenizer and --objective reverse_kl"
        )
    elif "logits" not in signals:
        raise UserError(
            f"the objective {name} does not compare whole distributions; on the student's own text it would imitate itself. "
            "Choose reverse_kl, jsd, skew_reverse_kl or entropy_aware"
        )
    if any(each.startswith("ce_weight=") and float(each.partition("=")[2]) for each in config.objective_settings):
        raise UserError(
            "ce_weight: on-policy the next token is the student's own, so cross-entropy with it teaches nothing; remove it"
        )
    if config.teacher_cache.mode != "off":
        raise UserError(
            f"train.teacher-cache.mode {config.teacher_cache.mode}: rollouts are new in every round, so there is nothing to "
            "capture before training; use off"
        )
    if config.num_processes > 1:
        raise UserError("on-policy distillation runs in one process; use --train.num-processes 1")
    if config.eval_steps:
        raise UserError(
            "train.eval-steps: own text is measured before the first and after the last step; leave it at 0 and look at "
            "`kd` in training_log.jsonl"
        )
    if settings.per_round % settings.sampling.num_samples:
        raise UserError(
            f"a round has {settings.per_round} rollouts ({settings.steps_per_round} steps of "
            f"{settings.rollouts_per_step}), which {settings.sampling.num_samples} samples of each prompt do not divide; "
            "change --rollouts-per-step or --rollout.num-samples"
        )
    if settings.sampling.stop:
        raise UserError("--rollout.stop: a student learns where to end from its end token; remove it")
    if settings.sampling.response_format:
        raise UserError(
            "--rollout.response-format: rollouts are drawn from all that the student would write; remove it"
        )
    epochs = TrainConfig().num_epochs
    if config.max_steps > 0 and config.num_epochs != epochs:
        raise UserError(
            f"train.num-epochs {config.num_epochs:g}: train.max-steps {config.max_steps} says how long training is; give "
            "--train.max-steps -1 for passes over the prompts"
        )
    if config.max_steps > 0 and (left := config.max_steps % settings.steps_per_round):
        whole = [
            number for number in (config.max_steps - left, config.max_steps - left + settings.steps_per_round) if number
        ]
        raise UserError(
            f"train.max-steps {config.max_steps} (the recipe's own if you gave none): give a multiple of --steps-per-round "
            f"{settings.steps_per_round}, so that the last round is whole: {' or '.join(map(str, whole))}"
        )


def _check_sampled(config: TrainConfig, settings: RolloutSettings) -> None:
    """Raise UserError unless rollouts are draws from the student's own distribution, as the objective assumes."""
    plain = SamplingConfig(temperature=1.0)
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "from_model")
    for name in names:
        if getattr(settings.sampling, name) != getattr(plain, name):
            raise UserError(
                f"--rollout.{name.replace('_', '-')} {getattr(settings.sampling, name)}: sampled_reverse_kl has no bias "
                f"only if tokens are drawn from the student's own distribution; leave it at {getattr(plain, name)}"
            )
    if settings.steps_per_round != 1:
        raise UserError(
            f"--steps-per-round {settings.steps_per_round}: sampled_reverse_kl has no bias only if rollouts are the newest "
            "student's; use 1"
        )
    if config.lora.r and config.lora.dropout:
        raise UserError(
            f"train.lora.dropout {config.lora.dropout:g}: sampled_reverse_kl has no bias only if a step computes the "
            "probabilities that tokens were drawn with, and dropout changes them; use 0"
        )


def train_on_policy(
    student: ModelConfig,
    prompts: Path,
    out: Path,
    config: TrainConfig,
    settings: RolloutSettings,
    *,
    server: EngineConfig | None = None,
    on_log: OnLog | None = None,
    log_file: Path | None = None,
) -> OnPolicyResult:
    """Train `student` on its own answers to `prompts` (`types.Prompt`, JSONL) and leave it in `out`.

    config: as for `train_student`; its teacher scores the answers, `num_epochs` counts passes over the prompts, and
    `validation_fraction` of them are held out. tokens_per_batch limits a micro-batch: a step has as many micro-batches as
    rollouts of the maximum length would need, and at least `gradient_accumulation_steps`. server: how a teacher named
    openai:NAME is reached, and in batches of how many rollouts the student writes. Interrupted, the same call goes on from
    the newest checkpoint with the rollouts it had, and ends with the same weights. Raises UserError.
    """
    load_objective(config.objective, config.objective_settings)
    check_on_policy(config, settings)
    check_teacher(config.objective, config.teacher, student, on_policy=True)
    if log_file:
        check_is_log(log_file)
    start = time.monotonic()
    PartialState(cpu=best_device().type == "cpu")
    try:
        return _train_loaded(
            student, prompts, out, config, settings,
            server=server or EngineConfig(), on_log=on_log, log_file=log_file, start=start,
        )  # fmt: skip
    finally:
        free_memory()


def scoring_inputs(teacher: ModelConfig, server: EngineConfig) -> JsonObject:
    """What a teacher's scores depend on; with what requests have besides if it is on a server."""
    return {"teacher": model_inputs(teacher, server if api_engine(teacher.model) else None)}


def on_policy_inputs(
    student: ModelConfig, prompts: Path, config: TrainConfig, settings: RolloutSettings, server: EngineConfig
) -> JsonObject:
    """All that the trained student depends on."""
    inputs = training_inputs(student, prompts, config, thinking=settings.sampling.thinking)
    if api_engine(config.teacher.model):
        inputs |= scoring_inputs(config.teacher, server)
    return inputs | {"rollouts": settings.model_dump()}


def _train_loaded(
    student: ModelConfig,
    prompts: Path,
    out: Path,
    config: TrainConfig,
    settings: RolloutSettings,
    *,
    server: EngineConfig,
    on_log: OnLog | None,
    log_file: Path | None,
    start: float,
) -> OnPolicyResult:
    log = on_log or (lambda row: None)
    inputs = on_policy_inputs(student, prompts, config, settings, server)
    model, tokenizer = load_student(student, config)
    scoring = None
    if api_engine(config.teacher.model):
        scoring = ScoringServer(config.teacher, server, size=settings.teacher_top_k)
        scoring.probe(tokenizer)
        teacher_tokenizer, context = tokenizer, scoring.context()
        inputs["context"] = context
    else:
        teacher_tokenizer, context = load_tokenizer(config.teacher), _context(config.teacher)
    view = TeacherView(teacher_tokenizer, settings.system, context or sys.maxsize)
    if settings.sampling.thinking is False:
        leave_out_thinking(tokenizer)
    with activity.doing(f"reading the prompts of {prompts}"):
        asked = read_asked(
            prompts,
            tokenizer,
            settings,
            max_length=config.max_length,
            held_out_fraction=config.validation_fraction,
            seed=config.seed,
            teacher=view,
        )
    for reason, number in asked.dropped.items():
        log({"note": f"{number} prompts dropped: {reason}"})
    everything = [*asked.training, *asked.held_out]
    head_rows = decoder_and_head(model)[1].linear.out_features
    work = out.with_name(out.name + ".work")
    if scoring is not None:
        teacher, num_ids = ServerTeacher(scoring, num_ids=head_rows, work=work), head_rows
    else:
        rows = [] if settings.system else [_prompt_row(each.ids) for each in everything]
        teacher = live_teacher(config.teacher, tokenizer, head_rows, rows, student_name=student.model)
        num_ids = teacher.num_ids
        if settings.system:
            teacher = PromptedTeacher(teacher, tokens_per_batch=config.tokens_per_batch)
    longest = max(len(each.ids) for each in everything) + settings.sampling.max_new_tokens
    config, num_rounds = _laid_out(config, settings, num_prompts=len(asked.training), longest=longest)
    source = OnPolicyRounds(
        model, tokenizer, asked, settings, config, teacher,
        control_ids=TokenIO(tokenizer, causal_model(model).generation_config).control_ids,
        known=known_ids(token_bytes(teacher_tokenizer), num_ids=num_ids),
        work=work, num_rounds=num_rounds, on_log=log, batch_size=server.batch_size,
    )  # fmt: skip
    data = Rows([], [], len(everything), len(asked.held_out), asked.dropped)
    training = train_model(
        model, tokenizer, data, out, config,
        key=fingerprint(inputs), teacher=teacher, on_log=on_log, start=start, student=student, log_file=log_file,
        source=source,
    )  # fmt: skip
    # The trainer has not seen the rounds before an interruption.
    training = replace(training, tokens=sum(stats.row_tokens for stats in source.stats))
    held_out = bool(asked.held_out)
    stats = OnPolicyStats.of(source.stats, held_out=held_out, before=source.before, after=source.after)
    return OnPolicyResult(training, stats)


def _context(teacher: ModelConfig) -> int | None:
    """Tokens of the teacher's longest text; None if it does not say."""
    return getattr(without_weights(teacher).config.get_text_config(decoder=True), "max_position_embeddings", None)


def _prompt_row(ids: list[int]) -> Row:
    """A prompt as a row, to look at its tokens."""
    tokens = np.asarray(ids, dtype=np.int32)
    return Row(tokens[:-1], tokens[1:], np.zeros(len(ids) - 1, dtype=bool))


def _laid_out(
    config: TrainConfig, settings: RolloutSettings, *, num_prompts: int, longest: int
) -> tuple[TrainConfig, int]:
    """The settings that the trainer takes, and the number of rounds."""
    steps = settings.steps_per_round
    prompts = settings.per_round / settings.sampling.num_samples
    num_rounds = math.ceil(config.num_epochs * num_prompts / prompts)
    if config.max_steps > 0:
        num_rounds = config.max_steps // steps
    # Memory is known before the lengths are: as if all rollouts were as long as they may be.
    needed = math.ceil(settings.rollouts_per_step * longest / config.tokens_per_batch)
    num_steps = num_rounds * steps
    save = config.save_steps * num_steps if config.save_steps < 1 else config.save_steps
    changes = {
        "gradient_accumulation_steps": max(config.gradient_accumulation_steps, needed),
        # A checkpoint is the student as it is when a round begins.
        "save_steps": float(steps * math.ceil(max(1, round(save)) / steps)),
        "validation_fraction": 0.0,
    }
    return config.model_copy(update=changes), num_rounds
