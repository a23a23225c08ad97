"""Jobs that clients poll: kept on disk, run one after another, and done once."""

from omni_serve.jobs.errors import (
    IdempotencyError,
    JobFailed,
    JobNotFoundError,
    JobStoreError,
    QueueFullError,
    StoreFullError,
)
from omni_serve.jobs.job import Job, JobError, JobKind, JobStatus, StoredFile
from omni_serve.jobs.runner import JobRunner
from omni_serve.jobs.store import JobStore

__all__ = [
    "IdempotencyError",
    "Job",
    "JobError",
    "JobFailed",
    "JobKind",
    "JobNotFoundError",
    "JobRunner",
    "JobStatus",
    "JobStore",
    "JobStoreError",
    "QueueFullError",
    "StoreFullError",
    "StoredFile",
]
