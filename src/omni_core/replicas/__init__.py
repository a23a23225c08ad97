"""The life cycle of replicas: start, ready, lost, back-off, retry, watchdog, sleep. Knows no socket and no process."""
