"""`omni serve`: the command line of the server."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import click

from omni_core.cli.options import SectionedCommand, SectionOption, config_from, config_options
from omni_core.errors import ConfigError
from omni_core.log import configure_logging
from omni_serve.keys import read_keys
from omni_serve.settings import ServeSettings

# Where the configuration says nothing; without a limit, a queue grows until memory is full.
_MAX_WAITING = 100
# As long as a time-out may be.
_LONGEST_OPTION = 2_000_000.0
_LONGEST_KEPT = 10 * 365 * 86_400.0

HELP = """Serve the model over HTTP: an OpenAI-compatible API, and a page at the address that is printed.

Ctrl-C or SIGTERM finishes what was accepted; a second one ends at once.
"""


def make_command() -> click.Command:
    """Return the command."""
    command = SectionedCommand("serve", help=HELP, short_help="Serve the model over HTTP, with a web page.")
    command.params = [*_options(), *config_options()]
    command.callback = lambda **values: run(command, values)
    return command


def run(command: click.Command, values: Mapping[str, Any]) -> None:
    """Serve until a signal comes.

    Raises:
        OmniError: The configuration is wrong, the address is taken, or the pipeline cannot be loaded.
    """
    config = config_from(command, values)
    level = "info" if config.sources()["log_level"] == "default" else config.log_level
    configure_logging(level, config.log_format)
    settings = _settings(values)
    if config.max_waiting is None:
        config = config.replace(max_waiting=_MAX_WAITING)
    _refuse_open_server(settings, values["no_auth"])
    # Imported late: it imports the engine, and `omni serve --help` needs none.
    from omni_serve.server import bind, serve

    with bind(settings.host, settings.port) as bound, _ending_on_sigterm():
        asyncio.run(serve(config, settings, bound))


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, but without an error, before the server has its own way of ending.

    Without this a server that loads its model would leave files and workers to others.
    """
    has_come = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        has_come = True
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if not has_come:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _settings(values: Mapping[str, Any]) -> ServeSettings:
    data_dir, hosts = values["data_dir"], values["allowed_host"]
    return ServeSettings(
        host=values["host"],
        port=values["port"],
        data_dir=None if data_dir is None else Path(data_dir),
        api_keys=read_keys(values["api_key_file"], os.environ),
        served_model_name=values["served_model_name"],
        allowed_hosts=frozenset(hosts),
        max_body_bytes=values["max_body_mb"] << 20,
        drain_timeout_s=values["drain_timeout_s"],
        job_expiry_s=values["job_expiry_s"],
        max_job_bytes=values["max_job_mb"] << 20,
    )


def _refuse_open_server(settings: ServeSettings, no_auth: bool) -> None:
    """Refuse to serve all of a network without a key, unless that was asked for.

    Raises:
        ConfigError: It was not.
    """
    if settings.is_loopback or settings.api_keys or no_auth:
        return
    raise ConfigError(
        f"--host {settings.host} lets other machines use this server, and there is no key. Set --api-key-file or "
        "OMNI_SERVE_API_KEY; or --no-auth, if everybody who can reach it may use it."
    )


def _a_number(context: click.Context, option: click.Parameter, value: float) -> float:
    if math.isnan(value):  # which no range refuses
        raise click.BadParameter("it is not a number", context, option)
    return value


def _options() -> list[click.Parameter]:
    def option(*names: str, **settings: Any) -> click.Option:
        return SectionOption(list(names), section="Options", **settings)

    return [
        option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
        option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."),
        option(
            "--data-dir",
            type=click.Path(file_okay=False),
            help="Keep jobs and their files here: they outlive the server. Without it they end with it.",
        ),
        option(
            "--api-key-file",
            type=click.Path(dir_okay=False),
            help="File with the keys of which clients need one, one a line; only its owner may read it. "
            "OMNI_SERVE_API_KEY sets a single one.",
        ),
        option("--no-auth", is_flag=True, help="Let every client in, also from other machines."),
        option("--served-model-name", help="What clients call the model."),
        option("--allowed-host", multiple=True, help="Another name of this server, for browsers. May be repeated."),
        option(
            "--drain-timeout-s",
            type=click.FloatRange(0, _LONGEST_OPTION),
            callback=_a_number,
            default=30.0,
            show_default=True,
            help="Seconds that running requests may take once the server is to end.",
        ),
        option(
            "--max-body-mb",
            type=click.IntRange(1, 4096),
            default=64,
            show_default=True,
            help="Largest body of a request.",
        ),
        option(
            "--job-expiry-s",
            type=click.FloatRange(1, _LONGEST_KEPT),
            callback=_a_number,
            default=86_400.0,
            show_default=True,
            help="Seconds for which the result of a job is kept.",
        ),
        option(
            "--max-job-mb",
            type=click.IntRange(1),
            default=10_240,
            show_default=True,
            help="Most megabytes of results that are kept; the oldest go first.",
        ),
    ]
