"""Subclasses that look like the class they are made of."""

from __future__ import annotations

import inspect
from typing import Any


def lookalike(real: Any, members: dict[str, Any]) -> type[Any]:
    """Return a subclass of `real` with the same name, module and documentation.

    `isinstance`, `from_config`, `config["_class_name"]` and what else goes by a class's name behave as with `real`.

    Args:
        real: The class.
        members: What the subclass has of its own.
    """
    body = {
        **members,
        "__module__": real.__module__,
        "__qualname__": real.__qualname__,
        "__doc__": real.__doc__,
        "_omni_real": real,
    }
    # Abstract classes and the like have a metaclass of their own.
    made: type[Any] = type(real)(real.__name__, (real,), body)
    return made


def real_class(kind: type[Any]) -> type[Any]:
    """Return the class that a lookalike is made of; any other class is returned itself."""
    real = inspect.getattr_static(kind, "_omni_real", kind)
    assert isinstance(real, type)
    return real


def is_lookalike(value: Any) -> bool:
    """Whether an object is of a class that `lookalike` has made."""
    return real_class(type(value)) is not type(value)
