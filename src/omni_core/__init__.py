"""omni: runs any Hugging Face diffusers pipeline behind one engine; how it is executed is a plugin.

Everything here is imported when first used: `import omni_core` itself imports neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omni_core.config import OmniDiffusionConfig
    from omni_core.engine.async_engine import AsyncDiffusionEngine
    from omni_core.engine.engine import DiffusionEngine
    from omni_core.engine.handle import RequestEvent, RequestHandle
    from omni_core.executor import DiffusionExecutor, ExecutorContext
    from omni_core.hookspecs import ExecutorSpec, hookimpl
    from omni_core.outputs import (
        EngineStats,
        OmniRequestOutput,
        RequestEstimate,
        RequestMetrics,
        SchedulerOutput,
        StepOutput,
        StepProgress,
        WorkerStats,
    )
    from omni_core.pipeline_info import PipelineInfo
    from omni_core.plugins import PluginRegistry
    from omni_core.request import OmniDiffusionRequest

__version__ = "0.1.0"

_HOME = {
    "AsyncDiffusionEngine": "omni_core.engine.async_engine",
    "DiffusionEngine": "omni_core.engine.engine",
    "DiffusionExecutor": "omni_core.executor",
    "EngineStats": "omni_core.outputs",
    "ExecutorContext": "omni_core.executor",
    "ExecutorSpec": "omni_core.hookspecs",
    "OmniDiffusionConfig": "omni_core.config",
    "OmniDiffusionRequest": "omni_core.request",
    "OmniRequestOutput": "omni_core.outputs",
    "PipelineInfo": "omni_core.pipeline_info",
    "PluginRegistry": "omni_core.plugins",
    "RequestEstimate": "omni_core.outputs",
    "RequestEvent": "omni_core.engine.handle",
    "RequestHandle": "omni_core.engine.handle",
    "RequestMetrics": "omni_core.outputs",
    "SchedulerOutput": "omni_core.outputs",
    "StepOutput": "omni_core.outputs",
    "StepProgress": "omni_core.outputs",
    "WorkerStats": "omni_core.outputs",
    "hookimpl": "omni_core.hookspecs",
}

__all__ = [
    "AsyncDiffusionEngine",
    "DiffusionEngine",
    "DiffusionExecutor",
    "EngineStats",
    "ExecutorContext",
    "ExecutorSpec",
    "OmniDiffusionConfig",
    "OmniDiffusionRequest",
    "OmniRequestOutput",
    "PipelineInfo",
    "PluginRegistry",
    "RequestEstimate",
    "RequestEvent",
    "RequestHandle",
    "RequestMetrics",
    "SchedulerOutput",
    "StepOutput",
    "StepProgress",
    "WorkerStats",
    "hookimpl",
]


if not TYPE_CHECKING:  # type checkers shall go on to refuse names that do not exist

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise importlib.import_module("omni_core.compat.vllm_omni").missing_from_module(__name__, name)
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
