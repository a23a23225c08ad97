"""`omni generate`: from prompts to files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from omni_core import __version__
from omni_core.cli import exit_codes
from omni_core.cli.app import COMMANDS, registry_of, tell
from omni_core.cli.interruption import watch_interruption
from omni_core.cli.names import Target
from omni_core.cli.options import (
    REQUEST_SECTION,
    SectionedCommand,
    config_from,
    config_options,
    given_fields,
    request_options,
)
from omni_core.cli.quiet import quiet_libraries
from omni_core.cli.run import GenerateRun, Job
from omni_core.cli.saving import SaveOptions
from omni_core.cli.values import files_of
from omni_core.errors import OmniError
from omni_core.log import configure_logging
from omni_core.media import formats, videos
from omni_core.request import OmniDiffusionRequest

_HELP = f"""{COMMANDS["generate"]}

\b
omni generate 'a red seven' -o seven.png
omni generate 'a red seven' 'a green three' --seed 1 -o pictures/
omni generate --model ./dit --extra-args class_labels=[207] --steps 20

Each PROMPT is a request of its own; pipelines that take no prompt get one request without. A file says inside how it
was made. Progress goes to standard error.
"""
_EPILOG = """\b
Exit codes:
  0    everything was made
  1    a request failed
  2    the command line, the configuration or a request is wrong
  3    the engine could not start, or died
  130  interrupted by Ctrl-C; 143 ended by SIGTERM; 129 the terminal was closed
"""


def generate(**values: Any) -> None:
    """Run the command and exit with its code."""
    context = click.get_current_context()
    run: GenerateRun | None = None
    try:
        job = plan(values)
        configure_logging(job.config.log_level, job.config.log_format)
        with quiet_libraries(job.config, job.quiet), watch_interruption() as interruption:
            run = GenerateRun(job, registry_of(context), interruption)
            run.run()
    except OmniError as error:
        if values["as_json"]:
            _print_json(run, error)
        tell(error, values["verbose"])
        context.exit(exit_codes.exit_code_of(error))
    if values["as_json"]:
        _print_json(run)
    context.exit(run.exit_code)


def plan(values: Mapping[str, Any]) -> Job:
    """Return the job that the command line describes, having refused what cannot work before anything is loaded.

    Raises:
        ConfigError, RequestError: A value is impossible.
        click.UsageError: Flags contradict each other, or outputs cannot be written as asked.
    """
    target = Target.parse(values["output"])
    if (missing := videos.missing_package(target.ending)) is not None:
        raise click.UsageError(missing)
    config = config_from(command, values)
    fields = given_fields(command.params, values, REQUEST_SECTION)
    output_type = fields.get("output_type")
    if output_type == "latent" and target.ending not in (None, *formats.ARRAYS):
        raise click.UsageError(f"--output-type latent gives arrays, which {target.ending} cannot hold; use .npz.")
    prompts: list[str | None] = [_valid_text(prompt) for prompt in values["prompts"]]
    if not prompts and config.model is None and "prompt_embeds" not in fields.get("extra_args", {}):
        raise click.UsageError("Missing PROMPT, such as 'a red seven'.")
    requests = [OmniDiffusionRequest(prompt=prompt, **fields) for prompt in prompts or [None]]
    return Job(
        config=config,
        requests=requests,
        files=files_of(values["extra_args"]),
        save_options=SaveOptions(target, values["enlarge"], values["fps"], values["sample_rate"]),
        quiet=values["quiet"],
        verbose=values["verbose"],
    )


def _valid_text(prompt: str) -> str:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"The prompt {prompt!r} is no text in UTF-8.") from None
    return prompt


def _print_json(run: GenerateRun | None, error: OmniError | None = None) -> None:
    document = {
        "omni": __version__,
        "model": run.model if run is not None else None,
        "error": None if error is None else f"{type(error).__name__}: {error.message}",
        "requests": [] if run is None or error is not None else [result.to_dict() for result in run.results],
    }
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _check_enlarge(context: click.Context, option: click.Parameter, value: str) -> str:
    if value == "auto" or (value.isascii() and value.isdigit() and 1 <= int(value) <= 64):
        return value
    raise click.BadParameter("give auto, or a whole number from 1 (as it is) to 64")


command = SectionedCommand(
    "generate",
    callback=generate,
    help=_HELP,
    short_help=COMMANDS["generate"],
    epilog=_EPILOG,
    params=[
        click.Argument(["prompts"], nargs=-1, metavar="[PROMPT]..."),
        click.Option(
            ["output", "-o", "--output"],
            metavar="FILE|FOLDER",
            help="Where to write; the ending of FILE tells the format. A file of this name is replaced, and no other: "
            "several outputs are numbered, and get names that are free. Without it: in this folder, named after prompt "
            "and seed.",
        ),
        click.Option(
            ["enlarge", "--enlarge"],
            default="auto",
            metavar="auto|1|N",
            callback=_check_enlarge,
            help="Enlarge pictures N times; auto enlarges those below 128 pixels, 1 leaves them as they are.  "
            "[default: auto]",
        ),
        click.Option(
            ["fps", "--fps"],
            type=click.FloatRange(0.1, 1000),
            metavar="NUMBER",
            help=f"Frames a second of videos.  [default: the pipeline's frame_rate or fps if given, else "
            f"{videos.DEFAULT_FPS:g}]",
        ),
        click.Option(
            ["sample_rate", "--sample-rate"],
            type=click.IntRange(1, 768_000),
            metavar="NUMBER",
            help="Samples a second of sound.  [default: the pipeline's own]",
        ),
        click.Option(["as_json", "--json"], is_flag=True, help="Print one JSON document on standard output."),
        click.Option(["quiet", "-q", "--quiet"], is_flag=True, help="Show errors alone."),
        click.Option(["verbose", "-v", "--verbose"], is_flag=True, help="Show errors with the worker's traceback."),
        *request_options(),
        *config_options(),
    ],
)
