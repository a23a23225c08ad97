"""The half that counts: families of metrics, and how Prometheus reads them."""
