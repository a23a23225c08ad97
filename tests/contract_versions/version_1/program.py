"""What a user of the plugin wrote when the contract's version was 1. Prints what it saw, as JSON."""

import json

from contract_one.plugin import calls

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest

config = OmniDiffusionConfig(
    executor_class="contract-one", executor_options={"colour": "blue", "size": 4}, step_timeout_s=60.0, max_retries=1
)
with DiffusionEngine(config) as engine:
    requests = [OmniDiffusionRequest(prompt=prompt, seed=7, request_id=prompt) for prompt in ("draw", "die", "fail")]
    own = engine.step(requests, timeout=60)
    engine.check_health()
    replies = [
        engine.collective_rpc("colour_times", timeout=5.0, args=(2,)),
        engine.collective_rpc(lambda worker, number: number + 1, kwargs={"number": 1}, unique_reply_rank=0),
    ]
    handle = engine.submit(OmniDiffusionRequest(prompt="draw", request_id="again"))
    events = [event.kind for event in handle.events(timeout=60)]

# The executor that the core brings along, with the plugin's hooks.
with DiffusionEngine(OmniDiffusionConfig(executor_class="inline")) as engine:
    seven = OmniDiffusionRequest(prompt="a red seven", seed=1, num_inference_steps=2, request_id="inline")
    [picture] = engine.step([seven], timeout=120)

print(
    json.dumps(
        {
            "reasons": {output.request_id: output.finish_reason for output in own},
            "retries": own[1].metrics.num_retries,
            "pixel": own[0].images[0].getpixel((3, 3)),
            "error": str(own[2].error),
            "replies": replies,
            "events": events,
            "inline": [picture.finish_reason, len(picture.images)],
            "calls": calls,
        }
    )
)
