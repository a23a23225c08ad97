"""Driver mode: torch elastic launches the ranks, which connect back to the driver, an ordinary program."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omni_core.config import FieldMark, marked_fields
from omni_core.errors import ConfigError
from omni_core.replicas.executor import worker_config
from omni_core.replicas.replica import ReplicaEvents
from omni_core.wire.arrival import Arrivals
from omni_core.wire.control_port import ControlPort
from omni_core.wire.executor import WireExecutor
from omni_core.wire.private_file import PrivateFile
from omni_core.wire.reactor import Reactor
from omni_core.wire.secret import new_secret
from omni_exec_torchrun.group import LaunchGroup
from omni_exec_torchrun.launch_settings import LaunchSettings, parse_nnodes
from omni_exec_torchrun.options import TorchrunOptions
from omni_exec_torchrun.replica import RankReplica
from omni_exec_torchrun.secret import SECRET_FILE_VARIABLE, SECRET_VARIABLE, load_secret
from omni_exec_torchrun.worker import CONTROL_VARIABLE, GROUP_VARIABLE


class DriverExecutor(WireExecutor):
    """Runs `data_parallel_size` replicas of `ranks_per_replica` ranks each, here or on several nodes.

    On one node each replica is a separate launch, so that a death in one does not affect the others. Over several nodes
    all ranks are one launch, and restart together.
    """

    def _init_executor(self) -> None:
        self._options: TorchrunOptions = self.options or TorchrunOptions()  # none if it was given as a class
        self._groups: list[LaunchGroup] = []
        self._arrivals = Arrivals()
        self._port: ControlPort | None = None
        self._secret_file: PrivateFile | None = None
        self._options.refuse_unused(spmd=False)
        self._nproc_per_node = self._choose_nproc()
        secret = load_secret(self._options.secret_file)
        if secret is None and self._is_multi_node:
            raise ConfigError(
                f"nnodes = {self._options.nnodes!r} needs a secret that the other nodes know too: set secret_file, "
                f"{SECRET_FILE_VARIABLE} or {SECRET_VARIABLE}. Make one with: openssl rand -hex 32"
            )
        self._secret = secret or new_secret()
        super()._init_executor()

    def make_replicas(self, loop: Reactor, events: ReplicaEvents) -> Sequence[RankReplica]:
        """Return the replicas, not started yet."""
        self._secret_file = PrivateFile("secret", self._secret)
        secret_file = self._secret_file.path
        self._port = ControlPort(
            loop,
            self._options.master_addr or "127.0.0.1",
            self._options.control_port,
            secret=self._secret,
            on_peer=self._connected,
            handshake_timeout_s=self._options.send_timeout_s,
            silent_s=self._options.node_timeout_s,
        )
        number = self.config.data_parallel_size
        num_local = None if self._is_multi_node else number * self.config.ranks_per_replica
        config = worker_config(self.config, "torchrun")
        replicas: list[RankReplica] = []
        for members in [range(number)] if self._is_multi_node else [range(index, index + 1) for index in range(number)]:
            group = LaunchGroup(
                loop,
                self._launch_settings(len(self._groups), secret_file),
                self._note_heard,
                self._options.fork_server,
            )
            group.replicas = [
                RankReplica(
                    loop,
                    group,
                    config,
                    self._options,
                    events,
                    index=index,
                    num_local=num_local,
                    hooks=self.plugins,
                )
                for index in members
            ]
            self._groups.append(group)
            replicas += group.replicas
        return replicas

    def release(self) -> None:
        """Release the launchers, the port and the secret."""
        for group in self._groups:
            group.close()
        self._arrivals.close()
        if self._port is not None:
            self._port.close()
        if self._secret_file is not None:
            self._secret_file.close()

    @property
    def control_address(self) -> str:
        """The address to which ranks connect, as host:port."""
        return self._port.address if self._port is not None else ""

    @property
    def _is_multi_node(self) -> bool:
        return parse_nnodes(self._options.nnodes)[1] > 1

    def _choose_nproc(self) -> int:
        """Return the checked number of ranks of each node.

        Raises:
            ConfigError: The numbers of ranks do not match.
        """
        most = parse_nnodes(self._options.nnodes)[1]
        wanted = self._options.nproc_per_node
        ranks = self.config.data_parallel_size * self.config.ranks_per_replica
        sizes = " x ".join(marked_fields(FieldMark.REPLICAS, FieldMark.RANKS))
        if most == 1:
            if wanted not in (None, ranks):
                raise ConfigError(
                    f"nproc_per_node = {wanted}, but the configuration asks for {ranks} ranks on this node ({sizes})."
                )
            return self.config.ranks_per_replica
        if ranks != (wanted or ranks // most) * most:
            raise ConfigError(
                f"{most} nodes of {wanted or 'as many'} ranks each do not make the {ranks} ranks that the "
                f"configuration asks for ({sizes}). Change nnodes, nproc_per_node or the sizes."
            )
        return wanted or ranks // most

    def _launch_settings(self, group: int, secret_file: Path) -> LaunchSettings:
        assert self._port is not None
        options = self._options
        log_folder = options.log_folder
        environment = {
            CONTROL_VARIABLE: self._port.address,
            GROUP_VARIABLE: str(group),
            SECRET_FILE_VARIABLE: str(secret_file),
            SECRET_VARIABLE: "",  # the file has it
        }
        if "OMP_NUM_THREADS" not in os.environ:
            # As torchrun does for several ranks. A worker sets its own number of threads later.
            environment["OMP_NUM_THREADS"] = "1"
        return LaunchSettings.for_nodes(
            options.node_timeout_s,
            model=self.config.model,
            nnodes=options.nnodes,
            nproc_per_node=self._nproc_per_node,
            rdzv_backend=options.rdzv_backend,
            rdzv_endpoint=options.rdzv_endpoint,
            rdzv_id=options.rdzv_id,
            max_restarts=options.max_restarts,
            join_timeout_s=options.join_timeout_s,
            master_addr=options.master_addr,
            log_folder=None if log_folder is None else str(log_folder),
            environment=environment,
        )

    def _connected(self, connection: socket.socket, hello: dict[str, Any], address: str) -> None:
        arrival = self._arrivals.add(connection, hello, address)
        if arrival is None:
            return
        if arrival.hello.group not in range(len(self._groups)):
            arrival.close()
            return
        self._groups[arrival.hello.group].arrived(arrival)

    def _finish_all(self) -> None:
        for group in self._groups:
            group.stop()
        super()._finish_all()

    def _signal(self, which: Any) -> None:
        super()._signal(which)
        for group in self._groups:
            group.kill(at_once=which.name == "SIGKILL")

    def _are_gone(self) -> bool:
        return super()._are_gone() and not any(group.is_running for group in self._groups)
