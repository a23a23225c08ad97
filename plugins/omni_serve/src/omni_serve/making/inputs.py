"""Pictures that a request brings, under the names that the pipeline has for them."""

from __future__ import annotations

from typing import Any

from PIL import Image

from omni_serve.errors import ApiError
from omni_serve.requests.bodies import Body, is_words
from omni_serve.requests.pictures import bytes_of_url, decode_picture, edit_mask, is_url
from omni_serve.service import Service

# Names of a mask in pipelines of diffusers.
_MASKS = ("mask_image", "mask")


async def take_urls(service: Service, body: Body, files: dict[str, list[bytes]]) -> dict[str, list[bytes]]:
    """Return the files that came with a body, with those that it holds as `data:` URLs, which are taken out of it.

    Raises:
        ApiError: One is another URL or malformed, is there as a file too, or there are too many.
    """
    extra = body.model_extra or {}
    found = {
        name: value if isinstance(value, list) else [value]
        for name, value in extra.items()
        if not is_words(name) and _has_url(value)
    }
    for name in found:
        if name in files:
            raise ApiError(400, f"{name} is there as a file and as a URL.", param=name, code="invalid_value")
        del extra[name]
    most = service.settings.max_files
    num_files = sum(map(len, (*files.values(), *found.values())))
    if num_files > most:
        raise ApiError(400, f"There are {num_files} pictures; {most} are allowed.", code="invalid_value")
    return {**files, **(await service.in_thread(_contents, found) if found else {})}


def _has_url(value: Any) -> bool:
    return any(map(is_url, value)) if isinstance(value, list) else is_url(value)


def _contents(urls: dict[str, list[Any]]) -> dict[str, list[bytes]]:
    return {name: [bytes_of_url(url, name) for url in values] for name, values in urls.items()}


async def pipeline_arguments(
    service: Service, body: Body, files: dict[str, list[bytes]]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the keywords of the pipeline for the pictures that came with a body, and the sides to ask it for.

    Args:
        service: With the pipeline.
        body: With height and width in pixels.
        files: The pictures by field, not decoded yet.

    Raises:
        ApiError: They cannot be decoded, or do not fit the pipeline.
    """
    pictures = await _decode_all(service, files)
    sides = body.sides()
    return await service.in_thread(_picture_arguments, service, pictures, sides) if pictures else ({}, sides)


async def _decode_all(service: Service, files: dict[str, list[bytes]]) -> dict[str, list[Image.Image]]:
    """Return the pictures that came with a body by field; decoded beside the event loop.

    Raises:
        ApiError: One cannot be decoded, or they have too many pixels together.
    """
    left = service.settings.max_upload_pixels
    pictures: dict[str, list[Image.Image]] = {}
    for name, contents in files.items():
        for data in contents:
            picture = await service.in_thread(decode_picture, data, name, left, service.room)
            left -= picture.width * picture.height
            pictures.setdefault(name, []).append(picture)
    return pictures


def _picture_arguments(
    service: Service, pictures: dict[str, list[Image.Image]], sides: dict[str, int]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the keywords of the pipeline for pictures that are to be edited, and the sides to ask it for.

    Args:
        service: With the pipeline.
        pictures: By field: `image`, `mask`, and others that the pipeline has.
        sides: Height and width that were asked for. A pipeline that takes the size of what it makes from its picture
            gets that resized.

    Raises:
        ApiError: The pipeline takes no picture, or needs one.
    """
    takes = service.takes if service.info is not None else {"image", "mask_image"}
    arguments: dict[str, Any] = {
        name: found if len(found) > 1 else found[0] for name, found in pictures.items() if name != "mask"
    }
    if "image" in arguments and "image" not in takes:
        raise ApiError(
            400,
            f"The model makes pictures from words alone: {service.model_name} takes no image.",
            param="image",
            code="unsupported_model",
        )
    mask_name = next((name for name in _MASKS if name in takes), None)
    masks = pictures.get("mask", [])
    if masks and mask_name is None:
        raise ApiError(400, "The model takes no mask.", param="mask", code="unsupported_model")
    if mask_name is not None and mask_name not in arguments:
        first = pictures.get("image", [None])[0]
        if masks:
            arguments[mask_name] = edit_mask(masks[0])
        elif first is not None and first.mode == "RGBA":  # what is transparent is to be filled
            arguments[mask_name] = edit_mask(first)
    if sides and not {"height", "width"} <= takes:
        size = _whole_size(service, sides)
        arguments = {name: _resized(service, value, size) for name, value in arguments.items()}
        sides = {}
    first = _first(arguments.get("image"))
    if mask_name is not None and first is not None and isinstance(mask := arguments.get(mask_name), Image.Image):
        arguments[mask_name] = _resized(service, mask, first.size)
    return {name: _without_alpha(service, value) for name, value in arguments.items()}, sides


def _whole_size(service: Service, sides: dict[str, int]) -> tuple[int, int]:
    if len(sides) < 2:
        raise ApiError(400, "Give both width and height, or size.", param="size", code="invalid_value")
    most = service.engine.engine.config.max_pixels
    if most is not None and sides["width"] * sides["height"] > most:
        raise ApiError(400, f"size: at most {most} pixels are made.", param="size", code="invalid_value")
    return sides["width"], sides["height"]


def _first(value: Any) -> Image.Image | None:
    first: Image.Image | None = value[0] if isinstance(value, list) else value
    return first


def _resized(service: Service, value: Any, size: tuple[int, int]) -> Any:
    if isinstance(value, list):
        return [_resized(service, one, size) for one in value]
    if value.size == size:
        return value
    return service.room.keep(size, lambda: value.resize(size, Image.Resampling.LANCZOS))


def _without_alpha(service: Service, value: Any) -> Any:
    if isinstance(value, list):
        return [_without_alpha(service, one) for one in value]
    return service.room.keep(value.size, lambda: value.convert("RGB")) if value.mode == "RGBA" else value
