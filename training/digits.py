"""Source pictures: real handwritten digits of scikit-learn's `load_digits`, made smooth and large enough to look at.

The 1,797 digits are 8 x 8 pixels. A third of them is held out for the judge of `tests/quality` and never seen here.
Of the others, the clearest of every class are kept: read correctly and with a good margin by a cross-validated
classifier, drawn with one slim stroke, and with the holes that the digit should have (one in a 6, two in an 8).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter
from scipy import ndimage  # type: ignore[import-untyped,unused-ignore]
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.svm import SVC

SIZE = 32
HELD_OUT = 600  # tests/quality/judge.py draws the same split
KEPT_PER_CLASS = 56
VARIANTS = 3

_SCALE = 10  # every mask is drawn at ten times its size, then averaged: smooth edges
_HOLES = {0: (1,), 1: (0,), 2: (0,), 3: (0,), 4: (0, 1), 5: (0,), 6: (1,), 7: (0,), 8: (2,), 9: (1,)}
_CUTS = (0.44, 0.5, 0.38, 0.56, 0.62, 0.68)  # ink thresholds, tried in this order until the stroke is right
_THICKEST = 38  # half the width of the widest spot of a stroke, in pixels of the enlarged picture

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def training_split() -> tuple[FloatArray, IntArray]:
    """The digits that the judge does not use: pictures (n, 8, 8) in 0..1, and labels."""
    digits = load_digits()
    order = np.random.RandomState(20).permutation(len(digits.target))[HELD_OUT:]
    return (digits.images[order] / 16).astype(np.float32), digits.target[order].astype(np.int64)


def _enlarge(picture: FloatArray) -> FloatArray:
    """A smooth picture of 320 x 320 in 0..1, with a margin of one source pixel."""
    padded = np.pad(picture, 1)
    big = Image.fromarray((padded * 255).astype(np.uint8)).resize((SIZE * _SCALE,) * 2, Image.Resampling.BICUBIC)
    smooth: FloatArray = np.asarray(big.filter(ImageFilter.GaussianBlur(11)), dtype=np.float32) / np.float32(255)
    return smooth


def _holes(ink: npt.NDArray[np.bool_]) -> int:
    labels, count = ndimage.label(~ink)
    sizes = np.bincount(labels.ravel())[1:]
    return int(sum(1 for size in sizes if size > 60) - 1) if count else 0


def _parts(ink: npt.NDArray[np.bool_]) -> int:
    return int(ndimage.label(ink)[1])


def _thickness(ink: npt.NDArray[np.bool_]) -> float:
    return float(ndimage.distance_transform_edt(ink).max())


def _cut(big: FloatArray, label: int) -> float | None:
    """The ink threshold at which the digit is one slim stroke with the right holes, if there is one."""
    for cut in _CUTS:
        ink = big > cut
        if _parts(ink) == 1 and _holes(ink) in _HOLES[label] and _thickness(ink) <= _THICKEST:
            return cut
    return None


def _plain_one(ink: npt.NDArray[np.bool_]) -> bool:
    """Whether a 1 is a slim stem: not a block, and with no foot that makes an L of it."""
    columns = np.flatnonzero(ink.any(axis=0))
    rows = np.flatnonzero(ink.any(axis=1))
    widths = ink[rows[0] : rows[-1] + 1].sum(axis=1)
    middle = float(np.median(widths))
    foot = float(widths[-len(widths) // 5 :].max())
    return middle < 88 and foot < 1.35 * middle and columns[-1] - columns[0] < 190


def _draw(big: FloatArray, cut: float, angle: float, shift: tuple[float, float]) -> FloatArray:
    """The digit as ink coverage (32, 32) in 0..1, turned by `angle` degrees and moved by `shift` pixels."""
    if angle or any(shift):
        big = ndimage.rotate(big, angle, reshape=False, order=1)
        big = ndimage.shift(big, [value * _SCALE for value in shift], order=1)
    edge = np.clip((big - cut + 0.05) / 0.1, 0, 1)
    edge = edge * edge * (3 - 2 * edge)
    small: FloatArray = edge.reshape(SIZE, _SCALE, SIZE, _SCALE).mean(axis=(1, 3)).astype(np.float32)
    return small


def masks() -> tuple[FloatArray, IntArray]:
    """Ink coverage of every kept digit in `VARIANTS` slight variations: (n, 32, 32) in 0..1, and labels."""
    pictures, labels = training_split()
    flat = pictures.reshape(len(pictures), -1)
    model = SVC(C=10, gamma=0.05, decision_function_shape="ovr")
    scores = cross_val_predict(model, flat, labels, cv=5, method="decision_function")
    own = scores[np.arange(len(labels)), labels]
    others = scores.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    margin = own - others.max(axis=1)

    rng = np.random.RandomState(21)
    drawn: list[FloatArray] = []
    drawn_labels: list[int] = []
    for label in range(10):
        candidates = np.flatnonzero(labels == label)
        candidates = candidates[np.argsort(-margin[candidates], kind="stable")]
        kept = 0
        for index in candidates:
            big = _enlarge(pictures[index])
            cut = _cut(big, label)
            if margin[index] <= 0 or cut is None or (label == 1 and not _plain_one(big > cut)):
                continue
            for variant in range(VARIANTS):
                angle = 0.0 if variant == 0 else float(rng.uniform(-6, 6))
                shift = (0.0, 0.0) if variant == 0 else (float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1)))
                drawn.append(_draw(big, cut, angle, shift))
                drawn_labels.append(label)
            kept += 1
            if kept == KEPT_PER_CLASS:
                break
    return np.stack(drawn), np.asarray(drawn_labels, dtype=np.int64)


def paint(ink: FloatArray, foreground: FloatArray, background: FloatArray) -> FloatArray:
    """Pictures (n, 3, 32, 32) in -1..1 of ink (n, 32, 32) in colours (n, 3) given in 0..1."""
    coverage = ink[:, None]
    picture = coverage * foreground[:, :, None, None] + (1 - coverage) * background[:, :, None, None]
    return (picture * 2 - 1).astype(np.float32)
