"""The parts of the program that its workers need: its command line, and objects of its `__main__`."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass

from omni_core import serialization
from omni_core.config import FieldMark, OmniDiffusionConfig, marked_fields
from omni_core.errors import ConfigError, RPCError

_MAIN = "__main__"


@dataclass(frozen=True, slots=True)
class Program:
    """What a worker process gets of the program that created the engine.

    Attributes:
        argv: Its `sys.argv`, which the module of a factory may read.
        main: The objects of `__main__` that the configuration names, by name: pickle and buffers. A worker process has
            another `__main__`, so they are sent by value.
    """

    argv: tuple[str, ...]
    main: Mapping[str, tuple[bytes, list[bytes]]]

    @classmethod
    def of_this_process(cls, config: OmniDiffusionConfig) -> Program:
        """Return what the workers of a configuration need of this process.

        Raises:
            ConfigError: `__main__` lacks an object that the configuration names, or it cannot be sent by value.
        """
        main = {}
        for field in marked_fields(FieldMark.IMPORT_PATH):
            path = getattr(config, field)
            module, _, attribute = (path or "").partition(":")
            if module == _MAIN and attribute:
                name = attribute.partition(".")[0]
                main[name] = _pack(name, f"{field} = {path!r}")
        # An embedding program may have set argv to anything, or not at all.
        return cls(tuple(value for value in getattr(sys, "argv", ()) if isinstance(value, str)), main)

    def take_over(self) -> None:
        """Install it in this worker process. Raises whatever unpickling raises."""
        sys.argv = [*self.argv]
        if self.main:
            # In a new module: names of the program must not replace those of the module that runs here.
            main = types.ModuleType(_MAIN)
            sys.modules[_MAIN] = main
            for name, (data, buffers) in self.main.items():
                setattr(main, name, serialization.loads(data, buffers))


def _pack(name: str, setting: str) -> tuple[bytes, list[bytes]]:
    try:
        value = getattr(sys.modules[_MAIN], name)
    except AttributeError:
        raise ConfigError(
            f"{setting}: the program that runs has no {name!r} at its top. Define it before the engine is made."
        ) from None
    try:
        data, buffers = serialization.dumps(value)
    except RPCError as error:
        raise ConfigError(
            f"{setting} cannot be sent to worker processes, which have a __main__ of their own: {error.message}. Put "
            f"it into a module of its own, which makes no engine, and name that: pkg.mod:{name}."
        ) from error
    return data, [bytes(buffer) for buffer in buffers]
