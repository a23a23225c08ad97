"""The executor: what the engine asks for is asked of the replicas' workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, as_completed
from typing import Any, ClassVar

from omni_core import (
    DiffusionExecutor,
    OmniDiffusionRequest,
    OmniRequestOutput,
    SchedulerOutput,
    StepOutput,
    WorkerStats,
)
from omni_core.calls import call_name
from omni_core.errors import ConfigError, ExecutorError, OmniError, RPCError, RPCTimeoutError
from omni_core.executor import WORKER_OPTIONS
from omni_core.replicas.replies import with_refused
from omni_core.wire.sealed import seal_requests, without_unpicklable
from omni_exec_http.calls import Calls, StepThread
from omni_exec_http.client import Exchange, wait_readable
from omni_exec_http.link import QUICK_S, Link
from omni_exec_http.options import HttpOptions
from omni_exec_http.replica import Replica, ReplicaEvents


class HttpExecutor(DiffusionExecutor):
    """Runs a worker of omni per replica, in a server that it starts or is told of, and replaces one that is lost."""

    supported_options: ClassVar[frozenset[str]] = WORKER_OPTIONS | {"data_parallel_size", "step_timeout_s"}
    runs_diffusion_worker: ClassVar[bool] = True
    can_interrupt: ClassVar[bool] = True
    has_worker_processes: ClassVar[bool] = True

    def _init_executor(self) -> None:
        self._replicas: list[Replica] = []
        self._steps: list[StepThread] = []
        options: HttpOptions = self.options or HttpOptions()
        if options.url is not None:
            if len(options.url) != self.num_replicas:
                raise ConfigError(
                    f"There are {len(options.url)} servers in url for data_parallel_size = {self.num_replicas}: "
                    "give one for each replica."
                )
            options.shared_secret()  # if it cannot be read, that is said before anything starts
        events = ReplicaEvents(self.notify_change, self._sleep_level, self.plugins)
        for index in range(self.num_replicas):
            self._replicas.append(Replica(index, self.config, options, events))
            self._steps.append(StepThread(self._replicas[index], self.config.step_timeout_s))
        started = [replica.started for replica in self._replicas]
        for first in as_completed(
            started
        ):  # each keeps startup_timeout_s; the first that fails ends the others' starts
            first.result()

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
    ) -> Any:
        """Call a method on the worker of every replica, between two steps."""
        if unique_reply_rank is not None and unique_reply_rank not in range(self.num_replicas):
            raise RPCError(
                f"There is no rank {unique_reply_rank}: there are {self.num_replicas} workers, counted from 0."
            )
        deadline = None if timeout is None else time.monotonic() + timeout
        links = [replica.need_link() for replica in self._replicas]
        with Calls() as calls:
            for link in links:
                calls.begin(link, method, args, kwargs or {})
            results = calls.results(range(len(links)) if unique_reply_rank is None else [unique_reply_rank], deadline)
        if results is None:
            raise RPCTimeoutError(
                f"The call {call_name(method)!r} did not return within {timeout} s. "
                "It may still run; its result is dropped."
            )
        return results if unique_reply_rank is None else results[0]

    def execute_model(self, requests: list[OmniDiffusionRequest]) -> list[OmniRequestOutput]:
        """Run whole requests to their end, spread over the replicas that are ready."""
        sendable, refused = without_unpicklable(SchedulerOutput(new_requests=list(requests)))
        outputs = list(refused)  # a request that cannot be sent fails alone
        links = [replica.link for replica in self._replicas if replica.link is not None]
        links = links or [self._replicas[0].need_link()]
        with Calls() as calls:
            for index, link in enumerate(links):
                if share := sendable.new_requests[index :: len(links)]:
                    calls.begin(link, "execute_model", (share,), {})
            for some in calls.results(range(calls.count), None) or []:
                outputs += some
        by_id = {output.request_id: output for output in outputs}
        return [by_id[request.request_id] for request in requests]

    def execute_step(self, replica: int, scheduler_output: SchedulerOutput) -> Future[StepOutput]:
        """Advance the running requests; the future gets what was done."""
        # Each request by itself, so that one which cannot be read there fails alone.
        sealed, refused = seal_requests(scheduler_output)
        return with_refused(self._steps[replica].submit(sealed), refused)

    def interrupt(self, replica: int) -> None:
        """Let a running step return after the wave that is running."""
        self._replicas[replica].interrupt()

    def is_ready(self, replica: int) -> bool:
        """Whether its worker is there."""
        return self._replicas[replica].link is not None

    @property
    def fault(self) -> OmniError | None:
        """The last replica's error, if none has a worker and all have failed too often."""
        faults = [replica.fault for replica in self._replicas]
        return faults[-1] if faults and all(faults) else None

    def check_health(self) -> None:
        """Return if the server of a replica answers, also while its worker computes."""
        asked: dict[Exchange, Link] = {}
        for replica in self._replicas:
            link = replica.link
            exchange = None if link is None else link.begin_health()
            if link is not None and exchange is not None:
                asked[exchange] = link
        deadline, is_well = time.monotonic() + QUICK_S, False
        while asked and not is_well and (ready := wait_readable(asked, max(deadline - time.monotonic(), 0.0))):
            is_well = any(asked.pop(exchange).finish_health(exchange) is not None for exchange in ready)
        for exchange in asked:
            exchange.drop()
        if not is_well:
            for replica in self._replicas:
                replica.need_link()  # says why there is no worker
            raise ExecutorError(f"No server answers within {QUICK_S} s: they are held up, or out of reach.")

    def worker_pids(self) -> list[list[int]]:
        """Return the process id of each replica's own server. Servers that were there before are not ours to signal."""
        links = [replica.link for replica in self._replicas]
        return [[link.pid] if link is not None and link.process is not None else [] for link in links]

    def worker_stats(self) -> list[WorkerStats]:
        """Return what is known about each worker, without asking it."""
        return [replica.stats() for replica in self._replicas]

    def shutdown(self) -> None:
        """Tell all callers, end the servers that were started here, and hang up on the others."""
        for replica in self._replicas:
            replica.begin_closing()
        for replica in self._replicas:
            replica.close()
        for steps in self._steps:
            steps.close()
