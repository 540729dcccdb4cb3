"""Completions -> grades: graders (one file each). Start at `grade.grade`."""
