"""Objectives: hidden states, head and targets -> a sum of nats. One file per objective; the file name is its name.

An objective returns a *sum* over the positions it is given. Only the trainer divides, by the trained tokens of the whole
optimizer step, so that the loss does not depend on how the step was cut into micro-batches.
"""
