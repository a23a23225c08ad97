"""Each way in which a hub can fail to give a model, with a hub of our own; every message says what to do."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

# What the hub answers for the models that it is asked for, by name.
FOUND = {"sha": "a" * 40, "tags": [], "private": False}
ANSWERS = {
    "no-such": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "private": (401, {"X-Error-Message": "Invalid username or password."}),
    "forbidden": (403, {}),
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted."}),
    "no-index": (404, {"X-Error-Code": "EntryNotFound"}),
    "no-revision": (404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id: v9"}),
    "broken": (500, {}),
    "busy": (429, {}),
}
# These are told of the files of a model, whose description can be had.
WITH_DESCRIPTION = {"gated": ["model_index.json"], "no-index": ["README.md"]}
LOAD = """
import json, sys
from omni_core.config import OmniDiffusionConfig
from omni_core.errors import ModelLoadError
from omni_core.worker.pipeline.loader import load_pipeline
messages = {}
for name, options in json.loads(sys.argv[1]).items():
    try:
        load_pipeline(OmniDiffusionConfig(model=f"nobody/{name}", model_options=options, device="cpu"))
    except ModelLoadError as error:
        messages[name] = error.message
print(json.dumps(messages))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = next(name for name in ANSWERS if f"nobody/{name}" in self.path)
        status, headers = ANSWERS[name]
        body = b""
        if name in WITH_DESCRIPTION and self.path.startswith("/api"):
            files = [{"rfilename": file} for file in WITH_DESCRIPTION[name]]
            known = {"id": f"nobody/{name}", "modelId": f"nobody/{name}", "siblings": files}
            status, headers, body = 200, {}, json.dumps({**FOUND, **known}).encode()
        self.send_response(status)
        for key, value in {**headers, "Content-Type": "application/json", "Content-Length": len(body)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads models in a process of its own, since the hub's library reads its settings once."""

    def run(models, **environment):
        clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        home = {"HF_HOME": str(tmp_path_factory.mktemp("hub")), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, json.dumps(models)],
            env={**clean, **home, **environment},
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def messages(hub, load):
    options = {"no-revision": {"revision": "v9"}, "here": {"local_files_only": True}}
    return load({name: options.get(name, {}) for name in [*ANSWERS, "a b", "here"]}, HF_ENDPOINT=hub)


SAYS = {
    "no-such": ("has no model of this name", "hf auth login"),
    "private": ("has no model of this name", "hf auth login"),
    "forbidden": ("has no model of this name", "hf auth login"),
    "gated": ("lets in only those who ask", "/nobody/gated,"),
    "no-index": ("lacks a file that diffusers needs", "model_index.json"),
    "no-revision": ("has no revision 'v9'", "revision in model_options"),
    "broken": ("HTTP status 500", "Try again later"),
    "busy": ("takes no more calls", "Wait"),
    "here": ("local_files_only is set in model_options",),
    "a b": ("is not the id of a model", "owner/name"),
}


@pytest.mark.parametrize("name", SAYS)
def test_what_the_hub_answers(messages, name):
    message = messages[name]
    assert message.startswith(f"Loading nobody/{name} failed: ")
    for words in SAYS[name]:
        assert words in message
    _speaks_to_people(message)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9", pytest.param("http://hub.invalid", marks=pytest.mark.nightly)]
)
def test_no_network(load, endpoint):
    message = load({"any": {}}, HF_ENDPOINT=endpoint)["any"]
    assert f"{endpoint} cannot be reached: " in message
    assert "HTTPS_PROXY" in message
    assert "`hf download nobody/any --local-dir FOLDER`" in message
    _speaks_to_people(message)


def test_offline(load):
    messages = load({"any": {}}, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set. Unset" in messages["any"]
    _speaks_to_people(messages["any"])


def _speaks_to_people(message):
    """Not of what only those see who call the library."""
    for words in ("stacktrace", "local_files_only=", "Client Error", "pass '", "OSError"):
        assert words not in message
