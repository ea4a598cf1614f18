"""The image that ``masksmith explain`` explains on: a drawn one, or a person's own with a true and a predicted mask."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.arrays import Float, Mask, UInt8
from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import decode_image
from masksmith.data.synthetic import make_section
from masksmith.reporting.pictures import shrunk, to_rgb

HITS, UNION = 872, 1349
"""Of the drawn example, in pixels: the worked example of the TGS metric, 0.3."""
_SEED = 314  # of a drawn section whose body floats, of 1127 pixels
_SIDE = (
    256  # pixels of the longer side that a person's image is shown and measured at; masks are measured whole
)
_SOFT_PX = 2.5  # over which a drawn probability falls from the outline


@dataclass(frozen=True)
class Example:
    """An image with a true and a predicted mask."""

    image: UInt8[np.ndarray, "h w 3"]
    truth: Mask
    pred: Mask
    probs: Float[np.ndarray, "h w"]
    """Above 0.5 where ``pred`` is 1."""
    says: str
    """Where all this comes from."""
    has_mask: bool = True
    """False: nothing is known of what is on the image, and ``truth`` is empty."""


def drawn_example() -> Example:
    """Return a drawn seismic section, whose intersection and union have HITS and UNION pixels."""
    image, truth = make_section(np.random.default_rng(_SEED), salt=True)
    field = np.roll(
        _outline_distance(truth), (5, 7), axis=(0, 1)
    )  # what a net might see: the body, out of place
    inside, outside = np.where(truth == 1, field, -np.inf), np.where(truth == 0, field, -np.inf)
    pred = np.zeros_like(truth)
    for part, count in ((inside, HITS), (outside, UNION - int(truth.sum()))):
        pred.flat[np.argsort(-part, axis=None, kind="stable")[:count]] = 1
    rgb = np.repeat(image[..., None], 3, axis=2)
    return Example(
        rgb, truth, pred, soft(pred), "A drawn seismic section of 101×101 pixels with a mock prediction."
    )


def read_example(image: Path | None, mask: Path | None, pred: Path | None) -> Example:
    """Return a person's image with its masks; what is not given is drawn or made from the mask.

    Args:
        image: Any picture; None with a mask: the mask itself, in grey.
        mask: The true mask: above 0 is foreground.
        pred: The predicted one: 0 and another value, or probabilities, 0 to the type's largest value; None: the true
            mask, moved by a thirtieth of the side.

    Raises:
        InputError: A file that is not there or no image, or masks of other sizes; a line for each.
    """
    if image is None and mask is None and pred is None:
        return drawn_example()
    found = _read_all({"--image": image, "--mask": mask, "--pred": pred})
    truth = _foreground(found["--mask"]) if mask is not None else None
    rgb = to_rgb(found["--image"]) if image is not None else None
    if rgb is None:
        assert truth is not None
        rgb = np.repeat((96 + 96 * truth)[..., None], 3, axis=2).astype(np.uint8)
    says = f"{(image or mask or Path()).name}, {rgb.shape[0]}×{rgb.shape[1]} pixels"
    if truth is None:
        truth = np.zeros(rgb.shape[:2], np.uint8)
        return Example(rgb, truth, truth, soft(truth), f"{says}.", has_mask=False)
    if pred is None:
        step = max(1, round(max(truth.shape) / 30))
        moved = moved_mask(truth, step)
        return Example(
            rgb,
            truth,
            moved,
            soft(moved),
            f"{says}; the prediction is the mask, {step} pixels down and right.",
        )
    probs = _probabilities(found["--pred"])
    return Example(rgb, truth, (probs > 0.5).astype(np.uint8), probs, f"{says}; predicted: {pred.name}.")


def _read_all(files: dict[str, Path | None]) -> dict[str, np.ndarray]:
    """Return the pixels of the files that are given, by option; all that is wrong is said at once."""
    found, wrong = dict[str, np.ndarray](), list[str]()
    for name, path in files.items():
        try:
            if path is not None:
                found[name] = _read(path, name)
        except InputError as error:
            wrong.append(str(error))
    if files["--pred"] is not None and files["--mask"] is None:
        wrong.append(f"--pred {files['--pred']}: it is compared with nothing; add --mask TRUTH")
    if len({array.shape[:2] for array in found.values()}) > 1:
        sizes = ", ".join(f"{name} {a.shape[0]}x{a.shape[1]}" for name, a in found.items())
        wrong.append(
            f"explain: {sizes} pixels (height x width); expected one size: bring the masks to the image's"
        )
    if wrong:
        raise InputError("\n".join(wrong))
    return found


def _read(path: Path, option: str) -> np.ndarray:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{option} {path}: it cannot be read ({error.strerror}); name an image file"
        ) from error
    return decode_image(raw, where=f"{option} {path}")


def _foreground(mask: np.ndarray) -> Mask:
    return np.asarray((mask > 0).any(axis=2), np.uint8)


def _probabilities(pred: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Return values as shares of the largest one of their type; two values are a mask."""
    plane = pred.max(axis=2)
    if len(np.unique(plane)) <= 2:
        return (plane > 0).astype(np.float64)
    top = float(np.iinfo(plane.dtype).max) if plane.dtype.kind in "iu" else 1.0
    return np.clip(plane.astype(np.float64) / top, 0, 1)


def moved_mask(mask: Mask, pixels: int) -> Mask:
    """Return a mask moved down and to the right; what comes in is background."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    found[min(pixels, height) :, min(pixels, width) :] = mask[
        : max(0, height - pixels), : max(0, width - pixels)
    ]
    return found


def soft(mask: Mask) -> Float[np.ndarray, "h w"]:
    """Return probabilities that are above 0.5 where the mask is 1, and fall off over a few pixels."""
    return 1 / (1 + np.exp(-np.clip(_outline_distance(mask) / _SOFT_PX, -12, 12)))


def _outline_distance(mask: Mask) -> Float[np.ndarray, "h w"]:
    """Return the pixels from the outline: above 0 inside."""
    if not mask.any() or mask.all():
        return np.full(mask.shape, 60.0 if mask.any() else -60.0)
    inside, outside = (
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
        for part in (mask, 1 - mask)
    )
    return inside - outside


def small(example: Example) -> Example:
    """Return an example of at most _SIDE pixels a side, for pictures and for losses, which hold all pixels at once."""
    rgb = shrunk(example.image, _SIDE)
    if rgb is example.image:
        return example
    size = (rgb.shape[1], rgb.shape[0])
    truth = cv2.resize(example.truth, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    probs = cv2.resize(example.probs, size, interpolation=cv2.INTER_AREA).astype(np.float64)
    pred = (probs > 0.5).astype(np.uint8)
    return replace(example, image=rgb, truth=truth, pred=pred, probs=probs)
