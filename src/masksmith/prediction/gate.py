"""The gate before a faster runtime: it is used only if it agrees with torch on held-out images.

The metric may fall by at most SCORE_TOLERANCE, and at most FLIP_TOLERANCE of the pixels may change sides of 0.5. Two
bfloat16 computations of one trained net (TGS Salt, MobileNetV2 U-Net, 645 held-out images) differ by 0.0002 of the
score, with a standard error of 0.0006, and by 0.11% of the pixels; torch's own bfloat16 flips 0.10% against float32.
Times are reported but do not decide, so the choice is the same on every machine.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric

from masksmith.core.arrays import Codes
from masksmith.core.config import look_up
from masksmith.core.files import read_json, write_json
from masksmith.core.progress import logger
from masksmith.data.store import Store
from masksmith.models.segmentation import SegmentationModel
from masksmith.prediction.combine import Combine, mask_only
from masksmith.prediction.predict import predict_probs
from masksmith.prediction.runtimes import RUNTIMES, Logits, Planes, Runtime, torch_runtime
from masksmith.prediction.store import MAX_CODE, code_of, to_codes
from masksmith.prediction.tiles import Tiling
from masksmith.preprocess import TRUE_SIZE, SizeConfig

SCORE_TOLERANCE = 0.001
FLIP_TOLERANCE = 0.0025
_IMAGES = 1024  # compared at most
_PIXELS = 2**27  # compared at most: torch's codes are held in memory, two bytes each

Score = Callable[[Iterable[tuple[str, Codes]]], float]


@dataclass(frozen=True)
class Finding:
    """The comparison of a runtime with torch. Differences are of probabilities, to within a code."""

    runtime: str
    images: int
    torch_score: float
    score: float
    largest_difference: float
    mean_difference: float
    flipped_share: float
    torch_s: float
    seconds: float
    """Of the same forward passes and the conversion."""
    conversion_s: float
    """For one canvas."""
    torch_s_per_batch: float
    s_per_batch: float

    @property
    def refusal(self) -> str:
        """Why the runtime is refused; empty if it is accepted."""
        reasons = []
        if not self.torch_score - self.score <= SCORE_TOLERANCE:
            reasons.append(
                f"the score falls from {self.torch_score:.4f} to {self.score:.4f}, allowed {SCORE_TOLERANCE}"
            )
        if not self.flipped_share <= FLIP_TOLERANCE:
            reasons.append(
                f"{self.flipped_share:.3%} of the pixels change sides, allowed {FLIP_TOLERANCE:.2%}"
            )
        return "; ".join(reasons)

    @property
    def accepted(self) -> bool:
        """Whether the runtime may replace torch."""
        return not self.refusal

    def __str__(self) -> str:
        return (
            f"{self.runtime} against torch on {self.images} images: score {self.score:.4f} and {self.torch_score:.4f}, "
            f"{self.flipped_share:.3%} of the pixels change sides, probabilities differ by "
            f"{self.mean_difference:.5f} on average and {self.largest_difference:.3f} at most; "
            f"{self.s_per_batch * 1000:.0f} ms a batch and {self.torch_s_per_batch * 1000:.0f} ms, "
            f"after {self.conversion_s:.1f} s of conversion for each canvas"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the verdict as plain values."""
        return {**asdict(self), "accepted": self.accepted, "refusal": self.refusal}


class _Timed:
    """A runtime whose passes are timed; the first pass of a shape, which compiles, apart from the others."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.first: dict[tuple[int, ...], float] = {}
        self.later: list[float] = []

    def __call__(self, planes: Planes) -> Logits:
        start = time.perf_counter()
        logits = self.runtime(planes)
        seconds = time.perf_counter() - start
        if planes.shape in self.first:
            self.later.append(seconds)
        else:
            self.first[planes.shape] = seconds
        return logits

    @property
    def total(self) -> float:
        """Seconds of all passes."""
        return sum(self.first.values()) + sum(self.later)

    @property
    def typical(self) -> float:
        """Median seconds of the later passes, or of the first ones if there are no later ones."""
        return float(np.median(self.later or list(self.first.values())))

    @property
    def extra(self) -> float:
        """Median seconds that the first pass of a shape takes beyond ``typical``."""
        return max(0.0, float(np.median(list(self.first.values()))) - self.typical)


def _sample(images: Store, names: Sequence[str]) -> list[str]:
    """Return at most _IMAGES names with at most _PIXELS pixels, evenly spaced over ``names``."""
    mean_area = sum(h * w for h, w in map(images.shape, names)) / len(names)
    count = max(1, min(len(names), _IMAGES, int(_PIXELS / mean_area)))
    return [names[i * len(names) // count] for i in range(count)]


class _Differences:
    """Sums of the differences between torch's codes and those of another runtime."""

    def __init__(self, kept: dict[str, Codes]) -> None:
        self.kept = kept
        self.largest = self.total = self.flipped = self.pixels = 0

    def watch(self, codes: Iterable[tuple[str, Codes]]) -> Iterator[tuple[str, Codes]]:
        half = code_of(0.5)
        for name, other in codes:
            own = self.kept[name]
            apart = np.abs(own.astype(np.int64) - other)
            self.largest = max(self.largest, int(apart.max()))
            self.total += int(apart.sum())
            self.flipped += int(np.count_nonzero((own > half) != (other > half)))
            self.pixels += own.size
            yield name, other


def compare_runtime(
    name: str,
    fabric: Fabric,
    model: SegmentationModel,
    images: Store,
    names: Sequence[str],
    score: Score,
    *,
    batch_size: int,
    size: SizeConfig = TRUE_SIZE,
    tiling: Tiling | None = None,
    combine: Combine = mask_only,
) -> tuple[Finding, Runtime]:
    """Predict images with torch and with another runtime, without test-time augmentation, and compare.

    Args:
        name: A key of RUNTIMES.
        fabric: Device and precision.
        model: The trained model.
        images: The images.
        names: Ids of held-out images, at least one; at most about a thousand are compared.
        score: The metric of (id, codes (h, w)) at the threshold 0.5, higher is better; iterates over them once.
        batch_size: Images per forward pass.
        size: How images are resized and padded.
        tiling: How larger images are cut into tiles.
        combine: How the image head changes the mask.

    Returns:
        The comparison, and the runtime that was compared.
    """
    chosen = _sample(images, names)

    def codes_of(runtime: Runtime, what: str) -> Iterator[tuple[str, Codes]]:
        probs = predict_probs(
            fabric,
            model,
            images,
            chosen,
            tta=["identity"],
            batch_size=batch_size,
            size=size,
            tiling=tiling,
            what=what,
            runtime=runtime,
        )
        return ((one, to_codes(prob)) for one, prob in probs)

    reference = _Timed(torch_runtime(fabric, model, combine))
    kept = dict(codes_of(reference, "torch"))
    start = time.perf_counter()
    other = _Timed(look_up(RUNTIMES, name, where="prediction.runtime")(fabric, model, combine))
    built = time.perf_counter() - start
    differences = _Differences(kept)
    other_score = score(differences.watch(codes_of(other, name)))
    finding = Finding(
        runtime=name,
        images=len(chosen),
        torch_score=score(kept.items()),
        score=other_score,
        largest_difference=differences.largest / MAX_CODE,
        mean_difference=differences.total / differences.pixels / MAX_CODE,
        flipped_share=differences.flipped / differences.pixels,
        torch_s=reference.total,
        seconds=built + other.total,
        conversion_s=built + other.extra,
        torch_s_per_batch=reference.typical,
        s_per_batch=other.typical,
    )
    return finding, other.runtime


def choose_runtime(
    name: str,
    fabric: Fabric,
    model: SegmentationModel,
    images: Store,
    names: Sequence[str],
    score: Score,
    *,
    batch_size: int,
    size: SizeConfig = TRUE_SIZE,
    tiling: Tiling | None = None,
    combine: Combine = mask_only,
    record: Path,
    key: str,
) -> Runtime:
    """Return the runtime ``name`` if the gate accepts it, otherwise torch.

    The choice is written to ``record`` and read back under the same key, so held-out and test images are predicted by
    one runtime, also after an interruption.

    Args:
        name: A key of RUNTIMES.
        fabric: Device and precision.
        model: The trained model.
        images: The images.
        names: Ids of held-out images with content.
        score: See compare_runtime.
        batch_size: Images per forward pass.
        size: How images are resized and padded.
        tiling: How larger images are cut into tiles.
        combine: How the image head changes the mask.
        record: The JSON file of the choice.
        key: Hash of what the choice depends on: data, weights, settings.
    """
    if name == "torch":
        return torch_runtime(fabric, model, combine)
    known = read_json(record) if record.exists() else {}
    if known.get("key") == key:
        return look_up(RUNTIMES, known["runtime"], where=f"{record}: runtime")(fabric, model, combine)
    verdict: dict[str, Any] = {"key": key, "asked": name}
    if not names:
        reason, runtime = "there are no held-out images to judge by", None
    else:
        finding, runtime = compare_runtime(
            name,
            fabric,
            model,
            images,
            names,
            score,
            batch_size=batch_size,
            size=size,
            tiling=tiling,
            combine=combine,
        )
        reason = finding.refusal
        verdict["finding"] = finding.to_json()
        logger.info("%s", finding)
    if reason or runtime is None:
        logger.warning("%s is not used: %s; predicting with torch", name, reason)
        name, runtime = "torch", torch_runtime(fabric, model, combine)
    write_json(record, verdict | {"runtime": name, "reason": reason})
    return runtime
