"""Safe file output: JSONL, locks, keys that record an output's inputs, ownership checks, fingerprints."""
