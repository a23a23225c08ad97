"""examples/http_executor passes the conformance suite, believes no stranger, and works with anybody's server."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib
import json
import os
import pickle
import re
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest, PluginRegistry
from omni_core.errors import ConfigError, ExecutorError, RPCError, StartupError
from omni_core.testing import ExecutorConformance

SOURCE = Path(__file__).resolve().parents[1] / "examples" / "http_executor" / "src"
FACTORY = "omni_core.testing.pipelines:faulty"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Let this process and those that it starts import the example, which is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SOURCE))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])))
        yield


@pytest.mark.sampled
class TestHttpExecutor(ExecutorConformance):
    """The suite, on servers of the executor's own."""

    executor_class = "omni_exec_http.executor:HttpExecutor"


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("http") / "secret"
    file.touch(0o600)
    file.write_text(secrets.token_hex(16))
    return file


@contextlib.contextmanager
def running_server(secret_file: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """Run a server as somebody else would; its lines are collected."""
    command = [sys.executable, "-m", "omni_exec_http.server", "--secret-file", str(secret_file), "--port", "0", *more]
    lines: list[str] = []
    told = threading.Event()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line)
                told.set()
            told.set()

        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert told.wait(60)
            match = re.search(r"listens on 127\.0\.0\.1 port (\d+)", lines[0])
            assert match, lines
            yield process, int(match[1]), lines
        finally:
            process.kill()
            process.wait(20)
            reader.join(20)


@pytest.fixture(scope="module")
def server(secret_file: Path) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    with running_server(secret_file) as started:
        yield started


def plugins() -> PluginRegistry:
    registry = PluginRegistry(entry_points=())
    registry.register(importlib.import_module("omni_exec_http.plugin"))
    return registry


def make_engine(**config: Any) -> DiffusionEngine:
    return DiffusionEngine(OmniDiffusionConfig(executor_class="http", **config), plugins=plugins())


def picture(engine: DiffusionEngine, seed: int) -> bytes:
    request = OmniDiffusionRequest(prompt="a blue two", seed=seed, num_inference_steps=4)
    output = engine.step([request])[0].raise_for_error()
    data: bytes = output.images[0].tobytes()
    return data


def health(port: int, secret: bytes) -> dict[str, Any]:
    """Ask a server whether it is well, as a driver does."""
    signing, client = (importlib.import_module(f"omni_exec_http.{name}") for name in ("signing", "client"))
    asker = client.Client("127.0.0.1", port, signing.Signer(secret), 2**20)
    try:
        reply = asker.begin("GET", "/health", timeout=20).finish()
        assert reply.status == 200
        return dict(json.loads(reply.body))
    finally:
        asker.close()


def talk(port: int, data: bytes, *, hang_up: bool = False) -> bytes:
    """Send raw bytes and return everything that comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data)
        if hang_up:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def request_bytes(secret: bytes, path: str, body: bytes, **changed: str) -> bytes:
    """Return a signed request as it goes over the wire, with some headers changed afterwards."""
    signing = importlib.import_module("omni_exec_http.signing")
    headers = signing.Signer(secret).sign_request("POST", path, len(body), hashlib.sha256(body).hexdigest())
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return head.encode() + b"\r\n" + body


def bomb_body(file: Path) -> bytes:
    bomb = pickle.dumps(Bomb(file))
    body = importlib.import_module("omni_exec_http.body")
    head = struct.pack("<IQ", 1, len(bomb))
    return head + bytes(-len(head) % body.ALIGNMENT) + bomb + bytes(-len(bomb) % body.ALIGNMENT)


STRANGE = {
    "another secret": lambda secret, body: request_bytes(b"0" * 32, "/session", body),
    "no signature": lambda secret, body: b"POST /session HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
    "another body": lambda secret, body: request_bytes(secret, "/session", b"x" * len(body))[: -len(body)] + body,
    "another path": lambda secret, body: request_bytes(secret, "/other", body).replace(b"/other", b"/session"),
    "another length": lambda secret, body: request_bytes(secret, "/session", body, Content_Length="1"),
    "an old time": lambda secret, body: request_bytes(secret, "/session", body, X_Omni_Time="1000.0"),
    "a signature that is no text": lambda secret, body: request_bytes(
        secret, "/session", body, X_Omni_Signature="\u00e4\u00df"
    ),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_stranger_is_refused_before_anything_is_unpickled(
    kind: str, server: Any, secret_file: Path, tmp_path: Path
) -> None:
    process, port, lines = server
    secret, mark = secret_file.read_bytes(), tmp_path / "unpickled"
    answer = talk(port, STRANGE[kind](secret, bomb_body(mark)))
    assert answer.startswith(b"HTTP/1.1 401 "), answer
    assert health(port, secret)["session"] is None
    assert process.poll() is None
    assert not mark.exists()
    assert secret.decode() not in "".join(lines)
    assert secret not in answer


def test_the_bomb_of_these_tests_goes_off_when_it_is_signed(server: Any, secret_file: Path, tmp_path: Path) -> None:
    """So the tests above can fail."""
    _, port, _ = server
    mark = tmp_path / "unpickled"
    answer = talk(port, request_bytes(secret_file.read_bytes(), "/session", bomb_body(mark)), hang_up=True)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert mark.exists()


def test_a_request_that_came_before_is_refused(server: Any, secret_file: Path) -> None:
    _, port, _ = server
    once = request_bytes(secret_file.read_bytes(), "/nothing", b"")
    assert talk(port, once, hang_up=True).startswith(b"HTTP/1.1 404 ")
    assert talk(port, once, hang_up=True).startswith(b"HTTP/1.1 401 ")


def test_a_request_from_before_the_start_is_refused(secret_file: Path) -> None:
    """A server that was started anew has forgotten what came before."""
    early = request_bytes(secret_file.read_bytes(), "/nothing", b"")
    with running_server(secret_file) as (_, port, _):
        assert talk(port, early, hang_up=True).startswith(b"HTTP/1.1 401 ")


def test_a_truncated_body(server: Any, secret_file: Path, tmp_path: Path) -> None:
    _, port, _ = server
    secret, mark = secret_file.read_bytes(), tmp_path / "unpickled"
    whole = request_bytes(secret, "/session", bomb_body(mark))
    assert talk(port, whole[:-10], hang_up=True) == b""
    assert health(port, secret)["session"] is None
    assert not mark.exists()


@pytest.mark.parametrize("data", [b"\x00\xff" * 5000 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b""])
def test_garbage(data: bytes, server: Any, secret_file: Path) -> None:
    process, port, _ = server
    talk(port, data, hang_up=True)
    assert health(port, secret_file.read_bytes())["session"] is None
    assert process.poll() is None


def test_a_body_that_is_too_large_is_not_read(secret_file: Path) -> None:
    with running_server(secret_file, "--max-body-bytes", "1000") as (_, port, _):
        head = request_bytes(secret_file.read_bytes(), "/session", bytes(1001))[:-1001]
        assert talk(port, head).startswith(b"HTTP/1.1 413 ")


def test_strangers_who_say_nothing_are_sent_away(server: Any, secret_file: Path) -> None:
    """Whoever knows the secret waits some seconds for them, however many they are."""
    _, port, _ = server
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(40)]
        start = time.monotonic()
        assert health(port, secret_file.read_bytes())["session"] is None
        assert time.monotonic() - start < 20
        assert silent[0].recv(1) == b""


def test_a_server_of_somebody_else(server: Any, secret_file: Path) -> None:
    """It gives inline's picture, serves one driver after the other, and is not ended by them."""
    process, port, lines = server
    options = {"url": f"http://127.0.0.1:{port}", "secret_file": str(secret_file)}
    with DiffusionEngine(OmniDiffusionConfig()) as engine:
        right = [picture(engine, seed) for seed in (1, 2)]
    for _ in range(2):
        with make_engine(executor_options=options) as engine:
            assert [picture(engine, seed) for seed in (1, 2)] == right
            assert engine.collective_rpc(lambda worker: os.getpid()) == [process.pid]
            assert engine.executor.worker_pids() == [[]]
            engine.check_health()
            with pytest.raises(StartupError, match="another driver"):
                make_engine(executor_options=options)
    assert process.poll() is None
    assert secret_file.read_text() not in "".join(lines)


def test_a_server_of_somebody_else_that_is_started_anew(secret_file: Path) -> None:
    """A request that runs when its server ends is run again when somebody has started it again."""
    request = OmniDiffusionRequest(prompt="a blue two", seed=1, num_inference_steps=400)
    with contextlib.ExitStack() as stack:
        with running_server(secret_file) as (_, port, _):
            options = {"url": f"http://127.0.0.1:{port}", "secret_file": str(secret_file), "max_failures": 1000}
            engine = stack.enter_context(make_engine(executor_options=options))
            handle = engine.submit(request)
            next(event for event in handle.events() if event.kind == "step")
        assert engine.executor.worker_pids() == [[]]
        with running_server(secret_file, "--port", str(port)):
            output = handle.result(timeout=100).raise_for_error()
    assert output.metrics.num_retries == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "http://127.0.0.1:1"}, "secret"),
        ({"secret": "0123456789abcdef"}, "url"),
        ({"url": "https://there:1", "secret": "0123456789abcdef"}, "http://HOST:PORT"),
        ({"url": "http://127.0.0.1:1", "secret": "short"}, "secret"),
        ({"url": ["http://a:1", "http://b:1"], "secret": "0123456789abcdef"}, "data_parallel_size"),
        ({"url": "http://127.0.0.1:1", "secret_file": "/nowhere"}, "/nowhere"),
        ({"urls": "http://127.0.0.1:1"}, "Did you mean 'url'"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_engine(executor_options=options)


def test_a_secret_that_others_may_read_is_refused(secret_file: Path, request: pytest.FixtureRequest) -> None:
    secret_file.chmod(0o644)
    request.addfinalizer(lambda: secret_file.chmod(0o600))
    with pytest.raises(ConfigError, match="chmod 600"):
        make_engine(executor_options={"url": "http://127.0.0.1:1", "secret_file": str(secret_file)})


def test_a_wrong_secret_fails_the_start(server: Any) -> None:
    _, port, lines = server
    options = {"url": f"http://127.0.0.1:{port}", "secret": "a secret of another server"}
    with pytest.raises(StartupError, match="same secret"):
        make_engine(executor_options=options)
    assert "another server" not in "".join(lines)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = {"url": f"http://127.0.0.1:{port}", "secret": "0123456789abcdef"}
    with pytest.raises(StartupError, match="cannot be reached"):
        make_engine(executor_options=options)


class Impostor(threading.Thread):
    """Answers every request with a bomb that it has not signed, or signed with another secret."""

    def __init__(self, body: bytes) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.body = body

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    connection.recv(65536)
                    head = (
                        f"HTTP/1.1 200 OK\r\nX-Omni-Signature: {'0' * 64}\r\nContent-Length: {len(self.body)}\r\n\r\n"
                    )
                    connection.sendall(head.encode() + self.body)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass


def test_a_reply_of_a_stranger_is_not_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "unpickled"
    impostor = Impostor(bomb_body(mark))
    impostor.start()
    try:
        options = {"url": f"http://127.0.0.1:{impostor.port}", "secret": "0123456789abcdef"}
        with pytest.raises(StartupError, match="cannot be trusted"):
            make_engine(executor_options=options)
    finally:
        impostor.listener.shutdown(socket.SHUT_RDWR)
        impostor.listener.close()
        impostor.join(20)
    assert not mark.exists()


def test_the_secret_is_not_on_the_command_line_nor_in_the_environment() -> None:
    with make_engine(model=FACTORY) as engine:
        [[pid]] = engine.executor.worker_pids()
        secret = engine.executor._replicas[0].link.process.secret
        seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert secret not in seen
    assert secret.hex().encode() not in seen


def test_what_is_too_large_fails_alone() -> None:
    with make_engine(model=FACTORY, executor_options={"max_body_bytes": 2**20}) as engine:
        with pytest.raises(RPCError, match="max_body_bytes"):
            engine.collective_rpc(lambda worker, data: len(data), args=(bytes(2**21),))
        with pytest.raises(RPCError, match="max_body_bytes"):
            engine.collective_rpc(lambda worker: bytes(2**21))
        assert engine.collective_rpc(lambda worker: 5) == [5]


def test_errors_of_http_are_causes() -> None:
    with make_engine(model=FACTORY) as engine:
        with pytest.raises(ExecutorError) as caught:
            engine.collective_rpc(lambda worker: os._exit(7))
        assert "exit status 7" in str(caught.value)
        assert not isinstance(caught.value, OSError | http.client.HTTPException)
        assert caught.value.__cause__ is not None
