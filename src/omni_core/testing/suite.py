"""The suite as a whole."""

from __future__ import annotations

from omni_core.testing.concurrency import Concurrency
from omni_core.testing.driver_faults import DriverFaults
from omni_core.testing.errors import Errors
from omni_core.testing.faults import Faults
from omni_core.testing.leaks import Leaks
from omni_core.testing.lifecycle import Lifecycle
from omni_core.testing.payloads import Payloads
from omni_core.testing.poison import Poison
from omni_core.testing.results import Results
from omni_core.testing.rpc import RemoteCalls
from omni_core.testing.sleeping import Sleeping
from omni_core.testing.startup_faults import StartupFaults
from omni_core.testing.streaming import Streaming


# pytest runs the tests of the last base first.
class ExecutorConformance(
    DriverFaults,
    Leaks,
    StartupFaults,
    Faults,
    Sleeping,
    Concurrency,
    Streaming,
    Poison,
    Errors,
    Payloads,
    RemoteCalls,
    Results,
    Lifecycle,
):
    """What every executor must do. Inherit it, and set `executor_class`::

        class TestMyExecutor(ExecutorConformance):
            executor_class = "my-executor"
            executor_options = {"address": "localhost:0"}
            config = {"device": "cuda"}

    Tests of what the executor does not declare are skipped, with a reason that begins with `not supported:`. An
    executor with worker processes has them killed: it says which they are by a method `worker_pids()` that returns a
    list of process ids for each replica, or the subclass overrides `worker_pids(engine)`.
    """
