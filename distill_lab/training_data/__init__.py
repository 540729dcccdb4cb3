"""Graded completions -> training rows: selection, reasoning traces, prompt distillation."""
