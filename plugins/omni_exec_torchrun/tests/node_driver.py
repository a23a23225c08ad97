"""A program with an engine over two nodes: `node_driver.py OPTIONS`. Makes a picture for each line of its input.

Prints a line of JSON for everything that happens. A line of input is the arguments of a request.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, RequestHandle

_printing = threading.Lock()


def tell(**facts: Any) -> None:
    with _printing:
        print(json.dumps(facts), flush=True)  # noqa: T201  # for the test that has started this


def follow(handle: RequestHandle) -> None:
    for event in handle.events():
        if event.kind in ("started", "retrying") or (event.kind == "step" and event.step == 1):
            tell(event=event.kind)
    output = handle.result()
    images = output.output["images"].tolist() if output.finish_reason == "finished" else None
    tell(event="end", reason=output.finish_reason, error=str(output.error), images=images)


def main() -> None:
    config = OmniDiffusionConfig(
        executor_class="torchrun",
        model="omni_core.testing.pipelines:class_conditional",
        cfg_parallel_size=2,
        executor_options=json.loads(sys.argv[1]),
    )
    with DiffusionEngine(config) as engine:
        tell(event="ready")
        for line in sys.stdin:
            follow(engine.submit(OmniDiffusionRequest(output_type="np", **json.loads(line))))


if __name__ == "__main__":
    main()
