"""Where nodes meet. A single node meets itself, on loopback; several meet at an address that somebody chose."""

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
    """The meeting of a single node with itself: no waiting, and nothing that listens.

    torch's own would draw up to 0.3 s before the first meeting, and its store listens on every interface. The agent's
    store is in its memory; the ranks meet where the driver tells them.

    Args:
        run_id: Name of the meeting.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    @property
    def use_agent_store(self) -> bool:
        """Ranks cannot use it."""
        return False

    def get_backend(self) -> str:
        """Return its name."""
        return "loopback"

    def get_run_id(self) -> str:
        """Return the name of the meeting."""
        return self._run_id

    def next_rendezvous(self) -> RendezvousInfo:
        """Open a new store, so that nothing is left of the ranks before."""
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(_LOOPBACK, 0))

    def num_nodes_waiting(self) -> int:
        """Nobody else can come."""
        return 0

    def is_closed(self) -> bool:
        """It never is."""
        return False

    def set_closed(self) -> None:
        """Nothing to do."""

    def shutdown(self) -> bool:
        """Nothing to do."""
        return True


def make_rendezvous(settings: LaunchSettings) -> tuple[RendezvousHandler, bool]:
    """Return the meeting that the settings describe, and whether it depends on another machine.

    Raises:
        OSError: The address cannot be listened on, or is not known.
        RendezvousConnectionError: Nobody is there.
    """
    if not settings.rdzv_endpoint:
        return LoopbackRendezvous(settings.rdzv_id), False
    # Ranks of each meeting get a store of their own. The one that torch's agents would share with them goes on from
    # meeting to meeting: a node that joins later waits for an address that is not written again, and reads old keys.
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
    """Connect to the store at which the nodes meet.

    Raises:
        DistNetworkError: Nobody is there.
    """
    host, port = parse_address(settings.rdzv_endpoint)
    timeout = timedelta(seconds=settings.read_timeout_s)
    return TCPStore(host, port, is_master=False, timeout=timeout)


def _host_or_join(settings: LaunchSettings) -> tuple[Store, bool]:
    """Open the store if its address is this machine's and nobody has yet; else connect to it."""
    host, port = parse_address(settings.rdzv_endpoint)
    try:
        # At this address only: torch's own would listen on every interface.
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
    """Have torch serve a store on a socket, which is the store's from now on."""
    port: int = listener.getsockname()[1]
    fd = listener.detach()
    return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=fd)


def _own_address(settings: LaunchSettings) -> str | None:
    """Return the address by which other nodes reach this one; torch would look its name up, which need not work."""
    with contextlib.suppress(OSError, ValueError):
        return address_towards(*parse_address(settings.rdzv_endpoint))
    return None
