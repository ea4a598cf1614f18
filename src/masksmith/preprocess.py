"""Transforms of size that can be undone exactly."""

from dataclasses import dataclass

import cv2
import numpy as np

from masksmith.arrays import Shaped


def round_up(size: int, divisor: int) -> int:
    """Return the smallest multiple of ``divisor`` that is not below ``size``."""
    return -(-size // divisor) * divisor


@dataclass(frozen=True)
class Pad:
    """Mirror an image outwards (the edge pixel is not repeated); ``undo`` cuts the border off again."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def to_size(cls, hw: tuple[int, int], target_hw: tuple[int, int]) -> "Pad":
        """Return the padding from ``hw`` to ``target_hw``; an odd pixel goes below and to the right (13/14)."""
        extra_h, extra_w = target_hw[0] - hw[0], target_hw[1] - hw[1]
        assert min(extra_h, extra_w) >= 0, (hw, target_hw)
        return cls(extra_h // 2, extra_h - extra_h // 2, extra_w // 2, extra_w - extra_w // 2)

    @classmethod
    def to_divisor(cls, hw: tuple[int, int], divisor: int) -> "Pad":
        """Return the padding up to the next multiples of ``divisor``."""
        return cls.to_size(hw, (round_up(hw[0], divisor), round_up(hw[1], divisor)))

    def apply(self, image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "H W c"]:
        """Pad (h, w, c) to (h + top + bottom, w + left + right, c)."""
        if image.shape[2] <= 4:
            padded = cv2.copyMakeBorder(
                image, self.top, self.bottom, self.left, self.right, cv2.BORDER_REFLECT_101
            )
            return padded.reshape(*padded.shape[:2], image.shape[2])
        return np.pad(image, ((self.top, self.bottom), (self.left, self.right), (0, 0)), mode="reflect")

    def undo(self, image: Shaped[np.ndarray, "H W *c"]) -> Shaped[np.ndarray, "h w *c"]:
        """Cut the padding off."""
        return image[self.top : image.shape[0] - self.bottom, self.left : image.shape[1] - self.right]
