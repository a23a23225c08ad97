"""The ranks that compute one forward pass together, and the handling of an error on one of them.

With sequence and tensor parallelism there are collectives inside the model. If all ranks raise at the same place, the
forward pass has simply failed. If one rank raises alone, the others wait in a collective that it will never enter, and
the ranks cannot continue together.
"""

from __future__ import annotations

import datetime
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import torch
from torch.distributed.distributed_c10d import PrefixStore, Store

from omni_core.error_text import is_ctrl_c
from omni_core.errors import RankGroupError
from omni_core.worker.parallel.process_groups import default_store, num_collectives
from omni_core.worker.parallel.rank_group import RankGroup

Result = TypeVar("Result")
# The function of diffusers that raises if a sequence cannot be split evenly.
_MODULE, _FUNCTION = "diffusers.hooks.context_parallel", "shard"

# A rank that raised waits these seconds, plus some forward passes, for the others to report that they raised too.
PATIENCE_S = 10.0
_FORWARDS = 3.0
# Modules of torch from which an error comes if a collective failed, which is not an error of the model.
_COLLECTIVES = ("torch.distributed.distributed_c10d", "torch.distributed._functional_collectives")


class ForwardPeers:
    """The ranks that compute each forward pass together with this one.

    They report errors through torch's store, because collectives cannot be used until it is known that no rank is in
    one.

    Args:
        peers: These ranks.
        collectives: The groups over which the model communicates.
        device: The device of the model.
    """

    def __init__(self, peers: RankGroup, collectives: Sequence[RankGroup], device: torch.device) -> None:
        self._device = device
        self._peers = peers
        self._collectives = list(dict.fromkeys(collectives))
        self._store: Store = PrefixStore(f"omni-forward-{peers.process_group.group_name}", default_store())
        self._longest_s = 0.0
        self._has_reported = False

    def run(self, forward: Callable[[], Result]) -> Result:
        """Run a forward pass.

        Raises:
            RankGroupError: It raised on this rank, and not at the same place on all ranks.
            BaseException: It raised this on all ranks.
        """
        began = time.monotonic()
        try:
            return forward()
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            # If a collective failed, a rank is gone, and the next exchange of all ranks says so.
            if not _is_from_collective(error.__traceback__):
                self._compare(error)
            explained = explain_uneven(error, self._peers.world_size)
            if explained is error:
                raise
            raise explained from error
        finally:
            self._longest_s = max(self._longest_s, time.monotonic() - began)

    def forget_failure(self) -> None:
        """Delete the report of a failure. To be called when all ranks have handled it."""
        if self._has_reported:
            self._has_reported = False
            self._store.delete_key(str(self._peers.rank))

    def _compare(self, error: BaseException) -> None:
        place = self._place()
        self._has_reported = True
        self._store.set(str(self._peers.rank), place)
        others = [str(rank) for rank in range(self._peers.world_size) if rank != self._peers.rank]
        patience = datetime.timedelta(seconds=PATIENCE_S + _FORWARDS * self._longest_s)
        try:
            self._store.wait(others, patience)
            places = [self._store.get(rank).decode() for rank in others]
        except (RuntimeError, ValueError) as reason:  # DistStoreError is a RuntimeError
            raise self._out_of_step(error, "the others did not") from reason
        if any(other != place for other in places):
            raise self._out_of_step(error, "the others raised elsewhere")

    def _place(self) -> str:
        """Return the number of collectives of each group so far, as text: it is equal on ranks that are in step."""
        return repr([num_collectives(group.process_group, self._device) for group in self._collectives])

    def _out_of_step(self, error: BaseException, what: str) -> RankGroupError:
        found = "".join(traceback.format_exception(error))
        # Its frames reference process groups, whose connections stay open while they are referenced.
        traceback.clear_frames(error.__traceback__)
        return RankGroupError(
            f"Rank {self._peers.rank} of the {self._peers.world_size} that compute a forward together raised in it, "
            f"and {what}: {type(error).__name__}: {error}",
            worker_traceback=found,
        )


def _is_from_collective(trace: TracebackType | None) -> bool:
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") in _COLLECTIVES:
            return True
        trace = trace.tb_next
    return False


def explain_uneven(error: BaseException, parts: int) -> BaseException:
    """Return an explaining error if a sequence cannot be split evenly; any other error is returned itself.

    Args:
        error: The exception of a forward pass.
        parts: Number of parts of its sequence.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not isinstance(error, AssertionError) or not frames:
        return error
    # Recognised by the function, since diffusers raises a plain AssertionError.
    last = frames[-1]
    if (last.f_globals.get("__name__"), last.f_code.co_name) != (_MODULE, _FUNCTION):
        return error
    tensor, dim = last.f_locals.get("tensor"), last.f_locals.get("dim")
    length = f"{tensor.shape[dim]} tokens" if tensor is not None and isinstance(dim, int) else "tokens"
    return ValueError(
        f"The {parts} ranks that share a sequence (ulysses_degree times ring_degree) cannot split one of {length} "
        f"evenly. Choose a size (height, width, num_frames, max_sequence_length) that gives a multiple of {parts} "
        "for the picture and for the prompt, or run it without sequence parallelism."
    )
