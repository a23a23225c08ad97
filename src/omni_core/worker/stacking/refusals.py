"""Records and logs kinds of denoiser calls that cannot be stacked or split."""

from __future__ import annotations

import torch

from omni_core.log import get_logger
from omni_core.outputs import StackingStats
from omni_core.worker.stacking.call import DenoiserCall

log = get_logger(__name__)


def note_not_stacked(stats: StackingStats, call: DenoiserCall, reason: str) -> None:
    """Record and log once that calls of this kind run alone."""
    name = _name(call)
    if name not in stats.refused:
        stats.refused[name] = _short(reason)
        log.warning("a kind of denoiser call is run alone, not stacked", call=name, reason=stats.refused[name])


def note_not_split(stats: StackingStats, call: DenoiserCall, reason: str) -> None:
    """Record and log once that calls of this kind run whole on every rank."""
    name = f"{_name(call)} over ranks"
    if name not in stats.refused:
        stats.refused[name] = f"rows not split: {_short(reason)}"
        log.warning("a kind of denoiser call is run whole on every rank", call=_name(call), reason=_short(reason))


def note_mismatch(stats: StackingStats, call: DenoiserCall, reason: str) -> None:
    """Record and log that calls of this kind were stacked, and that a later check failed."""
    name = _name(call)
    if name not in stats.mismatches:
        stats.mismatches[name] = _short(reason)
        log.error(
            "a kind of denoiser call was stacked and is wrong in company: outputs that it made may be wrong; it runs "
            "alone from now on",
            call=name,
            reason=_short(reason),
        )


def _name(call: DenoiserCall) -> str:
    shapes = [tuple(leaf.shape) for leaf in call.leaves if isinstance(leaf, torch.Tensor)]
    return f"{type(call.module).__name__}{shapes}"


def _short(reason: str) -> str:
    return (reason.splitlines() or [""])[0][:300]
