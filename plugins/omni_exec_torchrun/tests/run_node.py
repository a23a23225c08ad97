"""A node, for tests on other machines: `run_node.py SETTINGS`."""

from __future__ import annotations

import sys

from omni_exec_torchrun.launch_settings import LaunchSettings
from omni_exec_torchrun.node import run_node

if __name__ == "__main__":
    run_node(LaunchSettings.from_json(sys.argv[1]))
