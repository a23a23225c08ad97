"""One running request: its greenlet, and the state of torch and of the process that belongs to it."""
