"""Run-lengths of each dialect: encode and decode, beside the loop of many notebooks and pycocotools.

    python benchmarks/run_lengths.py [--sides 101 1024] [--repeats 7]

Processor time of one mask (four discs), the least of the repeats, which noise from other processes changes least. The
loop is the usual one of Kaggle's notebooks: a list of differences for encoding, a slice a run for decoding. pycocotools
has another form (from 0, compressed), so it says how fast C code is, not what could be used in its place.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial

import cv2
import numpy as np

from masksmith.data.rle import DIALECTS, decode_rows, encode_rows


def discs(side: int) -> np.ndarray:
    mask = np.zeros((side, side), np.uint8)
    for at in range(4):
        centre = (side // 4 + (at % 2) * side // 2, side // 4 + (at // 2) * side // 2)
        cv2.circle(mask, centre, side // 6, 1, -1)
    return mask


def notebook_encode(mask: np.ndarray) -> str:
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def notebook_decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    numbers = [int(x) for x in text.split()]
    image = np.zeros(shape[0] * shape[1], np.uint8)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        image[start - 1 : start - 1 + length] = 1
    return image.reshape(shape[::-1]).T


def microseconds(work: Callable[[], object], repeats: int) -> float:
    work()
    best = float("inf")
    for _ in range(repeats):
        count, start = 0, time.process_time()
        while time.process_time() - start < 0.05:
            work()
            count += 1
        best = min(best, (time.process_time() - start) / count)
    return best * 1e6


def works_of(mask: np.ndarray) -> Iterator[tuple[str, Callable[[], object], Callable[[], object]]]:
    """Yield name, encoding and decoding."""
    from pycocotools import mask as coco

    text, compressed = notebook_encode(mask), coco.encode(np.asfortranarray(mask))
    assert (notebook_decode(text, mask.shape) == mask).all()
    yield "the notebooks' loop", partial(notebook_encode, mask), partial(notebook_decode, text, mask.shape)
    fortran = np.asfortranarray(mask)
    yield "pycocotools (another form)", partial(coco.encode, fortran), partial(coco.decode, compressed)
    for name in DIALECTS:
        texts = encode_rows(mask, dialect=name)
        decode = partial(decode_rows, texts, shape=mask.shape, dialect=name, where="")
        assert (decode() == mask).all()
        yield name, partial(encode_rows, mask, dialect=name), decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[101, 1024])
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    print(f"{'side':>5s} {'dialect':28s} {'encode µs':>10s} {'decode µs':>10s}")
    for side in given.sides:
        for name, encode, decode in works_of(discs(side)):
            times = (microseconds(work, given.repeats) for work in (encode, decode))
            print(f"{side:5d} {name:28s} " + " ".join(f"{one:10.0f}" for one in times))


if __name__ == "__main__":
    main()
