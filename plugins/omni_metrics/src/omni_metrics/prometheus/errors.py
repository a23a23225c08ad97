"""Names of errors as labels."""

from __future__ import annotations

from omni_core import errors
from omni_core.errors import OmniError

_KNOWN = frozenset(
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, OmniError)
)


def error_label(error: BaseException | None) -> str:
    """Return the class of an error, or the nearest class above it that omni has: so there are not more than those."""
    return next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _KNOWN), OmniError.__name__)
