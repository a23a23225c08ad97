"""Whether the model that ships with the package draws what it is asked for."""
