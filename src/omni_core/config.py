"""What an engine is built from: one validated, immutable object, filled from four sources."""

from __future__ import annotations

import copy
import enum
import functools
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from omni_core.config_sources import (
    DEFAULT_FILE,
    ENV_PREFIX,
    NESTED,
    OTHER_ENVIRONMENT,
    Arguments,
    Environment,
    File,
    file_to_read,
    is_copying,
    recorded,
    refuse_misspelled_environment,
    unknown_variables,
)
from omni_core.errors import ConfigError
from omni_core.request import checked_defaults
from omni_core.validation import Int, Milliseconds, PositiveInt, Seconds, explain

__all__ = [
    "DEFAULT_FILE",
    "ENV_PREFIX",
    "OTHER_ENVIRONMENT",
    "FieldMark",
    "OmniDiffusionConfig",
    "marked_fields",
    "unknown_environment",
]


class FieldMark(enum.Enum):
    """Stands in the annotation of a field of the configuration, and says who must know of the field.

    The sets of names in `omni_core.executor` and the checks elsewhere are derived from these marks.
    """

    REPLICAS = "The number of replicas. An executor honours it only if it declares so."
    RANKS = "A number of ranks; their product is the size of a replica. An executor declares whether it honours it."
    WORKER = "`DiffusionWorker` honours it wherever it runs. An executor declares whether it honours it."
    EXECUTOR = "The executor itself must honour it, and declares whether it does."
    IMPORT_PATH = "It may hold an import path that each worker imports."


def _as_text(value: Any) -> Any:
    """Take a path or a torch.dtype where its name is expected."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    return value


def _as_import_path(value: Any) -> Any:
    """Take a function where its import path is expected."""
    if not callable(value) or isinstance(value, os.PathLike):
        return _as_text(value)
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    found: Any = sys.modules.get(str(module))
    for part in str(name).split("."):
        found = getattr(found, part, None)
    if found is not value:
        raise ValueError(
            "workers find a factory by its import path, and this one has none: define a function at the top of a "
            "module or of the program, and give it or 'pkg.mod:function'"
        )
    return f"{module}:{name}"


Text = Annotated[str, BeforeValidator(_as_text)]
ModelName = Annotated[str, BeforeValidator(_as_import_path)]


def _name_or_class(value: Any) -> Any:
    if not isinstance(value, (str, type)) or value == "":
        raise ValueError("give a registered name, an import path pkg.mod:Class, or a class")
    return value


ExecutorChoice = Annotated[Any, BeforeValidator(_name_or_class)]
DtypeName = Annotated[Literal["auto", "float32", "float16", "bfloat16"], BeforeValidator(_as_text)]


class OmniDiffusionConfig(BaseSettings):
    """Everything an engine needs to know.

    Values come, strongest first, from keyword arguments, `OMNI_*` environment variables, `omni.toml` in the
    working directory (or the file given to `from_file`), and the defaults below. `sources()` tells which.

    Raises:
        ConfigError: A value is impossible or a field unknown; the message names the closest valid one.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=NESTED,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )

    model: Annotated[ModelName | None, FieldMark.IMPORT_PATH] = Field(
        None,
        min_length=1,
        description="A folder in diffusers layout, a hub id, or an import path pkg.mod:factory of a function that "
        "returns a pipeline, or that function. Unset: the small model that ships with omni.",
    )
    model_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further keywords for DiffusionPipeline.from_pretrained (variant, revision, …) or the factory.",
    )
    executor_class: ExecutorChoice = Field(
        "inline", description="How the work is executed: a registered name, or an import path pkg.mod:Class."
    )
    executor_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of that executor, validated by its own options model."
    )
    device: Text = Field("auto", min_length=1, description="auto, cpu, cuda, cuda:1, mps, …")
    dtype: DtypeName = Field("auto", description="Precision. auto is float32 on CPU and bfloat16 on accelerators.")
    max_num_seqs: PositiveInt = Field(
        8, le=4096, description="Requests that one replica works on at a time; further ones wait."
    )
    data_parallel_size: Annotated[PositiveInt, FieldMark.REPLICAS] = Field(
        1, description="Independent replicas of the model."
    )
    cfg_parallel_size: Annotated[PositiveInt, FieldMark.RANKS] = Field(
        1, description="Ranks that share the rows of one forward."
    )
    ulysses_degree: Annotated[PositiveInt, FieldMark.RANKS] = Field(
        1, description="Ranks of Ulysses sequence parallelism."
    )
    ring_degree: Annotated[PositiveInt, FieldMark.RANKS] = Field(1, description="Ranks of ring attention.")
    tensor_parallel_size: Annotated[PositiveInt, FieldMark.RANKS] = Field(1, description="Ranks of tensor parallelism.")
    max_retries: Int = Field(
        2, ge=0, le=100, description="Times a request is run again after the worker under it died."
    )
    step_timeout_s: Annotated[Seconds | None, FieldMark.EXECUTOR] = Field(
        None, description="Seconds after which a worker that does not answer is taken for dead."
    )
    startup_timeout_s: Seconds = Field(600.0, description="Seconds that loading the pipeline may take.")
    compile: Annotated[bool | dict[str, Any], FieldMark.WORKER] = Field(
        False, description="Compile the denoiser with torch.compile; a table holds its keyword arguments."
    )
    cache: Annotated[str | dict[str, Any] | None, FieldMark.WORKER] = Field(
        None,
        description="Step cache of diffusers: the name of its configuration (FirstBlockCacheConfig), or a table with "
        "name and its arguments.",
    )
    stacking: Annotated[Literal["verified", "trusted", "off"], FieldMark.WORKER] = Field(
        "verified",
        description="Run denoiser calls of several requests as one forward pass: after checking each kind of call "
        "once, without checking, or never.",
    )
    max_batch_wait_ms: Milliseconds = Field(
        0.0, description="Milliseconds for which an idle replica waits for more requests to begin together."
    )
    max_waiting: PositiveInt | None = Field(
        None, description="Most requests that may wait; a further one is refused with EngineOverloadedError."
    )
    max_prompt_length: PositiveInt | None = Field(
        20_000, description="Most characters of a prompt, or of another text for the pipeline. None: no limit."
    )
    max_pixels: PositiveInt | None = Field(
        100_000_000,
        description="Most pixels of all outputs of a request, those of one frame each; all frames of a video have at "
        "most ten times as many. None: no limit.",
    )
    max_steps: PositiveInt | None = Field(100_000, description="Most denoising steps of a request. None: 100,000.")
    max_argument_bytes: PositiveInt | None = Field(
        1_000_000_000,
        description="Most bytes of pictures, arrays and texts in the extra_args of a request. None: no limit.",
    )
    offload: Annotated[Literal["none", "model", "sequential", "group"], FieldMark.WORKER] = Field(
        "none", description="Keep weights in host memory and move them to the accelerator when needed."
    )
    attention_backend: Annotated[str | None, FieldMark.WORKER] = Field(
        None, description="Attention implementation, as diffusers names it."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with a model from a hub.")
    request_defaults: Annotated[dict[str, Any], AfterValidator(checked_defaults)] = Field(
        default_factory=dict, description="Arguments of the pipeline for requests that do not set them."
    )
    worker_extension_cls: Annotated[str | None, FieldMark.WORKER, FieldMark.IMPORT_PATH] = Field(
        None, description="Import path pkg.mod:Class whose methods are added to every worker."
    )
    num_threads: Annotated[PositiveInt | None, FieldMark.WORKER] = Field(
        None, description="CPU threads of each worker's forward passes. Unset: chosen by the executor."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning",
        description="Least level logged. A program that uses omni as a library keeps the levels that it has set, "
        "unless this is set.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="How the command line writes the log: console for people, json for machines; auto is console. A "
        "program that uses omni as a library has handlers and formats of its own.",
    )

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        found: list[tuple[str, dict[str, Any]]] = []
        token = recorded.set(found)
        try:
            if not is_copying.get():
                refuse_misspelled_environment(type(self).model_fields)
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(explain(error, "configuration", type(self).model_fields)) from error
        except SettingsError as error:  # pydantic-settings wraps what the environment's source raises
            raise ConfigError(f"Invalid configuration: {error.__cause__ or error}") from error
        finally:
            recorded.reset(token)
        for name in type(self).model_fields:
            self._sources[name] = next((source for source, values in found if name in values), "default")

    @classmethod
    def from_file(cls, file: str | os.PathLike[str], **values: Any) -> OmniDiffusionConfig:
        """Build a configuration from a TOML file other than `omni.toml`; arguments and environment go before it.

        Raises:
            ConfigError: The file cannot be read, or what it says is invalid.
        """
        path = Path(file)
        if not path.is_file():
            raise ConfigError(f"There is no configuration file at {path}.")
        token = file_to_read.set(path)
        try:
            return cls(**values)
        finally:
            file_to_read.reset(token)

    def sources(self) -> dict[str, str]:
        """Return for each field where its value came from: argument, environment NAME, file PATH, or default."""
        return dict(self._sources)

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that hold one copy of the model together."""
        return math.prod(getattr(self, name) for name in marked_fields(FieldMark.RANKS))

    def replace(self, **values: Any) -> OmniDiffusionConfig:
        """Return a copy with some values changed, validated again; sources of the others are kept.

        Neither the environment nor a file is read again.

        Raises:
            ConfigError: A value is impossible or a field unknown.
        """
        unchanged = {name: getattr(self, name) for name in type(self).model_fields if name not in values}
        token = is_copying.set(True)
        try:
            changed = type(self)(**unchanged, **values)
        finally:
            is_copying.reset(token)
        for name in unchanged:
            changed._sources[name] = self._sources[name]
        return changed

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> OmniDiffusionConfig:
        """Return a copy with some values changed: the same as `replace`, pydantic's name for it.

        Raises:
            ConfigError: A value is impossible or a field unknown.
        """
        return (copy.deepcopy(self) if deep else self).replace(**(update or {}))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, environment, file."""
        arguments = init_settings.init_kwargs if isinstance(init_settings, InitSettingsSource) else {}
        if is_copying.get():
            return (Arguments(settings_cls, arguments),)
        return (
            Arguments(settings_cls, arguments),
            Environment(settings_cls),
            File(settings_cls, file_to_read.get()),
        )


@functools.cache
def marked_fields(*marks: FieldMark) -> tuple[str, ...]:
    """Return the names of the fields of the configuration that have one of the marks, in the order of the fields."""
    fields = OmniDiffusionConfig.model_fields.items()
    return tuple(name for name, field in fields if any(mark in field.metadata for mark in marks))


def unknown_environment(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the `OMNI_*` variables that are set and that mean nothing to omni.

    Empty ones count as not set. Those that Kubernetes sets for a Service called `omni` or `omni-…` are passed over.
    """
    return sorted(
        unknown_variables(OmniDiffusionConfig.model_fields, os.environ if environment is None else environment)
    )
