"""Rows from anywhere -> prompts: sources, adapters (one file per row format), splits, reasoning traces."""
