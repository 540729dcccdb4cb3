"""Run an EasyDistill 1.0 config: teacher answers and training, as `easydistill --config CONFIG.json` would.

In: a JSON config of job type kd_black_box_local, kd_black_box_api, kd_black_box_train_only or kd_sft (the last two train on
labeled_path as it is); kd_white_box, kd_white_box_train_only or kd_white_box_train_only_multi, which also learn the
teacher's probabilities, written to or read from logits_path; or speckd_local, which trains a draft model. Out: the answers
in labeled_path, the student in output_dir; everything else in <output_dir>.run.
Run the same command again to resume. Answers already in labeled_path are kept and not generated again. With --test the
student is then tested beside its teacher and the base student: scores, speeds, and report.html in <output_dir>.run.

A job that makes data from data (instruction_expansion, instruction_refinement, instruction_response_extraction,
cot_generation, cot_long2short, cot_short2long, each with _api or _batch; cot_eval_api, instruct_eval_api,
instruct_sample_api) writes its rows to output_path; `distill synthesize` has the same jobs with more settings.

    distill run configs/kd_black_box_qwen_0_5b.json
    distill run configs/kd_black_box_qwen_0_5b.json --test held_out.jsonl
    distill run configs/kd_white_box.json
    distill run configs/instruction_expansion_api.json
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from distill_lab import config as settings
from distill_lab.config import DataConfig


class Config(settings.Config):
    """Settings of `distill run`."""

    config: Annotated[Path, tyro.conf.Positional]
    """The EasyDistill config."""
    relabel: bool = False
    """Let the teacher answer every instruction again and replace the answers in labeled_path; in a job that makes data,
    replace rows that were made with other settings."""
    test: DataConfig = DataConfig(path="")
    """Rows to test the student on; without them it is not tested."""
    teacher: str = ""
    """In the test: the model to compare with; empty: the config's teacher."""
    instruction: str = ""
    """In the test: text after every question, as in the training data."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """In the test: maximum tokens per answer, including thinking."""
    grader: str = "auto"
    """In the test: a file name in distill_lab/grading/graders, or judge:MODEL; auto: by the gold answers."""
    measure: bool = True
    """In the test: measure the speed of teacher and student."""


def main(config: Config) -> None:
    """Run it with progress, and print where the student is, what it scored, or how many rows were made."""
    from distill_lab.easydistill import job, text_jobs
    from distill_lab.errors import UserError
    from distill_lab.terminal import Terminal

    terminal = Terminal()
    if text_jobs.is_text_job(config.config):
        if config.test.path:
            raise UserError(
                f"{config.config} makes data and trains no student, so there is nothing to test; leave out --test"
            )
        from distill_lab.commands.synthesize import show

        show(text_jobs.run(config.config, relabel=config.relabel, watch=terminal), terminal)
        return
    if not config.test.path:
        job.run(config.config, relabel=config.relabel, watch=terminal)
        return
    from distill_lab.easydistill.job import run_directory
    from distill_lab.easydistill.proof import Test, prove

    test = Test(
        data=config.test, teacher=config.teacher, instruction=config.instruction, grader=config.grader,
        max_new_tokens=config.max_new_tokens, measure=config.measure,
    )  # fmt: skip
    summary = prove(config.config, test, relabel=config.relabel, typed=typed(config), watch=terminal)
    terminal.summary(summary, run_directory(job.read_job(config.config).out))


def typed(config: Config) -> str:
    """The command with these settings."""
    words = ["distill", "run", str(config.config), "--test.path", config.test.path, "--test.split", config.test.split]
    for name in ("teacher", "instruction", "max_new_tokens", "grader"):
        value = getattr(config, name)
        if value != Config.model_fields[name].default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, *([] if config.measure else ["--no-measure"])])
