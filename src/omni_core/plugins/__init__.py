"""Plugins: found through entry points, loaded one by one so that a broken one harms nothing, looked up by name."""

from omni_core.plugins.records import PluginRecord
from omni_core.plugins.registry import PluginRegistry, default_registry
from omni_core.plugins.selection import ResolvedExecutor

__all__ = ["PluginRecord", "PluginRegistry", "ResolvedExecutor", "default_registry"]
