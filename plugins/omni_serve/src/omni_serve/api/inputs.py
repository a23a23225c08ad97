"""Pictures that a request brings, under the names that the pipeline has for them."""

from __future__ import annotations

from typing import Any

from PIL import Image

from omni_serve.errors import ApiError
from omni_serve.requests.bodies import Body
from omni_serve.requests.pictures import bytes_of_url, decode_picture, edit_mask, is_address, is_data_url
from omni_serve.service import Service

# Names of a mask in pipelines of diffusers.
_MASKS = ("mask_image", "mask")


async def decoded(service: Service, data: bytes, param: str) -> Image.Image:
    """Return an uploaded picture; decoded beside the event loop."""
    return await service.in_thread(decode_picture, data, param, service.settings.max_upload_pixels)


async def decode_all(service: Service, files: dict[str, list[bytes]]) -> dict[str, list[Image.Image]]:
    """Return the pictures of a form by field."""
    return {
        name: [await decoded(service, data, name) for data in contents] for name, contents in files.items() if contents
    }


async def with_urls_decoded(service: Service, body: Body) -> dict[str, Any]:
    """Return those keywords of a body that hold pictures as `data:` URLs, decoded."""

    async def decode(value: Any, name: str) -> Any:
        if is_address(value):
            bytes_of_url(value, name)  # which says what to send instead
        if is_data_url(value):
            return await decoded(service, bytes_of_url(value, name), name)
        if isinstance(value, list) and any(is_data_url(one) or is_address(one) for one in value):
            return [await decode(one, name) for one in value]
        return None

    found = {name: await decode(value, name) for name, value in body.keywords().items()}
    return {name: value for name, value in found.items() if value is not None}


def picture_arguments(
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
    info = service.info
    takes = set(info.parameters) if info is not None else {"image", "mask_image"}
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
        size = _whole_size(sides)
        arguments = {name: _resized(value, size) for name, value in arguments.items()}
        sides = {}
    return {name: _without_alpha(value) for name, value in arguments.items()}, sides


def _whole_size(sides: dict[str, int]) -> tuple[int, int]:
    if len(sides) < 2:
        raise ApiError(400, "Give both width and height, or size.", param="size")
    return sides["width"], sides["height"]


def _resized(value: Any, size: tuple[int, int]) -> Any:
    if isinstance(value, list):
        return [_resized(one, size) for one in value]
    return value if value.size == size else value.resize(size, Image.Resampling.LANCZOS)


def _without_alpha(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_alpha(one) for one in value]
    return value.convert("RGB") if value.mode == "RGBA" else value
