"""What is known about each plugin that was found, whether or not it could be used."""

from __future__ import annotations

import dataclasses
import re
import traceback
from dataclasses import dataclass
from typing import Any, Literal

from omni_core.hookspecs import ExecutorSpec

State = Literal["active", "broken", "disabled", "incompatible"]


def normalise(name: str) -> str:
    """Return `name` in the form in which PEP 503 compares the names of distributions."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_import_path(text: object) -> bool:
    """Return whether `text` is written as `pkg.mod:Class`."""
    if not isinstance(text, str) or text.count(":") != 1:
        return False
    return all(part.isidentifier() for half in text.split(":") for part in half.split("."))


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """One plugin that was found.

    Attributes:
        name: Name of its entry point, or the name under which it was registered in code.
        distribution: The installed distribution that it came with. None: registered in code.
        version: Version of that distribution.
        value: Where the plugin lives: the import path in the entry point.
        state: active; broken (`error` says why); disabled (OMNI_PLUGINS_DISABLE, never imported); or incompatible
            (all its executors are for another version of the contract). Only hooks of active plugins are called.
        executors: What it registered.
        hooks: Names of the hooks that it implements.
        error: The cause, as it was raised, of a plugin that is broken or incompatible.
        warnings: What its author should know of a plugin that can be used as it is.
    """

    name: str
    distribution: str | None
    version: str | None
    value: str
    state: State
    executors: tuple[ExecutorSpec, ...] = ()
    hooks: tuple[str, ...] = ()
    error: BaseException | None = None
    warnings: tuple[str, ...] = ()

    @property
    def qualifier(self) -> str:
        """What stands before the colon in `executor_class="distribution:name"` to mean this plugin."""
        return self.distribution or self.name

    @property
    def full_name(self) -> str:
        """`distribution:entrypoint`, its name in logs and in pluggy."""
        return f"{self.distribution}:{self.name}" if self.distribution else self.name

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values for JSON, the error as text."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "value": self.value,
            "state": self.state,
            "executors": [dataclasses.asdict(spec) for spec in self.executors],
            "hooks": list(self.hooks),
            "error": None if self.error is None else describe(self.error),
            "warnings": list(self.warnings),
        }


def describe(error: BaseException) -> str:
    """Return the type and the message of `error`, the place in the file included for a syntax error."""
    return "".join(traceback.format_exception_only(error)).strip()
