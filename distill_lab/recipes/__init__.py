"""Recipes: a file each, found by name. Each has `Config` (its settings), `PRESETS` and `run(config, directory)`."""
