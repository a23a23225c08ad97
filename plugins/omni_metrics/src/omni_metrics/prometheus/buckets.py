"""Upper bounds of the buckets of histograms. Each is a series more, for each replica or reason."""

from __future__ import annotations

REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
STEPS = (1.0, 2.0, 4.0, 8.0, 15.0, 20.0, 30.0, 50.0, 100.0, 250.0, 1000.0)
# From 128 x 128 to 4096 x 4096.
PIXELS = tuple(float(2**power) for power in range(14, 25))
