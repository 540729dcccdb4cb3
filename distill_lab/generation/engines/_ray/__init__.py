"""Generation on a Ray cluster, for the engine ray: pool.py keeps workers, worker.py is one, blocks.py deals prompts out."""
