"""`python -m omni_core` is `omni`."""

from omni_core.cli import main

# Worker processes that are spawned import this module again and must not run the command line.
if __name__ == "__main__":
    main()
