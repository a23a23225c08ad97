"""What travels between driver and worker: calls and replies.

The number of the call is outside of what is pickled: a worker that cannot read a call (it needs a module that it does
not have, say) can still tell whose call that was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omni_core import serialization
from omni_core.calls import WorkerCall, WorkerReply, call_error, call_name
from omni_core.error_text import described_error
from omni_core.errors import OmniError, RPCError
from omni_core.wire.frame import Frame
from omni_core.wire.sealed import open_outputs, seal_outputs

# Numbers of frames that are no calls: the `WorkerSetup` and its reply; on the control channel, pings and interrupts.
STARTED = 0
PING = 1
INTERRUPT = 2


def open_value(frame: Frame) -> Any:
    """Return what was packed. Raises whatever unpickling raises."""
    return serialization.loads(frame.data, frame.buffers)


def seal(number: int, value: Any) -> Frame:
    """Pack a value.

    Raises:
        RPCError: It cannot be pickled; the message says which part.
    """
    data, buffers = serialization.dumps(value)
    return Frame(number, data, buffers)


def seal_call(
    number: int, method: str | Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> Frame:
    """Pack a call.

    Raises:
        RPCError: An argument cannot be pickled.
    """
    try:
        return seal(number, (method, args, kwargs or None))
    except RPCError:
        try:
            seal(number, {"method": method, "args": args, "kwargs": kwargs})  # whose names the message then has
        except RPCError as error:
            raise RPCError(f"The call {call_name(method)!r} cannot be sent: {error}") from error
        raise


def open_call(frame: Frame) -> WorkerCall | WorkerReply:
    """Return the call, or the reply that says why it cannot be read."""
    try:
        return WorkerCall(frame.number, *open_value(frame))
    except Exception as error:
        reason = RPCError(f"The worker cannot read the call: {described_error(error)}")
        return WorkerReply(frame.number, error=call_error("unpickling", reason))


def seal_reply(reply: WorkerReply) -> Frame:
    """Pack a reply.

    Raises:
        RPCError: Its value cannot be pickled.
    """
    return seal(reply.call_id, (seal_outputs(reply.value), reply.error))


def open_reply(frame: Frame) -> tuple[Any, OmniError | None]:
    """Return value and error of a reply; an error that says so if it cannot be read here."""
    try:
        value, error = open_value(frame)
    except Exception as reason:
        return None, RPCError(f"The worker's reply cannot be read here: {described_error(reason)}")
    return open_outputs(value), error
