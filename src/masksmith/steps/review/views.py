"""What the page shows of one image: its picture, masks and probabilities, and a small picture for the list."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from masksmith.core.arrays import AnyMask, Mask, Shaped, UInt16
from masksmith.core.errors import InputError
from masksmith.data.catalog import BACKGROUND
from masksmith.data.look import thinned, thinning
from masksmith.data.store import Store
from masksmith.postprocess.operators import Rule
from masksmith.postprocess.rules import apply_rule
from masksmith.postprocess.scoring import one_layer
from masksmith.prediction.store import MAX_CODE
from masksmith.project.corrections import Corrections
from masksmith.project.folder import Project
from masksmith.reporting.pictures import RGB, class_colours, four_panels, shrunk, to_rgb
from masksmith.steps.out_of_fold import beside_of
from masksmith.steps.review.predictions import Predicted

MENDABLE = ("binary", "multiclass")
MOST_PIXELS = 2**24
"""Of an image that can be mended; of larger ones every few rows and columns are shown."""
_THUMB = 144
_THUMB_PIXELS = 2**18
_EXACT_PIXELS = 2**19  # up to which pictures are PNG: an image to judge has no marks of a JPEG
_KEPT = 3000  # thumbnails of about 5 kB
PANELS = ("image", "truth", "prediction", "difference")


class MissingError(LookupError):
    """No such image, or nothing of that kind for it."""


class Views:
    """The pictures of a project's images.

    Args:
        project: With decoded data.
        predicted: Returns what is predicted now.
        patches: Split -> what people said.
    """

    def __init__(
        self, project: Project, predicted: Callable[[], Predicted], patches: dict[str, Corrections]
    ) -> None:
        self.project, self.patches, self._predicted = project, patches, predicted
        self.target = project.target
        self._stores: dict[str, Store] = {
            "train": project.cache.train_images,
            "test": project.cache.test_images,
        }
        self._two = threading.Semaphore(2)  # images in memory at once
        self._thumbs: OrderedDict[tuple[object, ...], bytes] = OrderedDict()

    @cached_property
    def colours(self) -> list[list[int]]:
        """Colour of each class or label."""
        return [[int(part) for part in colour] for colour in class_colours(self.target)]

    @property
    def background(self) -> bool:
        """Whether class 0 is background."""
        return self.target.task != "multiclass" or self.target.classes[0] == BACKGROUND

    @property
    def values(self) -> int:
        """Number of values that a mended mask may have, without IGNORE."""
        return 2 if self.target.task == "binary" else len(self.target.classes)

    def check(self, split: str, name: str) -> tuple[int, int]:
        """Return (height, width) of an image.

        Raises:
            MissingError: There is none.
        """
        store = self._stores[split]
        if name not in store.entries:
            raise MissingError(f"{split}: no image {name!r} in this project")
        return store.shape(name)

    def step(self, hw: tuple[int, int]) -> int:
        """Return 1, or of which rows and columns of a very large image one is shown."""
        return max(1, int(np.ceil(np.sqrt(hw[0] * hw[1] / MOST_PIXELS))))

    def facts(self, split: str, name: str) -> dict[str, Any]:
        """Return what the page needs to know of an image."""
        hw = self.check(split, name)
        step, rule = self.step(hw), self._predicted().rule
        why = ""
        if self.target.task not in MENDABLE:
            why = f"masks of {self.target.task} cannot be mended here; judge the image instead"
        elif step > 1:
            why = f"{hw[0]} x {hw[1]} pixels: one row and column of {step} is shown, so it cannot be mended here"
        return {
            "id": name,
            "split": split,
            "hw": hw,
            "shown": [-(-hw[0] // step), -(-hw[1] // step)],
            "why": why,
            "truth": split == "train",
            "predicted": self._has_codes(split, name),
            "threshold": (rule.bottom if isinstance(rule, Rule) else MAX_CODE // 2) / MAX_CODE,
            "mended": self.patches[split].path(name).exists(),
        }

    def _has_codes(self, split: str, name: str) -> bool:
        predicted = self._predicted()
        return predicted.test is not None if split == "test" else name in predicted.oof

    def codes(self, split: str, name: str) -> UInt16[np.ndarray, "h w k"]:
        """Return the probabilities of an image.

        Raises:
            MissingError: It is not predicted.
        """
        predicted = self._predicted()
        if not self._has_codes(split, name):
            raise MissingError(f"{split}: {name!r} is not predicted yet")
        if split == "test":
            assert predicted.test is not None
            return predicted.test[name]
        return predicted.oof[name][name]

    def _prediction(self, split: str, name: str) -> AnyMask:
        rule = self._predicted().rule
        codes = self.codes(split, name)
        assert rule is not None
        stage = "test" if split == "test" else "oof"
        return apply_rule(rule, codes, name, beside_of(self.project, stage))

    def _truth(self, split: str, name: str) -> AnyMask:
        if split == "test":
            raise MissingError(f"test: {name!r} has no true mask")
        return np.asarray(one_layer(self.project.cache.train_masks.checked(name)))

    def mask(self, split: str, name: str, kind: str) -> bytes:
        """Return a mask as bytes (h, w), a class each and 255 not judged: ``kind`` is truth, mended or prediction.

        Raises:
            MissingError: There is none.
            InputError: The mended one is damaged.
        """
        hw = self.check(split, name)
        if self.target.task not in MENDABLE:
            raise MissingError(f"masks of {self.target.task} are shown as pictures")
        with self._two:
            if kind == "mended":
                if not self.patches[split].path(name).exists():
                    raise MissingError(f"{split}: {name!r} is not mended")
                found: Mask = self.patches[split].mask(name, hw=hw, classes=self.values)
            elif kind in ("truth", "prediction"):
                found = np.asarray(
                    self._truth(split, name) if kind == "truth" else self._prediction(split, name)
                )
            else:
                raise MissingError(f"no mask {kind!r}; there are truth, prediction and mended")
            step = self.step(hw)
            return found[::step, ::step].astype(np.uint8).tobytes()

    def probabilities(self, split: str, name: str, layer: int) -> bytes:
        """Return the codes (h, w) of a class or label as little-endian uint16.

        Raises:
            MissingError: It is not predicted, or there is no such layer.
        """
        hw = self.check(split, name)
        with self._two:
            codes = self.codes(split, name)
            if not 0 <= layer < codes.shape[2]:
                raise MissingError(f"layer {layer}: there are {codes.shape[2]}")
            step = self.step(hw)
            return codes[::step, ::step, layer].astype("<u2").tobytes()

    def picture(self, split: str, name: str, kind: str) -> tuple[bytes, str]:
        """Return a panel as a picture and its type.

        Raises:
            MissingError: There is none.
        """
        hw = self.check(split, name)
        with self._two:
            step = self.step(hw)
            image = self._stores[split].checked(name)[::step, ::step]
            return _encoded(to_rgb(image) if kind == "image" else self._panel(split, name, image, kind, step))

    def _panel(self, split: str, name: str, image: Shaped[np.ndarray, "h w c"], kind: str, step: int) -> RGB:
        if kind not in PANELS:
            raise MissingError(f"no picture {kind!r}; there are {', '.join(PANELS)}")
        truth = self._truth(split, name) if kind != "prediction" else self._prediction(split, name)
        pred = self._prediction(split, name) if kind != "truth" else truth
        colours = None if self.target.task == "binary" else class_colours(self.target)
        panels = four_panels(image, truth[::step, ::step], pred[::step, ::step], colours)
        return panels[PANELS.index(kind)]

    def thumb(self, split: str, name: str) -> bytes:
        """Return a small JPEG: the difference of truth and prediction, else the mask over the image, else the image."""
        hw = self.check(split, name)
        version = self.patches[split].of(name).version
        key = (split, name, self._predicted().number, version)
        if (known := self._thumbs.get(key)) is not None:
            return known
        with self._two:
            made = _jpeg(self._small(split, name, hw), quality=80)
        self._thumbs[key] = made
        while len(self._thumbs) > _KEPT:
            self._thumbs.popitem(last=False)
        return made

    def _small(self, split: str, name: str, hw: tuple[int, int]) -> RGB:
        image = thinned(self._stores[split], name, _THUMB_PIXELS)
        step = thinning(hw, _THUMB_PIXELS)
        colours = None if self.target.task == "binary" else class_colours(self.target)
        said = self.patches[split].of(name)
        truth = None
        if said.action == "mend":
            try:
                truth = self.patches[split].mask(name, hw=hw, classes=self.values)
            except InputError:  # the image's own page says so
                truth = None
        if truth is None and split == "train":
            truth = self._truth(split, name)
        pred = self._prediction(split, name) if self._has_codes(split, name) else None
        shown = next((PANELS[at] for at, one in ((1, truth), (2, pred)) if one is not None), "image")
        if truth is not None and pred is not None:
            shown = "difference"
        if shown == "image":
            return shrunk(to_rgb(image), _THUMB)
        first, second = truth if truth is not None else pred, pred if pred is not None else truth
        assert first is not None
        assert second is not None
        panels = four_panels(image, first[::step, ::step], second[::step, ::step], colours)
        return shrunk(panels[PANELS.index(shown)], _THUMB)


def _jpeg(rgb: RGB, *, quality: int) -> bytes:
    done, raw = cv2.imencode(
        ".jpg", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    assert done
    return raw.tobytes()


def _encoded(rgb: RGB) -> tuple[bytes, str]:
    if rgb.shape[0] * rgb.shape[1] > _EXACT_PIXELS:
        return _jpeg(rgb, quality=94), "image/jpeg"
    done, raw = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return raw.tobytes(), "image/png"
