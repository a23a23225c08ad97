"""Keeping the libraries underneath from talking between our own lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omni_core.config import OmniDiffusionConfig

_WARNINGS = {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error"}
_BARS = {"TQDM_DISABLE": "1"}


@contextmanager
def quiet_libraries(config: OmniDiffusionConfig | None = None, quiet: bool = True) -> Iterator[None]:
    """Set what they read when they are imported, here and in workers that start while the block runs.

    What the user has set stays. With `log_level` info or debug they may talk. Bars are left to downloads on a terminal,
    which can take long.

    Args:
        config: The configuration, where there is one.
        quiet: Whether the user wants to see errors alone.
    """
    wanted: dict[str, str] = {}
    if config is None or config.log_level in ("warning", "error"):
        wanted.update(_WARNINGS)
    if quiet or config is None or config.log_format == "json" or not _shows_downloads(config):
        wanted.update(_BARS)
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _shows_downloads(config: OmniDiffusionConfig) -> bool:
    model = config.model
    may_download = model is not None and ":" not in model and not Path(model).expanduser().exists()
    return sys.stderr.isatty() and may_download
