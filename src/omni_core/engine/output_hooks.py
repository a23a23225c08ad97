"""Calls the hook `omni_output` for each finished request, in a separate thread."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable

from omni_core.engine.bookkeeping import Live
from omni_core.error_text import described_error
from omni_core.errors import OmniError, PluginError
from omni_core.hookspecs import Hooks
from omni_core.outputs import OmniRequestOutput, RequestMetrics
from omni_core.own_threads import begin_own_thread
from omni_core.serial_thread import SerialThread, ThreadClosedError
from omni_core.validation import described

_HOOK = "omni_output"
# Seconds that closing waits for a running hook, whose result is dropped.
_CLOSE_S = 2.0


class OutputHooks:
    """Calls `omni_output` for one finished request after the other, outside the engine's thread.

    Args:
        hooks: The hooks of the engine.
        owner: The owner of the thread: in the hooks, calls that wait for this engine are refused.
        on_done: Called with each request and the output that the hooks returned, in the thread of the hooks.
    """

    def __init__(self, hooks: Hooks, owner: object, on_done: Callable[[Live, OmniRequestOutput], None]) -> None:
        self._hooks = hooks
        self._owner = owner
        self._on_done = on_done
        self._thread: SerialThread | None = None

    @property
    def are_there(self) -> bool:
        """Whether any plugin implements the hook."""
        return self._hooks.has(_HOOK)

    def begin(self, live: Live, output: OmniRequestOutput) -> None:
        """Queue an output for the hooks."""
        if self._thread is None:
            self._thread = SerialThread("omni-output")
            self._thread.submit(functools.partial(begin_own_thread, f"calls {_HOOK}", self._owner))
        with contextlib.suppress(ThreadClosedError):  # the engine is closed, and ends all requests
            self._thread.submit(self._call, live, output)

    def close(self) -> None:
        """End the thread. A running hook continues, and its result is dropped."""
        if self._thread is not None:
            self._thread.close(_CLOSE_S)

    def _call(self, live: Live, output: OmniRequestOutput) -> None:
        begun = time.monotonic()
        metrics = output.metrics
        try:
            output = self._hooks.call_chain(_HOOK, OmniRequestOutput, "output", request=live.request, output=output)
            _check(live, output)
            output.metrics.output_s = time.monotonic() - begun
        except BaseException as error:  # KeyboardInterrupt too, if a plugin raises it in this thread
            reason = error if isinstance(error, OmniError) else PluginError(described_error(error))
            metrics.output_s = time.monotonic() - begun
            output = OmniRequestOutput.failed(live.request, reason, metrics)
        self._on_done(live, output)


def _check(live: Live, output: OmniRequestOutput) -> None:
    """Check the output that a plugin returned.

    Raises:
        PluginError: It is not valid.
    """
    name = live.handle.request_id
    if output.request_id != name:
        raise PluginError(f"A plugin returned the output of request {output.request_id!r} from {_HOOK} for {name!r}.")
    for field, kind in (("metrics", RequestMetrics), ("output", dict)):
        if not isinstance(value := getattr(output, field), kind):
            raise PluginError(
                f"A plugin returned an output from {_HOOK} for request {name!r} whose {field} is {described(value)}: "
                f"it must be {kind.__name__}."
            )
    is_error = isinstance(output.error, OmniError)
    wanted = {"finished": output.error is None, "error": is_error}
    if not wanted.get(output.finish_reason, False):
        raise PluginError(
            f"A plugin returned an output from {_HOOK} for request {name!r} whose finish_reason is "
            f"{output.finish_reason!r} and whose error is {output.error!r}. It must be 'finished' with no error, or "
            "'error' with an OmniError."
        )
