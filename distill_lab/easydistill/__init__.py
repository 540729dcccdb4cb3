"""Run EasyDistill 1.0's jobs as stages: `config.py`, `white_box.py` and `speckd.py` read them, `training.py` translates,
`job.py` runs.

from distill_lab.easydistill import job
student = job.run("configs/kd_black_box_qwen_0_5b.json")
"""
