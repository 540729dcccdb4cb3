"""Target mlx: the student for Apple's MLX, converted by mlx-lm.

distill export runs/first --to mlx
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec

from distill_lab.errors import UserError
from distill_lab.export import Exported, Job, Options


def check(options: Options) -> None:
    """Raise UserError if mlx-lm is not installed."""
    if find_spec("mlx_lm") is None:
        raise UserError("--to mlx needs mlx-lm; pip install mlx-lm, on a Mac with Apple silicon")


def export(job: Job) -> list[Exported]:
    """Write the model in 16 bits, as MLX reads it."""
    from mlx_lm import convert  # pyright: ignore

    shutil.rmtree(job.out)  # it has to make the folder itself
    convert(str(job.folder), mlx_path=str(job.out))
    return [Exported(job.out, kind="mlx", notes=("not compared with the student; try it with mlx_lm.generate",))]
