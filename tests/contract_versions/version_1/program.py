"""What a user of the plugin wrote when the contract's version was 1. Prints what it saw, as JSON."""

import json

from contract_one.plugin import calls, noted

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import RequestError

config = OmniDiffusionConfig(
    executor_class="contract-one", executor_options={"colour": "blue", "size": 4}, step_timeout_s=60.0, max_retries=1, max_prompt_length=20
)
with DiffusionEngine(config) as engine:
    prompts = ("draw", "die", "fail", "forbidden")
    requests = [OmniDiffusionRequest(prompt=prompt, seed=7, request_id=prompt) for prompt in prompts]
    own = engine.step(requests, timeout=60)
    [empty] = engine.step([OmniDiffusionRequest(prompt="draw", request_id="empty", metadata={"frame": "none"})])
    try:
        engine.submit(OmniDiffusionRequest(prompt="draw" * 10, request_id="long"))
    except RequestError:
        pass
    engine.sleep(level=2)
    engine.wake_up()
    engine.check_health()
    replies = [
        engine.collective_rpc("colour_times", timeout=5.0, args=(2,)),
        engine.collective_rpc(lambda worker, number: number + 1, kwargs={"number": 1}, unique_reply_rank=0),
        engine.collective_rpc("colour_times", args=(1,), non_block=True).result(timeout=60),
        engine.executor.begin_rpc("colour_times", (1,), unique_reply_rank=0).result(timeout=60),
    ]
    engine.executor.plugins.notify("omni_output_suspect", request_id="draw", reason="it was told to")
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
            "forbidden": str(own[3].error),
            "empty": empty.images,
            "replies": replies,
            "events": events,
            "inline": [picture.finish_reason, len(picture.images)],
            "noted": noted,
            "calls": calls,
        }
    )
)
