"""Parts of the engine ray: pool.py manages workers, worker.py is one worker, blocks.py distributes prompts."""
