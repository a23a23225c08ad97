"""A program with an engine, for tests to kill: `python -m omni_core.testing.driver '{"executor_class": …}'`.

It prints one line of JSON when the engine is ready, `{"worker_pids": […]}`, and then waits to be ended.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest


def main(settings: dict[str, Any]) -> None:
    """Start an engine, keep it busy if `settings["loaded"]` says so, and wait."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs with & ignore it
    with DiffusionEngine(OmniDiffusionConfig(**settings["config"])) as engine:
        if settings["loaded"]:
            fields: dict[str, Any] = {"prompt": "a red seven", "height": 32, "width": 32}
            requests = [OmniDiffusionRequest(**fields, seed=seed, num_inference_steps=20_000) for seed in range(12)]
            handles = engine.submit_all(requests)
            next(event for event in handles[0].events(timeout=60.0) if event.kind == "started")
        sys.stdout.write(json.dumps({"ready": True}) + "\n")
        sys.stdout.flush()
        # Longer than any test looks, and short enough that nothing stays for ever if the test is killed.
        threading.Event().wait(300.0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
