"""A driver that does nothing but run a launcher, for tests on other machines: `run_launcher.py SETTINGS`."""

from __future__ import annotations

import json
import sys
from typing import Any

from omni_core.replicas.loop import run_in
from omni_core.wire.reactor import Reactor
from omni_exec_torchrun.launch_settings import LaunchSettings
from omni_exec_torchrun.launcher import Launcher


def main(settings: LaunchSettings) -> None:
    """Print the launcher's events, one a line, until standard input ends."""
    reactor = Reactor("omni-test")

    def tell(event: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    def start() -> None:
        launchers.append(
            Launcher(reactor, settings, 2, lambda status: tell({"event": "ended", "status": status}), tell)
        )

    launchers: list[Launcher] = []
    run_in(reactor, start)
    sys.stdin.read()
    run_in(reactor, launchers[0].close)
    reactor.stop()


if __name__ == "__main__":
    main(LaunchSettings.from_json(sys.argv[1]))
