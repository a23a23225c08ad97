"""Prometheus metrics and OpenTelemetry traces of omni's engines."""
