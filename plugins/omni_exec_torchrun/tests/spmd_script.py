"""The program that the ranks of test_spmd.py run: `spmd_script.py CASE FOLDER`. Each leaves what it saw in FOLDER."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.errors import OmniError

RANK = int(os.environ.get("RANK", "0"))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
Seen = dict[str, Any]


def make_engine(timeout_s: float = 30.0, outputs: str = "all", **fields: Any) -> DiffusionEngine:
    executor_class = "inline"
    if "RANK" in os.environ:
        executor_class = "torchrun"
        fields["executor_options"] = {"timeout_s": timeout_s, "outputs": outputs}
        fields.setdefault("cfg_parallel_size", WORLD_SIZE)
    return DiffusionEngine(OmniDiffusionConfig(executor_class=executor_class, **fields))


def request(number: int, **fields: Any) -> OmniDiffusionRequest:
    values = {"prompt": f"a red {number}", "seed": number, "num_inference_steps": 4, "output_type": "np", **fields}
    return OmniDiffusionRequest(**values)


def pictures(outputs: list[Any]) -> list[np.ndarray]:
    return [np.asarray(output.raise_for_error().images[0]) for output in outputs]


def make_pictures(seen: Seen) -> None:
    """One step of several requests, and several steps."""
    with make_engine() as engine:
        seen["together"] = pictures(engine.step([request(1), request(2), request(3, num_inference_steps=6)]))
        handles = [engine.submit(request(4, num_inference_steps=12))]
        handles.append(engine.submit(request(5)))
        seen["joined"] = pictures([handle.result(60) for handle in handles])
        seen["alone"] = pictures(engine.step([request(6)]))
        seen["whole"] = pictures(engine.executor.execute_model([request(7), request(8)]))


def talk(seen: Seen) -> None:
    """What else there is: seeds, ids, events, calls, aborts, sleep, and a second engine."""
    with make_engine() as engine:
        handle = engine.submit(OmniDiffusionRequest(prompt="a seven", num_inference_steps=8, output_type="np"))
        output = handle.result(60)
        seen["seed"] = output.seed
        seen["own id"] = output.request_id == handle.request_id
        seen["picture"] = pictures([output])[0]
        seen["events"] = [event.kind for event in handle.past_events()]

        seen["lambda"] = engine.collective_rpc(lambda worker: (worker.rank, os.getpid()))
        seen["one"] = engine.collective_rpc(lambda worker: worker.rank * 10, unique_reply_rank=1)
        seen["own arguments"] = engine.collective_rpc(lambda worker, mine: mine, args=(RANK + 5,))
        seen["stats"] = engine.stats().ended
        seen["raised"] = error_of(lambda: engine.collective_rpc(lambda worker: 1 / worker.rank))
        seen["unsendable"] = error_of(lambda: engine.collective_rpc(lambda worker: (n for n in range(worker.rank))))
        seen["no rank"] = error_of(lambda: engine.collective_rpc("stats", unique_reply_rank=2))

        began = time.monotonic()
        busy = engine.submit(request(9, num_inference_steps=30))
        engine.check_health()
        seen["health answers"] = time.monotonic() - began < 1.0
        seen["call while busy"] = engine.collective_rpc(lambda worker: worker.rank)
        seen["busy"] = busy.result(60).finish_reason

        # Rank 0 aborts when it has seen step 3; the others when they are told so, or later.
        long = engine.submit(request(10, num_inference_steps=5000))
        next(event for event in long.events(60) if event.kind == "step" and event.step >= 3)
        long.abort()
        seen["aborted"] = long.result(60).finish_reason
        # This one may be waiting or running when it is aborted, on one rank so and on the other otherwise.
        for number in range(20):
            short = engine.submit(request(number, num_inference_steps=500))
            short.abort()
            seen.setdefault("aborted at once", set()).add(short.result(60).finish_reason)
        seen["after aborts"] = pictures(engine.step([request(1)]))[0]
        late = engine.submit(request(1, num_inference_steps=100_000, timeout_s=0.5))
        seen["timeout"] = late.result(60).finish_reason

        engine.sleep()
        waiting = engine.submit(request(2))
        engine.wake_up()
        seen["after sleep"] = pictures([waiting.result(60)])[0]
    with make_engine(max_num_seqs=1) as engine:
        # With one place, ranks may take these up in different orders.
        urgent = [request(number, priority=number) for number in range(1, 5)]
        seen["by priority"] = pictures(engine.step(urgent))
        # Equal requests with seeds of rank 0's choice.
        same = [OmniDiffusionRequest(prompt="a one", num_inference_steps=2) for _ in range(4)]
        seen["seeds"] = [output.seed for output in engine.step(same)]


def with_own_group(seen: Seen) -> None:
    """The program's own process group stays its own; and only rank 0 gets pictures."""
    dist.init_process_group("gloo")
    with make_engine(outputs="rank0") as engine:
        handle = engine.submit(request(1, num_inference_steps=40))
        for _ in range(50):
            dist.barrier()  # beside the engine's own collectives
        output = handle.result(60).raise_for_error()
        seen["keys"] = sorted(output.output)
        seen["steps"] = output.metrics.num_steps
        seen["whole"] = sorted(engine.executor.execute_model([request(2)])[0].output)
    gathered: list[Any] = [None] * WORLD_SIZE
    dist.all_gather_object(gathered, RANK)
    seen["gathered"] = gathered
    with make_engine() as engine:
        seen["again"] = [len(output.images) for output in engine.step([request(1)])]
    dist.destroy_process_group()


def differ_in_prompt(seen: Seen) -> None:
    with make_engine() as engine:
        engine.step([request(1)])
        requests = [request(2), request(3, prompt=f"for rank {RANK}", guidance_scale=1.0 + RANK)]
        seen["errors"] = [str(output.error) for output in engine.step(requests)]
        seen["health"] = error_of(engine.check_health)
        seen["after"] = [output.finish_reason for output in engine.step([request(4)])]


def differ_in_number(seen: Seen) -> None:
    with make_engine(timeout_s=3.0) as engine:
        engine.step([request(1)])
        seen["error"] = ""
        if int(os.environ["LONGER_RANK"]) == RANK:
            began = time.monotonic()
            seen["error"] = str(engine.step([request(2)])[0].error)
            seen["seconds"] = time.monotonic() - began


def differ_in_number_and_stay(seen: Seen) -> None:
    """As above, but the other rank does not close its engine."""
    engine = make_engine(timeout_s=3.0)
    engine.step([request(1)])
    if int(os.environ["LONGER_RANK"]) == RANK:
        seen["error"] = str(engine.step([request(2)])[0].error)
    else:
        until(lambda: engine.executor.fault is not None)
        seen["error"] = str(engine.executor.fault)
    engine.close()


def differ_in_call(seen: Seen) -> None:
    with make_engine() as engine:
        seen["error"] = error_of(lambda: engine.collective_rpc("check_health" if RANK else "stats"))
        seen["after"] = [output.finish_reason for output in engine.step([request(1)])]


def differ_in_config(seen: Seen) -> None:
    seen["error"] = error_of(lambda: make_engine(stacking="off" if RANK else "verified"))


def fail_to_start(seen: Seen) -> None:
    seen["error"] = error_of(lambda: make_engine(model="spmd_script:broken_pipeline"))


def broken_pipeline() -> Any:
    import diffusers

    from omni_core.worker.pipeline.loader import SMALL_MODEL

    if RANK == 1:
        raise RuntimeError("no pipeline today")
    return diffusers.DiffusionPipeline.from_pretrained(str(SMALL_MODEL))


def never_come(seen: Seen) -> None:
    seen["error"] = "" if RANK else error_of(lambda: make_engine(startup_timeout_s=2.0))


def wrong_size(seen: Seen) -> None:
    seen["size"] = error_of(lambda: make_engine(cfg_parallel_size=4))
    seen["replicas"] = error_of(lambda: make_engine(data_parallel_size=2))


def die(seen: Seen) -> None:
    """One rank kills itself in the middle of a request."""
    engine = make_engine()
    handle = engine.submit(request(1, num_inference_steps=100_000))
    for event in handle.events(60):
        if event.kind == "step" and event.step >= 2:
            if int(os.environ["DYING_RANK"]) == RANK:
                os.kill(os.getpid(), signal.SIGKILL)
            break
    began = time.monotonic()
    seen["error"] = str(handle.result(60).error)
    seen["seconds"] = time.monotonic() - began
    seen["after"] = str(engine.step([request(1)])[0].error)
    engine.close()
    seen["closed after"] = time.monotonic() - began


def stand_still(seen: Seen) -> None:
    """One rank is stopped in the middle of a request, and the other goes on."""
    engine = make_engine(timeout_s=3.0)
    handle = engine.submit(request(1, num_inference_steps=100_000))
    next(event for event in handle.events(60) if event.kind == "step" and event.step >= 2)
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    began = time.monotonic()
    seen["error"] = str(handle.result(60).error)
    seen["seconds"] = time.monotonic() - began
    engine.close()


def stop_rank_0(seen: Seen) -> None:
    """Rank 0 is stopped while there is nothing that it would have to answer."""
    # Longer than a busy machine holds up either rank, so that what is noticed first is the silence.
    engine = make_engine(timeout_s=8.0)
    engine.sleep()
    handle = engine.submit(request(1))
    engine.collective_rpc("check_health")  # so that both ranks know of the request
    if RANK == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    seen["error"] = str(handle.result(60).error)
    engine.close()


def close_in_order(seen: Seen) -> None:
    """Ranks close one after the other, each once with nothing to do, and once in the middle of a request."""
    for number, first in enumerate((0, 1, 0, 1)):
        engine = make_engine(timeout_s=20.0)
        engine.step([request(1)])
        handle = None
        if number >= 2:
            handle = engine.submit(request(2, num_inference_steps=100_000))
            next(event for event in handle.events(60) if event.kind == "step")
        if first != RANK:
            until((Path(sys.argv[2]) / f"closed {number}").exists)
        began = time.monotonic()
        engine.close()
        seen[f"seconds {number}"] = time.monotonic() - began
        if handle is not None:
            seen[f"end {number}"] = type(handle.result(1).error).__name__
        if first == RANK:
            (Path(sys.argv[2]) / f"closed {number}").touch()


def rest(seen: Seen) -> None:
    """An engine that has nothing to do for longer than any timeout lives, and costs nothing."""
    with make_engine(timeout_s=1.0) as engine:
        engine.step([request(1)])
        began, used, woken = time.monotonic(), time.process_time(), wake_ups()
        threading.Event().wait(4.0)  # time itself is what is waited for
        seconds = time.monotonic() - began
        seen["load"] = (time.process_time() - used) / seconds
        seen["wake-ups"] = (wake_ups() - woken) / seconds
        seen["after"] = [output.finish_reason for output in engine.step([request(2)])]


def wake_ups() -> int:
    """How often the threads of this process have begun to wait, hence been woken, but gloo's: 100 times a second."""
    times = 0
    for thread in Path("/proc/self/task").iterdir():
        status = (thread / "status").read_text()
        if not status.startswith("Name:\tgloo"):
            times += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return times


def error_of(function: Any) -> str:
    try:
        function()
    except OmniError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def until(condition: Any, seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    tick = threading.Event()
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s")
        tick.wait(0.01)


def main() -> None:
    seen: Seen = {}
    try:
        globals()[sys.argv[1]](seen)
    finally:
        (Path(sys.argv[2]) / f"rank {RANK}").write_bytes(pickle.dumps(seen))


if __name__ == "__main__":
    main()
