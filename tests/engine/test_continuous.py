"""Requests join, leave, overtake and are followed at any step of the others."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, PluginRegistry, hookimpl
from omni_core.errors import ConfigError
from small_pipelines import CASES, images

LONG = 900


class StepLog:
    """Notes the steps of all requests in the order in which they were made, and can act at one of them."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int]] = []
        self.at: dict[tuple[str, int], Callable[[], None]] = {}

    @hookimpl
    def omni_request_step(self, request_id: str, step: int) -> None:
        self.steps.append((request_id, step))
        if (action := self.at.pop((request_id, step), None)) is not None:
            action()

    def engine(self, pipeline: Any, **options: Any) -> DiffusionEngine:
        plugins = PluginRegistry()
        plugins.register(self, name="step-log")
        return DiffusionEngine(OmniDiffusionConfig(**options), pipeline=pipeline, plugins=plugins)


def sd3(seed: int, **fields: Any) -> OmniDiffusionRequest:
    case = CASES["stable_diffusion_3"]
    return OmniDiffusionRequest(
        **{**case.fields, "extra_args": case.extra_args, "seed": seed, "output_type": "np", **fields}
    )


def alone(request: OmniDiffusionRequest) -> np.ndarray[Any, Any]:
    with DiffusionEngine(OmniDiffusionConfig(stacking="off"), pipeline=images.stable_diffusion_3()) as engine:
        return np.asarray(engine.step([request])[0].raise_for_error().output["images"])


class WorkerLog:
    """Notes what the worker does, in its own thread: each start of a request, and the rows of each forward.

    Args:
        engine: Whose worker.
        pipeline: The pipeline that was given to it.
        at: Number of rows: at the first forward of so many, `action` is called, in the worker's thread, and the
            forward ends only when the engine has told the executor that there is something new.
        action: What to do then.
    """

    def __init__(self, engine: DiffusionEngine, pipeline: Any, at: int, action: Callable[[], None]) -> None:
        self.happened: list[str | int] = []
        self._at = at
        self._action = action
        self._was_told = threading.Event()
        self._interrupt = engine.executor.interrupt
        engine.executor.interrupt = self._note_interrupt  # type: ignore[method-assign]
        pipeline.transformer.register_forward_hook(self._after_forward, with_kwargs=True)
        pipeline.text_encoder.register_forward_hook(lambda *_: self.happened.append("start"))

    @property
    def since(self) -> list[str | int]:
        """What happened after the action."""
        return self.happened[self.happened.index("action") + 1 :]

    def _note_interrupt(self, replica: int) -> None:
        self._interrupt(replica)
        self._was_told.set()

    def _after_forward(self, _module: Any, _args: Any, kwargs: Any, _output: Any) -> None:
        rows = len(kwargs["hidden_states"])
        self.happened.append(rows)
        if rows == self._at and "action" not in self.happened:
            self.happened.append("action")
            self._was_told.clear()
            self._action()
            assert self._was_told.wait(30)


def test_a_late_short_request_gets_its_first_step_within_two_steps_of_the_long_ones() -> None:
    pipeline = images.stable_diffusion_3()
    with DiffusionEngine(OmniDiffusionConfig(max_num_seqs=9), pipeline=pipeline) as engine:
        late: list[Any] = []
        log = WorkerLog(engine, pipeline, 16, lambda: late.append(engine.submit(sd3(99, num_inference_steps=2))))
        handles = engine.submit_all([sd3(seed, num_inference_steps=40) for seed in range(8)])
        outputs = [handle.result(60) for handle in handles] + [late[0].result(60)]
    assert [output.finish_reason for output in outputs] == ["finished"] * 9
    # It is in the forward of 18 rows: that of its first step, with the eight. Alone, to be verified, it has 2.
    assert log.since.index("start") <= 1
    steps = [rows for rows in log.since if rows != "start"]
    assert min(steps.index(rows) for rows in (2, 18) if rows in steps) <= 2
    assert steps.count(16) > 20, "the long ones had ended before it came"


def test_abort_of_one_of_eight_leaves_the_others_as_they_are() -> None:
    requests = [sd3(seed, request_id=f"r{seed}", num_inference_steps=24) for seed in range(9)]
    expected = [alone(request) for request in requests]
    pipeline = images.stable_diffusion_3()
    with DiffusionEngine(OmniDiffusionConfig(max_num_seqs=8), pipeline=pipeline) as engine:
        log = WorkerLog(engine, pipeline, 16, lambda: engine.abort("r3"))
        outputs = [handle.result(60) for handle in engine.submit_all(requests)]
    assert [output.finish_reason for output in outputs] == ["finished"] * 3 + ["aborted"] + ["finished"] * 5
    for seed, output in enumerate(outputs):
        if seed != 3:
            assert np.abs(output.output["images"] - expected[seed]).max() <= 1e-5
    # r8 took the free place at once: at most one forward was run before it began.
    assert log.since.index("start") <= 1


def test_a_more_urgent_request_overtakes_and_the_parked_one_is_not_lost() -> None:
    steps = 150
    expected = alone(sd3(1, num_inference_steps=steps))
    log = StepLog()
    with log.engine(images.stable_diffusion_3(), max_num_seqs=1) as engine:
        urgent: list[Any] = []
        log.at["low", 5] = lambda: urgent.append(
            engine.submit(sd3(2, request_id="high", priority=1, num_inference_steps=3))
        )
        low = engine.submit(sd3(1, request_id="low", num_inference_steps=steps))
        output = low.result(60).raise_for_error()
        urgent[0].result(60).raise_for_error()
    names = [name for name, step in log.steps if step > 0]
    assert [step for name, step in log.steps if name == "low" and step > 0] == list(range(1, steps + 1)), "restarted"
    assert names[names.index("high") :][:3] == ["high"] * 3, "the low one went on beside it"
    assert names[-1] == "low"
    assert np.array_equal(output.output["images"], expected)


def test_requests_of_different_sizes_and_guidance_run_side_by_side() -> None:
    requests = [
        sd3(1, num_inference_steps=6),
        sd3(2, num_inference_steps=6, height=16, width=32),
        sd3(3, num_inference_steps=6, guidance_scale=1.0),
        sd3(4, num_inference_steps=6, num_outputs_per_prompt=3),
    ]
    expected = [alone(request) for request in requests]
    log = StepLog()
    with log.engine(images.stable_diffusion_3()) as engine:
        outputs = engine.step(requests)
        stats = engine.stats().stacking
    for output, wanted in zip(outputs, expected, strict=True):
        assert np.abs(output.raise_for_error().output["images"] - wanted).max() <= 1e-4
    assert stats is not None
    assert stats.forwards < stats.calls
    names = [name for name, step in log.steps if step > 0]
    first_end = min(len(names) - 1 - names[::-1].index(request.request_id) for request in requests)
    assert {request.request_id for request in requests} == set(names[:first_end]), "one waited for a whole other"


@pytest.mark.parametrize("name", ["stable_diffusion_3", "flux", "ddpm", "wan", "dance_diffusion"])
def test_previews(name: str) -> None:
    case = CASES[name]
    with DiffusionEngine(pipeline=case.build()) as engine:
        fields = {**case.fields, "num_inference_steps": 7, "preview_every": 2, "seed": 1}
        handle = engine.submit(OmniDiffusionRequest(**fields, extra_args=case.extra_args))
        other = engine.submit(OmniDiffusionRequest(**{**fields, "preview_every": None}, extra_args=case.extra_args))
        previews = [(event.step, event.preview) for event in handle.events(60) if event.kind == "step"]
        assert all(event.preview is None for event in other.events(60))
        output = handle.result(1).raise_for_error().output[case.output]
    shown = [(step, picture) for step, picture in previews if picture is not None]
    if name == "dance_diffusion":  # sound has no picture
        assert shown == []
        return
    assert [step for step, _ in shown] == [2, 4, 6]
    assert all(isinstance(picture, Image.Image) and max(picture.size) <= 64 for _, picture in shown)
    assert len({picture.tobytes() for _, picture in shown}) == 3
    plain = alone_with(case, fields)
    difference = np.abs(np.asarray(output[0]).astype(float) - np.asarray(plain[0]).astype(float)).max()
    assert difference <= (1e-5 if case.output == "frames" else 1), "a preview changed the picture"


def alone_with(case: Any, fields: dict[str, Any]) -> Any:
    with DiffusionEngine(OmniDiffusionConfig(stacking="off"), pipeline=case.build()) as engine:
        request = OmniDiffusionRequest(**{**fields, "preview_every": None}, extra_args=case.extra_args)
        return engine.step([request])[0].raise_for_error().output[case.output]


@pytest.mark.parametrize("stacking", ["verified", "trusted", "off"])
def test_stacking_modes(stacking: str) -> None:
    requests = [sd3(seed, num_inference_steps=5) for seed in range(3)]
    expected = [alone(request) for request in requests]
    with DiffusionEngine(OmniDiffusionConfig(stacking=stacking), pipeline=images.stable_diffusion_3()) as engine:
        outputs = engine.step(requests)
        stats = engine.stats().stacking
    assert stats is not None
    # Verifying it runs each part alone, and the first of them twice; with the fourth call one is run alone as well.
    rows = {"verified": (4 * 2 + 5 * 6 + 2) / 10, "trusted": 6.0, "off": 2.0}[stacking]
    assert stats.mean_rows == pytest.approx(rows)
    assert stats.verified == (1 if stacking == "verified" else 0)
    for output, wanted in zip(outputs, expected, strict=True):
        difference = np.abs(output.raise_for_error().output["images"] - wanted).max()
        assert difference == 0 if stacking == "off" else difference <= 1e-5
        assert output.metrics.mean_rows == pytest.approx(
            {"verified": 26 / 5, "trusted": 6, "off": 2}[stacking], abs=0.1
        )


CACHES: list[dict[str, Any]] = [
    {"name": "FirstBlockCacheConfig", "threshold": 0.5},
    {
        "name": "PyramidAttentionBroadcastConfig",
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": [0, 1000],
    },
    {"name": "TaylorSeerCacheConfig", "cache_interval": 2},
]


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: cache["name"])
def test_caches_keep_interleaved_requests_apart(cache: dict[str, Any]) -> None:
    case = CASES["flux"]
    config = OmniDiffusionConfig(cache=cache)
    fields = {**case.fields, "output_type": "np", "extra_args": case.extra_args}
    requests = [
        OmniDiffusionRequest(**{**fields, "num_inference_steps": steps}, seed=seed)
        for seed, steps in ((1, 8), (2, 6), (3, 8))
    ]
    with DiffusionEngine(config, pipeline=case.build()) as engine:
        expected = [engine.step([request])[0].raise_for_error().output["images"] for request in requests]
    with DiffusionEngine(config, pipeline=case.build()) as engine:
        outputs = engine.step(requests)
        stats = engine.stats().stacking
    for output, wanted in zip(outputs, expected, strict=True):
        assert np.array_equal(output.raise_for_error().output["images"], wanted)
    assert stats is not None
    assert stats.forwards == stats.calls
    with DiffusionEngine(pipeline=case.build()) as engine:
        without = [engine.step([request])[0].output["images"] for request in requests]
    assert any(not np.array_equal(one, other) for one, other in zip(expected, without, strict=True)), "no cache at work"


def test_a_cache_by_its_name_alone_and_one_that_cannot_be() -> None:
    case = CASES["flux"]
    with DiffusionEngine(OmniDiffusionConfig(cache="FirstBlockCacheConfig"), pipeline=case.build()) as engine:
        [output] = engine.step([OmniDiffusionRequest(**case.fields, extra_args=case.extra_args)])
        assert output.finish_reason == "finished"
    for cache, words in [
        ("FirstBlockCache", "Did you mean 'FirstBlockCacheConfig'"),
        ({"name": "FirstBlockCacheConfig", "treshold": 1}, "Did you mean 'threshold'"),
        ({"threshold": 1}, "names no cache"),
    ]:
        with pytest.raises(ConfigError, match=words):
            DiffusionEngine(OmniDiffusionConfig(cache=cache), pipeline=images.flux())
    with pytest.raises(ConfigError, match="no denoiser of DDPMPipeline can have a cache"):
        DiffusionEngine(OmniDiffusionConfig(cache="FirstBlockCacheConfig"), pipeline=images.ddpm())


def test_a_slow_decode_does_not_hold_up_the_steps_of_others() -> None:
    release = threading.Event()
    pipeline = images.stable_diffusion_3()
    decode = pipeline.vae.decode

    def slow_decode(latents: Any, *args: Any, **kwargs: Any) -> Any:
        assert release.wait(30)
        return decode(latents, *args, **kwargs)

    if 2 * torch.get_num_threads() > len(os.sched_getaffinity(0)):
        pytest.skip("autoencoders run beside the denoising only where there is a core for them")
    pipeline.vae.decode = slow_decode
    with DiffusionEngine(pipeline=pipeline) as engine:
        short = engine.submit(sd3(1, num_inference_steps=2))
        long = engine.submit(sd3(2, num_inference_steps=200))
        for event in long.events(60):
            if event.kind == "step" and event.step >= 50:
                break
        assert not short.done()
        assert engine.collective_rpc("check_health", timeout=10) == [None]
        release.set()
        assert short.result(30).finish_reason == "finished"
        long.abort()
