"""Worker processes for omni: `executor_class = "multiproc"`."""
