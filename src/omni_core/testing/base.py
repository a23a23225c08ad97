"""What every theme of the suite builds on: engines, requests, capabilities and clean-up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, OmniRequestOutput, RequestHandle
from omni_core.errors import RPCError, did_you_mean
from omni_core.executor import DiffusionExecutor
from omni_core.plugins import default_registry
from omni_core.testing.bounds import bounded, watchdog
from omni_core.testing.families import FAULTY
from omni_core.testing.reference import assert_same_output, expected_output
from omni_core.testing.report import NOT_SUPPORTED, report_plainly

EXTENSION = "omni_core.testing.worker_extension:ConformanceExtension"
# Steps of a request that does not end by itself while a test looks at it.
LONG = 5000
# Requests that may wait in the narrow engine.
NARROW = 30


class ConformanceBase:
    """Settings of the suite, for a subclass to change, and what its tests use.

    Attributes:
        executor_class: What to test, as `OmniDiffusionConfig` takes it: a registered name, an import path or a class.
        executor_options: `executor_options` for every engine.
        config: Further fields of the configuration for every engine, such as `{"device": "cuda"}`.
        patience_s: Seconds that a result or a call may take on a busy machine.
        test_timeout_s: Seconds after which a test that hangs fails.
        close_timeout_s: Seconds that closing an engine may take.
        not_supported: Tests that are left out, each with the reason: a test's name, with or without its parameters.
    """

    executor_class: ClassVar[Any] = None
    executor_options: ClassVar[dict[str, Any]] = {}
    config: ClassVar[dict[str, Any]] = {}
    patience_s: ClassVar[float] = 60.0
    test_timeout_s: ClassVar[float] = 150.0
    close_timeout_s: ClassVar[float] = 30.0
    not_supported: ClassVar[Mapping[str, str]] = {}

    theme: ClassVar[str] = ""

    # For a subclass to override.

    def worker_pids(self, engine: DiffusionEngine) -> list[list[int]]:
        """Return the process ids of each replica's workers; none if there are no processes to kill."""
        ask = getattr(engine.executor, "worker_pids", None)
        pids: list[list[int]] = [] if ask is None else ask()
        return pids

    # Engines.

    def make_config(self, **config: Any) -> OmniDiffusionConfig:
        """Return a configuration for the executor under test; of the machine's own settings nothing gets in."""
        values = {
            "model": FAULTY,
            "device": "cpu",
            "startup_timeout_s": 100.0,
            "executor_class": self.executor_class,
            "executor_options": self.executor_options,
            **self.config,
        }
        if self.supports_option("worker_extension_cls"):
            values.setdefault("worker_extension_cls", EXTENSION)
        return OmniDiffusionConfig.from_file(self._empty_file, **{**values, **config})

    def engine(self, **config: Any) -> DiffusionEngine:
        """Return a new engine, which is closed after the test at the latest."""
        made = DiffusionEngine(self.make_config(**config))
        self._engines.append(made)
        return made

    def shared_engine(self, **config: Any) -> DiffusionEngine:
        """Return an engine that later tests use as well: leave it awake and idle."""
        key = repr(sorted(config.items()))
        if key not in self._shared:
            self._shared[key] = DiffusionEngine(self.make_config(**config))
        return self._shared[key]

    def narrow_engine(self) -> DiffusionEngine:
        """Return a shared engine with one place, in which few requests may wait."""
        return self.shared_engine(max_num_seqs=1, data_parallel_size=1, max_waiting=NARROW)

    def close(self, engine: DiffusionEngine) -> None:
        """Close an engine, with a bound."""
        bounded(engine.close, "engine.close()", self.close_timeout_s)

    def close_shared_engines(self) -> None:
        """Close the engines that tests share, so that this test is alone with its own."""
        engines = list(self._shared.values())
        self._shared.clear()
        for engine in engines:
            self.close(engine)

    # Requests.

    def request(self, **fields: Any) -> OmniDiffusionRequest:
        """Return a quick request for the pipeline with faults; `fault` goes into its extra arguments."""
        extra_args = {name: fields.pop(name) for name in ("fault", "note") if name in fields}
        values: dict[str, Any] = {
            "prompt": "a red seven",
            "height": 32,
            "width": 32,
            "num_inference_steps": 4,
            "guidance_scale": 4.0,
            "seed": 1,
            "output_type": "np",
            **fields,
        }
        values["extra_args"] = {**values.get("extra_args", {}), **extra_args}
        return OmniDiffusionRequest(**values)

    def start(self, engine: DiffusionEngine, **fields: Any) -> RequestHandle:
        """Submit a long request and return at its first step. It is aborted after the test.

        Where a running request can neither be followed nor ended, the test is skipped.
        """
        self.need_diffusion_worker()
        handle = engine.submit(self.request(**{"num_inference_steps": LONG, **fields}))
        self._handles.append(handle)
        for event in handle.events(timeout=self.patience_s):
            assert event.kind != "finished", f"ended before it was to: {event.output}"
            if event.kind == "step":
                break
        return handle

    def result(self, handle: RequestHandle) -> OmniRequestOutput:
        """Wait for the end of a request, with a bound."""
        return handle.result(self.patience_s)

    def step(self, engine: DiffusionEngine, *requests: OmniDiffusionRequest) -> list[OmniRequestOutput]:
        """Run requests and wait for them, with a bound."""
        return engine.step(list(requests), timeout=self.patience_s)

    def expected(self, request: OmniDiffusionRequest, model: str = FAULTY, **config: Any) -> dict[str, Any]:
        """Return what a request must give, faults left out."""
        own = self.make_config()
        values = {"model": model, "device": own.device, "dtype": own.dtype, "stacking": "off", **config}
        return expected_output(request, OmniDiffusionConfig.from_file(self._empty_file, **values))

    def assert_right(self, output: OmniRequestOutput, request: OmniDiffusionRequest) -> None:
        """Check that a request of the pipeline with faults finished with the right picture."""
        assert output.request_id == request.request_id
        assert_same_output(output, self.expected(request))

    def assert_serves(self, engine: DiffusionEngine, seed: int = 5) -> None:
        """Check that an engine still gives the right picture."""
        request = self.request(seed=seed)
        self.assert_right(self.step(engine, request)[0], request)

    # What the executor can do. Each of these skips the test if it cannot.

    @property
    def executor_type(self) -> type[DiffusionExecutor]:
        """The class of the executor under test."""
        return default_registry().resolve_executor(self.executor_class).cls

    def supports_option(self, name: str) -> bool:
        """Return whether the executor declares that it honours a field of the configuration."""
        return name in self.executor_type.supported_options

    def need_option(self, name: str) -> None:
        """Go on only if the executor honours a field of the configuration."""
        if not self.supports_option(name):
            pytest.skip(f"not supported: {name} is not among its supported_options")

    def need_diffusion_worker(self) -> None:
        """Go on only if its workers are omni's own."""
        if not self.executor_type.runs_diffusion_worker:
            pytest.skip("not supported: runs_diffusion_worker is not set")

    def need_sleep(self) -> None:
        """Go on only if it can sleep."""
        if self.executor_type.runs_diffusion_worker:
            return
        if "sleeps" not in self._measured:
            engine = self.shared_engine()
            try:
                engine.sleep()
            except RPCError:
                self._measured["sleeps"] = False
            else:
                self._measured["sleeps"] = True
                engine.wake_up()
        if not self._measured["sleeps"]:
            pytest.skip("not supported: its workers are not omni's own, and have no method 'sleep'")

    def need_processes(self, engine: DiffusionEngine) -> list[list[int]]:
        """Go on only if there are processes to kill; return their ids."""
        pids = self.worker_pids(engine)
        if not any(pids):
            pytest.skip("not supported: worker_pids names no processes")
        return pids

    def note_seconds(self, what: str, seconds: float) -> None:
        """Note a measurement, for the table of `omni plugins check` and for reports."""
        self._test.node.user_properties.append((what, round(seconds, 3)))

    # Clean-up.

    @pytest.fixture(autouse=True)
    def _conformance(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> Iterator[None]:
        if self.executor_class is None:
            pytest.fail(f"{type(self).__name__} must set executor_class")
        for name in list(os.environ):
            if name.startswith("OMNI_") and name != "OMNI_PLUGINS_DISABLE":
                monkeypatch.delenv(name)
        report_plainly(request.config)
        self._refuse_unknown_exceptions()
        for name in (request.node.name, request.node.originalname):
            if name in self.not_supported:
                pytest.skip(f"{NOT_SUPPORTED} {self.not_supported[name]}")
        self._test = request
        self._empty_file = tmp_path / "empty.toml"
        self._empty_file.touch()
        self._engines: list[DiffusionEngine] = []
        self._handles: list[RequestHandle] = []
        self._open_shared(request)
        failed_before = request.session.testsfailed
        with watchdog(self.test_timeout_s):
            yield
        for handle in self._handles:
            handle.abort()
        for engine in self._engines:
            self.close(engine)
        if request.session.testsfailed > failed_before:
            self.close_shared_engines()  # in whatever state they are
        for handle in self._handles:
            handle.result(self.patience_s)

    def _refuse_unknown_exceptions(self) -> None:
        known = [name for name in dir(self) if name.startswith("test_")]
        for name in self.not_supported:
            if name.partition("[")[0] not in known:
                pytest.fail(f"not_supported names {name!r}, which is no test of the suite.{did_you_mean(name, known)}")

    def _open_shared(self, request: pytest.FixtureRequest) -> None:
        """Find the engines that the tests of this class share, and what they have measured."""
        cls = type(self)
        if "_shared" not in vars(cls):
            cls._shared = {}
            cls._measured = {}
            owner = request.node.getparent(pytest.Class)
            assert owner is not None
            owner.addfinalizer(self._close_at_last)

    def _close_at_last(self) -> None:
        with contextlib.suppress(AssertionError):  # the test that is about closing has said so
            self.close_shared_engines()
        del type(self)._shared, type(self)._measured

    _shared: ClassVar[dict[str, DiffusionEngine]]
    _measured: ClassVar[dict[str, Any]]
    _test: pytest.FixtureRequest
    _empty_file: Path
    _engines: list[DiffusionEngine]
    _handles: list[RequestHandle]
