"""Run EasyDistill 1.0's black-box jobs as stages: `config.py` reads them, `training.py` translates, `job.py` runs.

from distill_lab.easydistill import job
student = job.run("configs/kd_black_box_qwen_0_5b.json")
"""
