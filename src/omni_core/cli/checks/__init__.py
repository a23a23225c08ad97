"""What `omni doctor` looks at: one module per subject, each with functions that return findings."""

from omni_core.cli.checks.finding import Finding

__all__ = ["Finding"]
