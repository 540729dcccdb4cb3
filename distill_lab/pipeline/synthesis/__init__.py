"""Data made from data: rows and a model -> new rows. `jobs/` has a file for each job, `synthesize.py` the stages."""
