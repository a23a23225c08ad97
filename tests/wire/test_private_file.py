"""Files for the processes that a driver starts: the secret, and where the ranks of one machine meet."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from omni_core.wire.private_file import PrivateFile

BOUND_S = 60.0


@pytest.mark.parametrize("way", ["in memory", "in a folder"])
def test_other_processes_of_this_user_can_open_it_and_nobody_else(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "in a folder":
        monkeypatch.setattr(PrivateFile, "_in_memory", lambda *_: None)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("there are no such files on this system")
    meeting = PrivateFile("ranks")
    path = meeting.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    script = f"open({str(path)!r}, 'a').write('here')"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=BOUND_S)
    assert path.read_text() == "here"
    meeting.close()
    meeting.close()
    assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is in a folder, which stays behind")
@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "os.fork() or sys.exit(); os.wait()"]
)
def test_nothing_is_left_of_it_however_its_process_ends(end: str, tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom omni_core.wire.private_file import PrivateFile\n"
        f"meeting = PrivateFile('ranks')\n{end}\nprint(os.path.exists(meeting.path))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert list(tmp_path.iterdir()) == []
    if done.returncode not in (-signal.SIGKILL, -signal.SIGTERM):
        assert done.stdout == "True\n", done.stderr  # a child that ends takes nothing along
