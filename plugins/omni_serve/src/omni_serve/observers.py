"""Tells the plugins of the engine what the server does, and asks them for its numbers."""

from __future__ import annotations

from collections.abc import Mapping

from omni_core.plugins import PluginRegistry, default_registry
from omni_core.plugins.engine_hooks import EngineHooks


class Observers:
    """The plugins of an engine, as its server calls them. What they raise is logged and goes no further.

    Args:
        plugins: The plugins that the engine uses; None for those that are installed.
        engine_id: The engine's.
    """

    def __init__(self, plugins: PluginRegistry | None, engine_id: str) -> None:
        self._hooks = EngineHooks(default_registry() if plugins is None else plugins, engine_id)

    def http_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request was answered: see the hook `omni_http_request`."""
        self._hooks.notify("omni_http_request", route=route, method=method, status=status, seconds=seconds)

    def http_disconnect(self, route: str) -> None:
        """A client went away before its answer was there."""
        self._hooks.notify("omni_http_disconnect", route=route)

    def job_changed(self, job_id: str | None, status: str, jobs: Mapping[str, int]) -> None:
        """A job is in another state: see the hook `omni_job_changed`."""
        self._hooks.notify("omni_job_changed", job_id=job_id, status=status, jobs=jobs)

    def metrics(self) -> str | None:
        """Return the text of `/metrics`; None if no plugin has any.

        Raises:
            PluginError: A plugin failed.
        """
        text: str | None = self._hooks.call_first("omni_metrics", str)
        return text
