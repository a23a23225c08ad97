"""The launcher process: runs torch elastic's agent, which starts the ranks."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omni_core.forking.starter import can_fork
from omni_core.wire.process_end import describe_exit, die_with_parent
from omni_core.wire.start import find_interpreter, import_path, interpreter_flags
from omni_exec_torchrun.agent_end import AGENT_VARIABLE, watch_lifeline
from omni_exec_torchrun.agent_events import EventWriter
from omni_exec_torchrun.forked_rank import run_rank
from omni_exec_torchrun.launch_settings import WORKER_MODULE, LaunchSettings

if TYPE_CHECKING:
    from omni_exec_torchrun.agent import ReportingAgent

# Exit code if other nodes cannot be reached or did not join: a new start may succeed.
EXIT_LOST = 75


def main(settings_json: str, events: int, starter: int) -> None:
    """Run one agent until its ranks have ended or it is stopped. Standard input is its lifeline.

    Args:
        settings_json: The settings as JSON.
        events: File descriptor for events.
        starter: Process id of the parent.

    The exit code is 0 if all ranks succeeded, 1 if the restarts are used up, and `EXIT_LOST` if other nodes cannot be
    reached. After a signal the process ends by that signal.
    """
    die_with_parent(starter)
    _serve(LaunchSettings.from_json(settings_json), events)


def run_forked(lifeline: int, events: int, settings_json: str) -> None:
    """Run one agent, as `main` does, in a process that a fork server has forked.

    Args:
        lifeline: File descriptor of the lifeline.
        events: File descriptor for events.
        settings_json: The settings as JSON.
    """
    os.setsid()  # Ctrl-C in a terminal must not reach it
    os.dup2(lifeline, 0)
    os.close(lifeline)
    settings = LaunchSettings.from_json(settings_json)
    os.environ.update(settings.environment)
    _serve(settings, events)


def _serve(settings: LaunchSettings, events: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C
    agents: list[ReportingAgent] = []

    def give_up(reason: str | None = None) -> None:
        if reason is not None:
            report("failed", reason=reason)
        for agent in agents:
            agent.kill_ranks()
        os._exit(EXIT_LOST)

    report = EventWriter(events)
    watch_lifeline(0, give_up)
    # Ranks inherit standard input as their lifeline.
    os.environ[AGENT_VARIABLE] = str(os.getpid())
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM"
    try:
        status = _run(settings, report, agents, give_up)
    except BaseException as error:
        status = _explain(error, report)
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)  # without waiting for torch's threads, which may wait for an unreachable node


def _run(
    settings: LaunchSettings,
    report: EventWriter,
    agents: list[ReportingAgent],
    give_up: Callable[[str], None],
) -> int:
    # Imported only now, since this takes seconds, in which the parent's death must already be watched.
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import SignalException

    from omni_core.forking.import_ahead import import_classes, import_common
    from omni_exec_torchrun.agent import ReportingAgent, rank_command, rank_output
    from omni_exec_torchrun.rendezvous import make_rendezvous
    from omni_exec_torchrun.rendezvous_watch import watch_rendezvous

    if can_fork():
        if settings.module == WORKER_MODULE:
            import_common()
            import_classes(settings.model)
        entrypoint: Any = run_rank
        arguments = (settings.module, *settings.module_arguments)
    else:
        entrypoint = find_interpreter()
        # Ranks use the import path of this process, and (from Python 3.11 on) not the working directory.
        os.environ.update(PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join(map(os.path.abspath, import_path())))
        arguments = rank_command(settings.module, settings.module_arguments, interpreter_flags())
    # torch would also log each death, with a traceback of its own code.
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
    handler, depends = make_rendezvous(settings)
    spec = WorkerSpec(
        role="omni",
        local_world_size=settings.nproc_per_node,
        entrypoint=entrypoint,
        args=arguments,
        rdzv_handler=handler,
        max_restarts=settings.max_restarts,
        monitor_interval=1e-3,  # `_monitor_workers` waits
        local_addr=settings.master_addr,
    )
    agent = ReportingAgent(spec, rank_output(settings.log_folder), report, settings.stop_grace_s)
    agents.append(agent)
    if depends:
        watch_rendezvous(settings, give_up)
    try:
        result = agent.run()
    except SignalException as stop:
        agent.leave()
        return -stop.sigval
    if not result.is_failed():
        return 0
    failure = agent.first_failure or {}
    how = describe_exit(failure["exit_code"]) if failure else "failed"
    reason = (
        f"rank {failure.get('rank', '?')} (process {failure.get('pid', '?')}) {how},"
        f" and the {settings.max_restarts} restarts of the ranks are used up"
    )
    report("failed", reason=reason, **failure)
    agent.leave()
    return 1


def _explain(error: BaseException, report: EventWriter) -> int:
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.rendezvous import RendezvousError

    if isinstance(error, SignalException):  # it came outside of `agent.run`
        return -error.sigval
    traceback.print_exception(error)
    is_lost = isinstance(error, (RendezvousError, DistError, OSError))
    report("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
    return EXIT_LOST if is_lost else 1
