"""What the server gains and costs: against what people write by hand, against `engine.step`, and how soon it answers.

    pip install ./plugins/omni_serve httpx2
    python benchmarks/serving.py [--rounds 3] [--seconds 20] [--clients 32]

Three measurements with the small model, in one run:

1. **Saturation**: as many requests as are answered with so many clients that ask again at once. The other side is an
   async handler with one pipeline and one lock, on the same Starlette and uvicorn. The servers take turns, so that
   noise of the machine hits both; the one that does not have its turn is idle.
2. **Half load**: requests that arrive at random (Poisson), at half of the rate that the other side can do at most,
   whether or not the earlier ones are answered. Median, 95th percentile, and the share that is done in time.
3. **One picture** over HTTP against `engine.step`, in turns, on one engine.

Requests are mixed: 10, 20 or 30 steps, pictures of 32 and of 24 pixels. Meanwhile `/live` is asked ten times a second.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.client
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = (10, 20, 30)
SIZES = ("32x32", "24x24")
_START_S = 120.0
_LIVE_EVERY_S = 0.1


def body(number: int) -> dict[str, Any]:
    """The request of that number: the same for both servers."""
    chosen = random.Random(number)
    return {
        "prompt": "a red seven",
        "seed": number,
        "num_inference_steps": chosen.choice(STEPS),
        "size": chosen.choice(SIZES),
    }


# The other side, in a process of its own.


def run_by_hand(port: int) -> None:
    """Serve the small model with an async handler, one pipeline and one lock."""
    import torch
    import uvicorn
    from diffusers import DiffusionPipeline
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from omni_core.worker.pipeline.loader import REQUEST_DEFAULTS_FILE, SMALL_MODEL

    pipeline: Any = DiffusionPipeline.from_pretrained(SMALL_MODEL, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    defaults = json.loads((SMALL_MODEL / REQUEST_DEFAULTS_FILE).read_text(encoding="utf-8"))
    lock = asyncio.Lock()

    def make(asked: dict[str, Any]) -> str:
        width, _, height = asked.pop("size").partition("x")
        generator = torch.Generator().manual_seed(asked.pop("seed"))
        sides = {"width": int(width), "height": int(height)}
        picture = pipeline(**{**defaults, **asked, **sides}, generator=generator).images[0]
        file = io.BytesIO()
        picture.save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()

    async def generate(request: Request) -> JSONResponse:
        asked = await request.json()
        async with lock:
            return JSONResponse({"data": [{"b64_json": await asyncio.to_thread(make, asked)}]})

    async def live(request: Request) -> JSONResponse:
        return JSONResponse({})

    routes = [Route("/v1/images/generations", generate, methods=["POST"]), Route("/live", live)]
    print(f"serving address=http://127.0.0.1:{port}/", flush=True)
    uvicorn.run(Starlette(routes=routes), port=port, log_level="error")


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[str]:
    """Run a server and give its address."""
    log = folder / f"{command[2] if len(command) > 2 else 'server'}.log".replace("/", "_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_")}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, env=environment) as process,
    ):
        try:
            deadline = time.monotonic() + _START_S
            while not (found := re.search(r"serving.*address=(\S+)", log.read_text(errors="replace"))):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The server did not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.1)
            yield found[1]
        finally:
            process.terminate()


# Load.


@dataclass
class Answers:
    """What came of a load.

    Attributes:
        seconds: From asking to the answer, of each request that was answered.
        live: The same of `/live`.
        duration: Seconds that the load took.
        failed: Requests that were not answered with 200.
    """

    seconds: list[float] = field(default_factory=list)
    live: list[float] = field(default_factory=list)
    duration: float = 0.0
    failed: int = 0

    def __add__(self, other: Answers) -> Answers:
        return Answers(
            self.seconds + other.seconds,
            self.live + other.live,
            self.duration + other.duration,
            self.failed + other.failed,
        )

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.duration

    def described(self) -> str:
        """Return the times."""
        p50, p95, live = (percentile(*one) for one in ((self.seconds, 50), (self.seconds, 95), (self.live, 99)))
        return f"p50 {p50:6.2f} s  p95 {p95:6.2f} s  /live p99 {live * 1e3:.1f} ms  failed {self.failed}"

    def within(self, deadline: float) -> float:
        """Share of the requests that were answered in time."""
        return sum(one <= deadline for one in self.seconds) / max(1, len(self.seconds) + self.failed)


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def under_load(address: str, load: Callable[[Callable[[int], Awaitable[None]]], Awaitable[None]]) -> Answers:
    """Put a load on a server, and ask `/live` meanwhile."""
    import httpx2

    answers = Answers()
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=address, timeout=600, limits=limits) as client:

        async def ask(number: int) -> None:
            begun = time.monotonic()
            answer = await client.post("v1/images/generations", json=body(number))
            if answer.status_code == 200:
                answers.seconds.append(time.monotonic() - begun)
            else:
                answers.failed += 1

        async def look() -> None:
            while True:
                begun = time.monotonic()
                await client.get("live")
                answers.live.append(time.monotonic() - begun)
                await asyncio.sleep(_LIVE_EVERY_S)

        looking = asyncio.create_task(look())
        begun = time.monotonic()
        await load(ask)
        answers.duration = time.monotonic() - begun
        looking.cancel()
    return answers


def saturation(clients: int, seconds: float) -> Callable[[Callable[[int], Awaitable[None]]], Awaitable[None]]:
    """So many clients, each of which asks again when it is answered."""

    async def load(ask: Callable[[int], Awaitable[None]]) -> None:
        end = time.monotonic() + seconds
        numbers = iter(range(1_000_000))

        async def client() -> None:
            while time.monotonic() < end:
                await ask(next(numbers))

        await asyncio.gather(*(client() for _ in range(clients)))

    return load


def arrivals(rate: float, seconds: float, seed: int) -> Callable[[Callable[[int], Awaitable[None]]], Awaitable[None]]:
    """Requests that arrive at random, so many a second on average."""

    async def load(ask: Callable[[int], Awaitable[None]]) -> None:
        chance = random.Random(seed)
        begun, at, number = time.monotonic(), 0.0, 0
        tasks = []
        while (at := at + chance.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, begun + at - time.monotonic()))
            tasks.append(asyncio.ensure_future(ask(number)))
            number += 1
        await asyncio.gather(*tasks)

    return load


def compare_servers(arguments: argparse.Namespace, folder: Path) -> None:
    """Print saturation and half load of both servers."""
    by_hand = [sys.executable, str(Path(__file__).resolve()), "--by-hand", str(arguments.port)]
    ours = [sys.executable, "-m", "omni_core", "serve", "--port", "0", "--max-waiting", "10000"]
    ours += ["--max-num-seqs", str(arguments.max_num_seqs), "--log-level", "warning"]
    with running(by_hand, folder) as other, running(ours, folder) as omni:
        addresses = {"by hand": other, "omni serve": omni}
        for address in addresses.values():  # what is made at the first request
            asyncio.run(under_load(address, saturation(4, 3.0)))
        full = {name: Answers() for name in addresses}
        for _ in range(arguments.rounds):
            for name, address in addresses.items():
                full[name] += asyncio.run(under_load(address, saturation(arguments.clients, arguments.seconds)))
        rates = {name: answers.rate for name, answers in full.items()}
        gain = rates["omni serve"] / rates["by hand"]
        print(f"saturation, {arguments.clients} clients, pictures a second:")
        for name, answers in full.items():
            print(f"  {name:10}  {answers.rate:6.2f}   {answers.described()}")
        print(f"  throughput: {gain:.2f} x")
        rate = rates["by hand"] / 2
        deadline = 3 * statistics.median(full["by hand"].seconds) / arguments.clients
        half = {name: Answers() for name in addresses}
        for number in range(arguments.rounds):
            for name, address in addresses.items():
                half[name] += asyncio.run(under_load(address, arrivals(rate, 2 * arguments.seconds, number)))
        print(f"half load, {rate:.2f} requests a second, deadline {deadline:.2f} s:")
        for name, answers in half.items():
            print(f"  {name:10}  in time {answers.within(deadline):6.1%}   {answers.described()}")
        ratio = percentile(half["omni serve"].seconds, 95) / percentile(half["by hand"].seconds, 95)
        print(f"  p95: {ratio:.2f} x")


def compare_with_step(rounds: int) -> None:
    """Print what one picture over HTTP takes against `engine.step`."""
    from omni_core import OmniDiffusionConfig, OmniDiffusionRequest
    from omni_serve.server import Server, address_of, bind, serve
    from omni_serve.settings import ServeSettings

    started: list[Server] = []
    ready = threading.Event()

    def note(server: Server) -> None:
        started.append(server)
        ready.set()

    with bind("127.0.0.1", 0) as bound:
        served = serve(OmniDiffusionConfig(log_level="warning"), ServeSettings(port=0), bound, on_started=note)
        thread = threading.Thread(target=asyncio.run, args=(served,))
        thread.start()
        assert ready.wait(_START_S)
        [server] = started
        engine = server.service.engine.engine
        address = address_of(bound)
        host, port = re.findall(r"//([^:]+):(\d+)", address)[0]
        connection = http.client.HTTPConnection(host, int(port))
        asked = json.dumps({"prompt": "a red seven", "seed": 1})

        def by_http() -> None:
            connection.request("POST", "/v1/images/generations", asked, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()

        def by_step() -> None:
            [output] = engine.step([OmniDiffusionRequest(prompt="a red seven", seed=1)])
            output.images[0].save(io.BytesIO(), "PNG")

        sides = (by_http, by_step)
        for one in sides * 3:
            one()
        times: dict[Any, list[float]] = {one: [] for one in sides}
        for number in range(rounds):
            for one in sides if number % 2 else reversed(sides):
                begun = time.perf_counter()
                one()
                times[one].append(time.perf_counter() - begun)
        ratios = sorted(http_s / step_s for http_s, step_s in zip(times[by_http], times[by_step], strict=True))
        middle = f"{ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f}"
        print(f"one picture, HTTP / engine.step: {statistics.median(ratios):.3f} (middle half {middle})")
        connection.close()
        server.request_stop()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one round of one side")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--port", type=int, default=8765, help="of the other side")
    parser.add_argument("--by-hand", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=["servers", "step"])
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.by_hand is not None:
        run_by_hand(arguments.by_hand)
        return
    if arguments.only != "servers":
        compare_with_step(40 * arguments.rounds)
    if arguments.only != "step":
        with tempfile.TemporaryDirectory() as folder:
            compare_servers(arguments, Path(folder))


if __name__ == "__main__":
    main()
