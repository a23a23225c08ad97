"""A node other than the driver's: runs ranks for the driver, and rejoins when the connection is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from omni_core.errors import ConfigError
from omni_core.log import get_logger
from omni_core.wire.address import parse_address
from omni_core.wire.process_end import describe_exit, end_process
from omni_exec_torchrun.agent_events import EventReader
from omni_exec_torchrun.agent_process import start_agent
from omni_exec_torchrun.launch_settings import LaunchSettings
from omni_exec_torchrun.secret import SECRET_FILE_VARIABLE, SECRET_VARIABLE, load_secret

log = get_logger(__name__)

_LOOK_S = 0.25
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 15.0
# If the ranks ran for so long, the attempt was successful, and the next pause is short again.
_LASTING_S = 60.0
_CONNECT_S = 5.0
_STOP_MARGIN_S = 2.0


def run_node(
    settings: LaunchSettings,
    *,
    secret_file: str | os.PathLike[str] | None = None,
    stop: threading.Event | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Run ranks on this machine until SIGTERM, Ctrl-C or `stop`. Rejoin whenever the other nodes are lost.

    It blocks. In the main thread it handles SIGTERM and SIGINT while it runs.

    Args:
        settings: The rendezvous, and the number of ranks of this node.
        secret_file: File with the secret of the driver; None reads it from the environment.
        stop: An event that ends it.
        on_event: Called with each event of the agent.

    Raises:
        ConfigError: There is no endpoint, or no secret.
        OSError: No process can be started.
    """
    if not settings.rdzv_endpoint:
        raise ConfigError("a node needs the rdzv_endpoint (host:port) of the driver")
    if load_secret(secret_file) is None:
        raise ConfigError(
            "a node needs the secret of its driver: set"
            f" {SECRET_VARIABLE}, or {SECRET_FILE_VARIABLE} to a file that only you can read (chmod 600)"
        )
    if secret_file is not None:
        variables = {**settings.environment, SECRET_FILE_VARIABLE: os.path.abspath(secret_file)}  # noqa: PTH100
        settings = dataclasses.replace(settings, environment=variables)
    stop = stop or threading.Event()
    with _signals_set(stop):
        pause = _FIRST_PAUSE_S
        while not stop.is_set():
            began = time.monotonic()
            if not _is_reachable(settings.rdzv_endpoint):
                log.info("nobody is at the rendezvous yet", endpoint=settings.rdzv_endpoint, again_in_s=pause)
            else:
                status = _run_agent(settings, stop, on_event)
                if stop.is_set():
                    return
                log.warning(
                    "this node's ranks have ended; it will join again",
                    endpoint=settings.rdzv_endpoint,
                    launcher=describe_exit(status),
                    again_in_s=pause,
                )
            if time.monotonic() - began > _LASTING_S:
                pause = _FIRST_PAUSE_S
            stop.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def node_settings(
    *,
    rdzv_endpoint: str,
    rdzv_id: str,
    nnodes: str,
    nproc_per_node: int = 1,
    node_timeout_s: int = 15,
    **others: Any,
) -> LaunchSettings:
    """Return the checked settings of a node. `rdzv_id`, `nnodes` and `node_timeout_s` must be those of the driver.

    Args:
        rdzv_endpoint: `host:port` of the rendezvous.
        rdzv_id: Name of the rendezvous.
        nnodes: Number of nodes, or `"minimum:maximum"`.
        nproc_per_node: Number of ranks on this node.
        node_timeout_s: Seconds without a keep-alive after which another node counts as lost.
        others: Further fields of `LaunchSettings`.

    Raises:
        ConfigError: A setting is invalid.
    """
    parse_address(rdzv_endpoint)
    return LaunchSettings.for_nodes(
        node_timeout_s,
        rdzv_endpoint=rdzv_endpoint,
        rdzv_id=rdzv_id,
        nnodes=nnodes,
        nproc_per_node=nproc_per_node,
        **others,
    )


def _is_reachable(endpoint: str) -> bool:
    """Try to connect, before an agent is started that needs seconds to import torch."""
    with contextlib.suppress(OSError), socket.create_connection(parse_address(endpoint), _CONNECT_S):
        return True
    return False


def _run_agent(
    settings: LaunchSettings, stop: threading.Event, on_event: Callable[[dict[str, Any]], None] | None
) -> int:
    """Run one agent until it exits, and return its exit code."""
    agent = start_agent(settings, None)
    reader = EventReader(agent.events)
    try:
        while not reader.has_ended and not stop.is_set():
            select.select([agent.events], [], [], _LOOK_S)
            for event in reader.read():
                _log_event(event)
                if on_event is not None:
                    on_event(event)
        if stop.is_set():
            agent.process.terminate()
        return end_process(agent.process, settings.stop_grace_s + _STOP_MARGIN_S)
    finally:
        agent.process.kill()
        agent.close_files()
        end_process(agent.process)


def _log_event(event: dict[str, Any]) -> None:
    facts = {name: value for name, value in event.items() if name != "event"}
    name = event.get("event")
    level = 30 if name == "failed" or (name == "worker_ended" and event.get("exit_code")) else 20
    log.log(level, f"ranks of this node: {name}", **facts)


@contextlib.contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C set `stop`, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: stop.set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
