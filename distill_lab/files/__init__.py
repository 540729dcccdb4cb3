"""What is written to disk, safely: JSONL, locks, what an output was made from, what belongs to the lab, fingerprints."""
