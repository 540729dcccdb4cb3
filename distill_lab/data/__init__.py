"""Rows from any source -> prompts: sources, adapters (one file per row format), splits, reasoning traces."""
