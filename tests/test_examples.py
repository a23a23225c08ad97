"""Every example does what it says: each is run by its own command, in a fresh folder, and what it made is looked at."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, PluginRegistry
from omni_core.testing import SAMPLE
from quality.judge import Judge, Verdict

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# Examples that need a plugin, and the tests of that plugin that run them.
ELSEWHERE = {"spmd": ROOT / "plugins" / "omni_exec_torchrun" / "tests" / "test_spmd.py"}
LIMIT_S = 240.0  # for a machine that has other work; alone, none takes more than 30

Run = Callable[[str], tuple[Path, str]]
Look = Callable[[Path], Verdict]
Load = Callable[[str], ModuleType]


def command_of(file: Path) -> str:
    """The command that the docstring of an example names."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    commands = re.findall(r"^    (\w.*)$", docstring, re.MULTILINE)
    assert len(commands) == 1, f"{file.name} names {commands}"
    return str(commands[0])


def execute(command: list[str], folder: Path, **more: str) -> str:
    """Run a command in a folder that holds a copy of the examples; return what it printed."""
    shutil.copytree(EXAMPLES, folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_")}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**kept, **more},
        text=True,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run an example once, however many tests look at it; return its folder and what it printed."""

    @functools.cache
    def run_once(name: str) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp(name)
        python, *arguments = shlex.split(command_of(EXAMPLES / f"{name}.py"))
        assert python == "python"
        assert arguments[-1] == "FOLDER"
        return folder / "FOLDER", execute(arguments, folder)

    return run_once


@pytest.fixture(scope="module")
def look() -> Look:
    judge = Judge()
    return lambda file: judge.look(Image.open(file))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import an example as a module, as an import path in a configuration does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def shown(verdict: Verdict) -> tuple[int, str, str]:
    return verdict.digit, verdict.colour, verdict.ground


def pixels(file: Path | Image.Image) -> np.ndarray[Any, np.dtype[np.int64]]:
    image = file if isinstance(file, Image.Image) else Image.open(file)
    return np.asarray(image.convert("RGB"), dtype=np.int64)


def test_every_example_is_run_and_listed() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[`(\w+)\.py`\]\(\1\.py\) \|.*\| `([^`]+)` \|$", readme, re.MULTILINE))
    files = {file.stem: file for file in EXAMPLES.glob("*.py")}
    assert len(files) >= 7
    assert rows == {name: command_of(file) for name, file in files.items()}
    run_here = {name for name in files if f"test_{name}" in globals()}
    assert run_here | set(ELSEWHERE) == set(files)
    for name, test in ELSEWHERE.items():
        assert f'"examples" / "{name}.py"' in test.read_text(encoding="utf-8")


# example_custom_executor.py

DRAWN = {
    "a red seven": (7, "red"),
    "a blue two": (2, "blue"),
    "a green four": (4, "green"),
    "a purple nine": (9, "purple"),
}


def test_example_custom_executor(run: Run, look: Look) -> None:
    folder, said = run("example_custom_executor")
    lines = re.findall(r"^(.+): 4 pictures in ([\d.]+) s, (\d) from memory$", said, re.MULTILINE)
    assert [(name, hits) for name, _, hits in lines] == [("first", "0"), ("again", "4"), ("other seed", "0")]
    first_s, again_s, _ = (float(seconds) for _, seconds, _ in lines)
    assert again_s < first_s / 4
    assert len(list(folder.iterdir())) == 12
    for prompt, what in DRAWN.items():
        first, again, other = (folder / f"{prompt}, {name}.png" for name in ("first", "again", "other seed"))
        assert shown(look(first)) == (*what, "white")
        assert (pixels(first) == pixels(again)).all()
        assert (pixels(first) != pixels(other)).any()


def test_the_custom_executor_draws_what_inline_draws(run: Run) -> None:
    folder, _ = run("example_custom_executor")
    with DiffusionEngine() as engine:
        outputs = engine.step([OmniDiffusionRequest(prompt=prompt, seed=1) for prompt in DRAWN])
    for prompt, output in zip(DRAWN, outputs, strict=True):
        assert np.abs(pixels(folder / f"{prompt}, first.png") - pixels(output.images[0])).max() <= 2


def test_the_custom_executor_by_its_import_path(tmp_path: Path, look: Look) -> None:
    docstring = " ".join((EXAMPLES / "example_custom_executor.py").read_text(encoding="utf-8").split('"""')[1].split())
    [command] = re.findall(r"`(PYTHONPATH=.*?)`", docstring)
    setting, omni, *arguments = shlex.split(command)
    assert omni == "omni"
    path = str(tmp_path / setting.removeprefix("PYTHONPATH="))
    execute(["-m", "omni_core", *arguments, "-o", "seven.png"], tmp_path, PYTHONPATH=path)
    assert shown(look(tmp_path / "seven.png"))[:2] == (7, "red")


def test_the_custom_executor_forgets_when_the_model_changes(load: Load) -> None:
    example = load("example_custom_executor")
    request = OmniDiffusionRequest(prompt="a red seven", seed=1)
    with DiffusionEngine(OmniDiffusionConfig(executor_class=example.CachingExecutor)) as engine:
        [first] = engine.step([request])
        before = pixels(first.images[0])
        first.images[0].paste("black", (0, 0, 32, 32))  # what a caller does to a picture is its own affair
        [again] = engine.step([request])
        assert engine.executor.hits == 1
        assert (pixels(again.images[0]) == before).all()
        engine.stats()
        engine.collective_rpc("check_health")
        engine.step([request])
        assert engine.executor.hits == 2
        engine.collective_rpc(_spoil)
        [changed] = engine.step([request])
        assert engine.executor.hits == 2
        assert (pixels(changed.images[0]) != before).any()


def _spoil(worker: Any) -> None:
    worker.pipeline.transformer.proj_out.bias.data.add_(0.5)


def test_the_custom_executor_conforms(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    is_whole = request.config.getoption("--nightly")
    check = ["-m", "omni_core", "plugins", "check", "example_custom_executor:CachingExecutor"]
    check += [] if is_whole else ["--only", " or ".join(SAMPLE)]
    said = execute(check, tmp_path, PYTHONPATH=str(tmp_path / "examples"))
    kept = re.search(r"conforms: (\d+) promises kept", said)
    assert kept is not None
    assert int(kept[1]) > (100 if is_whole else 7)


# metrics_observer.py


def samples_of(text: str) -> dict[str, float]:
    """The samples of a text in Prometheus' format, read by its own parser, by names such as `name{how=timeout}`."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        sample.name + "".join(f"{{{label}={value}}}" for label, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_observer(run: Run) -> None:
    folder, said = run("metrics_observer")
    ends = dict(re.findall(r"^(a.*): (\w+)$", said, re.MULTILINE))
    assert list(ends.values()) == ["finished"] * 3 + ["error", "timeout", "aborted"]
    samples = samples_of((folder / "metrics.txt").read_text(encoding="utf-8"))
    assert samples["omni_requests_queued_total"] == samples["omni_requests_started_total"] == 6
    for how, number in {"finished": 3, "failed": 1, "timeout": 1, "aborted": 1}.items():
        assert samples[f"omni_requests_ended_total{{how={how}}}"] == number
        assert samples[f"omni_request_seconds_count{{how={how}}}"] == number
    assert samples["omni_request_seconds_sum{how=timeout}"] >= 1.0  # its timeout_s
    assert samples["omni_denoising_steps_total"] > 3 * 20
    assert re.search(r"^read from http://127\.0\.0\.1:\d+/metrics:$", said, re.MULTILINE)


def test_metrics_of_workers_that_die_and_of_steps(load: Load) -> None:
    example = load("metrics_observer")
    observer = example.MetricsObserver()
    plugins = PluginRegistry(entry_points=[])
    plugins.register(observer)
    request = OmniDiffusionRequest()
    plugins.notify("omni_request_queued", request=request)
    for step in (1, 5, 2, 20):  # at 5 the worker died, and the request began again
        plugins.notify("omni_request_step", request_id=request.request_id, step=step, num_steps=20)
    plugins.notify("omni_worker_died", replica=1, rank=0, reason="killed")
    plugins.notify("omni_worker_restarted", replica=1, rank=0)
    with example.metrics_server(observer) as address, urllib.request.urlopen(address, timeout=10) as reply:
        samples = samples_of(reply.read().decode())
    with pytest.raises(urllib.error.URLError):  # closed
        urllib.request.urlopen(address, timeout=10)
    assert samples["omni_denoising_steps_total"] == 5 + 20
    for name in ("omni_worker_deaths_total", "omni_worker_restarts_total"):
        assert samples[name + "{rank=0}{replica=1}"] == 1


# lora_pipeline_hook.py


def test_lora_pipeline_hook(run: Run, look: Look, load: Load) -> None:
    folder, said = run("lora_pipeline_hook")
    assert re.search(r"trained a LoRA of \d+ bytes", said)
    prompts = load("lora_pipeline_hook").PROMPTS
    assert len(list(folder.glob("*.png"))) == 3 * len(prompts) == 12
    for prompt in prompts:
        before, with_lora, without = (folder / f"{prompt}, {when}.png" for when in ("before", "with", "without"))
        assert look(before).ground == "white"
        assert look(with_lora).ground == "yellow"
        assert look(with_lora).digit == look(before).digit
        assert (pixels(before) == pixels(without)).all()


def test_the_lora_is_a_small_file_of_diffusers_kind(run: Run) -> None:
    from safetensors import safe_open

    folder, _ = run("lora_pipeline_hook")
    [file] = (folder / "lora").iterdir()
    assert file.stat().st_size < 200_000
    with safe_open(file, "pt") as weights:
        assert all(re.match(r"transformer\..*\.lora_[AB]\.weight$", name) for name in weights.keys())  # noqa: SIM118


# asyncio_requests.py


def test_asyncio_requests(run: Run, look: Look, load: Load) -> None:
    folder, said = run("asyncio_requests")
    ends = dict(re.findall(r"^(\S+): (finished|aborted|timeout|error) after \d+ steps$", said, re.MULTILINE))
    assert ends.pop("unwanted") == "aborted"
    assert ends.pop("too-slow") == "timeout"
    assert set(ends.values()) == {"finished"}
    # Fewer steps end sooner, and results come as they end.
    steps = {prompt.replace(" ", "-"): number for prompt, number in load("asyncio_requests").STEPS.items()}
    assert list(ends) == sorted(steps, key=steps.__getitem__)
    assert list(ends) != list(steps)
    assert ast.literal_eval(said.split("ended: ")[1]) == {"finished": 4, "aborted": 1, "timeout": 1}
    assert re.search(r"'unwanted' was aborted", said)
    assert re.search(r"'too-slow' did not finish within its timeout_s = 2\.0", said)
    for name, number in steps.items():
        reported = [int(step) for step in re.findall(rf"^{name}: step (\d+) of {number}$", said, re.MULTILINE)]
        assert reported == list(range(10, number + 1, 10))
    assert {file.stem for file in folder.iterdir()} == set(steps)
    for prompt, what in DRAWN.items():
        assert shown(look(folder / f"{prompt.replace(' ', '-')}.png")) == (*what, "white")


# image_to_image.py


def test_image_to_image(run: Run, look: Look) -> None:
    folder, said = run("image_to_image")
    assert shown(look(folder / "before.png")) == (7, "red", "white")
    assert shown(look(folder / "after.png")) == (7, "blue", "white")
    assert said.startswith("18 of 30 steps")  # a strength of 0.6
    # The same strokes in another colour, which drawing anew would not give.
    before, after = (pixels(folder / f"{name}.png").min(axis=-1) < 128 for name in ("before", "after"))
    assert (before & after).sum() / (before | after).sum() > 0.6


# thread_executor.py


def test_thread_executor(run: Run, look: Look) -> None:
    folder, said = run("thread_executor")
    assert said == "run again 1 time, on a worker that was replaced 1 time\n"
    assert shown(look(folder / "two.png"))[:2] == (2, "blue")


# own_pipeline.py


def test_own_pipeline(run: Run, load: Load) -> None:
    folder, said = run("own_pipeline")
    example = load("own_pipeline")
    assert re.findall(r"step (\d+) of 50", said) == ["10", "20", "30", "40", "50"]
    words = dict(re.findall(r"^(\w+): 50 calls, in forward passes of ([\d.]+) rows$", said, re.MULTILINE))
    assert set(words) == {file.stem for file in folder.iterdir()}
    assert len(words) == 4
    assert all(float(rows) > 2 for rows in words.values())
    ink = {word: np.argwhere(np.asarray(example.ink_of(word)) > 127) for word in words}
    for word in words:
        dots = np.argwhere(pixels(folder / f"{word}.png").min(axis=-1) < 128)
        inside = {other: (farness(dots, places) <= 4).mean() for other, places in ink.items()}
        assert inside[word] > 0.98
        assert max(inside, key=inside.__getitem__) == word
        assert (farness(ink[word], dots) <= 6).mean() > 0.95  # no letter is missing


def farness(points: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How far each point is from the nearest of the places, in pixels."""
    squares = np.square(points[:, None].astype(np.float32) - places[None].astype(np.float32)).sum(-1)
    return np.sqrt(squares.min(axis=1))


def test_own_pipeline_gives_what_it_gives_without_omni(run: Run, load: Load) -> None:
    import torch

    folder, _ = run("own_pipeline")
    pipeline = load("own_pipeline").make_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    [image] = pipeline("omni", generator=torch.Generator().manual_seed(0)).images
    different = (pixels(folder / "omni.png") != pixels(image)).any(axis=-1)
    assert different.mean() < 1e-3  # a dot that fell between two pixels


def test_the_closed_form_is_the_score(load: Load) -> None:
    import torch

    example = load("own_pipeline")
    denoiser = example.MixtureDenoiser(0.05)
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(2, 7, 2, generator=generator)
    points = torch.randn(2, 50, 2, generator=generator).requires_grad_()
    signal = torch.tensor([0.3, 0.9])
    variance = (signal * 0.05**2 + 1 - signal)[:, None, None]
    away = points[:, :, None] - signal.sqrt()[:, None, None, None] * places[:, None]
    log_density = torch.logsumexp(-away.square().sum(-1) / (2 * variance), dim=-1).sum()
    [score] = torch.autograd.grad(log_density, points)
    noise = denoiser(points, signal=signal, places=places)
    torch.testing.assert_close(noise, -(1 - signal).sqrt()[:, None, None] * score, rtol=1e-4, atol=1e-4)
