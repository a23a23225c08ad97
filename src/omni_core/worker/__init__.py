"""What runs wherever the work is executed: loading a pipeline and advancing requests through it."""
