"""Starting and closing."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, get_args

import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, PluginRegistry, hookimpl
from omni_core.errors import ConfigError, EngineClosedError, ModelLoadError, OmniError, StartupError
from omni_core.executor import OPTIONS_TO_DECLARE
from omni_core.testing import calls
from omni_core.testing.base import ConformanceBase
from omni_core.testing.bounds import bounded, in_threads, wait_until
from omni_core.testing.families import factory
from omni_core.testing.footprint import identity, is_alive


def _other_value(name: str) -> Any:
    """Return a valid value of a field of the configuration that is not the default."""
    field = OmniDiffusionConfig.model_fields[name]
    for value in (*get_args(field.annotation), 2, True, "something"):
        with contextlib.suppress(ConfigError):
            if OmniDiffusionConfig(**{name: value}) and value != field.default:
                return value
    raise NotImplementedError(f"no value is known for {name}")


class _Marks:
    """A plugin that changes the pipeline that is loaded."""

    @hookimpl
    def omni_pipeline_loaded(self, pipeline: Any) -> None:
        pipeline.is_marked = True


class Lifecycle(ConformanceBase):
    """Starting and closing."""

    theme = "lifecycle"

    def test_starts_serves_and_is_healthy(self) -> None:
        """A started engine answers a request and says that it is healthy."""
        engine = self.engine()
        engine.check_health()
        self.assert_serves(engine)
        engine.check_health()

    def _closed_engine(self) -> DiffusionEngine:
        """Return an engine that was used and closed; the same one for all tests that look at it."""
        if "closed engine" not in self._measured:
            engine = self.engine()
            self.assert_serves(engine)
            begun = time.monotonic()
            self.close(engine)
            self._measured["closed engine"] = (engine, time.monotonic() - begun)
        closed: DiffusionEngine = self._measured["closed engine"][0]
        return closed

    def test_context_manager_closes(self) -> None:
        """Leaving `with` closes the engine."""
        with self.engine() as engine:
            self.assert_serves(engine)
        with pytest.raises(EngineClosedError):
            engine.submit(self.request())

    def test_close_without_use(self) -> None:
        """An engine that never served is closed without trouble."""
        self.close(self.engine())

    def test_close_twice(self) -> None:
        """The second close returns at once and does nothing."""
        engine = self._closed_engine()
        bounded(engine.close, "the second engine.close()", 5.0)
        bounded(engine.executor.close, "executor.close() after engine.close()", 5.0)

    def test_close_from_several_threads(self) -> None:
        """Closing from four threads at the same time closes once, and returns in all of them."""
        engine = self.engine()
        in_threads([engine.close] * 4, self.close_timeout_s)
        with pytest.raises(EngineClosedError):
            engine.check_health()

    def test_close_from_another_thread_wakes_who_waits(self) -> None:
        """A caller that waits for a result is told when another thread closes the engine."""
        engine = self.engine()
        handle = self.start(engine)
        closing = threading.Thread(target=engine.close, name="conformance-closer", daemon=True)
        closing.start()
        output = handle.result(self.close_timeout_s)
        closing.join(self.close_timeout_s)
        assert not closing.is_alive(), "close() hangs"
        with pytest.raises(EngineClosedError):
            output.raise_for_error()

    def test_close_with_work_in_flight(self) -> None:
        """Requests that run or wait fail with EngineClosedError, all of them."""
        engine = self.engine(max_num_seqs=2)
        can_end = self.executor_type.runs_diffusion_worker
        running = self.start(engine) if can_end else engine.submit(self.request(num_inference_steps=200))
        waiting = [engine.submit(self.request(num_inference_steps=50)) for _ in range(10)]
        self.close(engine)
        for handle in (running, *waiting):
            output = handle.result(5.0)
            assert output.finish_reason in ("error", "finished")
            if output.error is not None:
                assert isinstance(output.error, EngineClosedError)
        assert running.result(0).error is not None or not can_end

    def test_an_idle_engine_closes_quickly(self) -> None:
        """Closing an idle engine takes less than five seconds."""
        self._closed_engine()
        seconds = self._measured["closed engine"][1]
        self.note_seconds("close", seconds)
        assert seconds < 5.0

    def test_close_ends_the_worker_processes(self) -> None:
        """No worker process is alive when close has returned."""
        engine = self.engine()
        processes = [identity(pid) for pids in self.need_processes(engine) for pid in pids]
        if self.executor_type.runs_diffusion_worker:
            self.start(engine)
        self.close(engine)
        assert [process for process in processes if is_alive(process)] == []

    def test_after_closing_every_call_is_refused(self) -> None:
        """A closed engine says that it is closed, whatever is asked of it."""
        engine = self._closed_engine()
        for use in (
            lambda: engine.submit(self.request()),
            lambda: engine.step([self.request()]),
            lambda: engine.collective_rpc("check_health"),
            engine.check_health,
            engine.sleep,
            engine.wake_up,
            engine.stats,
        ):
            with pytest.raises(EngineClosedError):
                use()

    def test_a_closed_executor_is_not_healthy(self) -> None:
        """`check_health` of an executor that was shut down raises."""
        engine = self._closed_engine()
        with pytest.raises(OmniError):
            engine.executor.check_health()

    def test_two_engines_at_once(self) -> None:
        """Two engines serve side by side, and closing one leaves the other as it is."""
        one, other = self.engine(), self.engine()
        request = self.request(num_inference_steps=20)
        handles = [engine.submit(request) for engine in (one, other)]
        for handle in handles:
            self.assert_right(self.result(handle), request)
        running = other.submit(self.request(num_inference_steps=60))
        self.close(one)
        self.assert_right(self.result(running), running.request)
        self.assert_serves(other)

    def test_an_engine_may_be_started_in_a_thread_that_ends(self) -> None:
        """An engine that a short-lived thread made outlives that thread."""
        engine = bounded(self.engine, "starting in a thread", self.patience_s * 2)
        self.assert_serves(engine)
        engine.check_health()

    def test_a_factory_that_raises(self) -> None:
        """The start fails, and says what the factory said."""
        with pytest.raises((ModelLoadError, StartupError), match="no weights today") as caught:
            self.engine(model=factory("raising"))
        assert "FileNotFoundError" in str(caught.value)

    def test_an_import_path_that_does_not_exist(self) -> None:
        """The start fails and names what could not be imported."""
        with pytest.raises((ModelLoadError, StartupError), match="no_such_module"):
            self.engine(model="no_such_module:factory")

    def test_a_folder_that_does_not_exist(self, tmp_path: Any) -> None:
        """The start fails and names the folder."""
        with pytest.raises((ModelLoadError, StartupError), match="no-such-model"):
            self.engine(model=str(tmp_path / "no-such-model"))

    def test_a_start_after_one_that_failed(self) -> None:
        """A failed start does not get in the way of the next."""
        with pytest.raises((ModelLoadError, StartupError)):
            self.engine(model=factory("raising"))
        self.assert_serves(self.engine())

    @pytest.mark.parametrize("extension", ["ClashingExtension", "NoSuchExtension"])
    def test_a_bad_worker_extension_is_refused(self, extension: str) -> None:
        """An extension that does not exist, or that would replace a method of the worker, stops the start."""
        self.need_option("worker_extension_cls")
        with pytest.raises(OmniError, match=extension):
            self.engine(worker_extension_cls=f"omni_core.testing.worker_extension:{extension}")

    def test_options_that_it_does_not_declare_are_refused(self) -> None:
        """A field of the configuration that the executor cannot honour is an error that names it."""
        undeclared = sorted(OPTIONS_TO_DECLARE - self.executor_type.supported_options)
        if not undeclared:
            pytest.skip("not supported: there is no option that it does not declare")
        for name in undeclared:
            with pytest.raises(ConfigError, match=name):
                self.engine(**{name: _other_value(name)})

    def test_an_unknown_executor_option_is_refused(self) -> None:
        """A misspelled key of `executor_options` is an error that names it."""
        with pytest.raises(ConfigError, match="no_such_option"):
            self.engine(executor_options={**self.executor_options, "no_such_option": 1})

    def test_declarations_are_of_the_contract(self) -> None:
        """Every name in `supported_options` is one that the contract knows."""
        assert self.executor_type.supported_options <= OPTIONS_TO_DECLARE

    def test_a_pipeline_object(self) -> None:
        """It takes a pipeline object if it says so, and refuses it if not."""
        from omni_core.testing.pipelines import faulty

        config = self.make_config(model=None)
        if not self.executor_type.accepts_pipeline:
            with pytest.raises(ConfigError, match="pipeline object"):
                DiffusionEngine(config, pipeline=faulty())
            return
        engine = DiffusionEngine(config, pipeline=faulty())
        self._engines.append(engine)
        self.assert_serves(engine)

    def test_a_pipeline_hook_given_in_code(self) -> None:
        """It changes the pipeline of every worker, or the start is refused: pictures never lack it in silence."""
        self.need_diffusion_worker()
        plugins = PluginRegistry()
        plugins.register(_Marks(), "marks")
        try:
            engine = DiffusionEngine(self.make_config(), plugins=plugins)
        except ConfigError as error:
            assert "marks" in str(error)  # noqa: PT017  # either way is right
            return
        self._engines.append(engine)
        marked = engine.collective_rpc(calls.is_marked, self.patience_s)
        assert all(marked), "the hook was not called where the pipeline is loaded"

    def test_it_tells_what_the_pipeline_takes(self) -> None:
        """`pipeline_info` describes the pipeline that the workers have loaded."""
        self.need_diffusion_worker()
        info = self.shared_engine().pipeline_info
        assert info is not None
        assert info.class_name == "FaultyPipeline"
        assert "fault" in info.parameters

    def test_request_defaults_reach_the_workers(self) -> None:
        """`request_defaults` of the configuration hold for requests that do not say otherwise."""
        self.need_diffusion_worker()
        engine = self.engine(request_defaults={"num_inference_steps": 3})
        [output] = self.step(engine, OmniDiffusionRequest(prompt="a red seven", height=32, width=32))
        assert output.raise_for_error().metrics.num_steps == 3

    def test_stats_count_requests(self) -> None:
        """`engine.stats()` counts what has ended, and does not count it as running."""
        engine = self.shared_engine()
        before = engine.stats().ended.get("finished", 0)
        self.step(engine, *(self.request(seed=seed) for seed in range(3)))
        wait_until(lambda: engine.stats().running == 0, "no request is counted as running")
        assert engine.stats().ended["finished"] == before + 3
