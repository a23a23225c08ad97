"""How a worker is started: a server is started or reached, and makes it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from omni_core import OmniDiffusionConfig
from omni_core.calls import WorkerReply
from omni_core.errors import ExecutorError, StartupError
from omni_exec_http.body import decode, encode
from omni_exec_http.client import Client, Exchange, TransportError, wait_readable
from omni_exec_http.link import OK, Link
from omni_exec_http.options import HttpOptions
from omni_exec_http.process import HOST, ServerProcess
from omni_exec_http.signing import Signer

TIME_TO_TELL_S = 2.0


def open_link(
    config: OmniDiffusionConfig,
    options: HttpOptions,
    *,
    replica: int,
    sleep_level: int,
    give_up: socket.socket,
    is_closing: Callable[[], bool],
    on_lost: Callable[[], None],
) -> Link:
    """Start the worker of a replica, and return when it is ready.

    Args:
        config: That of the engine.
        options: Of the executor.
        replica: Index of the replica.
        sleep_level: The level at which the worker is to sleep; 0 is awake.
        give_up: Becomes readable when it is to be seen whether `is_closing`.
        is_closing: Whether nobody wants the worker any more.
        on_lost: For the link.

    Raises:
        OmniError: What the worker itself said; or that it did not come to say anything.
    """
    # What only the driver has means nothing to the worker.
    told: dict[str, Any] = {
        "config": config.replace(executor_class="inline", executor_options={}),
        "replica": replica,
        "sleep_level": sleep_level,
    }
    process = None
    if options.url is None:
        process = ServerProcess(options.max_body_bytes, _threads(config))
        client = Client(HOST, process.port, Signer(process.secret), options.max_body_bytes)
        name = f"The server of replica {replica} (process {process.pid})"
    else:
        address = options.addresses[replica]
        client = Client(*address, Signer(options.shared_secret()), options.max_body_bytes)
        name = f"The server {options.url[replica]} of replica {replica}"
    try:
        lifeline = client.begin("POST", "/session", encode(told, options.max_body_bytes))
        _wait(lifeline, name, config.startup_timeout_s, give_up, is_closing)
        reply = lifeline.finish(keep=True)
        if reply.status != OK:
            raise StartupError(f"{name} made no worker: {reply.body.decode(errors='replace')}.")
        answer: WorkerReply = decode(reply.body)
        if answer.error is not None:
            raise answer.error
    except TransportError as error:
        end = process.end_of(TIME_TO_TELL_S) if process is not None else None
        _clean_up(client, process)
        why = f"{end} while its worker was loading" if end else f"did not answer. {error}"
        raise StartupError(f"{name} {why}.{_advice(options)}") from error
    except BaseException:
        _clean_up(client, process)
        raise
    facts = answer.value
    return Link(
        client,
        lifeline.nonce,
        lifeline,
        process,
        pid=facts["pid"],
        max_body_bytes=min(facts["max_body_bytes"], options.max_body_bytes),
        on_lost=on_lost,
    )


def _wait(
    lifeline: Exchange, name: str, timeout: float, give_up: socket.socket, is_closing: Callable[[], bool]
) -> None:
    deadline = time.monotonic() + timeout
    files: list[Exchange | socket.socket] = [lifeline, give_up]
    while lifeline not in (ready := wait_readable(files, max(deadline - time.monotonic(), 0.0))):
        if not ready:
            raise StartupError(
                f"{name} did not load its pipeline in startup_timeout_s = {timeout:g} s. "
                "Raise it if the model takes longer to load."
            )
        give_up.recv(4096)
        if is_closing():
            raise ExecutorError("The executor was shut down while its worker was loading.")


def _clean_up(client: Client, process: ServerProcess | None) -> None:
    client.close()
    if process is not None:
        process.kill()


def _threads(config: OmniDiffusionConfig) -> dict[str, str]:
    """Return how many threads a worker of one of the executor's own servers shall use, if nobody has said it."""
    if config.num_threads is not None or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // config.data_parallel_size))}


def _advice(options: HttpOptions) -> str:
    if options.url is None:
        return ""
    return " Is it running, and was it started with the same secret? See: python -m omni_exec_http.server --help"
