"""Runs omni's models under torch elastic: executor_class = "torchrun"."""
