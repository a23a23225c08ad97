"""What an operator says about the server; what concerns the engine is in its own configuration."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

# The names under which a browser on this machine reaches it.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How requests are taken.

    Attributes:
        host: The address to listen on.
        port: The port; 0 is any free one.
        data_dir: Where jobs and their files are kept; None keeps them until the server ends.
        api_keys: Keys of which a client must have one; empty lets every client in.
        served_model_name: What `/v1/models` calls the model; None is the name that the pipeline was loaded from.
        allowed_hosts: Names besides those of this machine under which browsers may reach the server.
        max_body_bytes: Most bytes of a request's body.
        max_files: Most files in one form.
        max_outputs: Most pictures of one request (`n`).
        max_upload_pixels: Most pixels of the pictures of a request together.
        drain_timeout_s: Seconds that running requests may take once the server is to end.
        job_expiry_s: Seconds for which the result of a job is kept.
        max_job_bytes: Most bytes of the results that are kept; the oldest go first.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    data_dir: Path | None = None
    api_keys: tuple[str, ...] = ()
    served_model_name: str | None = None
    allowed_hosts: frozenset[str] = frozenset()
    max_body_bytes: int = 64 << 20
    max_files: int = 17
    max_outputs: int = 10
    max_upload_pixels: int = 64 << 20
    drain_timeout_s: float = 30.0
    job_expiry_s: float = 24 * 3600.0
    max_job_bytes: int = 10 << 30

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"
