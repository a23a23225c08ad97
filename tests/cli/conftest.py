from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from omni_core.cli.app import make_app

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own and finds cli_test_models, as the processes do that it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture(autouse=True)
def _own_logging():
    """The command line configures the logging of its process, which in these tests is that of pytest."""
    logger = logging.getLogger("omni_core")
    before = logger.level, logger.propagate, logger.handlers[:]
    yield
    logger.setLevel(before[0])
    logger.propagate, logger.handlers[:] = before[1:]


@pytest.fixture
def omni():
    """Runs `omni` in this process; the result has exit_code, stdout and stderr."""

    def run(*arguments, **settings):
        return CliRunner().invoke(make_app(), [str(argument) for argument in arguments], **settings)

    return run


@pytest.fixture
def omni_process():
    """Runs `omni` as a user does, in a process of its own."""

    def run(*arguments, **settings):
        return subprocess.run(
            [sys.executable, "-m", "omni_core", *map(str, arguments)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
            **settings,
        )

    return run
