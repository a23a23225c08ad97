"""A judge of the pictures that the small model draws: which digit, in which colour, on which ground, and how clean.

The digit is read by a support vector machine fitted on 600 *real* handwritten digits that the model's training never
saw (`training/digits.py` leaves out the same 600). Colours are named by the nearest of the ten in CIE Lab. Nothing here
comes from the training code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

Array = npt.NDArray[np.float64]

HELD_OUT = 600
COLOURS = {
    "red": (220, 30, 35),
    "orange": (250, 130, 15),
    "yellow": (250, 220, 30),
    "green": (25, 150, 60),
    "cyan": (40, 205, 225),
    "blue": (35, 75, 220),
    "purple": (130, 45, 170),
    "pink": (250, 120, 190),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
}


@dataclass(frozen=True)
class Verdict:
    """What a picture shows."""

    digit: int  # -1 where there is none
    colour: str  # "?" where no named colour is near
    ground: str
    contrast: float  # distance of digit and ground in Lab: 0 none, 100 black on white
    dirt: float  # mean deviation of the pixels from a mix of the two colours, 0..1


def lab(rgb: Array) -> Array:
    """CIE Lab (D65) of sRGB in 0..1, over the last axis."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


_NAMES = tuple(COLOURS)
_REFERENCE = lab(np.array([COLOURS[name] for name in _NAMES]) / 255)


def name_of(rgb: Array, *, within: float = 30) -> str:
    """The nearest named colour, "?" where that is farther than `within` in Lab."""
    distances = np.linalg.norm(_REFERENCE - lab(rgb), axis=1)
    nearest = int(distances.argmin())
    return _NAMES[nearest] if distances[nearest] <= within else "?"


def _normalised(ink: Array) -> Array | None:
    """The ink, cut out and set into a square of 16 x 16 as the digits of the data set are; None where there is none."""
    rows, columns = np.flatnonzero((ink > 0.5).any(axis=1)), np.flatnonzero((ink > 0.5).any(axis=0))
    if not len(rows):
        return None
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = max(cut.shape)
    square = np.zeros((side, side))
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    small = Image.fromarray((square * 255).astype(np.uint8)).resize((16, 16), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float64).ravel() / 255


def _real(picture: Array) -> Array:
    """Features of a real digit of 8 x 8 pixels in 0..1."""
    big = Image.fromarray((np.pad(picture, 1) * 255).astype(np.uint8)).resize((40, 40), Image.Resampling.BICUBIC)
    features = _normalised(np.clip(np.asarray(big, dtype=np.float64) / 255 * 2.5 - 0.6, 0, 1))
    assert features is not None
    return features


class Judge:
    """Fitted once, then looks at pictures."""

    def __init__(self) -> None:
        digits = load_digits()
        order = np.random.RandomState(20).permutation(len(digits.target))
        features = np.stack([_real(picture) for picture in digits.images / 16])
        fitted, rest = order[:HELD_OUT], order[HELD_OUT:]
        self._model = SVC(C=10, gamma=0.02).fit(features[fitted], digits.target[fitted])
        self.accuracy = float(self._model.score(features[rest], digits.target[rest]))
        """The share of the other 1,197 real digits that it reads correctly."""

    def look(self, image: Image.Image) -> Verdict:
        """What the picture shows."""
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
        edge = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, 0], pixels[:, -1]])
        ground = np.median(edge, axis=0)
        distance = np.linalg.norm(pixels - ground, axis=-1)
        colour = np.median(pixels[distance >= 0.85 * np.quantile(distance, 0.97)], axis=0)
        axis = colour - ground
        length = float(axis @ axis)
        digit, dirt = -1, float(distance.mean())
        if length > 0.01:
            ink = np.clip((pixels - ground) @ axis / length, 0, 1)
            dirt = float(np.abs(pixels - (ground + ink[..., None] * axis)).mean())
            features = _normalised(ink)
            if features is not None:
                digit = int(self._model.predict(features[None])[0])
        contrast = float(np.linalg.norm(lab(colour) - lab(ground)))
        return Verdict(digit, name_of(colour), name_of(ground), contrast, dirt)
