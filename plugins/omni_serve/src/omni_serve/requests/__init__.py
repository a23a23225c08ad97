"""From the body of an HTTP request to requests of the engine."""
