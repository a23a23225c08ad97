"""Requests in the forms that vLLM-Omni's benchmark and SGLang's clients send, on each of the back ends they know."""

from __future__ import annotations

import base64
import io
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image

from serving import FACTORIES, PATIENCE_S, ThreadServer, client_of, png, thread_server

UNFINISHED = ("queued", "in_progress")
# What the small Wan model needs.
WAN = {"width": "16", "height": "16", "max_sequence_length": "16"}


def picture_of_url(url: str) -> Image.Image:
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_health(running: ThreadServer) -> None:
    assert httpx2.get(f"{running.url}health").status_code == 200


def test_generations(running: ThreadServer) -> None:
    body = {
        "model": "omni/digits", "prompt": "a red seven", "n": 1, "size": "32x32", "response_format": "b64_json",
        "seed": 1, "num_inference_steps": 4, "guidance_scale": 3.0,
    }  # fmt: skip
    headers = {"Authorization": "Bearer EMPTY"}
    answer = httpx2.post(f"{running.url}v1/images/generations", json=body, headers=headers, timeout=PATIENCE_S)
    assert answer.status_code == 200
    assert answer.json()["data"][0]["b64_json"]


@pytest.mark.parametrize("place", ["extra_body", "top level"])
def test_a_chat(running: ThreadServer, place: str) -> None:
    sampling = {"height": 32, "width": 32, "num_inference_steps": 4, "seed": 1}
    body: dict[str, Any] = {"model": "omni/digits", "messages": [{"role": "user", "content": "a red seven"}]}
    body |= {"extra_body": sampling} if place == "extra_body" else sampling
    answer = httpx2.post(f"{running.url}v1/chat/completions", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    [part] = answer.json()["choices"][0]["message"]["content"]
    assert picture_of_url(part["image_url"]["url"]).size == (32, 32)
    assert answer.json()["seed"] == [1]


def test_a_chat_by_the_openai_client(running: ThreadServer) -> None:
    with client_of(running) as client:
        answer = client.chat.completions.create(
            model="omni/digits",
            messages=[{"role": "system", "content": "draw"}, {"role": "user", "content": "a red seven"}],
            extra_body={"num_inference_steps": 4, "num_outputs_per_prompt": 2},
        )
        content: Any = answer.choices[0].message.content
        assert [picture_of_url(part["image_url"]["url"]).size for part in content] == [(32, 32)] * 2


def test_a_chat_with_a_picture(editing: ThreadServer) -> None:
    url = "data:image/png;base64," + base64.b64encode(png(Image.new("RGB", (32, 32), "red"))).decode()
    content = [{"type": "text", "text": "a cat"}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"messages": [{"role": "user", "content": content}], "extra_body": {"num_inference_steps": 4}}
    answer = httpx2.post(f"{editing.url}v1/chat/completions", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "message of the user"),
        ([], "message of the user"),
        ([{"role": "assistant", "content": "x"}], "message of the user"),
        ([{"role": "user", "content": [{"type": "video_url"}]}], "text or image_url"),
        ([{"role": "user", "content": None}], "text or image_url"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "no url"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}], "data:"),
    ],
)
def test_a_chat_that_is_none(running: ThreadServer, messages: Any, words: str) -> None:
    answer = httpx2.post(f"{running.url}v1/chat/completions", json={"messages": messages})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "messages"


def test_edits_as_the_benchmark_sends_them(editing: ThreadServer) -> None:
    form = {
        "model": f"{FACTORIES}:image_to_image", "prompt": "a cat", "size": "32x32", "response_format": "b64_json",
        "num_inference_steps": "4", "seed": "1", "guidance_scale": "3.0", "bot_task": "think",
    }  # fmt: skip
    files = {"image": ("x.png", png(Image.new("RGB", (64, 64), "blue")), "image/png")}
    answer = httpx2.post(f"{editing.url}v1/images/edits", data=form, files=files, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text


def test_a_chat_is_not_streamed(running: ThreadServer) -> None:
    with client_of(running) as client, pytest.raises(openai.BadRequestError, match="images/generations"):
        client.chat.completions.create(
            model="omni/digits", messages=[{"role": "user", "content": "a red seven"}], stream=True
        )


def test_videos_as_the_benchmark_sends_them(wait_until: Any) -> None:
    with thread_server(model=f"{FACTORIES}:video") as running, httpx2.Client(base_url=running.url) as client:
        form = {"prompt": "waves", "num_frames": "5", "num_inference_steps": "4", "seed": "1", "fps": "8", **WAN}
        files = [(name, (None, value)) for name, value in form.items()]
        job = client.post("v1/videos", files=files).json()
        wait_until(lambda: client.get(f"v1/videos/{job['id']}").json()["status"] not in UNFINISHED, PATIENCE_S)
        assert client.get(f"v1/videos/{job['id']}").json()["error"] is None
        assert client.get(f"v1/videos/{job['id']}/content").headers["content-type"] == "video/mp4"
        assert client.delete(f"v1/videos/{job['id']}").json()["deleted"]
