"""torch's elastic agent, extended to detect and report dead ranks and lost nodes, and the output of its ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, LogsSpecs, Std
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, _RendezvousExitOp

from omni_core.forking.starter import can_fork
from omni_core.log import get_logger
from omni_exec_torchrun.agent_events import EventWriter
from omni_exec_torchrun.group_watch import Ended, GroupWatch, can_watch

log = get_logger(__name__)

# Seconds of one wait for the exit of a rank, and so between two checks for nodes that joined or were lost.
_LOOK_S = 1.0
_LEAVE_S = 2.0
# Seconds to wait for other nodes when all ranks of this node have succeeded.
_EXIT_BARRIER_S = 5.0


class ReportingAgent(LocalElasticAgent):
    """Runs the ranks of this node.

    torch's agent polls its ranks; this one sleeps until a rank exits. If a node is lost, torch's agent leaves the
    remaining ranks running; this one starts a new rendezvous, which does not count as a restart.

    Args:
        spec: The specification for torch's agent; `monitor_interval` should be tiny.
        logs_specs: Where the output of ranks goes.
        report: Writes events for the driver.
        grace_s: Seconds between SIGTERM and SIGKILL for ranks.

    Attributes:
        first_failure: The first of the current ranks that failed: rank, local_rank, pid, exit_code.
    """

    def __init__(self, spec: WorkerSpec, logs_specs: LogsSpecs, report: EventWriter, grace_s: float) -> None:
        start_method = "fork" if can_fork() else "spawn"  # relevant if the entry point is a function
        super().__init__(spec, logs_specs, start_method=start_method, exit_barrier_timeout=_EXIT_BARRIER_S)
        self._report = report
        self._grace_s = grace_s
        self._watch: GroupWatch | None = None
        self._round: int | None = None
        self._num_done = 0
        self.first_failure: dict[str, int] | None = None

    @property
    def restart(self) -> int:
        """Number of restarts of the ranks because one had died."""
        return int(self._worker_group.spec.max_restarts - self._remaining_restarts)

    def kill_ranks(self) -> None:
        """Kill all ranks, without waiting. From any thread."""
        watch = self._watch
        if watch is not None:
            watch.kill()

    def leave(self) -> None:
        """Tell the other nodes that this one leaves, if possible, so that they need not wait for the timeout."""
        handler = self._worker_group.spec.rdzv_handler
        with contextlib.suppress(Exception):
            if isinstance(handler, DynamicRendezvousHandler):
                handler._stop_heartbeats()
                handler._op_executor.run(_RendezvousExitOp(), time.monotonic() + _LEAVE_S)

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        super()._rendezvous(worker_group)
        handler = worker_group.spec.rdzv_handler
        self._round = handler._state_holder.state.round if isinstance(handler, DynamicRendezvousHandler) else None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        pids: dict[int, int] = super()._start_workers(worker_group)
        self._watch = GroupWatch(pids)
        self.first_failure = None
        self._num_done = 0
        ranks = [
            {"rank": worker.global_rank, "local_rank": worker.local_rank, "pid": pids[worker.local_rank]}
            for worker in worker_group.workers
        ]
        self._report(
            "started",
            restart=self.restart,
            world_size=worker_group.workers[0].world_size,
            group_rank=worker_group.group_rank,
            workers=ranks,
        )
        return pids

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        self._report("restarting", restart=self.restart)
        super()._restart_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ended = self._watch.wait(_LOOK_S) if self._watch is not None else []
        for one in ended:
            self._report_end(worker_group, one)
        has_failed = any(one.exit_code != 0 for one in ended)
        if has_failed:
            # The other ranks wait for the dead one in a collective until torch's timeout.
            self._end_ranks()
        self._num_done += sum(one.exit_code == 0 for one in ended)
        if self._num_done == len(worker_group.workers):
            # torch would wait for return values, but our functions end their process.
            returned = dict.fromkeys(worker.global_rank for worker in worker_group.workers)
            return RunResult(WorkerState.SUCCEEDED, returned)
        result = RunResult(WorkerState.HEALTHY)
        if has_failed or not can_watch():
            # Only then: torch would reap ranks that succeeded, and their exit codes would be lost.
            result = super()._monitor_workers(worker_group)
        if result.is_failed() and not has_failed:  # without pidfds, torch has detected it
            cause = min(result.failures.values(), key=lambda failure: failure.timestamp)
            self._report_end(worker_group, Ended(cause.local_rank, cause.pid, cause.exitcode))
        if result.state == WorkerState.HEALTHY and self._has_lost_a_node():
            self._restart_workers(worker_group)
        return result

    def _report_end(self, worker_group: WorkerGroup, one: Ended) -> None:
        rank = worker_group.workers[one.local_rank].global_rank
        facts = {"rank": rank, "local_rank": one.local_rank, "pid": one.pid, "exit_code": one.exit_code}
        if one.exit_code != 0 and self.first_failure is None:
            self.first_failure = facts
        self._report("worker_ended", **facts)

    def _has_lost_a_node(self) -> bool:
        """Whether a node of this rendezvous is gone, or the other nodes continued without this one."""
        handler = self._worker_group.spec.rdzv_handler
        if not isinstance(handler, DynamicRendezvousHandler):
            return False
        # The state at the agent's last check for waiting nodes, once a second.
        state = handler._state_holder.state
        nodes = len(state.participants)
        is_whole = (
            state.round == self._round
            and handler._this_node in state.participants
            and nodes >= (self._worker_group.group_world_size or 0)
        )
        if not is_whole:
            self._report("membership", nodes=nodes)
        return not is_whole

    def _end_ranks(self, first: signal.Signals = signal.SIGTERM) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end(self._grace_s, first)
            watch.close()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *args: Any, **kwargs: Any) -> None:
        # With our own grace time. torch's shutdown, which may take half a minute, then finds no ranks.
        self._end_ranks(death_sig)
        super()._shutdown(death_sig, *args, **kwargs)


def rank_command(module: str, arguments: tuple[str, ...], flags: list[str]) -> tuple[str, ...]:
    """Return the command line of one rank, without the interpreter.

    Args:
        module: As in `python -m module`.
        arguments: Arguments of the module.
        flags: Options of the interpreter.
    """
    # Unbuffered: the last output of a dying rank must not be lost.
    return (*flags, *(() if "-u" in sys.orig_argv else ("-u",)), "-m", module, *arguments)


class _ForwardedOutput(LogsSpecs):
    """Ranks write to the output of the launcher.

    torch's default creates a folder in /tmp, which remains if the launcher is killed. Without the folder, torch polls
    /dev/null ten times a second for each rank, which also delays every restart by 0.1 s.
    """

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Redirect nothing."""
        ranks = range(len(envs))
        for env in envs.values():
            env["TORCHELASTIC_ERROR_FILE"] = ""
        console = dict.fromkeys(ranks, "")
        return LogsDest(stdouts=console, stderrs=console, error_files=dict.fromkeys(ranks, os.devnull))

    @property
    def root_log_dir(self) -> str:
        """There is none."""
        return os.devnull


def rank_output(folder: str | None) -> LogsSpecs:
    """Return the specification of the ranks' output for torch's agent.

    Args:
        folder: Folder for the output, in torch's layout; None forwards it.
    """
    return _ForwardedOutput() if folder is None else DefaultLogsSpecs(log_dir=folder, redirects=Std.ALL)
