"""Concurrent requests under asyncio: progress, a time-out, an abort, and results in the order in which they end.

    python examples/asyncio_requests.py FOLDER

All requests share one engine and are worked on together. One asks for far more steps than its `timeout_s` allows, one
is aborted after a second, as when a client has gone away.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from omni_core import AsyncDiffusionEngine, OmniDiffusionRequest, OmniRequestOutput

# More steps take longer, so the results come in another order than the requests.
STEPS = {"a red seven": 40, "a blue two": 30, "a green four": 20, "a purple nine": 10}


async def follow(engine: AsyncDiffusionEngine, request: OmniDiffusionRequest) -> OmniRequestOutput:
    """Submit a request, print how far it is at every tenth step, and return how it ended."""
    async for event in engine.generate(request):
        if event.kind == "step" and event.step % 10 == 0:
            print(f"{request.request_id}: step {event.step} of {event.num_steps}")
        if event.output is not None:
            return event.output
    raise AssertionError("the last event carries the output")


async def run(folder: Path) -> None:
    """Run all requests at once and save the pictures as they come."""
    requests = [
        OmniDiffusionRequest(prompt=prompt, num_inference_steps=steps, seed=7, request_id=prompt.replace(" ", "-"))
        for prompt, steps in STEPS.items()
    ]
    endless = {"prompt": "a black zero", "num_inference_steps": 5_000}
    requests.append(OmniDiffusionRequest(**endless, timeout_s=2.0, request_id="too-slow"))
    requests.append(OmniDiffusionRequest(**endless, request_id="unwanted"))
    async with await AsyncDiffusionEngine.create() as engine:
        asyncio.get_running_loop().call_later(1.0, engine.abort, "unwanted")
        tasks = [asyncio.create_task(follow(engine, request)) for request in requests]
        for next_done in asyncio.as_completed(tasks):
            output = await next_done
            print(f"{output.request_id}: {output.finish_reason} after {output.metrics.num_steps} steps")
            for image in output.images:  # none of one that did not finish: output.error says why
                await asyncio.to_thread(image.save, folder / f"{output.request_id}.png")
            if output.error is not None:
                print(f"    {output.error}")
        print(f"ended: {(await engine.stats()).ended}")


def main() -> None:
    """Run the requests in an event loop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(folder))


if __name__ == "__main__":
    main()
