"""Run an EasyDistill 1.0 config: teacher answers and training, as `easydistill --config CONFIG.json` would.

In: a JSON config of job type kd_black_box_local, kd_black_box_api, kd_black_box_train_only or kd_sft (the last two train on
labeled_path as it is); kd_white_box, kd_white_box_train_only or kd_white_box_train_only_multi, which also learn the
teacher's probabilities, written to or read from logits_path; or speckd_local, which trains a draft model. Out: the answers
in labeled_path, the student in output_dir; everything else in <output_dir>.run.
Run the same command again to resume. Answers already in labeled_path are kept and not generated again.

    distill run configs/kd_black_box_qwen_0_5b.json
    distill run configs/kd_white_box.json
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
    """Let the teacher answer every instruction again and replace the answers in labeled_path."""


def main(config: Config) -> None:
    """Run it with progress, and print where the student is."""
    from distill_lab.easydistill import job
    from distill_lab.terminal import Terminal

    job.run(config.config, relabel=config.relabel, watch=Terminal())
