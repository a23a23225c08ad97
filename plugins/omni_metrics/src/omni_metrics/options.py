"""What users can set, in the environment."""

from __future__ import annotations

import pydantic
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from omni_core.errors import ConfigError

_PREFIX = "OMNI_METRICS_"
# Of OpenTelemetry: where spans go. It has many more, which its SDK reads by itself.
COLLECTOR_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class MetricsOptions(BaseSettings):
    """The options of both halves.

    Attributes:
        port: Port on loopback where Prometheus can read the metrics of all engines of the process, from
            OMNI_METRICS_PORT. 0 takes one that is free. None: none is opened; `omni serve` has `/metrics` all the same.
        forwards: Whether traces have a span for each forward pass, from OMNI_METRICS_FORWARDS.
        prompts: Whether spans have the prompt of the request, from OMNI_METRICS_PROMPTS. It may be personal.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    port: int | None = Field(None, ge=0, le=65535)
    forwards: bool = False
    prompts: bool = False


def read_options() -> MetricsOptions:
    """Return the options that the environment sets.

    Raises:
        ConfigError: One is wrong; the message names the variable.
    """
    try:
        return MetricsOptions()
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = f"{_PREFIX}{str(first['loc'][0]).upper()}"
        raise ConfigError(f"The environment variable {name} is {first['input']!r}: {first['msg']}.") from None
