"""The documentation is true: what it shows runs, and what it names exists."""
