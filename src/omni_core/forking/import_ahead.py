"""Importing what workers will need, in a process that they are forked from."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
from pathlib import Path

# What every worker needs; the last is what takes longest of loading any pipeline.
_MODULES = ("omni_core.worker.worker", "omni_core.plugins", "diffusers", "diffusers.pipelines.pipeline_utils")


def import_common() -> None:
    """Import and install what every worker needs, and leave out what cannot be: the worker will say why."""
    for module in _MODULES:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    with contextlib.suppress(Exception):
        from omni_core.worker.task.random_draws import install_draws

        install_draws()
    _keep()


def import_classes(model: str | None) -> None:
    """Import the classes of the pipeline in a folder, which takes longer than to load it; of nothing else, none.

    Only those of diffusers and transformers: modules of anybody else's belong in workers alone.

    Args:
        model: What a worker will load: a folder, an import path, a hub id, or None for the small model.
    """
    with contextlib.suppress(Exception):
        from omni_core.worker.pipeline.loader import SMALL_MODEL

        folder = SMALL_MODEL if model is None else Path(model)
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        getattr(importlib.import_module("diffusers"), index["_class_name"])
        for value in index.values():
            if isinstance(value, list) and len(value) == 2 and value[0] in ("diffusers", "transformers"):
                getattr(importlib.import_module(value[0]), value[1])
    _keep()


def _keep() -> None:
    gc.collect()
    gc.freeze()  # or the first collection of every worker would copy all pages
