"""How a driver talks to a worker process: channel, shared memory, messages, and the loop that waits for them."""
