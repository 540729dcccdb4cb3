"""Prompts -> completions: engines (one file each), decoding, the request cache. Start at `generate.generate`."""
