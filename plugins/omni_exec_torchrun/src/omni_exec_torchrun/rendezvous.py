"""The rendezvous of nodes: a trivial one for a single node, and torch's for several nodes at a configured address."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from datetime import timedelta

from torch._C._distributed_c10d import HashStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from omni_core.log import get_logger
from omni_core.wire.address import address_towards, parse_address
from omni_exec_torchrun.launch_settings import LaunchSettings, parse_nnodes

log = get_logger(__name__)

_LOOPBACK = "127.0.0.1"


class LoopbackRendezvous(RendezvousHandler):
    """The rendezvous of a single node: it does not wait, and does not listen.

    torch's rendezvous waits up to 0.3 s, and its store listens on every interface. Here the store is in the memory of
    the agent, and the ranks rendezvous in a file of the driver.

    Args:
        run_id: Name of the rendezvous.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    @property
    def use_agent_store(self) -> bool:
        """Ranks cannot use the store of the agent."""
        return False

    def get_backend(self) -> str:
        """Return the name of the backend."""
        return "loopback"

    def get_run_id(self) -> str:
        """Return the name of the rendezvous."""
        return self._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """Create a new store, without entries of earlier ranks."""
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(_LOOPBACK, 0))

    def num_nodes_waiting(self) -> int:
        """No other node can join."""
        return 0

    def is_closed(self) -> bool:
        """Always False."""
        return False

    def set_closed(self) -> None:
        """Do nothing."""

    def shutdown(self) -> bool:
        """Do nothing."""
        return True


def make_rendezvous(settings: LaunchSettings) -> tuple[RendezvousHandler, bool]:
    """Return the rendezvous for the settings, and whether another node hosts it.

    Raises:
        OSError: It cannot listen on the address, or the address is unknown.
        RendezvousConnectionError: The other node cannot be reached.
    """
    if not settings.rdzv_endpoint:
        return LoopbackRendezvous(settings.rdzv_id), False
    # Ranks of each rendezvous get a new store. The agents' store, which torch would share with them, persists: a node
    # that joins later would read old keys, and wait for an address that is not written again.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    fewest, most = parse_nnodes(settings.nnodes)
    parameters = RendezvousParameters(
        backend=settings.rdzv_backend,
        endpoint=settings.rdzv_endpoint,
        run_id=settings.rdzv_id,
        min_nodes=fewest,
        max_nodes=most,
        local_addr=settings.master_addr or _own_address(settings),
        **{
            "join_timeout": settings.join_timeout_s,
            "last_call_timeout": settings.last_call_timeout_s,
            "read_timeout": settings.read_timeout_s,
            "keep_alive_interval": settings.keep_alive_interval_s,
            "keep_alive_max_attempt": settings.keep_alive_attempts,
            **settings.rdzv_configs,
        },
    )
    if settings.rdzv_backend != "c10d" or "store_type" in settings.rdzv_configs:
        return get_rendezvous_handler(parameters), False
    store, is_host = _host_or_join(settings)
    return create_handler(store, C10dRendezvousBackend(store, settings.rdzv_id), parameters), not is_host


def join_store(settings: LaunchSettings) -> Store:
    """Connect to the store of the rendezvous.

    Raises:
        DistNetworkError: It cannot be reached.
    """
    host, port = parse_address(settings.rdzv_endpoint)
    timeout = timedelta(seconds=settings.read_timeout_s)
    return TCPStore(host, port, is_master=False, timeout=timeout)


def _host_or_join(settings: LaunchSettings) -> tuple[Store, bool]:
    """Host the store if its address belongs to this machine and is free; else connect to it."""
    host, port = parse_address(settings.rdzv_endpoint)
    try:
        # On this address only: torch would listen on every interface.
        listener = _listen(host, port)
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
            raise
        return join_store(settings), False
    return _serve(listener, host, timedelta(seconds=settings.read_timeout_s)), True


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


def _serve(listener: socket.socket, host: str, timeout: timedelta) -> TCPStore:
    """Let torch serve a store on a socket, which the store then owns."""
    port: int = listener.getsockname()[1]
    fd = listener.detach()
    return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=fd)


def _own_address(settings: LaunchSettings) -> str | None:
    """Return the address by which other nodes reach this one. (torch would resolve the host name, which may fail.)"""
    with contextlib.suppress(OSError, ValueError):
        return address_towards(*parse_address(settings.rdzv_endpoint))
    return None
