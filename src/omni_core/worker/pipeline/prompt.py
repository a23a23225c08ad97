"""Arguments that plugins make of a request's prompt: the hook `omni_encode_prompt`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omni_core.errors import OmniError, PluginError, did_you_mean
from omni_core.hookspecs import Hooks
from omni_core.pipeline_info import PipelineInfo
from omni_core.request import OmniDiffusionRequest

_HOOK = "omni_encode_prompt"
_REPLACED = ("prompt", "negative_prompt")


class HookError(Exception):
    """A plugin has failed a request, and not the pipeline.

    Args:
        error: What the request fails with.
    """

    def __init__(self, error: OmniError) -> None:
        super().__init__(str(error))
        self.error = error


def with_encoded_prompt(
    hooks: Hooks | None, info: PipelineInfo, pipeline: Any, request: OmniDiffusionRequest, arguments: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments to call a pipeline with, the prompt replaced by what a plugin made of it.

    Args:
        hooks: The plugins.
        info: What the pipeline takes.
        pipeline: The request's own copy of it.
        request: The request.
        arguments: The arguments without plugins.

    Raises:
        HookError: A plugin raised, or returned what the pipeline does not take.
    """
    if hooks is None or not hooks.has(_HOOK):
        return arguments
    try:
        encoded = hooks.call_first(_HOOK, Mapping, pipeline=pipeline, request=request)
    except OmniError as error:
        raise HookError(error) from error
    if encoded is None:
        return arguments
    for name in encoded:
        if name not in info.parameters and not info.accepts_any:
            near = did_you_mean(str(name), info.parameters)
            message = f"A plugin returned {name!r} from {_HOOK}, which {info.class_name} does not take.{near}"
            raise HookError(PluginError(message))
    return {name: value for name, value in arguments.items() if name not in _REPLACED} | dict(encoded)
