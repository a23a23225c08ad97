"""Videos by the real OpenAI client: create and poll, content, list, remix, delete; and servers that are killed."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from omni_core import DiffusionEngine, OmniDiffusionConfig, OmniDiffusionRequest
from omni_serve.settings import ServeSettings
from serving import FACTORIES, PATIENCE_S, ServeProcess, ThreadServer, client_of, png, process_server, thread_server

MODEL = f"{FACTORIES}:video"
# What the small Wan model needs.
SMALL = {"width": 16, "height": 16, "max_sequence_length": 16}
BODY = {"num_inference_steps": 4, "num_frames": 5, **SMALL}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def running() -> Iterator[ThreadServer]:
    with thread_server(model=MODEL) as made:
        yield made


@pytest.fixture
def client(running: ThreadServer) -> Iterator[openai.OpenAI]:
    with client_of(running) as made:
        yield made


def frames_of(content: bytes) -> list[np.ndarray[Any, Any]]:
    with av.open(io.BytesIO(content)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def wanted() -> list[np.ndarray[Any, Any]]:
    """The frames that the engine alone makes."""
    request = OmniDiffusionRequest(
        prompt="waves",
        seed=3,
        num_inference_steps=4,
        height=16,
        width=16,
        extra_args={"num_frames": 5, "max_sequence_length": 16},
    )
    with DiffusionEngine(OmniDiffusionConfig(model=MODEL, log_level="warning")) as engine:
        [output] = engine.step([request])
    frames = output.raise_for_error().output["frames"][0]
    return [np.asarray(frame) for frame in frames]


def create(client: openai.OpenAI, seed: int = 3, **fields: Any) -> Any:
    return client.videos.create(prompt="waves", extra_body={"seed": seed, **BODY, **fields})


def finished(client: openai.OpenAI, video_id: str) -> Any:
    return client.videos.poll(video_id)


def test_create_and_poll(client: openai.OpenAI, wanted: list[np.ndarray[Any, Any]]) -> None:
    video = client.videos.create_and_poll(prompt="waves", extra_body={"seed": 3, **BODY})
    assert (video.status, video.progress, video.object, video.prompt) == ("completed", 100, "video", "waves")
    assert video.seed == 3  # type: ignore[attr-defined]
    assert video.fields == BODY  # type: ignore[attr-defined]
    assert video.completed_at is not None
    assert video.expires_at is not None
    assert video.completed_at >= video.created_at
    frames = frames_of(client.videos.download_content(video.id).read())
    assert len(frames) == 5
    assert frames[0].shape == (*wanted[0].shape[:2], 3)
    # H.264 of noise loses much, but it is this noise and no other.
    for frame, one in zip(frames, wanted, strict=True):
        assert np.corrcoef(frame.mean(2).ravel(), np.asarray(one, float).mean(2).ravel())[0, 1] > 0.8
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        content = client.videos.download_content(video.id, variant=variant).read()  # type: ignore[arg-type]
        assert Image.open(io.BytesIO(content)).format == kind


def test_progress_is_that_of_the_steps(running: ThreadServer, client: openai.OpenAI) -> None:
    video = create(client, num_inference_steps=200)
    seen = []
    while (video := client.videos.retrieve(video.id)).status in ("queued", "in_progress"):
        seen.append(video.progress)
    assert video.status == "completed"
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
    raw = client.videos.with_raw_response.retrieve(video.id)
    assert int(raw.headers["openai-poll-after-ms"]) > 0


def test_the_length_in_seconds(client: openai.OpenAI) -> None:
    video = client.videos.create_and_poll(
        prompt="waves",
        seconds="1",
        extra_body={"seed": 3, "num_inference_steps": 2, "fps": 5, **SMALL},  # type: ignore[arg-type]
    )
    assert video.status == "completed", video.error
    assert video.seconds == "1"
    with av.open(io.BytesIO(client.videos.download_content(video.id).read())) as container:
        assert float(container.streams.video[0].average_rate or 0) == 5


def test_the_list_is_divided_into_pages(client: openai.OpenAI) -> None:
    made = [create(client, seed).id for seed in range(5)]
    newest = [video.id for video in client.videos.list(limit=5).data]
    assert newest == made[::-1]
    every = [video.id for video in client.videos.list(limit=2)]  # the client asks for page after page
    assert every[:5] == made[::-1]
    assert len(every) == len(set(every))
    oldest = [video.id for video in client.videos.list(limit=100, order="asc").data]
    assert oldest == every[::-1]
    for video_id in made:
        finished(client, video_id)


def test_a_remix(client: openai.OpenAI) -> None:
    first = create(client)
    second = client.videos.remix(first.id, prompt="mountains")
    assert second.remixed_from_video_id == first.id
    assert second.prompt == "mountains"
    assert finished(client, second.id).status == "completed"
    assert second.seed == 3


def test_deleting_aborts(running: ThreadServer, client: openai.OpenAI, wait_until: Any) -> None:
    video = create(client, num_inference_steps=100_000)
    wait_until(lambda: client.videos.retrieve(video.id).progress == 0 and running_requests(running) == 1, PATIENCE_S)
    assert client.videos.delete(video.id).deleted
    wait_until(lambda: running_requests(running) == 0, PATIENCE_S)
    for ask in (client.videos.retrieve, client.videos.delete, client.videos.download_content):
        with pytest.raises(openai.NotFoundError):
            ask(video.id)


def running_requests(running: ThreadServer) -> int:
    stats = running.service.engine.engine.stats(ask_workers=False)
    return int(stats.running + stats.waiting)


def test_content_that_is_not_ready_is_no_conflict(client: openai.OpenAI) -> None:
    video = create(client, num_inference_steps=100_000)
    with pytest.raises(openai.NotFoundError) as caught:
        client.videos.download_content(video.id)
    assert caught.value.code == "not_ready"
    client.videos.delete(video.id)


def test_what_is_wrong_is_told_at_once(client: openai.OpenAI) -> None:
    for fields, param in (
        ({"num_frame": 5}, "num_frame"),
        ({"size": "31x32", "width": None, "height": None}, "size"),
        ({"seconds": "long"}, "seconds"),
        ({"fps": 0}, "fps"),
        ({"input_reference": "http://127.0.0.1/x.png"}, "image"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            create(client, **fields)
        assert caught.value.param == param


def test_a_picture_that_the_model_does_not_take(client: openai.OpenAI) -> None:
    file = ("frame.png", png(Image.new("RGB", (32, 32))))
    with pytest.raises(openai.BadRequestError, match="takes no image"):
        client.videos.create(prompt="waves", input_reference=file, extra_body=BODY)


def test_an_idempotency_key(client: openai.OpenAI) -> None:
    def ask(prompt: str, key: str) -> Any:
        return client.videos.create(prompt=prompt, extra_body=BODY, extra_headers={"Idempotency-Key": key})

    first = ask("waves", "one")
    assert ask("waves", "one").id == first.id
    assert ask("waves", "two").id != first.id
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask("mountains", "one")
    assert caught.value.code == "idempotency_error"


def test_json_as_other_clients_send_it(running: ThreadServer) -> None:
    answer = httpx2.post(f"{running.url}v1/videos", json={"prompt": "waves", **BODY, "seed": 1})
    assert (answer.status_code, answer.json()["seed"]) == (200, 1)


# Servers that are killed.


def test_ten_videos_of_a_server_that_is_killed_are_the_same_as_of_one_that_is_not(
    tmp_path: Path, wait_until: Any
) -> None:
    body = {"num_inference_steps": 30, "num_frames": 5, **SMALL}
    arguments = ("--model", MODEL, "--data-dir", str(tmp_path / "data"), "--max-num-seqs", "2")
    with process_server(tmp_path, *arguments) as first, client_of(first) as client:
        names = [client.videos.create(prompt="waves", extra_body={"seed": n, **body}).id for n in range(10)]
        assert len({*names}) == 10

        def some_are_done() -> bool:
            states = [client.videos.retrieve(name).status for name in names]
            return states.count("completed") >= 2 and "in_progress" in states and "queued" in states

        wait_until(some_are_done, PATIENCE_S)
        before = {name: client.videos.retrieve(name).completed_at for name in names}
        first.signal(signal.SIGKILL)
        first.wait()
    with process_server(tmp_path, *arguments) as second, client_of(second) as client:
        videos = [finished(client, name) for name in names]
        assert [video.status for video in videos] == ["completed"] * 10, [video.error for video in videos]
        for video in videos:
            if before[video.id] is not None:
                assert video.completed_at == before[video.id], "it was made a second time"
        after = {video.seed: client.videos.download_content(video.id).read() for video in videos}
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
    with thread_server(model=MODEL, max_num_seqs=2) as undisturbed, client_of(undisturbed) as client:
        for seed in range(10):
            video = client.videos.create_and_poll(prompt="waves", extra_body={"seed": seed, **body})
            frames = frames_of(client.videos.download_content(video.id).read())
            assert np.abs(np.asarray(frames, int) - np.asarray(frames_of(after[seed]), int)).max() <= 8


def test_jobs_of_a_server_that_was_asked_to_end_go_on_later(
    serve_process: ServeProcess, tmp_path: Path, wait_until: Any
) -> None:
    arguments = ("--model", MODEL, "--data-dir", str(tmp_path / "data"), "--max-num-seqs", "1")
    with serve_process(tmp_path, *arguments, "--drain-timeout-s", "1") as first, client_of(first) as client:
        long = client.videos.create(prompt="waves", extra_body={**BODY, "num_inference_steps": 300, "seed": 1})
        short = client.videos.create(prompt="waves", extra_body={**BODY, "seed": 2})
        wait_until(lambda: client.videos.retrieve(long.id).status == "in_progress", PATIENCE_S)
        first.signal(signal.SIGTERM)
        assert first.wait() == 0
    with serve_process(tmp_path, *arguments) as second, client_of(second) as client:
        assert [finished(client, one.id).status for one in (long, short)] == ["completed"] * 2


def test_a_second_signal_ends_no_job_for_ever(serve_process: ServeProcess, tmp_path: Path, wait_until: Any) -> None:
    arguments = ("--model", MODEL, "--data-dir", str(tmp_path / "data"), "--max-num-seqs", "2")
    with serve_process(tmp_path, *arguments) as first, client_of(first) as client:
        made = [client.videos.create(prompt="waves", extra_body={**BODY, "num_inference_steps": 300}) for _ in range(3)]
        wait_until(lambda: client.videos.retrieve(made[1].id).status == "in_progress", PATIENCE_S)
        for _ in range(2):
            first.signal(signal.SIGINT)
            wait_until(lambda: "shutting down" in first.log.read_text(), PATIENCE_S)
        assert first.wait() == 0
        assert "ending at once" in first.log.read_text()
    with serve_process(tmp_path, *arguments) as second, client_of(second) as client:
        assert [finished(client, one.id).status for one in made] == ["completed"] * 3


def test_a_larger_priority_goes_first(client: openai.OpenAI, running: ThreadServer) -> None:
    places = running.service.engine.engine.config.max_num_seqs
    for seed in range(places):
        create(client, seed, num_inference_steps=300)
    late = [create(client, number, priority=number).id for number in range(3)]
    ended = [finished(client, one) for one in late]
    assert [one.status for one in ended] == ["completed"] * 3
    begun = running.service.jobs._store
    assert [job.id for job in begun.list(limit=3)[0]] == late[::-1]


def test_a_job_holds_no_more_than_it_needs(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="at most"):
        create(client, attention_kwargs={"x": "y" * 300_000})


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    with thread_server(ServeSettings(port=0, data_dir=tmp_path / "data"), model=MODEL):
        with pytest.raises(Exception, match="another|in use"):
            with thread_server(ServeSettings(port=0, data_dir=tmp_path / "data"), model=MODEL):
                pass
