"""Qwen Distillation Lab: turn a big teacher into a small, fast student, and prove how much was kept.

`distill demo` shows the whole line on a CPU; `distill --help` lists the recipes and the stages.
"""

import os
import sys

__version__ = "0.1.0"

# Read when torch first takes memory of a GPU, in this process and in those it starts: batches of many sizes leave holes
# in fixed segments that no later batch fits. What the user has set stays.
if sys.platform == "linux" and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
