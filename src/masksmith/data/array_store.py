"""What prediction asks of images, and images in memory that have it."""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from masksmith.core.arrays import Shaped

_BAND_PIXELS = 2**24


def bands_of(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of an image in bands; their heights are multiples of 512, the side of a tile in a file."""
    step = max(1, _BAND_PIXELS // width // 512) * 512
    for row in range(0, height, step):
        yield slice(row, min(height, row + step))


@runtime_checkable
class Images(Protocol):
    """Arrays (h, w, c) of one type by id, whole or in parts: a Store, or something that reads like one."""

    @property
    def channels(self) -> int:
        """Number of channels (the same for all)."""

    @property
    def dtype(self) -> np.dtype:
        """Element type."""

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, int]:
        """(height, width) in pixels."""

    def checked(self, name: str) -> Shaped[np.ndarray, "h w c"]:
        """Return an array."""

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "h w c"]: ...

    def window(self, name: str, rows: slice, columns: slice) -> Shaped[np.ndarray, "h w c"]:
        """Return a part of an array."""


class ArrayStore:
    """Arrays (h, w, c) of one type in memory, with what prediction asks of a Store."""

    def __init__(self, arrays: Mapping[str, Shaped[np.ndarray, "_ _ _"]]) -> None:
        assert len({(array.dtype, array.shape[2]) for array in arrays.values()}) == 1, arrays.keys()
        self.arrays = dict(arrays)

    @property
    def ids(self) -> list[str]:
        """Ids in their order."""
        return list(self.arrays)

    @property
    def channels(self) -> int:
        """Number of channels (the same for all)."""
        return int(next(iter(self.arrays.values())).shape[2])

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return next(iter(self.arrays.values())).dtype

    def __len__(self) -> int:
        return len(self.arrays)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def shape(self, name: str) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width, _ = self.arrays[name].shape
        return height, width

    def checked(self, name: str) -> Shaped[np.ndarray, "h w c"]:
        """Return an array."""
        return self.arrays[name]

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "h w c"]:
        return self.arrays[name]

    def window(self, name: str, rows: slice, columns: slice) -> Shaped[np.ndarray, "h w c"]:
        """Return a part of an array."""
        return self.arrays[name][rows, columns]
