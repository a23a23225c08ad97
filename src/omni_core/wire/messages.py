"""The messages between driver and worker: calls and replies.

The number of a call is not part of the pickle: a worker that cannot unpickle a call (for example because it lacks a
module) can still reply to it.
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

# Numbers of frames that are not calls: the `WorkerSetup` and its reply; on the control channel, pings and interrupts.
STARTED = 0
PING = 1
INTERRUPT = 2


def open_value(frame: Frame) -> Any:
    """Unpickle the value of a frame. Raises whatever unpickling raises."""
    return serialization.loads(frame.data, frame.buffers)


def seal(number: int, value: Any) -> Frame:
    """Pickle a value into a frame.

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
            seal(number, {"method": method, "args": args, "kwargs": kwargs})  # so that the message names the part
        except RPCError as error:
            raise RPCError(f"The call {call_name(method)!r} cannot be sent: {error}") from error
        raise


def open_call(frame: Frame) -> WorkerCall | WorkerReply:
    """Return the call, or an error reply if it cannot be unpickled."""
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
    """Return value and error of a reply. If it cannot be unpickled here, that is the error."""
    try:
        value, error = open_value(frame)
    except Exception as reason:
        return None, RPCError(f"The worker's reply cannot be read here: {described_error(reason)}")
    return open_outputs(value), error
