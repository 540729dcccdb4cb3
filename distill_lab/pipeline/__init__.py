"""The way of the data as stages of a run: `stages.py` has the arrows, `fitting.py` what fits, `proof.py` the evaluation."""
