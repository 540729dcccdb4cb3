"""Training: rows -> packed batches -> one trainer for every objective -> a student. Start at `trainer.train_student`."""
