"""Telling an SPMD executor of the requests of its engine in the order in which they were submitted.

An executor is given requests in the order in which there is room for them, and is not given those that end before. On
another rank both may be otherwise, so requests are numbered when they are queued. Plugins observe that.
"""

from __future__ import annotations

import sys
import threading
import weakref
from abc import ABC, abstractmethod
from typing import Any

from omni_core import OmniDiffusionRequest, OmniRequestOutput, hookimpl
from omni_core.errors import OmniError
from omni_core.plugins import PluginRegistry

_NAME = "torchrun-spmd"


class QueueWatcher(ABC):
    """Is told of the requests of every engine of this process, in that engine's thread."""

    @abstractmethod
    def request_queued(self, request: OmniDiffusionRequest) -> None:
        """A request was accepted."""

    @abstractmethod
    def request_ended(self, request_id: str, error: OmniError | None) -> None:
        """A request has ended; `error` says why, unless it finished."""


_watchers: weakref.WeakSet[QueueWatcher] = weakref.WeakSet()
_lock = threading.Lock()


def watch(watcher: QueueWatcher, plugins: Any) -> None:
    """Tell `watcher` of requests from now on, until `unwatch`, or until nobody else holds it.

    Args:
        watcher: Who is told.
        plugins: The plugins of its engine.
    """
    with _lock:
        _watchers.add(watcher)
        if isinstance(plugins, PluginRegistry) and all(record.name != _NAME for record in plugins.records):
            plugins.register(sys.modules[__name__], _NAME)


def unwatch(watcher: QueueWatcher) -> None:
    """Tell `watcher` no more."""
    with _lock:
        _watchers.discard(watcher)


@hookimpl
def omni_request_queued(request: OmniDiffusionRequest) -> None:
    """Pass it on."""
    for watcher in _all():
        watcher.request_queued(request)


@hookimpl
def omni_request_finished(output: OmniRequestOutput) -> None:
    """Pass it on."""
    for watcher in _all():
        watcher.request_ended(output.request_id, output.error)


@hookimpl
def omni_request_failed(request_id: str, error: OmniError) -> None:
    """Pass it on."""
    for watcher in _all():
        watcher.request_ended(request_id, error)


def _all() -> list[QueueWatcher]:
    with _lock:
        return list(_watchers)
