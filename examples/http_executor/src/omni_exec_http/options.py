"""What users can set in `executor_options`."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from omni_exec_http.signing import read_secret


class HttpOptions(BaseModel):
    """The options of the executor. All but `url` and the secret have defaults that suit most.

    Attributes:
        url: `http://HOST:PORT` of a server that runs already; a list of them for several replicas. None: the executor
            starts its own.
        secret: What those servers were given, 16 characters or more. `secret_file` is better: `omni config` prints
            what is in `executor_options`.
        secret_file: The file that holds it, readable by its owner alone.
        end_timeout_s: Seconds that a server of the executor's own may take to end before it is killed.
        heartbeat_s: Seconds between two questions whether a server is still there.
        heartbeat_timeout_s: Seconds without an answer after which it is taken for dead.
        max_failures: Failures in a row after which requests that wait for a replica fail.
        max_backoff_s: Longest pause between two attempts to replace a worker.
        max_body_bytes: Size of the largest call and the largest result.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | tuple[str, ...] | None = None
    secret: SecretStr | None = Field(default=None, min_length=16)
    secret_file: Path | None = None
    end_timeout_s: float = Field(default=5.0, gt=0)
    heartbeat_s: float = Field(default=10.0, gt=0)
    heartbeat_timeout_s: float = Field(default=30.0, gt=0)
    max_failures: int = Field(default=5, ge=1)
    max_backoff_s: float = Field(default=30.0, gt=0)
    max_body_bytes: int = Field(default=2**30, ge=2**20)

    @field_validator("url")
    @classmethod
    def _check_urls(cls, url: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
        urls = (url,) if isinstance(url, str) else url
        for one in urls or ():
            parts = urlsplit(one)
            if parts.scheme != "http" or not parts.hostname or parts.port is None or parts.path not in ("", "/"):
                raise ValueError(f"{one!r} is not of the form http://HOST:PORT")
        return urls

    @model_validator(mode="after")
    def _check_secret(self) -> HttpOptions:
        given = (self.secret is not None) + (self.secret_file is not None)
        if self.url is None and given:
            raise ValueError("a secret belongs to a url: a server of the executor's own gets one that is made for it")
        if self.url is not None and given != 1:
            raise ValueError("a url needs the secret of its server: give secret_file, or secret")
        return self

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each server that runs already."""
        parts = [urlsplit(one) for one in self.url or ()]
        return [(part.hostname or "", part.port or 0) for part in parts]

    def shared_secret(self) -> bytes:
        """Return the secret of the servers that run already.

        Raises:
            ConfigError: The file cannot be read, others may read it, or what it holds is too short.
        """
        if self.secret is not None:
            return self.secret.get_secret_value().encode()
        assert self.secret_file is not None
        return read_secret(self.secret_file)
