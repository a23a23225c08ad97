"""What pipelines make, as bytes of files for clients."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omni_core import OmniDiffusionRequest, OmniRequestOutput
from omni_core.media import pictures, sound, videos
from omni_core.media.artifacts import Artifact, artifacts_of
from omni_core.media.provenance import Provenance
from omni_serve.errors import ApiError

PictureFormat = Literal["png", "jpeg", "webp"]
MEDIA_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "mp4": "video/mp4",
    "wav": "audio/wav",
}
# Names of the files of a job; the first is what was asked for.
VARIANTS: Mapping[Literal["video", "audio"], tuple[str, ...]] = {
    "video": ("video", "thumbnail", "spritesheet"),
    "audio": ("audio",),
}
_PREVIEW_QUALITY = 80


@dataclass(frozen=True, slots=True)
class EncodedFile:
    """A file for a client.

    Attributes:
        media_type: Of its content.
        content: Its bytes.
        size: Width and height in pixels; None of sound.
    """

    media_type: str
    content: bytes
    size: tuple[int, int] | None = None

    def base64(self) -> str:
        """Return its content as text. This takes a while: it is called in a thread."""
        return base64.b64encode(self.content).decode()


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes what one request made. Its methods compute: they are called in a thread.

    Attributes:
        model: What the pipeline was loaded from, for the files' own record of how they were made.
        pipeline: Name of its class.
    """

    model: str
    pipeline: str | None

    def pictures(
        self, request: OmniDiffusionRequest, output: OmniRequestOutput, file_format: PictureFormat, quality: int
    ) -> list[EncodedFile]:
        """Return the pictures of an output.

        Raises:
            ApiError: There are none.
        """
        found = [artifact for artifact in _artifacts(output) if artifact.kind == "picture"]
        if not found:
            raise _nothing("pictures", output)
        made = self._provenance(request, len(found))
        return [
            _encoded_picture(artifact.data, file_format, replace(made, number=number + 1), quality)
            for number, artifact in enumerate(found)
        ]

    def preview(self, request: OmniDiffusionRequest, preview: Any, file_format: PictureFormat) -> EncodedFile:
        """Return a partial picture."""
        return _encoded_picture(preview, file_format, self._provenance(request, 1), _PREVIEW_QUALITY)

    def video(
        self, request: OmniDiffusionRequest, output: OmniRequestOutput, fps: float | None
    ) -> dict[str, EncodedFile]:
        """Return the first video of an output and its small pictures, by the names of OpenAI's variants.

        Args:
            request: Which.
            output: What it made.
            fps: Frames a second; None is what the request says, else a default.

        Raises:
            ApiError: There is none.
        """
        artifacts = _artifacts(output)
        found = next((artifact.data for artifact in artifacts if artifact.kind == "video"), None)
        if found is None:  # some pipelines call frames pictures
            found = [artifact.data for artifact in artifacts if artifact.kind == "picture"]
        if len(found) < 1:
            raise _nothing("videos", output)
        frames = [pictures.as_picture(frame) for frame in found]
        made = self._provenance(request, 1)
        ending = videos.default_ending()
        content = _written(ending, lambda file: videos.write_video(file, frames, fps or _fps_of(request), made))
        video = EncodedFile(MEDIA_TYPES[ending.removeprefix(".")], content, frames[0].size)
        return {
            "video": video,
            "thumbnail": _encoded_picture(frames[0], "webp", made, _PREVIEW_QUALITY),
            "spritesheet": _encoded_picture(_sprite_sheet(frames), "jpeg", made, _PREVIEW_QUALITY),
        }

    def sound(self, request: OmniDiffusionRequest, output: OmniRequestOutput, rate: int | None) -> EncodedFile:
        """Return the first sound of an output.

        Args:
            request: Which.
            output: What it made.
            rate: Samples a second, where the output does not say them.

        Raises:
            ApiError: There is none.
        """
        found = next((artifact for artifact in _artifacts(output) if artifact.kind == "audio"), None)
        if found is None:
            raise _nothing("sound", output)
        known = sound.rate_in_output(output.output) or rate or sound.ASSUMED_RATE
        return EncodedFile("audio/wav", _written(".wav", lambda file: sound.write_wav(file, found.data, known)))

    def _provenance(self, request: OmniDiffusionRequest, count: int) -> Provenance:
        # Pictures that were sent are no part of a record that others may read.
        files = {name: "<sent>" for name, value in request.extra_args.items() if not _is_plain(value)}
        return Provenance(request, files, self.model, self.pipeline, count=count)


def _artifacts(output: OmniRequestOutput) -> list[Artifact]:
    return artifacts_of(output.output, None)[0]


def _nothing(wanted: str, output: OmniRequestOutput) -> ApiError:
    kinds = sorted({artifact.kind for artifact in _artifacts(output)})
    return ApiError(
        400,
        f"The model makes no {wanted}; its outputs are of the kind {', '.join(kinds) or 'nothing'}.",
        code="wrong_kind",
    )


def _encoded_picture(data: Any, file_format: PictureFormat, made: Provenance, quality: int) -> EncodedFile:
    picture = pictures.as_picture(data)
    content = pictures.encode_picture(picture, file_format, made, quality)
    return EncodedFile(MEDIA_TYPES[file_format], content, picture.size)


def _written(ending: str, write: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="omni-serve-") as folder:
        path = Path(folder) / f"file{ending}"
        write(path)
        return path.read_bytes()


def _sprite_sheet(frames: list[Any]) -> Any:
    """Return up to sixteen frames side by side, small."""
    from PIL import Image

    chosen = [frames[round(index * (len(frames) - 1) / 15)] for index in range(16)] if len(frames) > 16 else frames
    columns = min(4, len(chosen))
    width, height = chosen[0].size
    scale = min(1.0, 320 / width)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    sheet = Image.new("RGB", (columns * small[0], -(-len(chosen) // columns) * small[1]))
    for number, frame in enumerate(chosen):
        place = (number % columns * small[0], number // columns * small[1])
        sheet.paste(frame.convert("RGB").resize(small), place)
    return sheet


def _fps_of(request: OmniDiffusionRequest) -> float:
    for name in ("frame_rate", "fps"):
        value = request.extra_args.get(name)
        if isinstance(value, (int, float)) and value > 0:
            return float(value)
    return videos.DEFAULT_FPS


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (str, int, float))
