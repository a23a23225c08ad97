"""The executors that ship with the core, registered through the same hook as anyone else's."""
