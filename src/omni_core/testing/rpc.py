"""Calls to the workers: `collective_rpc`."""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path

import pytest

from omni_core.errors import OmniError, RPCError, RPCTimeoutError
from omni_core.testing import calls
from omni_core.testing.base import ConformanceBase
from omni_core.testing.bounds import in_threads


class RemoteCalls(ConformanceBase):
    """Calls to the workers."""

    theme = "calls"

    def test_a_callable_gets_the_worker_and_the_arguments(self) -> None:
        """A callable is called with the worker, then `args`, then `kwargs`."""
        results = self.shared_engine().collective_rpc(calls.echo, self.patience_s, (1, "two"), {"three": [3]})
        assert results
        assert all(result == ((1, "two"), {"three": [3]}) for result in results)

    def test_a_callable_gets_the_diffusion_worker(self) -> None:
        """The worker that a callable gets is omni's, with its pipeline."""
        self.need_diffusion_worker()
        pids = self.shared_engine().collective_rpc(calls.identify, self.patience_s)
        self.shared_engine().collective_rpc(calls.watch_weights, self.patience_s)
        assert all(self.shared_engine().collective_rpc(calls.are_weights_there, self.patience_s))
        assert [place[1:] for place in pids] == sorted(place[1:] for place in pids)

    def test_a_name_of_a_method(self) -> None:
        """A method that a worker extension adds is called by its name."""
        self.need_option("worker_extension_cls")
        results = self.shared_engine().collective_rpc("conformance_echo", self.patience_s, ("x",), {"y": 2})
        assert results
        assert all(result == (("x",), {"y": 2}) for result in results)

    def test_a_method_of_the_diffusion_worker(self) -> None:
        """The worker's own methods are called by their name, without arguments too."""
        self.need_diffusion_worker()
        assert set(self.shared_engine().collective_rpc("check_health", self.patience_s)) == {None}

    def test_one_result_for_each_rank_of_each_replica(self, tmp_path: Path) -> None:
        """The call is made on every rank of every replica, and each gives one result."""
        names = [name for name in ("data_parallel_size", "cfg_parallel_size") if self.supports_option(name)]
        if not names:
            pytest.skip("not supported: it has one worker")
        for name in names:
            engine = self.engine(**{name: 2})
            folder = tmp_path / name
            folder.mkdir()
            results = engine.collective_rpc(calls.identify, self.patience_s)
            assert [result[1:] for result in results] == (
                [(0, 0), (1, 0)] if name == "data_parallel_size" else [(0, 0), (0, 1)]
            )
            assert engine.collective_rpc(calls.touch, self.patience_s, (str(folder),), unique_reply_rank=1) is None
            assert len(list(folder.iterdir())) == 2, (
                "with unique_reply_rank the call must run on all ranks all the same"
            )
            self.close(engine)

    def test_one_reply(self) -> None:
        """`unique_reply_rank` gives that rank's result itself, not a list."""
        assert (
            self.shared_engine().collective_rpc(calls.echo, self.patience_s, ("mine",), unique_reply_rank=0) == "mine"
        )

    def test_a_rank_that_does_not_exist(self) -> None:
        """An unknown rank is an error that names it."""
        with pytest.raises(RPCError, match="99"):
            self.shared_engine().collective_rpc(calls.echo, self.patience_s, (1,), unique_reply_rank=99)

    def test_an_unknown_method(self) -> None:
        """An unknown method is an error with the closest name there is."""
        self.need_diffusion_worker()
        with pytest.raises(RPCError, match=r"check_healt'.*check_health"):
            self.shared_engine().collective_rpc("check_healt", self.patience_s)

    def test_an_unknown_method_of_any_worker(self) -> None:
        """An unknown method is an RPCError, whatever the worker is."""
        with pytest.raises(RPCError, match="no_such_method_at_all"):
            self.shared_engine().collective_rpc("no_such_method_at_all", self.patience_s)

    @pytest.mark.parametrize("name", ["_load", "__init__", "__reduce__"])
    def test_private_methods_are_refused(self, name: str) -> None:
        """A name that begins with an underscore is no method for others to call."""
        with pytest.raises(RPCError, match=name):
            self.shared_engine().collective_rpc(name, self.patience_s)

    def test_an_exception_arrives(self) -> None:
        """What a call raises is an RPCError with its type and message."""
        with pytest.raises(RPCError, match=r"InjectedError.*no such luck"):
            self.shared_engine().collective_rpc(calls.raise_error, self.patience_s, ("no such luck",))
        self.assert_serves(self.shared_engine())

    def test_an_exception_has_the_traceback_of_the_worker(self) -> None:
        """The error shows where in the worker it was raised."""
        with pytest.raises(RPCError) as caught:
            self.shared_engine().collective_rpc(calls.raise_error, self.patience_s, ("here",))
        cause = caught.value.__cause__
        shown = (caught.value.worker_traceback or "") + "".join(traceback.format_exception(cause) if cause else [])
        assert "calls.py" in shown
        assert "raise_error" in shown

    def test_a_call_that_raises_what_cannot_be_pickled(self) -> None:
        """An exception that does not survive pickling arrives all the same, by its name and message."""
        with pytest.raises(RPCError, match=r"UnpicklableError.*strange thing"):
            self.shared_engine().collective_rpc(calls.raise_unpicklable, self.patience_s, ("strange thing",))
        assert self.shared_engine().collective_rpc(calls.echo, self.patience_s, (1,), unique_reply_rank=0) == 1

    def test_an_argument_that_cannot_be_pickled(self) -> None:
        """It is an error that names it; an executor without processes may as well pass it on as it is."""
        import threading

        engine = self.shared_engine()
        try:
            result = engine.collective_rpc(
                calls.describe_lock, self.patience_s, ({"lock": threading.Lock()},), unique_reply_rank=0
            )
        except RPCError as error:
            assert "lock" in str(error)  # noqa: PT017  # either way is right
        else:
            assert not any(self.worker_pids(engine)), "a lock cannot have reached another process"
            assert result == "lock"
        assert engine.collective_rpc(calls.echo, self.patience_s, (1,), unique_reply_rank=0) == 1

    def test_a_result_that_cannot_be_pickled(self) -> None:
        """It is an error that names it; an executor without processes may as well return it as it is."""
        engine = self.shared_engine()
        try:
            result = engine.collective_rpc(calls.return_lock, self.patience_s, unique_reply_rank=0)
        except RPCError as error:
            assert "lock" in str(error)  # noqa: PT017  # either way is right
        else:
            assert not any(self.worker_pids(engine)), "a lock cannot have come from another process"
            assert type(result["lock"]).__name__ == "lock"
        assert engine.collective_rpc(calls.echo, self.patience_s, (1,), unique_reply_rank=0) == 1

    def test_a_timeout(self, tmp_path: Path) -> None:
        """A call without a reply in time raises RPCTimeoutError, in time, and names the call."""
        engine, file = self.shared_engine(), tmp_path / "go on"
        begun = time.monotonic()
        try:
            with pytest.raises(RPCTimeoutError, match="wait_then_return") as caught:
                engine.collective_rpc(calls.wait_then_return, 0.2, (str(file), "late"))
        finally:
            file.touch()
        assert isinstance(caught.value, TimeoutError)
        assert 0.15 <= time.monotonic() - begun < 5.0
        self.assert_serves(engine)

    def test_a_late_reply_is_given_to_nobody_else(self, tmp_path: Path) -> None:
        """After five timeouts, each next call gets its own reply and never a late one."""
        engine = self.shared_engine()
        for number in range(5):
            file = tmp_path / str(number)
            with pytest.raises(RPCTimeoutError):
                engine.collective_rpc(calls.wait_then_return, 0.05, (str(file), f"late {number}"))
            file.touch()
            for attempt in range(3):
                token = f"{number}.{attempt}"
                assert engine.collective_rpc(calls.echo, self.patience_s, (token,), unique_reply_rank=0) == token
        self.assert_serves(engine)

    def test_calls_from_many_threads(self) -> None:
        """Sixteen threads with ten calls each: everybody gets the reply to what they asked."""
        engine = self.shared_engine()

        def ask(number: int) -> list[object]:
            return [
                engine.collective_rpc(calls.echo, self.patience_s, ((number, turn),), unique_reply_rank=0)
                for turn in range(10)
            ]

        results = in_threads([lambda number=number: ask(number) for number in range(16)])  # type: ignore[misc]
        assert results == [[(number, turn) for turn in range(10)] for number in range(16)]

    def test_errors_and_timeouts_from_many_threads(self) -> None:
        """Calls that raise, among others at the same time, raise only for who made them."""
        engine = self.shared_engine()

        def ask(number: int) -> object:
            if number % 2:
                return engine.collective_rpc(calls.echo, self.patience_s, (number,), unique_reply_rank=0)
            with pytest.raises(RPCError, match=f"number {number}!"):
                engine.collective_rpc(calls.raise_error, self.patience_s, (f"number {number}!",))
            return None

        results = in_threads([lambda number=number: ask(number) for number in range(12)])  # type: ignore[misc]
        assert results == [number if number % 2 else None for number in range(12)]

    def test_a_call_while_a_request_runs(self) -> None:
        """A call takes its turn between two steps, and the request goes on."""
        self.need_diffusion_worker()
        engine = self.shared_engine()
        handle = self.start(engine)
        assert engine.collective_rpc(calls.echo, self.patience_s, (1,), unique_reply_rank=0) == 1
        assert not handle.done()

    def test_a_call_that_ends_its_worker(self) -> None:
        """The caller is told at once, and the executor serves again."""
        engine = self.shared_engine()
        self.need_processes(engine)
        begun = time.monotonic()
        with pytest.raises(OmniError):
            engine.collective_rpc(calls.end, self.patience_s, (os.getpid(),))
        self.note_seconds("caller knew", time.monotonic() - begun)
        assert time.monotonic() - begun < 5.0
        self.assert_serves(engine)
