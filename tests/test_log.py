"""omni as a library leaves logging to the program; the program sees what omni says."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_core.log import configure_logging, get_logger


def failing(prompt=None):
    raise RuntimeError("the brush broke")


def fail_one(**config):
    with DiffusionEngine(OmniDiffusionConfig(**config), pipeline=failing) as engine:
        [output] = engine.step([OmniDiffusionRequest(request_id="r1")])
    assert output.finish_reason == "error"


@pytest.fixture
def logger():
    """The logger of all of omni, as it was afterwards."""
    logger = logging.getLogger("omni_core")
    before = logger.level, logger.propagate, logger.handlers[:], logger.disabled
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logger.handlers[:] = []
    yield logger
    logger.level, logger.propagate, logger.handlers[:], logger.disabled = before
    logging.getLogger("omni_core")._cache.clear()


def state():
    root = logging.getLogger()
    return {
        name: (one.level, one.propagate, [*one.handlers], [*one.filters], one.disabled)
        for name, one in [("", root), *root.manager.loggerDict.items()]
        if isinstance(one, logging.Logger)
    }


def test_an_engine_leaves_logging_as_it_is(logger):
    fail_one()  # what it imports has loggers of its own
    before = state()
    fail_one()
    assert state() == before


def test_an_engine_sets_the_level_that_it_is_told_and_nothing_else(logger):
    fail_one()
    before = state()
    fail_one(log_level="info")
    assert logger.level == logging.INFO
    logger.setLevel(logging.NOTSET)
    assert state() == before


def test_caplog_hears_what_happens(logger, caplog):
    with caplog.at_level(logging.INFO):
        fail_one()
    [failed] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert failed.name == "omni_core.request_log"
    assert failed.getMessage().startswith("request failed request_id='r1' error=")
    assert (failed.omni["event"], failed.omni["request_id"]) == ("request failed", "r1")
    assert "the brush broke" in failed.omni["error"]
    assert "engine started" in caplog.text


@pytest.mark.parametrize("disable", [True, False])
def test_dict_config_holds(logger, disable, tmp_path):
    """Before an engine is made and after; `disable_existing_loggers` does what it says."""
    names = [name for name, one in logging.root.manager.loggerDict.items() if isinstance(one, logging.Logger)]
    before = {name: logging.getLogger(name).disabled for name in names}
    root_before = logging.root.level, logging.root.handlers[:]
    file = tmp_path / "program.log"
    handler = {"class": "logging.FileHandler", "filename": str(file), "formatter": "short"}
    try:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": disable,
                "formatters": {"short": {"format": "%(levelname)s %(name)s %(message)s"}},
                "handlers": {"file": handler},
                "root": {"handlers": ["file"], "level": "INFO"},
            }
        )
        configured = state()
        fail_one()
        assert state() == configured
    finally:
        for one in logging.root.handlers:
            one.close()
        for name, disabled in before.items():
            logging.getLogger(name).disabled = disabled
        logging.root.level, logging.root.handlers[:] = root_before
    lines = file.read_text().splitlines()
    assert (
        any(line.startswith("ERROR omni_core.request_log request failed request_id='r1'") for line in lines) != disable
    )


values = st.one_of(st.text(max_size=20), st.integers(), st.none(), st.just(object()), st.binary(max_size=4))
names = st.sampled_from(["name", "msg", "args", "message", "omni", "exc_text", "logger", "level", "timestamp", "a"])


@given(st.text(max_size=30), st.dictionaries(names, values))
def test_any_event_and_fields_are_logged(event, fields):
    """Percent signs, and names that are attributes of a record or keys of a rendered event."""
    heard: list[logging.LogRecord] = []
    logger = logging.getLogger("omni_core.acme_any")
    handler = logging.Handler()
    handler.emit = heard.append
    logger.addHandler(handler)
    try:
        get_logger("acme_any").warning(event, **fields)
    finally:
        logger.removeHandler(handler)
    [record] = heard
    assert record.omni == {"event": event, **fields}
    assert logging.Formatter("%(message)s").format(record).startswith(event)


@pytest.mark.parametrize("style", ["console", "json"])
@pytest.mark.parametrize("stream", ["None", "closed"])
def test_a_log_without_standard_error_goes_nowhere(logger, style, stream, monkeypatch):
    if stream == "None":
        monkeypatch.setattr(sys, "stderr", None)
    else:
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        sys.stderr.close()
    configure_logging("info", style)
    get_logger("x").warning("nobody hears", exc_info=True)


def test_a_program_without_logging_sees_warnings():
    """As with any library: a line without a form of its own."""
    code = "from omni_core.log import get_logger\nget_logger('acme').warning('too late', by_s=3)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "too late by_s=3\n"


def test_json_has_every_field_once(logger, capsys):
    configure_logging("info", "json")
    get_logger("acme").info("100 %s", name="n", level_of_detail=2)
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    del said["timestamp"]
    assert said == {
        "event": "100 %s",
        "name": "n",
        "level_of_detail": 2,
        "level": "info",
        "logger": "omni_core.acme",
    }


DAEMON = """
import os, sys
from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
assert None in (sys.stdout, sys.stderr)
with DiffusionEngine() as engine:
    [output] = engine.step([OmniDiffusionRequest(prompt="a red seven", seed=1, num_inference_steps=2)])
output.images[0].save("seven.png")
"""


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_an_engine_without_standard_streams(closed):
    """As in a daemon: Python sets the streams to None."""
    done = subprocess.run(["bash", "-c", f'"$0" -c "$1" {closed}', sys.executable, DAEMON], timeout=120, check=False)
    assert done.returncode == 0
    assert Path("seven.png").stat().st_size > 100


class Tee:
    """What programs put in the place of `sys.stderr`: it can be written to, and no more."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_a_stream_with_no_more_than_write(monkeypatch, logger):
    tee = Tee()
    monkeypatch.setattr("sys.stderr", tee)
    for style in ("auto", "json"):
        configure_logging("info", style)
        get_logger("omni_core.test").info("heard", style=style)
    assert tee.text.count("heard") == 2


def test_a_stream_that_cannot_even_be_asked_harms_nobody(monkeypatch, logger):
    class Broken:
        @property
        def closed(self):
            raise OSError("no stream")

    configure_logging("info")
    monkeypatch.setattr("sys.stderr", Broken())
    monkeypatch.setattr("logging.raiseExceptions", False)
    get_logger("omni_core.test").warning("unheard")
