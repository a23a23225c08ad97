"""The command group `omni`: its own commands, those of plugins, and what becomes of errors."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from omni_core import __version__
from omni_core.cli import exit_codes, streams
from omni_core.cli.streams import say
from omni_core.errors import OmniError, PluginError

if TYPE_CHECKING:
    from omni_core.plugins import PluginRegistry

# Commands and their one-line help, kept here so that `omni --help` imports none of them.
COMMANDS = {
    "generate": "Generate pictures, video or audio from prompts.",
    "config": "Show the effective configuration and where each value comes from.",
    "plugins": "List the plugins that are installed, and what is wrong with broken ones.",
    "doctor": "Check what is installed, the devices, the model and the plugins.",
}


def make_app() -> OmniGroup:
    """Return the command line with all its commands."""
    return OmniGroup(
        "omni",
        help="Runs any Hugging Face diffusers pipeline behind one engine; how it is executed is a plugin.",
        epilog="Start with:  omni generate 'a red seven'",
        params=[
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_version,
                help="Show the version and exit.",
            )
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def registry_of(context: click.Context) -> PluginRegistry:
    """Return the plugins of this run of the command line; they are found by the first call."""
    from omni_core.plugins import PluginRegistry

    root = context.find_root()
    if root.obj is None:
        _configure_early_logging()
        # What a plugin prints while it is imported must not get between the output of a command and who reads it.
        with contextlib.redirect_stdout(sys.stderr):
            root.obj = PluginRegistry()
    registry: PluginRegistry = root.obj
    return registry


class OmniGroup(click.Group):
    """A group whose commands are imported when used, to which plugins add theirs, and whose errors are one line."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._plugins_asked = False

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands: omni's own, then those of plugins."""
        self._ask_plugins(ctx)
        return [*COMMANDS, *sorted(self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is none of that name."""
        if cmd_name in COMMANDS:
            command: click.Command = importlib.import_module(f"omni_core.cli.{cmd_name}").command
            return command
        self._ask_plugins(ctx)
        return self.commands.get(cmd_name)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command. A name that is taken is refused: a plugin must not replace what users rely on."""
        name = name or cmd.name
        if name in COMMANDS or name in self.commands:
            raise PluginError(f"there is a command `omni {name}` already")
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.commands.get(name)
            if command is None:
                rows.append((name, COMMANDS[name]))
            elif not command.hidden:
                rows.append((name, command.get_short_help_str(formatter.width)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(  # type: ignore[override]  # click's overloads differ from release to release
        self, args: Sequence[str] | None = None, standalone_mode: bool = True, **settings: Any
    ) -> Any:
        """Run, and exit with a code of `exit_codes`; errors are told in words, never as a Python traceback."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **settings)
        try:
            code: Any = super().main(args, standalone_mode=False, **settings)
            sys.exit(code if type(code) is int else exit_codes.OK)
        except click.ClickException as error:
            with contextlib.suppress(OSError):  # standard error is full: the code tells
                error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            say("Interrupted.")
            sys.exit(exit_codes.INTERRUPTED)
        except OmniError as error:
            tell(error)
            sys.exit(exit_codes.exit_code_of(error))
        except Exception as error:
            if streams.is_of_output(error):
                say(f"Error: standard output cannot be written: {getattr(error, 'strerror', error)}.")
                streams.discard(sys.stdout)
                sys.exit(exit_codes.FAILED)
            tell_unexpected(error)
            sys.exit(exit_codes.ENGINE)
        finally:
            streams.let_go_of_errors()

    def _ask_plugins(self, context: click.Context) -> None:
        # One by one and not by the registry's `call_strict`, which the first plugin that raises would end for all.
        if self._plugins_asked:
            return
        self._plugins_asked = True
        for implementation in reversed(registry_of(context).hook.omni_cli.get_hookimpls()):
            try:
                names = [*implementation.argnames, *implementation.kwargnames]
                implementation.function(**({"app": self} if "app" in names else {}))
            except Exception as error:
                what = str(error) if isinstance(error, OmniError) else f"{type(error).__name__}: {error}"
                say(f"Warning: the plugin {implementation.plugin_name} cannot add its commands: {what}")


def tell(error: OmniError, verbose: bool = False) -> None:
    """Say on standard error what went wrong; with `verbose`, also where, in the worker or in a plugin."""
    say(f"Error: {error.message}")
    if not verbose:
        return
    if error.worker_traceback is not None:
        say(f"\nTraceback in the worker:\n{error.worker_traceback.rstrip()}")
    elif error.__cause__ is not None:
        say("\n" + "".join(traceback.format_exception(error.__cause__)).rstrip())


def tell_unexpected(error: Exception) -> None:
    """Say on standard error that something broke that nobody foresaw."""
    say(f"Error: unexpected {type(error).__name__}: {error}")
    if os.environ.get("OMNI_LOG_LEVEL", "").lower() == "debug":
        say("".join(traceback.format_exception(error)).rstrip())
    else:
        say("This is a bug; OMNI_LOG_LEVEL=debug shows where. Please report it.")


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"omni {__version__}")
        context.exit()


def _configure_early_logging() -> None:
    # Plugins are found, and complained about, before there is a configuration that says how to log.
    from omni_core.log import configure_logging

    configure_logging(style="json" if os.environ.get("OMNI_LOG_FORMAT", "").lower() == "json" else "auto")
