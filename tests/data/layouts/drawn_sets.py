"""Small folders of pictures for the tests of drawn annotations."""

import json
from pathlib import Path

import cv2
import numpy as np

HW = (40, 60)


def picture(path: Path, *, hw=HW, seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (*hw, 3), np.uint8))
    return path


def pictures(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        picture(root / name, seed=seed)


def write_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def points(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def titles(catalog) -> set[str]:
    return {finding.title for finding in catalog.findings}


def said(catalog) -> str:
    return "\n".join(f"{finding.title}: {finding.detail}" for finding in catalog.findings)


def brush_code(mask, sizes=(3, 4, 8, 16)):
    """The brush's code of a mask: alternately repeated values and values one by one (the twin)."""
    values = np.repeat(np.ravel(mask) * 255, 4).astype(int).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(values):
        count = 1
        while at + count < len(values) and values[at + count] == values[at] and count < 2**16:
            count += 1
        which = next(place for place, size in enumerate(sizes) if count - 1 < 2**size)
        repeated = count != 8  # some blocks are written one by one
        bits += f"{int(repeated)}{which:02b}{count - 1:0{sizes[which]}b}"
        bits += f"{values[at]:08b}" * (1 if repeated else count)
        at += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
