"""Pipelines that copy, re-create and replace their parts while they run, and owners that do so between two requests."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.worker.pipeline.foreign_state import foreign_forward
from small_pipelines import CASES, rearranging

SEEDS = (3, 4)


def bare(pipeline: Any, seed: int, steps: int = 4) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(seed)
    return pipeline(steps, torch.Generator().manual_seed(seed), "np").images


def request(seed: int, steps: int = 4, **more: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(seed=seed, num_inference_steps=steps, output_type="np", **more)


def pictures(output: Any) -> Any:
    return output.raise_for_error().output["images"]


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, int], Any]:
    made = {}
    for name, arguments in rearranging.ARGUMENTS.items():
        for seed in SEEDS:
            made[name, seed] = bare(rearranging.build(**arguments), seed)
    return made


def test_all_at_once(expected: dict[tuple[str, int], Any]) -> None:
    config = OmniDiffusionConfig(stacking="off", max_num_seqs=12)
    keys = list(expected)
    with DiffusionEngine(config, pipeline=rearranging.every()) as engine:
        outputs = engine.step([request(seed, extra_args={"which": name}) for name, seed in keys])
    for key, output in zip(keys, outputs, strict=True):
        assert np.array_equal(pictures(output), expected[key]), key


def run_in_company(pipeline: Any, count: int = 3) -> tuple[list[Any], Any]:
    with DiffusionEngine(pipeline=pipeline) as engine:
        outputs = engine.step([request(seed) for seed in range(count)])
        return outputs, engine.stats().stacking


def other_unet(pipeline: Any) -> None:
    pipeline.unet = rearranging.unet(11)


def other_scheduler(pipeline: Any) -> None:
    pipeline.scheduler = rearranging.SCHEDULERS["dpm"]()


def other_weights(pipeline: Any) -> None:
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(0.5)


def other_layer(pipeline: Any) -> None:
    """What loading LoRA weights comes to: another module in place of a layer."""
    torch.manual_seed(1)
    old = pipeline.unet.conv_in
    pipeline.unet.conv_in = torch.nn.Sequential(old, torch.nn.Conv2d(old.out_channels, old.out_channels, 1))


def other_class(pipeline: Any) -> None:
    class Half(type(pipeline.unet)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            made = super().forward(*args, **kwargs)
            made.sample = made.sample * 0.5
            return made

    pipeline.unet.__class__ = Half


def compiled(pipeline: Any) -> None:
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")


CHANGES: list[Callable[[Any], None]] = [other_unet, other_scheduler, other_weights, other_layer, other_class, compiled]


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_owner_changes_between_two_requests(change: Callable[[Any], None]) -> None:
    def build() -> Any:
        return rearranging.Rearranging(rearranging.unet(), rearranging.SCHEDULERS["euler"]())

    changed, pipeline = build(), build()
    change(changed)
    with DiffusionEngine(pipeline=pipeline) as engine:
        [before] = engine.step([request(0)])
        change(pipeline)
        before_calls = engine.stats().stacking
        outputs = engine.step([request(seed) for seed in range(3)])
        after = engine.stats().stacking
        assert before_calls is not None
        assert after is not None
        # All four calls of the three suspend: they are stacked, or told why not.
        assert after.calls - before_calls.calls == 12
        assert after.verified == 1
        # And so it can be aborted at its first step.
        handle = engine.submit(request(1, steps=500))
        for event in handle.events(timeout=60):
            if event.kind == "step" and event.step >= 1:
                handle.abort()
        assert handle.result(timeout=60).finish_reason == "aborted"
        assert 1 <= handle.result().metrics.num_steps < 100
    assert not np.array_equal(pictures(before), pictures(outputs[0])) or change is compiled
    for seed, output in enumerate(outputs):
        assert np.abs(pictures(output) - bare(changed, seed)).max() <= 1e-4


def test_an_autoencoder_is_replaced() -> None:
    case = CASES["stable_diffusion"]
    fields = {**case.fields, "output_type": "np"}

    def change(pipeline: Any) -> None:
        pipeline.vae = copy.deepcopy(pipeline.vae)
        with torch.no_grad():
            pipeline.vae.decoder.conv_out.weight.mul_(0.5)

    changed, pipeline = case.build(), case.build()
    change(changed)
    changed.set_progress_bar_config(disable=True)
    with DiffusionEngine(pipeline=pipeline) as engine:
        engine.step([OmniDiffusionRequest(**fields, seed=1)])
        change(pipeline)
        [output] = engine.step([OmniDiffusionRequest(**fields, seed=1)])
    right = changed(**fields, generator=torch.Generator().manual_seed(1)).images
    assert np.array_equal(pictures(output), right)


def test_a_denoiser_that_a_request_makes_suspends() -> None:
    outputs, stats = run_in_company(rearranging.build("replaced_model", "euler"))
    assert stats.calls == 12
    assert all(output.finish_reason == "finished" for output in outputs)


def test_replaced_weights_are_let_go() -> None:
    import gc
    import weakref

    pipeline = rearranging.Rearranging(rearranging.unet(), rearranging.SCHEDULERS["euler"]())
    with DiffusionEngine(pipeline=pipeline) as engine:
        engine.step([request(0)])
        old = weakref.ref(pipeline.unet)
        other_unet(pipeline)
        engine.step([request(0)])
        gc.collect()
        assert old() is None


# Step caches as add-ons make them.


def on_the_object(pipeline: Any) -> None:
    """Every second call gives what the one before gave; counter and residual are attributes of the model."""
    unet = pipeline.unet
    unet.count, unet.previous = 0, None
    original = unet.forward

    def forward(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count % 2 == 1 or self.previous is None:
            self.previous = original(sample, *args, **kwargs)
        return self.previous

    unet.forward = types.MethodType(forward, unet)


def in_a_closure(pipeline: Any) -> None:
    original, kept = pipeline.unet.forward, {"count": 0, "previous": None}

    def forward(sample: Any, *args: Any, **kwargs: Any) -> Any:
        kept["count"] += 1
        if kept["count"] % 2 == 1:
            kept["previous"] = original(sample, *args, **kwargs)
        return kept["previous"]

    pipeline.unet.forward = forward


def in_a_block(pipeline: Any) -> None:
    block = pipeline.unet.mid_block
    original, kept = block.forward, []

    def forward(*args: Any, **kwargs: Any) -> Any:
        kept.append(original(*args, **kwargs))
        return kept[-1] if len(kept) % 2 == 1 else kept[-2]

    block.forward = forward


def on_the_class(pipeline: Any) -> None:
    """As TeaCache does it, `UNet.forward = ...`; on a class of its own that looks like the stock one."""
    kind = type("UNet2DModel", (type(pipeline.unet),), {"__module__": type(pipeline.unet).__module__})
    original = type(pipeline.unet).forward
    pipeline.unet.__class__ = kind

    def forward(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        kind.count = getattr(kind, "count", 0) + 1
        if kind.count % 2 == 1:
            kind.previous = original(self, sample, *args, **kwargs)
        return kind.previous

    kind.forward = forward


def on_the_scheduler(pipeline: Any) -> None:
    original, scheduler = pipeline.scheduler.step, pipeline.scheduler
    seen: list[Any] = []

    def step(noise: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(noise)
        return original(seen[-1] if len(seen) % 2 == 1 else (seen[-1] + seen[-2]) / 2, *args, **kwargs)

    scheduler.step = step


ADD_ONS = [on_the_object, in_a_closure, in_a_block, on_the_class, on_the_scheduler]


def wrapped(add_on: Callable[[Any], None]) -> Any:
    pipeline = rearranging.Rearranging(rearranging.unet(), rearranging.SCHEDULERS["euler"]())
    add_on(pipeline)
    return pipeline


@pytest.mark.parametrize("add_on", ADD_ONS)
def test_requests_share_no_step_cache(add_on: Callable[[Any], None], caplog: pytest.LogCaptureFixture) -> None:
    pipeline = wrapped(add_on)
    right = [bare(pipeline, seed) for seed in range(4)]
    plain = [bare(wrapped(lambda _: None), seed) for seed in range(4)]
    assert not np.array_equal(right[0], plain[0]), "the add-on does nothing"
    with DiffusionEngine(pipeline=wrapped(add_on)) as engine:
        handles = [engine.submit(request(seed)) for seed in range(4)]
        outputs = [handle.result(timeout=60) for handle in handles]
    for output, expected in zip(outputs, right, strict=True):
        assert np.array_equal(pictures(output), expected)
    assert caplog.text.count("one at a time") == 1


@pytest.mark.parametrize("add_on", ADD_ONS)
def test_an_aborted_request_leaves_nothing_half_done(add_on: Callable[[Any], None]) -> None:
    pipeline = wrapped(add_on)
    right = [bare(pipeline, 1, steps=7), bare(pipeline, 2), bare(pipeline, 3)]
    with DiffusionEngine(OmniDiffusionConfig(max_num_seqs=2), pipeline=wrapped(add_on)) as engine:
        handle, second, third = engine.submit(request(1, steps=7)), None, None
        for event in handle.events(timeout=60):
            if event.kind == "step" and event.step == 3:
                handle.abort()
        second, third = engine.submit(request(2)), engine.submit(request(3))
        outputs = [one.result(timeout=60) for one in (handle, second, third)]
    assert outputs[0].finish_reason in ("aborted", "finished")
    for output, expected in zip(outputs[1:], right[1:], strict=True):
        assert np.array_equal(pictures(output), expected)


def test_one_that_overtakes_waits_for_its_turn() -> None:
    pipeline = wrapped(in_a_closure)
    right = [bare(pipeline, seed, steps) for seed, steps in ((1, 41), (2, 4))]
    with DiffusionEngine(OmniDiffusionConfig(max_num_seqs=1), pipeline=wrapped(in_a_closure)) as engine:
        first = engine.submit(request(1, steps=41))
        for event in first.events(timeout=60):
            if event.kind == "step" and event.step == 2:
                break
        urgent = engine.submit(request(2, priority=5))
        assert np.array_equal(pictures(urgent.result(timeout=60)), right[1])
        assert np.array_equal(pictures(first.result(timeout=60)), right[0])


@pytest.mark.parametrize("name", ["hook", "compile", "compiled forward", "own forward", "removed hook"])
def test_what_is_known_does_not_cost_the_batching(name: str) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    pipeline = rearranging.Rearranging(rearranging.unet(), rearranging.SCHEDULERS["euler"]())
    unet = pipeline.unet
    if "hook" in name:
        HookRegistry.check_if_exists_or_initialize(unet.mid_block).register_hook(ModelHook(), "theirs")
    if name == "removed hook":
        unet.mid_block._diffusers_hook.remove_hook("theirs")
        assert "forward" in vars(unet.mid_block)
    if name == "compile":
        unet.compile(backend="eager")
    if name == "compiled forward":
        unet.forward = torch.compile(unet.forward, backend="eager")
    if name == "own forward":
        unet.forward = unet.forward
    outputs, stats = run_in_company(pipeline)
    assert all(output.finish_reason == "finished" for output in outputs)
    assert stats.mean_rows > 1


def test_no_stock_model_is_taken_for_a_wrapped_one() -> None:
    found = 0
    for name in dir(diffusers):
        kind = getattr(diffusers, name)
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module) and "dummy" not in kind.__module__:
            part: Any = object.__new__(kind)
            part.__dict__ = {"_modules": {}}
            assert foreign_forward([part]) is None, name
            found += 1
    assert found > 80, found
