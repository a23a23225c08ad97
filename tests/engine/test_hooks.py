"""What plugins are told and asked while an engine works: whose it is, what happened, and what they may change."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from engine.tampering import Tampered, executor_of
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, OmniRequestOutput, hookimpl
from omni_core.errors import (
    EngineError,
    EngineOverloadedError,
    ExecutorError,
    PluginError,
    RequestAbortedError,
    RequestError,
    RPCTimeoutError,
    WorkerDiedError,
)
from omni_core.hookspecs import OBSERVERS
from omni_core.plugins import PluginRegistry
from omni_core.testing.pipelines import picture

PATIENCE_S = 30.0


def ask(seed: int = 1, **fields: Any) -> OmniDiffusionRequest:
    return OmniDiffusionRequest(prompt="a red seven", seed=seed, **{"num_inference_steps": 3, **fields})


def observer(names: frozenset[str] = OBSERVERS) -> Any:
    """Return a plugin that notes each call of these hooks with all its arguments."""
    from omni_core import hookspecs

    told: list[tuple[str, dict[str, Any]]] = []
    members: dict[str, Any] = {"told": told}
    for name in names:
        code = getattr(hookspecs, name).__code__
        arguments = code.co_varnames[: code.co_argcount]
        given = ", ".join(f"{argument}={argument}" for argument in arguments)
        source = f"def {name}(self, {', '.join(arguments)}): self.told.append(('{name}', dict({given})))"
        space: dict[str, Any] = {}
        exec(source, space)
        members[name] = hookimpl(space[name])
    return type("Observer", (), members)()


def engine_with(*plugins: Any, executor_class: Any = Tampered, **fields: Any) -> DiffusionEngine:
    registry = PluginRegistry()
    for plugin in plugins:
        registry.register(plugin)
    if executor_class is Tampered:
        fields = {"data_parallel_size": 2, **fields}
    return DiffusionEngine(
        OmniDiffusionConfig(executor_class=executor_class, log_level="error", **fields), plugins=registry
    )


@pytest.fixture
def seen() -> Any:
    return observer()


def of(seen: Any, name: str) -> list[dict[str, Any]]:
    return [arguments for hook, arguments in seen.told if hook == name]


def test_two_engines_of_one_process_are_told_apart(seen: Any) -> None:
    registry = PluginRegistry()
    registry.register(seen)
    config = OmniDiffusionConfig(executor_class="inline", log_level="error")
    first, second = (DiffusionEngine(config, plugins=registry) for _ in range(2))
    with first, second:
        assert first.engine_id != second.engine_id
        mine, yours = ask(1, request_id="mine"), ask(2, request_id="yours")
        first.step([mine], PATIENCE_S)
        second.step([yours], PATIENCE_S)
    for engine, request in ((first, mine), (second, yours)):
        told = [(name, arguments) for name, arguments in seen.told if arguments["engine_id"] == engine.engine_id]
        names = {name for name, _ in told}
        assert names >= {
            "omni_engine_started",
            "omni_request_queued",
            "omni_request_started",
            "omni_step_done",
            "omni_request_finished",
            "omni_engine_closed",
        }
        assert {a["request"].request_id for _, a in told if "request" in a} == {request.request_id}
        [started] = [arguments for name, arguments in told if name == "omni_engine_started"]
        assert started["engine"] is engine


def test_steps_are_told_with_their_forwards(seen: Any) -> None:
    with engine_with(seen, executor_class="inline") as engine:
        engine.step([ask(1, request_id="one"), ask(2, request_id="two")], PATIENCE_S)
    forwards = [forward for step in of(seen, "omni_step_done") for forward in step["forwards"]]
    assert {name for forward in forwards for name in forward.request_ids} == {"one", "two"}
    assert sum(forward.rows for forward in forwards) == 2 * 2 * 3  # requests, halves of guidance, steps
    for step in of(seen, "omni_step_done"):
        assert step["replica"] == 0
        assert step["seconds"] >= sum(forward.seconds for forward in step["forwards"])


def test_verdicts_on_stacking_are_told_when_they_change(seen: Any) -> None:
    with engine_with(seen, executor_class="inline") as engine:
        engine.step([ask(1, num_inference_steps=20), ask(2, num_inference_steps=20)], PATIENCE_S)
        known = engine.stats().stacking
    told = of(seen, "omni_stacking_changed")
    assert known is not None
    assert known.verified == 1
    assert {one["replica"] for one in told} == {0}
    verdicts = [(one["stacking"].verified, one["stacking"].checks) for one in told]
    assert verdicts[-1] == (known.verified, known.checks)
    assert verdicts == sorted(set(verdicts)), "each was told once"


def test_a_finished_and_a_failed_request_come_with_request_and_output(seen: Any) -> None:
    with engine_with(seen) as engine:
        executor_of(engine).workers[0].describe_pipeline()
        good, bad = ask(1), ask(2, timeout_s=0.001)
        engine.sleep()  # so that its time is over before it begins
        engine.step([bad], PATIENCE_S)
        engine.wake_up()
        engine.step([good], PATIENCE_S)
    [finished] = of(seen, "omni_request_finished")
    assert finished["request"] is good
    assert finished["output"].images == [1]
    [failed] = of(seen, "omni_request_failed")
    assert failed["request"] is bad
    assert failed["output"].error is failed["error"]


@pytest.mark.parametrize(
    ("change", "kind", "num_before"),
    [
        ({"max_prompt_length": 3}, RequestError, 0),
        ({"max_waiting": 1, "max_num_seqs": 1}, RequestError, 0),  # never could so many wait
        ({"max_waiting": 2, "max_num_seqs": 1}, EngineOverloadedError, 1),
    ],
)
def test_a_refused_request_is_told(seen: Any, change: dict[str, Any], kind: type[Exception], num_before: int) -> None:
    with engine_with(seen, **change) as engine:
        engine.sleep()
        engine.submit_all([ask(9) for _ in range(num_before)])
        requests = [ask(seed) for seed in range(4)]
        with pytest.raises(kind):
            engine.submit_all(requests)
    assert [one["request"] for one in of(seen, "omni_request_refused")] == requests
    assert all(isinstance(one["error"], kind) for one in of(seen, "omni_request_refused"))
    assert len(of(seen, "omni_request_queued")) == num_before


def test_sleep_and_wake_are_told_once_each(seen: Any) -> None:
    with engine_with(seen) as engine:
        engine.wake_up()
        engine.sleep(level=1)
        engine.sleep(level=1)
        engine.sleep(level=2)
        assert engine.sleep_level == 2
        engine.wake_up()
    assert [(name, arguments.get("level")) for name, arguments in seen.told if "engine_a" in name] == [
        ("omni_engine_asleep", 1),
        ("omni_engine_asleep", 2),
        ("omni_engine_awake", None),
    ]


def test_a_sleep_that_takes_too_long_is_told_since_requests_wait(seen: Any) -> None:
    entered, release = threading.Event(), threading.Event()

    def block(worker: Any) -> None:
        entered.set()
        release.wait(PATIENCE_S)

    with engine_with(seen, executor_class="inline") as engine:
        call = engine.collective_rpc(block, non_block=True)
        assert entered.wait(PATIENCE_S)
        with pytest.raises(RPCTimeoutError):
            engine.sleep(timeout=0.05)
        release.set()
        call.result(PATIENCE_S)
        engine.wake_up()
    assert [name for name, _ in seen.told if name.startswith("omni_engine_a")] == [
        "omni_engine_asleep",
        "omni_engine_awake",
    ]


@pytest.mark.parametrize("executor_class", ["inline", Tampered])
def test_calls_that_are_begun_are_made_in_their_order(executor_class: Any) -> None:
    made: list[int] = []
    with engine_with(executor_class=executor_class, data_parallel_size=1) as engine:
        calls = [
            engine.collective_rpc(lambda worker, number: made.append(number), args=(number,), non_block=True)
            for number in range(50)
        ]
        for call in calls:
            call.result(PATIENCE_S)
    assert made == list(range(50))


def test_an_observer_of_steps_cannot_change_them() -> None:
    class Sorts:
        @hookimpl
        def omni_step_done(self, forwards: Any) -> None:
            forwards.clear()

    with engine_with(Sorts(), executor_class="inline") as engine:
        [output] = engine.step([ask(1)], PATIENCE_S)
    output.raise_for_error()


def test_a_retry_is_told_with_its_reason(seen: Any) -> None:
    deaths = iter([WorkerDiedError("killed by nobody", replica=0)])

    def tamper(asked: str, replica: int, answer: Any) -> Any:
        if asked == "execute_step":
            answer.result(PATIENCE_S)
            if (error := next(deaths, None)) is not None:
                executor_of(engine).workers[0] = type(executor_of(engine).workers[0])(replica=0)
                raise error
        return answer

    with engine_with(seen, data_parallel_size=1) as engine:
        executor_of(engine).tamper = tamper
        request = ask(5)
        [output] = engine.step([request], PATIENCE_S)
        assert output.images == [5]
    [retried] = of(seen, "omni_request_retried")
    assert (retried["request"], retried["replica"], retried["num_retries"]) == (request, 0, 1)
    assert retried["reason"] == "killed by nobody"


def test_the_executor_is_told_of_its_own_engines_requests_in_order() -> None:
    told: list[tuple[str, str]] = []

    class Listens(Tampered):
        def request_queued(self, request: OmniDiffusionRequest) -> None:
            told.append(("queued", request.request_id))

        def request_ended(self, request_id: str, error: Any) -> None:
            told.append((type(error).__name__, request_id))

    with engine_with(executor_class=Listens, data_parallel_size=2) as engine, engine_with() as other:
        other.step([ask(9)], PATIENCE_S)
        handles = [engine.submit(ask(seed, request_id=f"r{seed}")) for seed in range(5)]
        for handle in handles:
            handle.result(PATIENCE_S)
        engine.sleep()
        waits = engine.submit(ask(6, request_id="waits"))
        waits.abort()
        waits.result(PATIENCE_S)
        engine.wake_up()
    assert [name for what, name in told if what == "queued"] == [*(f"r{seed}" for seed in range(5)), "waits"]
    assert sorted(name for what, name in told if what == "NoneType") == [f"r{seed}" for seed in range(5)]
    assert told[-1] == (RequestAbortedError.__name__, "waits")


# omni_output


def changes_outputs(function: Callable[[OmniDiffusionRequest, OmniRequestOutput], Any]) -> Any:
    class Changes:
        @hookimpl
        def omni_output(self, request: OmniDiffusionRequest, output: OmniRequestOutput, engine_id: str) -> Any:
            return function(request, output)

    return Changes()


def test_plugins_change_outputs_one_after_the_other(seen: Any) -> None:
    def mark(letter: str) -> Any:
        def add(request: OmniDiffusionRequest, output: OmniRequestOutput) -> OmniRequestOutput:
            return dataclasses.replace(output, output={"images": [f"{output.images[0]}{letter}"]})

        return changes_outputs(add)

    registry = PluginRegistry()
    for name, plugin in (("a", mark("a")), ("b", mark("b")), ("c", changes_outputs(lambda request, output: None))):
        registry.register(plugin, name)
    registry.register(seen)
    config = OmniDiffusionConfig(executor_class=Tampered, log_level="error")
    with DiffusionEngine(config, plugins=registry) as engine:
        outputs = engine.step([ask(seed) for seed in range(4)], PATIENCE_S)
    assert [sorted(output.images[0]) for output in outputs] == [sorted(f"{seed}ab") for seed in range(4)]
    assert [output.metrics.output_s > 0 for output in outputs] == [True] * 4
    assert {one["output"].images[0] for one in of(seen, "omni_request_finished")} == {o.images[0] for o in outputs}


def raises_refusal(request: OmniDiffusionRequest, output: OmniRequestOutput) -> None:
    if request.seed == 3:
        raise RequestError("That is no picture for here.")


def exits(request: OmniDiffusionRequest, output: OmniRequestOutput) -> None:
    if request.seed == 3:
        raise SystemExit(3)


def indexes(request: OmniDiffusionRequest, output: OmniRequestOutput) -> None:
    if request.seed == 3:
        output.images[7]


def text(request: OmniDiffusionRequest, output: OmniRequestOutput) -> Any:
    return "no" if request.seed == 3 else None


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "refuses": (raises_refusal, RequestError, "no picture for here"),
    "raises": (
        lambda request, output: [][request.seed == 3 or 0] if request.seed == 3 else None,
        PluginError,
        "IndexError",
    ),
    "exits": (exits, PluginError, "SystemExit"),
    "text": (
        lambda request, output: "no" if request.seed == 3 else None,
        PluginError,
        "must return None or OmniRequestOutput",
    ),
    "another's": (
        lambda request, output: dataclasses.replace(output, request_id="x") if request.seed == 3 else None,
        PluginError,
        "output of request 'x'",
    ),
    "aborted": (
        lambda request, output: dataclasses.replace(output, finish_reason="aborted") if request.seed == 3 else None,
        PluginError,
        "finish_reason is 'aborted'",
    ),
    "error without one": (
        lambda request, output: dataclasses.replace(output, finish_reason="error") if request.seed == 3 else None,
        PluginError,
        "'error' with an OmniError",
    ),
}


def spoiled(**changes: Any) -> Callable[[OmniDiffusionRequest, OmniRequestOutput], Any]:
    return lambda request, output: dataclasses.replace(output, **changes) if request.seed == 3 else None


BAD |= {
    "no metrics": (spoiled(metrics=None), PluginError, "whose metrics is None"),
    "no table": (spoiled(output=[1]), PluginError, "whose output is a list"),
    "a text for an error": (spoiled(finish_reason="error", error="no"), PluginError, "'error' with an OmniError"),
    "an error though finished": (spoiled(error=RequestError("no")), PluginError, "must be 'finished' with no error"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_it_raises_or_returns_wrong_fails_that_request_alone(case: str) -> None:
    function, kind, words = BAD[case]
    with engine_with(changes_outputs(function)) as engine:
        outputs = engine.step([ask(seed) for seed in range(5)], PATIENCE_S)
        for output in outputs:
            if output.seed == 3:
                assert output.finish_reason == "error"
                assert isinstance(output.error, kind)
                assert words in str(output.error)
            else:
                assert output.images == [output.seed]
        assert engine.stats().ended == {"finished": 4, "error": 1}


@pytest.fixture
def held() -> Iterator[tuple[DiffusionEngine, threading.Event, threading.Event]]:
    """An engine whose plugin holds the output of seed 3 up until it is released."""
    entered, release = threading.Event(), threading.Event()

    def hold(request: OmniDiffusionRequest, output: OmniRequestOutput) -> None:
        if request.seed == 3:
            entered.set()
            assert release.wait(PATIENCE_S)

    with engine_with(changes_outputs(hold)) as engine:
        yield engine, entered, release
        release.set()


def test_a_plugin_that_takes_its_time_holds_up_no_step(held: Any) -> None:
    engine, entered, release = held
    slow = engine.submit(ask(3))
    assert entered.wait(PATIENCE_S)
    assert engine.stats(ask_workers=False).running == 1
    other = engine.submit(ask(4))
    with pytest.raises(TimeoutError):
        slow.result(0.05)
    steps = [event for event in other.past_events() if event.kind == "step"]
    assert steps or not other.done
    release.set()
    assert other.result(PATIENCE_S).images == [4]
    assert slow.result(PATIENCE_S).images == [3]


@pytest.mark.parametrize("how", ["abort", "timeout", "close"])
def test_a_request_ends_while_a_plugin_looks_at_its_output(held: Any, how: str) -> None:
    engine, entered, release = held
    handle = engine.submit(ask(3, timeout_s=1.0 if how == "timeout" else None))
    assert entered.wait(PATIENCE_S)
    if how == "abort":
        handle.abort()
    elif how == "close":
        closing = threading.Thread(target=engine.close)
        closing.start()
    output = handle.result(PATIENCE_S)
    assert output.finish_reason == {"abort": "aborted", "timeout": "timeout", "close": "error"}[how]
    assert output.images == []
    release.set()
    if how == "close":
        closing.join(PATIENCE_S)
    else:
        assert engine.step([ask(4)], PATIENCE_S)[0].images == [4]
        assert sum(engine.stats().ended.values()) == 2


def test_requests_that_come_meanwhile_do_no_harm() -> None:
    with engine_with(changes_outputs(lambda request, output: None)) as engine:
        waiting: list[Any] = []

        def submit(first: int) -> None:
            waiting.extend(engine.submit(ask(first + number)) for number in range(150))

        threads = [threading.Thread(target=submit, args=(1000 * index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        for handle in waiting:
            assert handle.result(PATIENCE_S).raise_for_error().images == [handle.request.seed]
        assert engine.stats().running == 0
        assert engine.stats().ended == {"finished": 600}


def test_an_output_that_is_suspected_while_a_plugin_looks_at_it_says_so_itself(held: Any, seen: Any) -> None:
    engine, entered, release = held

    def suspect(asked: str, replica: int, answer: Any) -> Any:
        if asked == "the step" and not answer.finished:
            answer.suspects["first"] = "it was mixed up"
        return answer

    first = engine.submit(ask(3, request_id="first"))
    assert entered.wait(PATIENCE_S)
    executor_of(engine).tamper = suspect
    second = engine.submit(ask(4))
    next(event for event in second.events(PATIENCE_S) if event.kind == "step")
    release.set()
    output = first.result(PATIENCE_S)
    assert (output.images, output.metrics.suspect) == ([3], "it was mixed up")


def test_it_cannot_wait_for_its_own_engine() -> None:
    caught: list[Exception] = []

    def ask_more(request: OmniDiffusionRequest, output: OmniRequestOutput) -> None:
        try:
            engine.step([ask(7)], PATIENCE_S)
        except EngineError as error:
            caught.append(error)

    with engine_with(changes_outputs(ask_more)) as engine:
        assert engine.step([ask(3)], PATIENCE_S)[0].images == [3]
    assert "omni_output" in str(caught[0])


# Worker-side.


class Encodes:
    """Turns prompts that begin with an exclamation mark into embeddings, and leaves the others alone."""

    calls = 0

    @hookimpl
    def omni_encode_prompt(self, pipeline: Any, request: OmniDiffusionRequest) -> Any:
        self.calls += 1
        if request.prompt is None or not request.prompt.startswith("!"):
            return None
        return encoded(pipeline, request.prompt[1:])


def encoded(pipeline: Any, prompt: str) -> dict[str, Any]:
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        made = pipeline.encode_prompt(prompt, None, None, negative_prompt="blue", max_sequence_length=16)
    return dict(zip(names, made, strict=True))


@pytest.mark.parametrize("together", [False, True])
def test_a_plugin_encodes_the_prompt(together: bool) -> None:
    pipeline = picture()
    plugin = Encodes()
    registry = PluginRegistry()
    registry.register(plugin)
    config = OmniDiffusionConfig(executor_class="inline", log_level="error")
    fields: dict[str, Any] = {"num_inference_steps": 3, "height": 32, "width": 32, "output_type": "np"}
    length = {"max_sequence_length": 16}
    prompts = ["!a cat", "a cat", "!a dog"]
    with DiffusionEngine(config, pipeline=pipeline, plugins=registry) as engine:
        requests = [OmniDiffusionRequest(prompt=one, seed=1, extra_args=length, **fields) for one in prompts]
        outputs = engine.step(requests, 60) if together else [engine.step([one], 60)[0] for one in requests]
    for prompt, output in zip(prompts, outputs, strict=True):
        output.raise_for_error()
        given = encoded(pipeline, prompt[1:]) if prompt.startswith("!") else {"prompt": prompt}
        right = pipeline(**given, **fields, **length, generator=torch.Generator().manual_seed(1)).images
        assert abs(output.images[0] - right[0]).max() < 1e-4
    assert plugin.calls == 3
    # Else it would tell nothing: the hook's negative prompt makes another picture.
    assert abs(outputs[0].images[0] - outputs[1].images[0]).max() > 1e-3


@pytest.mark.parametrize("error", [RequestError("no such words"), ValueError("no such words")])
def test_what_it_raises_is_what_the_request_fails_with(error: Exception) -> None:
    class Refuses:
        @hookimpl
        def omni_encode_prompt(self, pipeline: Any, request: OmniDiffusionRequest) -> Any:
            if request.seed == 3:
                raise error
            return None

    with engine_with(Refuses(), executor_class="inline") as engine:
        good, bad = engine.step([ask(1), ask(3)], PATIENCE_S)
    good.raise_for_error()
    assert type(bad.error) is (RequestError if isinstance(error, RequestError) else PluginError)
    assert "no such words" in str(bad.error)
    assert "omni_encode_prompt" in str(bad.error.worker_traceback)


def test_what_it_returns_that_the_pipeline_does_not_take_fails_the_request() -> None:
    class Misspells:
        @hookimpl
        def omni_encode_prompt(self, pipeline: Any, request: OmniDiffusionRequest) -> Any:
            return {"prompt_embed": 1}

    with engine_with(Misspells(), executor_class="inline") as engine:
        [output] = engine.step([ask()], PATIENCE_S)
    assert isinstance(output.error, PluginError)
    assert "prompt_embed" in str(output.error)


# Requests.


def test_metadata_reach_plugins_and_no_pipeline(seen: Any) -> None:
    with engine_with(seen, executor_class="inline") as engine:
        [output] = engine.step([ask(1, metadata={"tenant": "acme"})], PATIENCE_S)
        output.raise_for_error()
    assert of(seen, "omni_request_finished")[0]["request"].metadata == {"tenant": "acme"}
    for bad in ({"tenant": 3}, {"x": "y" * 5000}, {str(n): "" for n in range(65)}):
        with pytest.raises(RequestError, match="metadata"):
            ask(1, metadata=bad)


@pytest.mark.parametrize(("steps", "wanted"), [(4, [1, 2, 3]), (8, [2, 4, 6]), (50, [13, 25, 38]), (2, [1])])
def test_previews_are_spread_evenly(steps: int, wanted: list[int]) -> None:
    with engine_with(executor_class="inline") as engine:
        request = OmniDiffusionRequest(prompt="a red seven", seed=1, num_inference_steps=steps, previews=3)
        handle = engine.submit(request)
        events = list(handle.events(PATIENCE_S))
    assert [event.step for event in events if event.preview is not None] == wanted
    with pytest.raises(RequestError, match="not both"):
        OmniDiffusionRequest(prompt="x", previews=1, preview_every=1)


def test_stats_without_asking_workers_do_not_wait() -> None:
    entered, release = threading.Event(), threading.Event()

    def block(worker: Any) -> None:
        entered.set()
        release.wait(PATIENCE_S)

    with engine_with(executor_class="inline") as engine:
        call = engine.collective_rpc(block, non_block=True)
        assert entered.wait(PATIENCE_S)
        begun = time.monotonic()
        stats = engine.stats(ask_workers=False)
        assert time.monotonic() - begun < 1.0
        assert stats.stacking is None
        release.set()
        call.result(PATIENCE_S)
        assert engine.stats().stacking is not None
        with pytest.raises(ExecutorError):
            engine.collective_rpc(lambda worker: worker.no_such, non_block=True).result(PATIENCE_S)
