"""What is known of one job. It never changes: the store makes a new one for each answer."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any, Literal

JobKind = Literal["video", "audio", "image"]
JobStatus = Literal["queued", "in_progress", "completed", "failed"]

_ID = re.compile(r"(video|audio|image)_[0-9a-f]{24}")


@dataclass(frozen=True)
class StoredFile:
    """A result of a job.

    Attributes:
        name: Its name, unique among the results of the job.
        media_type: Such as `video/mp4`.
        size_bytes: Its length.
    """

    name: str
    media_type: str
    size_bytes: int


@dataclass(frozen=True)
class JobError:
    """Why a job failed.

    Attributes:
        code: A short name for programs.
        message: For people.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Job:
    """A job as it was when the store was asked. Times are Unix times in whole seconds.

    Attributes:
        id: The kind, an underscore and 24 hexadecimal digits.
        kind: What it makes.
        status: `queued` until it is begun, then `in_progress`, then `completed` or `failed`.
        progress: Percent that are done: 0 while it is queued, 100 once it is completed, 0 if it failed.
        model: The model that was asked for.
        request: The validated body of the request, with the seed: all that is needed to make the same result again.
        uploads: Names of the files that came with the request.
        files: The results; empty unless it is completed.
        error: Why it failed; None unless it did.
        created_at: When it was accepted.
        completed_at: When it ended, whether it completed or failed; None before.
        expires_at: When it will be removed at the latest; None if it has not ended or is kept for ever.
        remixed_from: Id of the job that it changes; None if it is none of that kind. That job may be gone.
    """

    id: str
    kind: JobKind
    status: JobStatus
    progress: int
    model: str
    request: dict[str, Any]
    created_at: int
    uploads: tuple[str, ...] = ()
    files: tuple[StoredFile, ...] = ()
    error: JobError | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    remixed_from: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it is completed or failed."""
        return self.status in ("completed", "failed")


def new_id(kind: JobKind) -> str:
    """Return an id that nobody can guess."""
    return f"{kind}_{secrets.token_hex(12)}"


def is_job_id(text: str) -> bool:
    """Return whether this has the form of a job's id. What has it is safe as the name of a folder."""
    return _ID.fullmatch(text) is not None
