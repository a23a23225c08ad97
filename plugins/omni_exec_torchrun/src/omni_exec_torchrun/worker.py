"""The main module of a rank in driver mode, `python -m omni_exec_torchrun.worker`: connects to the driver."""

from __future__ import annotations

import datetime
import os
import secrets
import socket
import sys
from typing import TYPE_CHECKING, Any

from omni_core.errors import OmniError, StartupError
from omni_core.plugins import default_registry
from omni_core.wire import worker_setup as wire_setup
from omni_core.wire.address import interface_towards
from omni_core.wire.arrival import Hello, this_machine
from omni_core.wire.authentication import connect
from omni_core.wire.channel import Channel
from omni_core.wire.worker_main import DRIVER_GONE, run_worker
from omni_core.worker.parallel.process_groups import local_interface
from omni_exec_torchrun.agent_end import end_with_agent
from omni_exec_torchrun.secret import SECRET_FILE_VARIABLE, SECRET_VARIABLE, load_secret
from omni_exec_torchrun.worker_setup import TorchrunWorkerSetup

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from omni_core.worker.parallel.rank_group import RankGroup

# The control port of the driver as host:port, and the number of the launch: set for ranks on the driver's node.
CONTROL_VARIABLE = "OMNI_TORCHRUN_CONTROL"
GROUP_VARIABLE = "OMNI_TORCHRUN_GROUP"
# The key in torch's store under which these ranks pass the address to the other nodes.
_CONTROL_KEY = "omni/control"
_CONNECT_S = 60.0
_STORE_S = 300.0


def main() -> None:
    """Connect to the driver and serve its calls. Does not return."""
    end_with_agent()
    try:
        rank = TorchrunRank()
        work, control = rank.connect()
    except (OmniError, OSError) as error:
        print(f"This rank cannot reach its driver: {error}", file=sys.stderr, flush=True)  # noqa: T201  # no log yet
        os._exit(DRIVER_GONE)
    # No timeout: a stopped driver may continue. If it has ended or is cut off, the connection breaks.
    channels = [Channel(one, send_timeout_s=None, shared_memory_bytes=0) for one in (work, control)]
    run_worker(channels[0], channels[1], rank.make_worker)


class TorchrunRank:
    """This rank, according to the environment variables of torchrun.

    Raises:
        StartupError: It was not started by torchrun.
    """

    def __init__(self) -> None:
        try:
            self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            self.local_rank, self.local_world_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
            self.master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        except (KeyError, ValueError) as error:
            raise StartupError(
                f"{error} is not set as torchrun does it. Start this with `omni torchrun-worker`, or with "
                "`torchrun … -m omni_exec_torchrun.worker`."
            ) from error
        self._store: Store | None = None

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Return a connection to the driver for calls, and one for urgent messages.

        Raises:
            OmniError: There is no secret, or it is not that of the driver.
            OSError: The driver cannot be reached.
        """
        secret = load_secret()
        if secret is None:
            raise StartupError(f"There is no secret: set {SECRET_VARIABLE} or {SECRET_FILE_VARIABLE}, the driver's.")
        address = self._control_address()
        process = secrets.token_hex(16)

        def one(channel: str) -> socket.socket:
            hello = Hello(
                channel=channel,
                process=process,
                group=int(os.environ.get(GROUP_VARIABLE, "0")),
                rank=self.rank,
                world_size=self.world_size,
                local_rank=self.local_rank,
                local_world_size=self.local_world_size,
                pid=os.getpid(),
                machine=this_machine(),
            )
            return connect(address, secret, hello.model_dump(), _CONNECT_S)

        return one("work"), one("control")

    def make_worker(self, worker_setup: Any) -> Any:
        """Make the worker from the first message of the driver."""
        assert isinstance(worker_setup, TorchrunWorkerSetup)

        def connect_ranks() -> RankGroup:
            from torch.distributed.distributed_c10d import PrefixStore

            from omni_core.worker.parallel.rank_group import RankGroup

            return RankGroup.connect(
                worker_setup.rank,
                worker_setup.world_size,
                worker_setup.rendezvous or PrefixStore(worker_setup.meeting, self._open_store()),
                device=worker_setup.config.device,
                timeout_s=worker_setup.timeout_s,
                interface=self._interface(),
                backend=worker_setup.backend,
                key=worker_setup.key,
            )

        return wire_setup.make_worker(worker_setup, connect_ranks, default_registry)

    def _interface(self) -> str | None:
        """Return the network interface on which ranks listen: loopback if all are on this node."""
        if self.world_size == self.local_world_size:
            return local_interface("tcp://127.0.0.1")
        # Gloo would resolve the host name of this machine, which may be unknown.
        return interface_towards(*self.master)

    def _control_address(self) -> str:
        address = os.environ.get(CONTROL_VARIABLE)
        if self.world_size == self.local_world_size:
            if not address:
                raise StartupError("This rank has no driver: start it with `omni torchrun-worker` beside one.")
            return address
        store = self._open_store()
        if address:
            store.set(_CONTROL_KEY, address)
            return address
        return str(store.get(_CONTROL_KEY).decode())

    def _open_store(self) -> Store:
        """Return the store in which the ranks of a launch over several nodes rendezvous."""
        if self._store is None:
            from torch.distributed import TCPStore  # type: ignore[attr-defined]

            host, port = self.master
            options: dict[str, Any] = {"timeout": datetime.timedelta(seconds=_STORE_S)}
            is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            if self.rank == 0 and not is_served:
                # On this address only: torch would listen on every interface.
                listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
                options |= {"is_master": True, "wait_for_workers": False, "master_listen_fd": listener.detach()}
            self._store = TCPStore(host, port, **options)
        return self._store


if __name__ == "__main__":
    main()
