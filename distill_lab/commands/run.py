"""Run an EasyDistill 1.0 config: teacher answers and training, as `easydistill --config CONFIG.json` would.

In: a JSON config of job type kd_black_box_local, kd_black_box_api, kd_black_box_train_only or kd_sft (the last two train on
labeled_path as it is). Out: the answers in labeled_path, the student in output_dir; everything else in <output_dir>.run.
Run the same command again to resume. Answers already in labeled_path are kept and not generated again.

A job that makes data from data (instruction_expansion, instruction_refinement, instruction_response_extraction,
cot_generation, cot_long2short, cot_short2long, each with _api or _batch; cot_eval_api, instruct_eval_api,
instruct_sample_api) writes its rows to output_path; `distill synthesize` has the same jobs with more settings.

    distill run configs/kd_black_box_qwen_0_5b.json
    distill run configs/instruction_expansion_api.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from distill_lab import config as settings


class Config(settings.Config):
    """Settings of `distill run`."""

    config: Annotated[Path, tyro.conf.Positional]
    """The EasyDistill config."""
    relabel: bool = False
    """Let the teacher answer every instruction again and replace the answers in labeled_path; in a job that makes data,
    replace rows that were made with other settings."""


def main(config: Config) -> None:
    """Run it with progress, and print where the student is, or how many rows were made."""
    from distill_lab.easydistill import job, text_jobs
    from distill_lab.terminal import Terminal

    if text_jobs.is_text_job(config.config):
        from distill_lab.commands.synthesize import show

        terminal = Terminal()
        show(text_jobs.run(config.config, relabel=config.relabel, watch=terminal), terminal)
        return

    job.run(config.config, relabel=config.relabel, watch=Terminal())
