from __future__ import annotations

from hypothesis import HealthCheck, settings

# Fixtures for all tests are in `omni_core.testing.fixtures`.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")
