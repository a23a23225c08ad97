"""Pictures by the real OpenAI client: the right ones, whole and as streams, and errors that it understands."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import zlib
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from gated_model import gate
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from serving import FACTORIES, PATIENCE_S, ThreadServer, client_of, picture_of, png, thread_server

STEPS = {"num_inference_steps": 6}


@pytest.fixture
def client(running: ThreadServer) -> Iterator[openai.OpenAI]:
    with client_of(running) as made:
        yield made


@pytest.fixture(scope="module")
def wanted() -> dict[int, Image.Image]:
    """What the engine alone makes, by seed; the tests of the core compare that with bare diffusers."""
    requests = [OmniDiffusionRequest(prompt="a red seven", seed=seed, **STEPS) for seed in range(7, 10)]
    with DiffusionEngine(OmniDiffusionConfig(log_level="warning")) as engine:
        return {output.seed: output.images[0] for output in engine.step(requests)}


def assert_same(one: Image.Image, other: Image.Image, most: int = 2) -> None:
    assert one.size == other.size
    assert np.abs(np.asarray(one.convert("RGB"), int) - np.asarray(other.convert("RGB"), int)).max() <= most


def test_a_picture(client: openai.OpenAI, wanted: dict[int, Image.Image]) -> None:
    answer = client.images.generate(prompt="a red seven", extra_body={"seed": 7, **STEPS})
    picture = picture_of(answer.data[0].b64_json)
    assert_same(picture, wanted[7])
    assert answer.size == "32x32"
    assert answer.output_format == "png"
    assert answer.seed == [7]
    assert answer.metrics[0]["num_steps"] == 6
    assert picture.text["seed"] == "7"
    assert json.loads(picture.text["omni_request"])["num_inference_steps"] == 6


def test_several_pictures_are_those_of_the_seeds_that_follow(
    client: openai.OpenAI, wanted: dict[int, Image.Image]
) -> None:
    answer = client.images.generate(prompt="a red seven", n=3, size="32x32", extra_body={"seed": 7, **STEPS})
    assert answer.seed == [7, 8, 9]
    for entry, seed in zip(answer.data, answer.seed, strict=True):
        assert entry.seed == seed
        assert_same(picture_of(entry.b64_json), wanted[seed])


@pytest.mark.parametrize(("file_format", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(client: openai.OpenAI, wanted: dict[int, Image.Image], file_format: Any, kind: str) -> None:
    answer = client.images.generate(
        prompt="a red seven", output_format=file_format, output_compression=90, extra_body={"seed": 7, **STEPS}
    )
    picture = picture_of(answer.data[0].b64_json)
    assert picture.format == kind
    assert_same(picture, wanted[7], 2 if kind == "PNG" else 80)


def test_keywords_under_the_names_of_other_servers(client: openai.OpenAI, wanted: dict[int, Image.Image]) -> None:
    for name in ("extra_params", "diffusers_kwargs"):
        body = {name: {"seed": 7, **STEPS, "joint_attention_kwargs": {}}}
        answer = client.images.generate(prompt="a red seven", extra_body=body)
        assert_same(picture_of(answer.data[0].b64_json), wanted[7])


def test_a_stream_with_partial_pictures(client: openai.OpenAI, wanted: dict[int, Image.Image]) -> None:
    events = list(
        client.images.generate(
            prompt="a red seven", stream=True, partial_images=3, extra_body={"seed": 7, "num_inference_steps": 6}
        )
    )
    *partials, last = events
    assert [event.type for event in partials] == ["image_generation.partial_image"] * 3
    assert [event.partial_image_index for event in partials] == [0, 1, 2]
    steps = [event.step for event in partials]  # type: ignore[union-attr]
    assert steps == sorted(set(steps))
    assert all(picture_of(event.b64_json).width for event in partials)
    assert last.type == "image_generation.completed"
    assert last.seed == 7  # type: ignore[union-attr]
    assert_same(picture_of(last.b64_json), wanted[7])


def test_a_stream_of_several(client: openai.OpenAI, wanted: dict[int, Image.Image]) -> None:
    events = client.images.generate(
        prompt="a red seven", n=2, stream=True, partial_images=1, extra_body={"seed": 7, "num_inference_steps": 6}
    )
    done = [event for event in events if event.type == "image_generation.completed"]
    assert sorted(event.seed for event in done) == [7, 8]  # type: ignore[union-attr]
    for event in done:
        assert_same(picture_of(event.b64_json), wanted[event.seed])  # type: ignore[union-attr]


def test_the_async_client(running: ThreadServer, wanted: dict[int, Image.Image]) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{running.url}v1", api_key="EMPTY") as client:
            answers = await asyncio.gather(
                *(client.images.generate(prompt="a red seven", extra_body={"seed": seed, **STEPS}) for seed in wanted)
            )
            for seed, answer in zip(wanted, answers, strict=True):
                assert_same(picture_of(answer.data[0].b64_json), wanted[seed])
            stream = await client.images.generate(
                prompt="a red seven", stream=True, partial_images=2, extra_body={"seed": 7, **STEPS}
            )
            kinds = [event.type async for event in stream]
            assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]

    asyncio.run(ask())


def test_a_picture_by_its_url(client: openai.OpenAI, wanted: dict[int, Image.Image]) -> None:
    answer = client.images.generate(prompt="a red seven", response_format="url", extra_body={"seed": 7, **STEPS})
    fetched = httpx2.get(str(answer.data[0].url))
    assert fetched.headers["content-type"] == "image/png"
    assert_same(Image.open(io.BytesIO(fetched.content)), wanted[7])
    assert httpx2.get(str(answer.data[0].url).replace("image_", "image_0")).status_code == 404


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == "omni/digits"
    assert client.models.retrieve("omni/digits").id == "omni/digits"
    assert client.images.generate(prompt="a red seven", model="omni/digits", extra_body=STEPS).data
    for ask in (
        lambda: client.models.retrieve("gpt-image-1"),
        lambda: client.images.generate(prompt="a red seven", model="gpt-image-1"),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert caught.value.code == "model_not_found"


# What is wrong, which field it is about, and words of the message.
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "a misspelt keyword": ({"guidance_scal": 3}, "guidance_scal", "Did you mean 'guidance_scale'?"),
    "no keyword of the pipeline": ({"strength": 0.5}, "strength", "takes no 'strength'"),
    "no number": ({"num_inference_steps": "many"}, "num_inference_steps", "integer"),
    "a negative seed": ({"seed": -1}, "seed", "greater than or equal to 0"),
    "too many": ({"n": 11}, "n", "at most 10"),
    "none": ({"n": 0}, "n", "greater"),
    "a size in words": ({"size": "large"}, "size", "pattern"),
    "a size beyond all": ({"size": "99999x99999"}, "size", "65536"),
    "a size of no multiple": ({"size": "33x32"}, "size", "closest valid"),
    "a size twice": ({"size": "32x32", "width": 32}, "size", "leave one out"),
    "a format that is none": ({"output_format": "bmp"}, "output_format", "'png', 'jpeg' or 'webp'"),
    "a field of the server": ({"output_type": "latent"}, "output_type", "use output_format"),
    "a field of the engine": ({"num_images_per_prompt": 2}, "num_images_per_prompt", "use n"),
    "a callback": ({"callback_on_step_end": "x"}, "callback_on_step_end", "cannot be sent"),
    "a keyword twice": ({"mu": 1.0, "extra_params": {"mu": 2.0}}, "mu", "elsewhere"),
    "a picture elsewhere": ({"ip_adapter_image": "http://example.com/x.png"}, "ip_adapter_image", "data:"),
    "no base64": ({"ip_adapter_image": "data:image/png;base64,???"}, "ip_adapter_image", "base64"),
    "no picture": ({"ip_adapter_image": "data:image/png;base64,AAAA"}, "ip_adapter_image", "not a PNG"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_is_wrong_is_told_with_its_field(client: openai.OpenAI, case: str, stream: bool) -> None:
    body, param, words = WRONG[case]
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a red seven", stream=stream, extra_body=body)
    assert caught.value.param == param
    assert words in caught.value.message
    assert caught.value.request_id


def test_an_id_of_the_clients_own_is_kept(running: ThreadServer, client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(
        prompt="a red seven", extra_body=STEPS, extra_headers={"x-request-id": "trace-1.a"}
    )
    assert raw.headers["x-request-id"] == "trace-1.a"
    odd = client.images.with_raw_response.generate(
        prompt="a red seven", extra_body=STEPS, extra_headers={"x-request-id": "a b\tc" * 50}
    )
    assert odd.headers["x-request-id"] != "a b\tc" * 50


def test_an_error_of_the_pipeline_is_told_once(running: ThreadServer) -> None:
    with thread_server(model=f"{FACTORIES}:faulty") as failing, client_of(failing, max_retries=2) as client:
        body = {"fault": {"kind": "raise", "step": 1}, **STEPS}
        with pytest.raises(openai.InternalServerError) as caught:
            client.images.generate(prompt="x", extra_body=body)
        assert caught.value.code == "pipeline_error"
        ended = failing.service.engine.engine.stats(ask_workers=False).ended
        assert ended == {"error": 1}, "the client did not try again"
        with pytest.raises(openai.APIError):
            list(client.images.generate(prompt="x", stream=True, extra_body=body))


# Edits.


def square(mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(3)
    channels = {"RGB": 3, "RGBA": 4}[mode]
    return Image.fromarray(generator.integers(0, 255, (32, 32, channels), np.uint8), mode)


@pytest.fixture(scope="module")
def edited() -> Image.Image:
    request = OmniDiffusionRequest(prompt="a cat", seed=5, extra_args={"image": square(), "strength": 0.5}, **STEPS)
    with DiffusionEngine(OmniDiffusionConfig(model=f"{FACTORIES}:image_to_image", log_level="warning")) as engine:
        return engine.step([request])[0].raise_for_error().images[0]


@pytest.mark.parametrize("name", ["upload", "picture.png", "wrong.jpg"])
def test_an_edit(editing: ThreadServer, edited: Image.Image, name: str) -> None:
    with client_of(editing) as client:
        file = png(square()) if name == "upload" else (name, png(square()))
        body = {"seed": 5, "strength": 0.5, **STEPS}
        answer = client.images.edit(image=file, prompt="a cat", extra_body=body)  # type: ignore[arg-type]
        assert_same(picture_of(answer.data[0].b64_json), edited)


def test_an_edit_as_a_stream(editing: ThreadServer, edited: Image.Image) -> None:
    with client_of(editing) as client:
        events = list(
            client.images.edit(
                image=png(square()),
                prompt="a cat",
                stream=True,
                partial_images=1,
                extra_body={"seed": 5, "strength": 0.5, **STEPS},
            )
        )
        assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
        assert_same(picture_of(events[-1].b64_json), edited)


def test_a_variation_needs_no_words(editing: ThreadServer) -> None:
    with client_of(editing) as client:
        answer = client.images.create_variation(image=png(square()), n=2, extra_body={"seed": 1, **STEPS})
        assert [entry.seed for entry in answer.data] == [1, 2]  # type: ignore[attr-defined]


def test_an_edit_is_as_large_as_was_asked_for(editing: ThreadServer) -> None:
    with client_of(editing) as client:
        answer = client.images.edit(
            image=png(square().resize((64, 48))), prompt="a cat", size="32x32", extra_body={"seed": 5, **STEPS}
        )
        assert picture_of(answer.data[0].b64_json).size == (32, 32)


def bomb() -> bytes:
    """Return a small file that says it is a picture of ten gigapixels."""
    content = bytearray(png(Image.new("RGB", (1, 1))))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def animated() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb(), "more than the"),
        (animated(), "several frames"),
        (b"GIF89a" + bytes(50), "not a PNG"),
        (png(square())[:100], "not a PNG"),
        (b"", "not a PNG"),
    ],
    ids=["bomb", "animated", "gif", "cut off", "empty"],
)
def test_a_file_that_is_no_picture(editing: ThreadServer, content: bytes, words: str) -> None:
    with client_of(editing) as client, pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=("x.png", content), prompt="a cat")
    assert words in caught.value.message
    assert caught.value.param == "image"


def test_a_model_that_takes_no_picture_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="takes no image") as caught:
        client.images.edit(image=png(square()), prompt="a cat")
    assert caught.value.param == "image"


def test_an_edit_without_a_picture(editing: ThreadServer) -> None:
    answer = httpx2.post(f"{editing.url}v1/images/edits", data={"prompt": "a cat"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")


# Clients that go away.


def post(running: ThreadServer, name: str, **fields: Any) -> socket.socket:
    """Send a request for a picture, and return the connection."""
    body = json.dumps({"prompt": "a red seven", **fields})
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {name}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    address = httpx2.URL(running.url)
    connection = socket.create_connection((address.host, address.port))
    connection.sendall((head + body).encode())
    return connection


@pytest.mark.parametrize("how", ["whole", "stream", "waiting"])
def test_a_client_that_goes_away_frees_its_place_within_two_steps(
    gated: ThreadServer, how: str, wait_until: Any
) -> None:
    engine = gated.service.engine.engine
    gate.shut(after=5)
    try:
        with post(gated, f"gone-{how}", num_inference_steps=100, stream=how == "stream"):
            assert gate.is_holding.wait(PATIENCE_S)
            if how == "waiting":
                with post(gated, "behind", num_inference_steps=100):
                    wait_until(lambda: engine.stats(ask_workers=False).waiting == 1, PATIENCE_S)
                wait_until(lambda: "behind" in gated.observer.ended, PATIENCE_S)
        wait_until(lambda: not gated.service._running, PATIENCE_S)
    finally:
        gate.open()
    wait_until(lambda: f"gone-{how}" in gated.observer.ended, PATIENCE_S)
    output = gated.observer.ended[f"gone-{how}"]
    assert output.finish_reason == "aborted"
    assert gate.forwards <= 5 + 2
    stats = engine.stats(ask_workers=False)
    assert (stats.running, stats.waiting) == (0, 0)
    with client_of(gated) as client:
        assert client.images.generate(prompt="a red seven", extra_body=STEPS).data


def test_null_is_what_is_left_out(running: ThreadServer) -> None:
    """OpenAI's client sends it for what it types as optional."""
    with client_of(running) as client:
        names = ("n", "output_format", "partial_images", "response_format", "output_compression", "size")
        answer: Any = client.images.generate(
            prompt="a red seven", **dict.fromkeys(names), extra_body={"seed": 1, **STEPS, "priority": None}
        )
    assert len(answer.data) == 1


def test_words_in_a_form_are_words(editing: ThreadServer) -> None:
    """Also where they look like numbers."""
    fields = {"prompt": "1984", "negative_prompt": "true", "num_inference_steps": "2", "extra_params[strength]": "1"}
    files = {"image": png(square())}
    answer = httpx2.post(f"{editing.url}v1/images/edits", data=fields, files=files, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
