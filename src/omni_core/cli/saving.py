"""Writing what a request made into files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omni_core.cli.atomic import write_atomically, write_new
from omni_core.cli.names import FileNames, Target
from omni_core.media import arrays, formats, pictures, sound, videos
from omni_core.media.artifacts import Artifact, artifacts_of
from omni_core.media.provenance import Provenance
from omni_core.outputs import OmniRequestOutput
from omni_core.request import OmniDiffusionRequest

_FITTING = {"picture": formats.PICTURES, "video": formats.VIDEOS, "audio": formats.AUDIO, "arrays": formats.ARRAYS}


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How the user wants files to be.

    Attributes:
        target: Where they go.
        enlarge: `auto`, or how many times pictures are enlarged.
        fps: Frames a second of videos; None: what the request says, else the default.
        sample_rate: Samples a second of sound; None: what the pipeline says.
    """

    target: Target
    enlarge: str = "auto"
    fps: float | None = None
    sample_rate: int | None = None


@dataclass(frozen=True, slots=True)
class SavedFile:
    """A file that was written, and a word about it for people."""

    path: Path
    note: str


class Saver:
    """Writes the outputs of one run.

    Args:
        options: How.
        requests: Those of the run, in order.
        files: `@FILE` of the `extra_args` that were loaded from files.
        model: What the pipeline was loaded from.
        pipeline: Name of its class.
        ask_sampling_rate: Asks the pipeline how fast its sound is played.
        warn: Tells the user that something is not as asked for.
    """

    def __init__(
        self,
        options: SaveOptions,
        requests: Sequence[OmniDiffusionRequest],
        files: Mapping[str, Any],
        *,
        model: str,
        pipeline: str | None,
        ask_sampling_rate: Callable[[], int | None],
        warn: Callable[[str], None],
    ) -> None:
        self._options = options
        self._requests = requests
        self._names = FileNames(options.target, [(request.prompt, request.seed) for request in requests])
        self._files = files
        self._model = model
        self._pipeline = pipeline
        self._ask_sampling_rate = ask_sampling_rate
        self._warn = warn

    def save(self, index: int, output: OmniRequestOutput) -> list[SavedFile]:
        """Write the files of one request.

        Args:
            index: Which request of the run.
            output: What it made.

        Returns:
            The files, in the order of the outputs.

        Raises:
            OSError: A file could not be written.
            ValueError: There is nothing in the output that could be saved, or it is not what it looks like.
        """
        request = self._requests[index]
        ending = self._options.target.ending
        found, left_out = artifacts_of(output.output, request.output_type, ending)
        if left_out:
            self._warn(f"There is no file format for {', '.join(left_out)} of the output.")
        if not found:
            raise ValueError(f"nothing in the output can be saved: {', '.join(output.output) or 'it is empty'}")
        if any(any(output.output.get(name) or ()) for name in ("nsfw_content_detected", "nsfw_detected")):
            self._warn("The pipeline's safety checker blacked out pictures.")
        provenance = Provenance(request, self._files, self._model, self._pipeline, count=len(found))
        saved = []
        for number, artifact in enumerate(found):
            ending = self._ending(artifact)
            write, note = self._writer(artifact, replace(provenance, number=number + 1), output)
            path = self._names.named(len(found), ending)
            if path is not None:
                write_atomically(path, write)
            else:
                path = write_new(self._names.free(index, number, len(found), ending), write)
            saved.append(SavedFile(path, note))
        return saved

    def _ending(self, artifact: Artifact) -> str:
        wanted = self._options.target.ending
        fitting = _FITTING[artifact.kind]
        if wanted in fitting:
            return wanted
        if artifact.kind == "arrays":
            ending = arrays.default_ending(artifact.data)
        else:
            ending = videos.default_ending() if artifact.kind == "video" else fitting[0]
        if wanted is not None:
            self._warn(f"A {wanted} file cannot hold {_described(artifact)}: writing {ending} instead.")
        return ending

    def _writer(
        self, artifact: Artifact, provenance: Provenance, output: OmniRequestOutput
    ) -> tuple[Callable[[Path], object], str]:
        """Return what writes an artifact to a path, and a word about it for people."""
        if artifact.kind == "picture":
            [picture], note, factor = self._enlarged([artifact.data])
            made = replace(provenance, enlarged=factor)
            return lambda file: pictures.write_picture(file, picture, made), note
        if artifact.kind == "video":
            frames, note, factor = self._enlarged(artifact.data)
            made = replace(provenance, enlarged=factor)
            fps = self._frames_per_second(provenance.request)
            note = f"{note}, {len(frames)} frames at {fps:g}/s"
            return lambda file: videos.write_video(file, frames, fps, made), note
        if artifact.kind == "audio":
            rate = self._sampling_rate(output)
            note = f"{max(artifact.data.shape) / rate:.2f} s at {rate} Hz"
            return lambda file: sound.write_wav(file, artifact.data, rate), note
        note = ", ".join(f"{name} {tuple(value.shape)}" for name, value in artifact.data.items())
        return lambda file: arrays.write_arrays(file, artifact.data, provenance), note

    def _enlarged(self, data: Sequence[Any]) -> tuple[list[Any], str, int]:
        native = [pictures.as_picture(item) for item in data]
        width, height = native[0].size
        factor = pictures.enlargement((width, height), self._options.enlarge)
        note = f"{width}x{height}"
        if factor > 1:
            note = f"{width * factor}x{height * factor}, enlarged {factor} times from {note}"
        return [pictures.enlarge(picture, factor) for picture in native], note, factor

    def _frames_per_second(self, request: OmniDiffusionRequest) -> float:
        if self._options.fps is not None:
            return self._options.fps
        for name in ("frame_rate", "fps"):
            value = request.extra_args.get(name)
            if isinstance(value, (int, float)) and value > 0:
                return float(value)
        return videos.DEFAULT_FPS

    def _sampling_rate(self, output: OmniRequestOutput) -> int:
        rate = self._options.sample_rate or sound.rate_in_output(output.output) or self._ask_sampling_rate()
        if rate is None:
            rate = sound.ASSUMED_RATE
            self._warn(f"The pipeline does not say its sampling rate; {rate} Hz is assumed. Set it with --sample-rate.")
        return rate


def _described(artifact: Artifact) -> str:
    return artifact.kind if artifact.kind in ("audio", "arrays") else f"a {artifact.kind}"
