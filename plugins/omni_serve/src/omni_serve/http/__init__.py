"""What every answer goes through: ids, keys, limits, the access log, streams, clients that go away."""
