"""What a worker process does all its life: take calls, make them on its worker, reply. The same for every transport."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from omni_core.error_text import described_error
from omni_core.errors import OmniError, RPCError
from omni_core.log import get_logger

log = get_logger(__name__)


@dataclass(slots=True)
class WorkerCall:
    """A call on its way to a worker.

    Attributes:
        call_id: Number by which the reply is matched; never used twice.
        method: Name of a method of the worker, or a callable that gets the worker as its first argument.
        args: Further positional arguments.
        kwargs: Keyword arguments.
    """

    call_id: int
    method: str | Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return call_name(self.method)


@dataclass(slots=True)
class WorkerReply:
    """What became of a call.

    Attributes:
        call_id: That of the call.
        value: What it returned.
        error: What it raised instead.
    """

    call_id: int
    value: Any = None
    error: OmniError | None = None


class CallTransport(Protocol):
    """How calls come to a worker process."""

    def receive(self) -> WorkerCall | WorkerReply | None:
        """Wait for the next call. None: there will be no more.

        A call that came but cannot be read gives the reply that says so.
        """

    def reply(self, reply: WorkerReply) -> None:
        """Send a reply.

        Raises:
            RPCError: Its value cannot be sent; nothing was.
        """


def serve(worker: Any, transport: CallTransport) -> None:
    """Make calls on `worker` until there are no more. What a call raises goes back to the caller, and the loop goes on.

    Args:
        worker: A `DiffusionWorker`, or whatever else has its `call`.
        transport: Where calls come from.
    """
    while True:
        call = transport.receive()
        if call is None:
            return
        if isinstance(call, WorkerReply):
            transport.reply(call)
            continue
        reply = answer(worker, call)
        try:
            transport.reply(reply)
        except RPCError as error:
            reply = WorkerReply(call.call_id, error=RPCError(f"The result of {call.name!r} cannot be sent: {error}"))
            transport.reply(reply)
        del call, reply  # an idle worker must not keep the last call's arguments and result alive


def answer(worker: Any, call: WorkerCall) -> WorkerReply:
    """Make one call and return what became of it."""
    try:
        return WorkerReply(call.call_id, worker.call(call.method, call.args, call.kwargs))
    except Exception as error:
        return WorkerReply(call.call_id, error=call_error(call.name, error))


def call_error(name: str, error: BaseException) -> OmniError:
    """Return an error for the caller that says what `error` said, with the worker's traceback."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, OmniError):
        if error.worker_traceback is None:
            error.worker_traceback = text
        error.__traceback__ = None
        return error
    return RPCError(f"The call {name!r} raised {described_error(error)}", worker_traceback=text)


def call_name(method: str | Callable[..., Any]) -> str:
    """Return what to call a method in messages."""
    return method if isinstance(method, str) else getattr(method, "__name__", repr(method))
