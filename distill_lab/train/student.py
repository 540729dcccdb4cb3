"""One trainer for every objective: base student and training rows -> a trained student in a directory.

    result = train_student(ModelConfig(model="tiny:student"), Path("train.jsonl"), Path("student"), TrainConfig())

Data in: rows `{"prompt": [...], "completion": [...]}` (JSONL or Parquet). Data out: a Hugging Face directory with
safetensors weights and the tokenizer. Between the two, `<out>.work/` holds sealed checkpoints; the same call after an
interruption goes on from the newest whole one and ends with the same weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import PartialState
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from distill_lab import activity
from distill_lab.config import ModelConfig, TrainConfig
from distill_lab.device import best_device, free_host_memory, free_memory
from distill_lab.errors import UserError
from distill_lab.files.outputs import PARTIAL, check_removable, remove_output
from distill_lab.generation.model_identity import model_inputs, weights_of
from distill_lab.models.loading import check_weights, load_model, load_tokenizer, with_fp32_on_cpu
from distill_lab.run import fingerprint
from distill_lab.train import launch, loss_module
from distill_lab.train.agreement import agreement_sentence
from distill_lab.train.aligned_teacher import aligned_teacher, make_pairing
from distill_lab.train.cached_teacher import GIVEN, cache_place, cached_teacher, check_cache, fill
from distill_lab.train.capture import Captured
from distill_lab.train.chat_template import leave_out_thinking
from distill_lab.train.checkpoints import keep_only, newest_whole, remove_finished
from distill_lab.train.given_teacher import given_inputs, given_teachers
from distill_lab.train.heap import TrainingHeap
from distill_lab.train.objectives import Objective, load_objective
from distill_lab.train.paired_rows import read_paired_rows
from distill_lab.train.plan import make_plan, trained_weights, training_arguments, with_dtype
from distill_lab.train.result import TrainResult
from distill_lab.train.rounds import RoundSource, known_rows
from distill_lab.train.rows import REFUSED, Rows, read_rows
from distill_lab.train.teachers import Teacher, check_teacher, live_teacher, reads_other_tokens
from distill_lab.train.trackers import current, run_beside, tracker_callbacks
from distill_lab.train.trainer import StudentTrainer
from distill_lab.train.training_log import OnLog, check_is_log, mean_loss
from distill_lab.types import JsonObject

NOT_IN_KEY = {"logging_steps", "save_steps", "report_to"}
"""Settings that may change between an interruption and its resumption."""


def train_student(
    student: ModelConfig,
    rows: Path,
    out: Path,
    config: TrainConfig,
    *,
    thinking: bool | None = None,
    on_log: OnLog | None = None,
    log_file: Path | None = None,
) -> TrainResult:
    """Train `student` on `rows` and leave it in `out`, which appears at once when everything is done.

    thinking: passed to the chat template as `enable_thinking`; with False, the template of the student in `out` has that as
    its default. log_file: where each logged step is written, one JSON object per line (`training_log.py`), while training
    goes on. Computes in fp32 or bf16 on a CPU, whichever is faster there, in bf16 or fp16 on a GPU, with fp32 weights either
    way, which a CPU saves as they are and a GPU in what it computed in. With `config.lora` only adapters are trained, on
    frozen weights that
    may be quantized; `out` then holds the adapters, or with `lora.merge` a plain model and the adapters in adapter/. Raises
    UserError (NoData, DataError, ModelError) for what the user can fix: unusable rows, quantized weights without adapters,
    a loss that is not a number, too little memory.
    """
    load_objective(config.objective, config.objective_settings)  # a wrong name costs no loading
    if config.teacher_cache.mode != GIVEN:
        check_teacher(config.objective, config.teacher, student)
    check_cache(config)
    if config.teacher_cache.mode not in ("off", GIVEN) and not launch.inside():
        capture_teacher(student, rows, out, config, thinking=thinking, on_log=on_log)
    if config.num_processes > 1 and not launch.inside():
        log = on_log or (lambda row: None)
        return launch.train_in_processes(student, rows, out, config, thinking=thinking, on_log=log, log_file=log_file)
    if log_file:
        check_is_log(log_file)
    start = time.monotonic()
    PartialState(cpu=best_device().type == "cpu")  # chooses this process's GPU
    try:
        return _train_loaded(
            student, rows, out, config, thinking=thinking, on_log=on_log, log_file=log_file, start=start
        )
    finally:
        # After the call, whose frame holds the model: the next one loads where this one stood.
        free_memory()


def _train_loaded(
    student: ModelConfig,
    rows: Path,
    out: Path,
    config: TrainConfig,
    *,
    thinking: bool | None,
    on_log: OnLog | None,
    log_file: Path | None,
    start: float,
) -> TrainResult:
    model, tokenizer = load_student(student, config)
    pairing = None
    with activity.doing(f"reading the training rows of {rows}"):
        if reads_other_tokens(config.objective):
            pairing = make_pairing(config.teacher, tokenizer, student_name=student.model, thinking=thinking)
            data = read_paired_rows(
                rows, tokenizer, pairing,
                max_length=config.max_length, validation_fraction=config.validation_fraction, seed=config.seed,
            )  # fmt: skip
        else:
            data = read_rows(
                rows, tokenizer, thinking=thinking,
                max_length=config.max_length, validation_fraction=config.validation_fraction, seed=config.seed,
            )  # fmt: skip
    if pairing and on_log:
        on_log({"note": agreement_sentence(pairing.agreement())})
    if thinking is False:
        leave_out_thinking(tokenizer)
    key = fingerprint(training_inputs(student, rows, config, thinking=thinking))
    teacher: Teacher | None = None
    if config.teacher.model or config.teacher_cache.mode == GIVEN:
        head_rows = loss_module.decoder_and_head(model)[1].linear.out_features
        both = [*data.training, *data.validation]
        if pairing:
            teacher = aligned_teacher(config.teacher, pairing, tokens_per_batch=config.tokens_per_batch)
        elif config.teacher_cache.mode == GIVEN:
            teacher = given_teachers(config, student_rows=head_rows, rows=both)
        elif config.teacher_cache.mode == "off":
            teacher = live_teacher(config.teacher, tokenizer, head_rows, both, student_name=student.model)
        else:
            teacher = cached_teacher(config, cache_place(config, out), student_rows=head_rows, rows=both)
    return train_model(
        model,
        tokenizer,
        data,
        out,
        config,
        key=key,
        teacher=teacher,
        on_log=on_log,
        start=start,
        student=student,
        log_file=log_file,
    )


def training_inputs(student: ModelConfig, rows: Path, config: TrainConfig, *, thinking: bool | None) -> JsonObject:
    """All that a trained student depends on."""
    settings = config.model_dump(exclude=NOT_IN_KEY)
    for place in ("folder", "folders"):
        settings.get("teacher_cache", {}).pop(place, None)
    inputs = {"model": weights_of(student), "rows": rows, "train": settings, "thinking": thinking}
    return inputs | teacher_inputs(config)


def teacher_inputs(config: TrainConfig) -> JsonObject:
    """What a trained student depends on besides its settings if a teacher's distributions are part of the loss.

    A cache of the same teacher and settings has the same distributions wherever it is.
    """
    if config.teacher_cache.mode == GIVEN:
        return {"teacher": given_inputs(config)}
    return {"teacher": model_inputs(config.teacher)["model"]} if config.teacher.model else {}


def capture_teacher(
    student: ModelConfig,
    rows: Path,
    out: Path,
    config: TrainConfig,
    *,
    thinking: bool | None,
    on_log: OnLog | None = None,
) -> Captured:
    """Fill the teacher cache of a training with what it lacks, before the student is loaded. Raises UserError."""
    tokenizer = load_tokenizer(student)
    data = read_rows(
        rows,
        tokenizer,
        max_length=config.max_length,
        validation_fraction=config.validation_fraction,
        seed=config.seed,
        thinking=thinking,
    )
    log, both = on_log or (lambda row: None), [*data.training, *data.validation]
    return fill(both, config, cache_place(config, out), student=tokenizer, on_log=log)


def load_student(student: ModelConfig, config: TrainConfig) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """All weights to be trained, or frozen weights (quantized if requested) and the adapters to be trained."""
    if not config.lora.r:
        if student.quantization in ("4bit", "8bit"):
            raise UserError(
                f"{student.model}: {student.quantization} weights cannot be trained; train adapters on them "
                "(--train.lora.r 16), or use quantization none"
            )
        model, tokenizer = load_model(student.model_copy(update={"quantization": "none"}), training=True)
        check_weights(model, student.model)
        return model, tokenizer
    from distill_lab.train.lora import add_adapters

    model, tokenizer = load_model(with_fp32_on_cpu(student))
    check_weights(model, student.model)
    folder = Path(student.model).expanduser()
    name = str(folder.resolve()) if folder.exists() else student.model
    return add_adapters(model, config.lora, name=name, revision=student.revision, seed=config.seed), tokenizer


def train_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: Rows,
    out: Path,
    config: TrainConfig,
    *,
    key: str,
    objective: Objective | None = None,
    teacher: Teacher | None = None,
    on_log: OnLog | None = None,
    start: float | None = None,
    student: ModelConfig | None = None,
    log_file: Path | None = None,
    source: RoundSource | None = None,
) -> TrainResult:
    """As `train_student`, for a model and rows that are loaded already.

    key: what the result depends on; checkpoints of another key are thrown away. objective: instead of the one that `config`
    names; the key must then say which. teacher: whose signal the objective gets. `model` is not usable afterwards.
    student: how `model` was loaded; needed to merge adapters that were trained on weights split over several GPUs.
    source: makes the rows while training goes on, instead of those in `data`.
    """
    start = time.monotonic() if start is None else start
    log = on_log or (lambda row: None)
    objective = objective or load_objective(config.objective, config.objective_settings)
    work = out.with_name(out.name + ".work")
    check_removable(out)
    state = PartialState(cpu=best_device().type == "cpu")
    with state.main_process_first():
        for removed in keep_only(out, key):
            log({"note": removed})
        found = newest_whole(work, remove=state.is_main_process)
        config = with_dtype(config, model, work)
    for name, reason in found.skipped.items():
        chosen = found.checkpoint.name if found.checkpoint else "the beginning"
        log({"note": f"{work / name} was passed over ({reason}); going on from {chosen}"})
    if data.first_refused:
        log({"note": f"{data.dropped[REFUSED]} rows dropped: {REFUSED}; the first is {data.first_refused}"})
    if data.num_spelled:
        log({"note": f"{data.num_spelled} rows spell control tokens of the student; they are trained as plain text"})
    if config.dtype == "bf16" and best_device().type == "cpu":
        log({"note": "computing in bf16, with weights, loss and optimizer in fp32"})
    num_trained, sizes = trained_weights(model, config)
    log({"note": sizes})
    loss_module.check_head(model)
    pack_rows = loss_module.rows_stay_apart(model) and (teacher is None or teacher.rows_stay_apart())
    if not pack_rows:
        whose = type(model).__name__ if teacher is None else "the student or the teacher"
        log({"note": f"{whose} lets packed rows see each other: one row per bin, slower"})
    if source is None:
        lengths = [len(row) for row in data.training]
        plan = make_plan(lengths, config, pack_rows=pack_rows, num_processes=state.num_processes)
        rounds = known_rows(data.training, plan)
    else:
        rounds = source.rounds(pack_rows=pack_rows)
    args = training_arguments(
        work, config, rounds.num_steps, validate=bool(data.validation), num_processes=state.num_processes
    )
    trainer = StudentTrainer(
        model,
        args=args,
        config=config,
        rounds=rounds,
        validation=data.validation,
        objective=objective,
        teacher=teacher,
        on_log=log,
        log_file=log_file,
        saves_last=source is not None,
        trackers=tracker_callbacks(config.report_to, current(run_beside(out, key))),
    )
    if config.sharding == "fsdp2" and not trainer.is_fsdp_enabled:
        log({"note": "fsdp2 splits weights over several GPUs only: each process holds the whole student"})
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        if args.device.type == "cpu":
            heap = TrainingHeap(free_host_memory, may_keep=not config.gradient_checkpointing)
            trainer.add_callback(stack.enter_context(heap))
        if source is not None:
            source.begin(trainer.collate)
        trainer.train(resume_from_checkpoint=str(found.checkpoint) if found.checkpoint else None)
        before, after = trainer.validation_losses()
        if source is not None:
            source.finish()
        partial = work / PARTIAL
        unmerged = trainer.save(partial, tokenizer)
    train_loss = mean_loss(trainer.state.log_history)
    state.wait_for_everyone()
    trainer.release()
    del trainer, model
    if state.is_main_process:
        if unmerged:
            from distill_lab.train.lora import merge_beside

            assert student is not None, "sharded adapters are merged onto the student they were trained on"
            free_memory()
            merge_beside(student, partial)
        remove_output(out)
        partial.rename(out)
        if left := remove_finished(out):
            log({"note": f"{work} stays: {', '.join(left)} in it is not what training wrote"})
    return TrainResult(
        num_rows=data.num_rows,
        dropped=data.dropped,
        steps=rounds.num_steps,
        tokens=rounds.num_tokens,
        train_loss=train_loss,
        validation_loss_before=before,
        validation_loss_after=after,
        seconds=round(time.monotonic() - start, 3),
        num_trained=num_trained,
        learning_rate=config.peak_learning_rate,
        resumed_from=int(found.checkpoint.name.rpartition("-")[2]) if found.checkpoint else 0,
        skipped_checkpoints=found.skipped,
        dtype="bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Only faces print; transformers draws a bar for every file it saves, and warns of tied weights when it resumes."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()
