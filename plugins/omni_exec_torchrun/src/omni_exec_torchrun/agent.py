"""torch's elastic agent, made to notice the death of a rank at once and the loss of a node, and to report both."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, _RendezvousExitOp

from omni_core.forking.starter import can_fork
from omni_core.log import get_logger
from omni_exec_torchrun.agent_events import EventWriter
from omni_exec_torchrun.group_watch import Ended, GroupWatch, can_watch

log = get_logger(__name__)

# How long one wait for the end of a rank takes: so often a node that joined or was lost is looked for.
_LOOK_S = 1.0
_LEAVE_S = 2.0
# How long to wait for other nodes when all ranks here have ended well.
_EXIT_BARRIER_S = 5.0


class ReportingAgent(LocalElasticAgent):
    """Runs the ranks of this node.

    torch's agent polls its ranks; this one sleeps until one ends. torch's agent leaves ranks that have lost a node to
    themselves; this one has those that are left meet again, which does not count as a restart.

    Args:
        spec: What torch's agent is told; `monitor_interval` should be next to nothing.
        logs_specs: Where the output of ranks goes.
        report: Is told what happens.
        grace_s: How long ranks have to end after SIGTERM.

    Attributes:
        first_failure: The first of the ranks running now that has ended badly: rank, local_rank, pid, exit_code.
    """

    def __init__(self, spec: WorkerSpec, logs_specs: LogsSpecs, report: EventWriter, grace_s: float) -> None:
        start_method = "fork" if can_fork() else "spawn"  # which matters where the entry point is a function
        super().__init__(spec, logs_specs, start_method=start_method, exit_barrier_timeout=_EXIT_BARRIER_S)
        self._report = report
        self._grace_s = grace_s
        self._watch: GroupWatch | None = None
        self._round: int | None = None
        self._num_done = 0
        self.first_failure: dict[str, int] | None = None

    @property
    def restart(self) -> int:
        """How often the ranks were started again because one had died."""
        return int(self._worker_group.spec.max_restarts - self._remaining_restarts)

    def kill_ranks(self) -> None:
        """Kill all ranks, without waiting. From any thread."""
        watch = self._watch
        if watch is not None:
            watch.kill()

    def leave(self) -> None:
        """Tell the other nodes that this one is gone, so that they need not find out. As far as that works."""
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
            # The others wait for the one that died, and would for as long as torch lets them.
            self._end_ranks()
        self._num_done += sum(one.exit_code == 0 for one in ended)
        if self._num_done == len(worker_group.workers):
            # torch waits for what functions return, and ours end their process.
            returned = dict.fromkeys(worker.global_rank for worker in worker_group.workers)
            return RunResult(WorkerState.SUCCEEDED, returned)
        result = RunResult(WorkerState.HEALTHY)
        if has_failed or not can_watch():
            # Only then: torch would collect ranks that end well, and their exit codes with them.
            result = super()._monitor_workers(worker_group)
        if result.is_failed() and not has_failed:  # where nothing tells of ends, torch has found it
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
        """Whether somebody who met here is gone, or the others have taken this node for gone and met without it."""
        handler = self._worker_group.spec.rdzv_handler
        if not isinstance(handler, DynamicRendezvousHandler):
            return False
        # As it was when the agent last asked whether anybody is waiting, which it does once a second.
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
        # Within our own time; torch's, which may be half a minute, then finds nothing to do.
        self._end_ranks(death_sig)
        super()._shutdown(death_sig, *args, **kwargs)


def rank_command(module: str, arguments: tuple[str, ...], flags: list[str]) -> tuple[str, ...]:
    """Return what to run, after the interpreter's name, for one rank.

    Args:
        module: As in `python -m module`.
        arguments: Of the module.
        flags: Of the interpreter; those of this one, as far as known.
    """
    # Without a buffer: the last words of a rank that dies must come out.
    return (*flags, *(() if "-u" in sys.orig_argv else ("-u",)), "-m", module, *arguments)
