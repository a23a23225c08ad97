"""Why a model of the hub could not be had, told to those who start omni and not to those who call the library."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

_ELSEWHERE = "download it where there is a network, `hf download {model} --local-dir FOLDER`, and set model to FOLDER"


def explain_hub_failure(model: str, options: Mapping[str, Any], error: BaseException) -> str | None:
    """Say what went wrong and what to do.

    Args:
        model: The hub id.
        options: What `from_pretrained` was given besides.
        error: What it raised.

    Returns:
        Sentences to be read after "Loading MODEL failed: "; None if it had nothing to do with the hub.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    hub_address = constants.ENDPOINT
    elsewhere = _ELSEWHERE.format(model=model)
    raised = list(_causes(error))
    if _find(raised, hub.OfflineModeIsEnabled):
        return f"it is not downloaded, and HF_HUB_OFFLINE is set. Unset HF_HUB_OFFLINE, or {elsewhere}."
    if _find(raised, hub.GatedRepoError):
        return (
            f"its owner lets in only those who ask, and the hub does not know you as one of them. Ask for access at "
            f"{hub_address}/{model}, then log in with `hf auth login` or set HF_TOKEN."
        )
    if _find(raised, hub.RevisionNotFoundError):
        return f"it has no revision {options.get('revision') or 'main'!r}. Correct revision in model_options."
    if _find(raised, hub.RemoteEntryNotFoundError):
        return (
            "it lacks a file that diffusers needs, most likely model_index.json: then it is not in diffusers layout. "
            f"Look at its files at {hub_address}/{model}/tree/main, and see that model_options names a variant that is "
            "there."
        )
    answer = _find(raised, hub.HfHubHTTPError)
    if answer is not None:
        return _explain_answer(answer, hub_address, model)
    if _find(raised, hub.HFValidationError):
        return f"{model!r} is not the id of a model: those are owner/name, of letters, digits, '-', '_' and '.'."
    network = next((one for one in raised if _is_of_network(one)), None)
    if network is not None:
        return (
            f"it is not downloaded, and {hub_address} cannot be reached: {network or type(network).__name__}. Behind a "
            f"proxy set HTTPS_PROXY; or {elsewhere}."
        )
    if _find(raised, hub.LocalEntryNotFoundError):
        why = "local_files_only is set in model_options" if options.get("local_files_only") else "it may not be"
        return f"it is not, or not wholly, downloaded, and {why}. Download it with `hf download {model}`."
    return _explain_disk(raised, constants.HF_HUB_CACHE)


def _explain_answer(answer: Any, hub_address: str, model: str) -> str:
    status = getattr(getattr(answer, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return (
            f"{hub_address} has no model of this name that you may read. Correct model; if it is private, log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if status == 429:
        return f"{hub_address} takes no more calls from here for now. Wait, or log in with `hf auth login`."
    return f"{hub_address} answered with HTTP status {status}. Try again later: `hf download {model}`."


def _explain_disk(raised: list[BaseException], cache: str) -> str | None:
    for one in raised:
        number = getattr(one, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk of {cache} is full. Make room, or set HF_HOME to a folder on another disk."
        if number in (errno.EACCES, errno.EPERM, errno.EROFS) and str(getattr(one, "filename", "")).startswith(cache):
            return f"{cache} takes no files. Correct its owner, or set HF_HOME to a folder where you can write."
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]


def _find(raised: list[BaseException], kind: type[BaseException]) -> BaseException | None:
    return next((one for one in raised if isinstance(one, kind)), None)


def _is_of_network(error: BaseException) -> bool:
    # By name: which HTTP client the hub's library uses changes from release to release.
    names = {base.__name__ for base in type(error).__mro__}
    known = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)
    return isinstance(error, known) or bool(names & {"TransportError", "RequestException"})
