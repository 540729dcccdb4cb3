"""Qwen Distillation Lab: turn a big teacher into a small, fast student, and prove how much was kept.

`distill demo` shows the whole line on a CPU; `distill --help` lists the recipes and the stages.
"""

__version__ = "0.1.0"
