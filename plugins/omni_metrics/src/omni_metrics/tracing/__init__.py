"""The half that traces: spans of each request, over OTLP."""
