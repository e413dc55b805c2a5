"""Public benchmarks: the tasks of lm-evaluation-harness under our model."""
