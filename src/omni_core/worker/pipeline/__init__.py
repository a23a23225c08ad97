"""The pipeline: loading it, what stands in for its parts, its arguments, progress and outputs."""
