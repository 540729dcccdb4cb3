"""Checks before the first stage: what fits this machine, which training method to use, and what would fail later."""
