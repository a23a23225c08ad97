"""A secret is long enough, and nobody else can read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_core.errors import ConfigError
from omni_core.wire import secret as secret_module
from omni_core.wire.private_file import PrivateFile
from omni_core.wire.secret import (
    check_secret,
    new_secret,
    write_secret,
)

SECRET_VARIABLE, SECRET_FILE_VARIABLE = "OMNI_TEST_SECRET", "OMNI_TEST_SECRET_FILE"


def load_secret(file: Path | None = None, environment: dict[str, str] | None = None) -> bytes | None:
    return secret_module.load_secret(
        file, variable=SECRET_VARIABLE, file_variable=SECRET_FILE_VARIABLE, environment=environment or {}
    )


def test_from_the_environment() -> None:
    assert load_secret(environment={SECRET_VARIABLE: " 0123456789abcdef\n"}) == b"0123456789abcdef"
    assert load_secret(environment={}) is None


def test_through_a_file(tmp_path: Path) -> None:
    secret = new_secret()
    path = tmp_path / "secret"
    write_secret(path, secret)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_secret(path) == secret
    assert load_secret(environment={SECRET_FILE_VARIABLE: str(path)}) == secret
    assert load_secret(environment={SECRET_VARIABLE: secret.decode()}) == secret
    with pytest.raises(FileExistsError):
        write_secret(path, secret)


def test_fresh_ones_differ() -> None:
    assert new_secret() != new_secret()
    assert check_secret(new_secret(), "here")


@pytest.mark.parametrize("owner", sorted({os.getuid(), 0, 65534}))
@pytest.mark.parametrize("mode", [0o600, 0o440, 0o640, 0o604, 0o620, 0o602, 0o660, 0o444])
def test_a_file_that_others_can_read(tmp_path: Path, mode: int, owner: int) -> None:
    if owner != os.getuid() and os.getuid() != 0:
        pytest.skip("only root can give a file away")
    path = tmp_path / "secret"
    write_secret(path, new_secret())
    os.chown(path, owner, -1)
    path.chmod(mode)
    # systemd and Kubernetes hand over files of root that a group may read.
    if mode == 0o600 or (owner == 0 and mode in {0o440, 0o640}):
        assert load_secret(path) is not None
    else:
        with pytest.raises(ConfigError, match="chmod 600"):
            load_secret(path)


def test_what_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="openssl rand"):
        load_secret(environment={SECRET_VARIABLE: "short"})
    with pytest.raises(ConfigError, match="No such file"):
        load_secret(tmp_path / "missing")
    with pytest.raises(ConfigError, match="is not a file"):
        load_secret(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        load_secret(tmp_path / "pipe")
    write_secret(tmp_path / "empty", b"")
    with pytest.raises(ConfigError, match="has 0 bytes"):
        load_secret(tmp_path / "empty")


SCRIPT = """
import os, signal, sys
from omni_core.wire.private_file import PrivateFile
file = PrivateFile("secret", b"0123456789abcdef")
print(file.path, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is a file with a name")
def test_the_file_for_ranks_is_gone_with_a_driver_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        path = Path(driver.stdout.readline().decode().strip())
        assert load_secret(path) == b"0123456789abcdef"
        assert load_secret(path) == b"0123456789abcdef", "it can be read more than once"
        driver.communicate(b"\n", timeout=20)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_secret(path)


def test_the_file_for_ranks_where_there_is_no_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    file = PrivateFile("secret", b"0123456789abcdef")
    assert load_secret(file.path) == b"0123456789abcdef"
    assert file.path.parent.stat().st_mode & 0o077 == 0
    file.close()
    assert not file.path.parent.exists()
