"""A model on the hub: whether it is downloaded, and whether it could be."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omni_core.cli.checks.finding import Finding
from omni_core.cli.checks.software import try_import

_SECONDS_TO_CONNECT = 5.0
# Smaller than any model worth a download.
_LEAST_ROOM = 2**30


def downloaded_to(model: str) -> Path | None:
    """Return the folder in the cache where a model of the hub is; None if it is not there."""
    hub, _ = try_import("huggingface_hub")
    if hub is None:
        return None
    try:
        cached = hub.try_to_load_from_cache(model, "model_index.json")
    except (OSError, ValueError):  # HFValidationError is a ValueError
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def check_hub(model: str) -> Iterator[Finding]:
    """Look at a model that is named by its hub id; the files, where they are downloaded, are looked at elsewhere."""
    hub, error = try_import("huggingface_hub")
    if hub is None:
        cure = "`pip install --force-reinstall huggingface_hub`"
        yield Finding("model", "problem", f"huggingface_hub: {error}", cure)
        return
    if downloaded_to(model) is not None:
        return
    try:
        hub.utils.validate_repo_id(model)
    except ValueError as problem:
        yield Finding("model", "problem", f"{model}: {problem}", "Set model to a hub id owner/name or a folder")
        return
    yield from _cache_folder(Path(hub.constants.HF_HUB_CACHE))
    if hub.constants.HF_HUB_OFFLINE:
        detail = f"{model} is not downloaded and HF_HUB_OFFLINE is set"
        yield Finding("model", "problem", detail, f"`unset HF_HUB_OFFLINE`, then `hf download {model}`")
        return
    unreachable = _unreachable(hub.constants.ENDPOINT)
    if unreachable is None:
        detail = f"{model} is not downloaded yet"
        yield Finding("model", "warning", detail, f"It is at first use, or by `hf download {model}`")
        return
    detail = f"{model} is not downloaded, and {hub.constants.ENDPOINT} cannot be reached: {unreachable}"
    elsewhere = (
        f"`hf download {model} --local-dir FOLDER` where there is a network, and `export OMNI_MODEL=FOLDER` here"
    )
    yield Finding(
        "model", "problem", detail, f"Behind a proxy: `export HTTPS_PROXY=http://HOST:PORT`; else {elsewhere}"
    )


def _cache_folder(cache: Path) -> Iterator[Finding]:
    place = cache
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        cure = "`export HF_HOME=FOLDER`, a folder where you can write, or correct the owner of that one"
        yield Finding("hub cache", "problem", f"models cannot be downloaded to {cache}: {place} takes no files", cure)
        return
    free = shutil.disk_usage(place).free
    detail = f"{free / 2**30:.2f} GiB free in {cache}"
    if free < _LEAST_ROOM:
        cure = "`hf cache ls` and `hf cache rm` make room, or `export HF_HOME=FOLDER` on another disk"
        yield Finding("hub cache", "warning", detail, cure)
    else:
        yield Finding("hub cache", "ok", detail)


def _unreachable(endpoint: str) -> Any:
    """Return why the hub does not answer; None if it does. Through the proxies that are set, as downloads go."""
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310  # the hub's own address
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS_TO_CONNECT):  # noqa: S310
            return None
    except urllib.error.HTTPError:  # an answer all the same
        return None
    except urllib.error.URLError as error:
        return error.reason
    except OSError as error:
        return error
