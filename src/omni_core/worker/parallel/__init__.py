"""The ranks of one replica: how they talk, and how they share a forward pass."""
