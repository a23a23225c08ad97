"""What `/openapi.json` says is true, and whatever is sent is answered: by no 500, and the next request is served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi import checks

from omni_serve.app import ROUTES
from omni_serve.openapi import openapi_document
from omni_serve.settings import ServeSettings
from serving import FACTORIES, PATIENCE_S, ThreadServer, png, thread_server

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
# The engine is put to sleep by the one and woken by the other, whatever the body is: that has tests of its own.
NOT_FUZZED = ("/v1/omni/sleep", "/v1/omni/wake_up")
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]

CLIENT = httpx2.Client(timeout=PATIENCE_S)

load_all_checks()
document = schemathesis.openapi.from_dict(openapi_document())


@pytest.fixture(scope="module")
def running() -> Iterator[ThreadServer]:
    """A server with limits that keep whatever is asked for small."""
    limits = {"max_steps": 3, "max_pixels": 512 * 512, "max_waiting": 20}
    with thread_server(ServeSettings(port=0, max_outputs=2), model=f"{FACTORIES}:picture", **limits) as made:
        yield made


@pytest.fixture(scope="module")
def editing() -> Iterator[ThreadServer]:
    with thread_server(model=f"{FACTORIES}:image_to_image", max_steps=2, max_pixels=512 * 512) as made:
        yield made


def test_the_document_is_openapi_and_has_every_route() -> None:
    document.validate()
    paths = openapi_document()["paths"]
    described = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert described == {(method, path.replace("{name:path}", "{name}")) for method, path, _ in ROUTES}


@document.exclude(path=list(NOT_FUZZED)).parametrize()
@settings(QUICK, max_examples=20)
def test_the_api_is_as_the_document_says(case: Any, running: ThreadServer) -> None:
    if isinstance(case.body, dict):
        case.body.setdefault("num_inference_steps", 1)
    case.call_and_validate(base_url=running.url.rstrip("/"), checks=CHECKS, timeout=PATIENCE_S)


def test_that_was_no_burden(running: ThreadServer) -> None:
    """After all of it nothing is left, and a picture is made."""
    body = {"prompt": "a red seven", "num_inference_steps": 1}
    assert httpx2.post(f"{running.url}v1/images/generations", json=body, timeout=PATIENCE_S).status_code == 200
    assert not running.service._running
    assert running.service.room.held == 0


# Forms, in whose bytes a document has no say.

NAMES = st.sampled_from(
    ["prompt", "image", "image[]", "mask", "n", "size", "seed", "strength", "user", "model", "quality", "extra_params",
     "num_inference_steps", "guidance_scale", "output_format", "stream", "ip_adapter_image", "a[b][c]", "a[]", "a[", ""]
) | st.text(max_size=20)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [b"1", b"-1", b"1e999", b"NaN", b'"\\ud800"', b"{}", b'{"a":1,"a":2}', b"[" * 5000, b"\xff", b"32x32"]
    ),
    st.binary(max_size=200),
    st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass")),
)
PICTURES = st.one_of(
    st.just(png(Image.new("RGB", (8, 8)))),
    st.binary(max_size=100),
    st.integers(0, 80).map(lambda cut: png(Image.new("RGBA", (8, 8)))[:cut]),
    st.tuples(st.integers(0, 79), st.integers(0, 255)).map(lambda change: changed(*change)),
)


def changed(place: int, byte: int) -> bytes:
    content = bytearray(png(Image.new("P", (8, 8))))
    content[place % len(content)] = byte
    return bytes(content)


@st.composite
def parts(draw: st.DrawFn) -> bytes:
    name = draw(NAMES).replace('"', "%22").encode("utf-8", "surrogatepass")
    head = b'Content-Disposition: form-data; name="' + name + b'"'
    if draw(st.booleans()):
        return head + b'; filename="x.png"\r\n\r\n' + draw(PICTURES)
    return (
        head
        + draw(st.sampled_from([b"", b"\r\nContent-Type: text/plain; charset=utf-16"]))
        + b"\r\n\r\n"
        + draw(VALUES)
    )


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, str]:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in draw(st.lists(parts(), max_size=6))) + b"--b--\r\n"
    cut = draw(st.none() | st.integers(0, len(body)))
    kind = draw(st.sampled_from(["; boundary=b"] * 6 + ["", "; boundary=", "; boundary=b; charset=undefined"]))
    return body[:cut], f"multipart/form-data{kind}"


@pytest.mark.parametrize("path", ["v1/images/edits", "v1/images/variations", "v1/videos"])
@settings(QUICK, max_examples=300)
@given(form=forms())
def test_forms_of_any_bytes(editing: ThreadServer, path: str, form: tuple[bytes, str]) -> None:
    answered(editing, path, *form)


BODIES = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from(
            ["prompt", "image", "messages", "user", "model", "seed", "n", "size", "extra_body", "timesteps"]
        ),
        st.none() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.text(max_size=5), max_size=3),
    ).map(lambda value: json.dumps(value).encode()),
)


@pytest.mark.parametrize("path", ["v1/images/edits", "v1/chat/completions", "v1/videos", "v1/videos/x/remix"])
@settings(QUICK, max_examples=300)
@given(body=BODIES, charset=st.sampled_from(["", "", "; charset=utf-8", "; charset=latin-1"]))
def test_json_of_any_bytes(editing: ThreadServer, path: str, body: bytes, charset: str) -> None:
    answered(editing, path, body, f"application/json{charset}")


def answered(running: ThreadServer, path: str, body: bytes, kind: str) -> None:
    """What the pipeline itself cannot take is an error of that request; all else is refused, or done."""
    answer = CLIENT.post(f"{running.url}{path}", content=body, headers={"content-type": kind})
    if answer.status_code == 500:
        assert answer.json()["error"]["code"] == "pipeline_error", answer.text
    else:
        assert answer.status_code in (200, 400, 404, 413, 415, 422, 429), answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]
