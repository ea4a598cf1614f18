"""Regression test of a recipe: weights and size trace at full width, four losses and eight learnt images when small.

A scale makes a recipe cheap without another code path: it divides the decoder's channels, limits the longest side of
its images, and replaces a large encoder by a small one of the same kind. At full width the network is built and its
sizes are traced without computing anything. The four losses are those of four real training steps (batches,
augmentation, optimizer, schedule) on eight drawn images, in float32 on one thread. Their expected values are in
``recipes/golden.json``, written by ``python tools/golden.py``; a change of them belongs in the change log.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from masksmith.augment import AugmentConfig, GeometryConfig, IntensityConfig, MixingConfig
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream
from masksmith.data.instances import objects_of_mask
from masksmith.data.store import Store, StoreWriter
from masksmith.losses.options import CLASS_MAPS_ALONE
from masksmith.models.architectures import OWN_ENCODER
from masksmith.models.config import ModelConfig
from masksmith.models.encoders import settle_encoder
from masksmith.models.segmentation import SegmentationModel, build_model, size_trace
from masksmith.preprocess import Frame, SizeConfig, round_up
from masksmith.preprocess.chains import PadStep, ScaleStep
from masksmith.recipes.ensemble import load_ensemble, member_recipes
from masksmith.recipes.recipe import Recipe
from masksmith.training.config import OptimizerConfig, SamplerConfig, ScheduleConfig, TrainingConfig
from masksmith.training.data import FoldData
from masksmith.training.loop import train_step
from masksmith.training.machine import keep_random, make_fabric
from masksmith.training.state import TrainingState

IMAGES = 8
STEPS = 4
# Of each loss: processors round sums in other orders, and Adam's first steps are signs, so that each step multiplies
# the difference (0.005 in the fourth loss of tgs-resnet34-hyper on a processor with AMX).
_TOLERANCES = (1e-3, 1e-3, 3e-3, 1e-2)
_IOU_LEAST = 0.95
_LEARN_EPOCHS = 300  # at most; it stops as soon as the images are learnt
_LEARN_CLIP_NORM = 1.0
_SCORE_EVERY = 10
_LEARN_RATE = 3e-3
_LEARN_RATE_UNNORMALISED = 2e-4  # a net without normalisation diverges at the other
_WRITTEN_AT = "small"  # the scale of the losses in golden.json


@dataclass(frozen=True)
class Scale:
    """How to make a recipe cheap."""

    width: int
    """Divisor of the decoder's channels, down to 16 (scSE needs as many)."""
    side: int
    """Longest side of a canvas, in pixels; half of it for a stem of stride 1."""
    encoders: tuple[tuple[str, str], ...] = ()
    """Patterns of encoder names, and the small encoder that replaces them."""


_SMALL_ENCODERS = (
    (r"(tu-)?(resnet(34|50|101|152)|(se_)?resnext\w+)", "tu-test_resnet"),
    (r"(?:tu-)?tf_efficientnet_b[1-7](\.\w+)?", "tf_efficientnet_b0"),
    (r"(?:tu-)?tf_efficientnetv2_[sml](\.\w+)?", "tf_efficientnetv2_b0"),
    (r"efficientnet-b[1-7]", "efficientnet-b0"),
    (r"vgg(13|16|19)", "vgg11"),
)
NO_START = {"start_run": None, "start_from": None, "start_from_hash": None}
SCALES: dict[str, Scale] = {
    "small": Scale(width=4, side=64, encoders=_SMALL_ENCODERS),
    "full": Scale(width=1, side=1 << 20),
}


def scaled_size(size: SizeConfig, divisor: int, side: int) -> SizeConfig:
    """Return a size rule whose canvas has at most ``side`` pixels, in multiples of the divisor."""
    sides = [step.hw for step in size.chain if isinstance(step, ScaleStep | PadStep)]
    longest = max(max(hw) for hw in (*sides, size.pad_hw or size.resize_hw or (0, 0)))
    if longest <= side:
        return size
    share = side / longest
    resized = size.resize_hw and _shrunk(size.resize_hw, share)
    padded = size.pad_hw and _shrunk(size.pad_hw, share)
    if padded:
        padded = round_up(padded[0], divisor), round_up(padded[1], divisor)
    chain = tuple(
        step.model_copy(update={"hw": _shrunk(step.hw, share)})
        if isinstance(step, ScaleStep | PadStep)
        else step
        for step in size.chain
    )
    return SizeConfig(resize_hw=resized, pad_hw=padded, border=size.border, chain=chain)


def _shrunk(hw: tuple[int, int], share: float) -> tuple[int, int]:
    return max(1, round(hw[0] * share)), max(1, round(hw[1] * share))


def scaled(recipe: Recipe, name: str) -> Recipe:
    """Return a recipe at a scale, on one thread of the CPU in float32, from random weights.

    Raises:
        InputError: An unknown scale; the message lists them.
    """
    scale = look_up(SCALES, name, where="--scale")
    encoder = recipe.model.encoder
    if encoder == "auto":
        encoder = settle_encoder("auto", "none").encoder
    encoder = next((small for large, small in scale.encoders if re.fullmatch(large, encoder)), encoder)
    if encoder == "tu-test_resnet" and recipe.model.stem.startswith("conv3x3"):
        encoder = "resnet18"  # test_resnet always has such a stem
    channels = [
        width if width <= 16 else max(16, width // scale.width) for width in recipe.model.decoder_channels
    ]
    changes = {
        "encoder": encoder,
        "encoder_weights": "none",
        "encoder_weights_hash": None,
        "decoder_channels": channels,
    }
    model = ModelConfig(**{**dict(recipe.model), **changes})
    plain = {"device": "cpu", "precision": "32-true", "threads": 1, "channels_last": False}
    whole = {"crop_hw": None, "windows_per_image": "by_area"}
    training = recipe.training.model_copy(update={**plain, **whole, "batch_size": IMAGES, **NO_START})
    side = scale.side // 2 if model.stem.endswith("stride1") else scale.side
    size = scaled_size(recipe.size, model.divisor, side)
    return recipe.model_copy(update={"model": model, "training": training, "size": size})


def _ends_at_once(training: TrainingConfig, epochs: int, **changes: Any) -> TrainingConfig:  # noqa: ANN401
    """Return the first stage alone, ``epochs`` epochs of one step, without anything that needs a score.

    All drawn images have foreground, so the sampler is plain.
    """
    first = training.stages[0]
    assert first.schedule is not None
    cycles = first.schedule.cycles if first.schedule.cycles > 1 else 1
    stage = first.model_copy(
        update={
            "data": "labelled",
            "epochs": epochs * cycles,
            "until_plateau": None,
            "batch_size": None,
            "accumulate": None,
            "scale": 1.0,
            "sampler": SamplerConfig(),
            **changes,
        }
    )
    shared: dict[str, Any] = {
        "early_stop": None,
        "select": "last",
        "keep": [],
        "top_k": 0,
        "swa": None,
        "accumulate": 1,
    }
    return TrainingConfig(**{**dict(training), **shared, "stages": [stage]})


def _draw(rng: np.random.Generator, hw: tuple[int, int], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one image (h, w, c) with a dark ellipse, and its mask."""
    mask = np.zeros(hw, np.uint8)
    middle = (int(rng.integers(hw[1] // 4, 3 * hw[1] // 4)), int(rng.integers(hw[0] // 4, 3 * hw[0] // 4)))
    axes = (int(rng.integers(hw[1] // 6, hw[1] // 3)), int(rng.integers(hw[0] // 6, hw[0] // 3)))
    cv2.ellipse(mask, middle, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    image = rng.normal(150, 25, (*hw, channels)) - 70.0 * mask[..., None]
    return np.clip(image, 0, 255).astype(np.uint8), mask


@contextlib.contextmanager
def drawn_images(recipe: Recipe) -> Iterator[FoldData]:
    """Yield eight drawn images and their masks as the data of a fold, in the size and channels of a scaled recipe.

    If the recipe takes all bands, the images are grey.
    """
    hw = recipe.size.resize_hw or recipe.size.pad_hw or (48, 48)
    pairs = [_draw(stream(7, i), hw, recipe.input.channels(1)) for i in range(IMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        yield write_fold(recipe, Path(folder), pairs)


def write_fold(recipe: Recipe, folder: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> FoldData:
    """Write images (h, w, c) and masks (h, w) of one shape into ``folder``; return them as the data of a fold."""
    names, shape = [f"drawn_{i}" for i in range(len(pairs))], pairs[0][0].shape
    kind: type[np.generic] = np.int32 if _outputs(recipe).get("classes") == 3 else np.uint8
    images = StoreWriter(folder / "images.npy", [(name, shape) for name in names], dtype=np.uint8)
    masks = StoreWriter(folder / "masks.npy", [(name, (*shape[:2], 1)) for name in names], dtype=kind)
    for name, (image, mask) in zip(names, pairs, strict=True):
        images.write(name, image)
        masks.write(name, (objects_of_mask(mask).labels if kind == np.int32 else mask)[..., None])
    images.close()
    masks.close()
    scalars = len(recipe.model.scalars)
    numbers = {name: tuple(float(i + at) for at in range(scalars)) for i, name in enumerate(names)}
    return FoldData(
        0,
        names,
        Store(folder / "images.npy"),
        Store(folder / "masks.npy"),
        seed=0,
        key="drawn",
        size=recipe.size,
        scalars=numbers if scalars else {},
    )


def _outputs(recipe: Recipe) -> dict[str, Any]:
    """Return the outputs of a recipe's network: what its losses need of class maps, or of objects."""
    names = {term.name for stage in recipe.training.stages for term in stage.loss}
    if "objects" in names:
        return {"classes": 3}
    return {"classes": 2, "exclusive": True} if names & CLASS_MAPS_ALONE else {}


def begin_training(recipe: Recipe, training: TrainingConfig, data: FoldData) -> TrainingState:
    """Return a training of the recipe's network at its beginning."""
    model = build_model(recipe.model, in_channels=data.images.channels, seed=0, **_outputs(recipe))
    if data.scalars:
        model.set_scalar_statistics(np.array([data.scalars[name] for name in data.ids], np.float32))
    return TrainingState(make_fabric(training), model, training, data)


def train_one_epoch(state: TrainingState) -> float:
    """Train the next epoch, without a checkpoint; return its mean loss."""
    state.begin_epoch()
    for batches in state.steps_ahead():
        state.set_lr(state.progress.step)
        train_step(state, batches)
    loss = state.mean_loss
    state.end_epoch()
    return loss


def four_losses(recipe: Recipe, data: FoldData) -> list[float]:
    """Return the losses of four steps of a scaled recipe's first stage."""
    training = _ends_at_once(recipe.training, STEPS)
    with keep_random("cpu"):
        state = begin_training(recipe, training, data)
        losses = [train_one_epoch(state) for _ in range(STEPS)]
    return losses


def learn(recipe: Recipe, data: FoldData) -> float:
    """Overfit the eight images with the recipe's network and first loss; return the pooled IoU at the end.

    It tests network and loss, not the schedule: no augmentation, no dropout, clipped gradients, AdamW at 3e-3 (2e-4
    without normalisation; the recipe's rate, if that is lower, for a network with its own encoder).
    """
    training = _ends_at_once(
        recipe.training,
        _LEARN_EPOCHS,
        optimizer=OptimizerConfig(name="adamw", lr=_learn_rate(recipe)),
        schedule=ScheduleConfig(name="constant", warmup_frac=0.02, final_frac=1e-3),
        geometry=GeometryConfig(),
        intensity=IntensityConfig(),
        freeze=[],
    ).model_copy(update={"mixing": MixingConfig(), "augment": AugmentConfig(), "clip_norm": _LEARN_CLIP_NORM})
    iou = 0.0
    with keep_random("cpu"):
        state = begin_training(recipe, training, data)
        _switch_dropout_off(state.raw)
        for epoch in range(1, _LEARN_EPOCHS + 1):
            train_one_epoch(state)
            if epoch % _SCORE_EVERY == 0 and (iou := _iou(state.raw, data)) > _IOU_LEAST:
                break
    return iou


def _learn_rate(recipe: Recipe) -> float:
    own = recipe.training.stages[0].optimizer
    assert own is not None
    if recipe.model.encoder == OWN_ENCODER:
        return min(_LEARN_RATE, own.lr)
    return _LEARN_RATE_UNNORMALISED if recipe.model.norm == "none" else _LEARN_RATE


def _switch_dropout_off(model: SegmentationModel) -> None:
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout | torch.nn.Dropout2d):
            layer.p = 0.0


def _iou(model: SegmentationModel, data: FoldData) -> float:
    """Return the pooled IoU of a network on the images of ``data``, with batch statistics as in training."""
    frame = Frame.of(data.images.shape(data.ids[0]), data.size, divisor=model.divisor)
    planes = np.stack([frame.apply(np.ascontiguousarray(data.images[name])) for name in data.ids])
    image = torch.from_numpy(planes.astype(np.float32) / 255).permute(0, 3, 1, 2)
    inputs = [image]
    if data.scalars:
        inputs.append(torch.tensor([data.scalars[name] for name in data.ids]))
    model.train()
    with torch.no_grad():
        logits = model(*inputs).mask_logits
    probs = (logits.softmax(1) if model.exclusive else logits.sigmoid()).permute(0, 2, 3, 1).numpy()
    of = 1 if model.exclusive else 0
    found = np.stack([frame.undo(one)[..., of] for one in probs]) > 0.5
    truth = np.stack([data.masks[name][..., 0] for name in data.ids]) > 0
    return float((found & truth).sum() / max(1, (found | truth).sum()))


# --- golden values ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """A recipe's network at full width, and its first losses at the small scale."""

    weights: int
    trace: list[str]
    losses: list[float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "weights": self.weights,
            "trace": self.trace,
            "losses": [round(loss, 6) for loss in self.losses],
        }


def golden() -> dict[str, Any]:
    """Return the expected facts of the bundled recipes, by name."""
    value: dict[str, Any] = json.loads((resources.files("masksmith") / "recipes" / "golden.json").read_text())
    return value


def facts_of(recipe: Recipe, data: FoldData, *, scale: str) -> Facts:
    """Return the facts of a recipe: for images of 101x101 at full width, and for the drawn images at a scale."""
    whole, channels = scaled(recipe, "full"), data.images.channels
    model = build_model(whole.model, in_channels=channels, seed=0, **_outputs(recipe))
    hw = Frame.of((101, 101), whole.size, divisor=model.divisor).canvas_hw
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes only: large networks cost nothing
        lines = size_trace(model, in_channels=channels, hw=hw)
    trace = [f"{line.block} {line.channels} {line.hw[0]}x{line.hw[1]}" for line in lines]
    weights = sum(weight.numel() for weight in model.parameters())
    return Facts(weights, trace, four_losses(scaled(recipe, scale), data))


@dataclass(frozen=True)
class Verified:
    """Result of verifying a recipe; ``failures`` is empty if nothing has changed."""

    name: str
    facts: Facts
    iou: float
    failures: list[str]
    scale: str = _WRITTEN_AT

    def __str__(self) -> str:
        losses = " ".join(f"{loss:.4f}" for loss in self.facts.losses)
        fine = "as written down" if self.scale == _WRITTEN_AT else "as written down (losses not compared)"
        verdict = "; ".join(self.failures) if self.failures else fine
        return (
            f"{self.name}: {self.facts.weights:,} weights, losses {losses}, eight images learnt to IoU {self.iou:.3f}: "
            f"{verdict}"
        )


def differences(found: Facts, known: dict[str, Any] | None, *, scale: str) -> list[str]:
    """Return what differs from an entry of golden.json, a message each."""
    if known is None:
        return ["nothing is written down of it; run `python tools/golden.py`"]
    failures = []
    if found.weights != known["weights"]:
        failures.append(f"{found.weights:,} weights, expected {known['weights']:,}")
    if found.trace != known["trace"]:
        pairs = zip(found.trace, known["trace"], strict=False)
        first = next((f"{a!r}, expected {b!r}" for a, b in pairs if a != b), "it has another length")
        failures.append(f"size trace: {first}")
    apart = np.abs(np.array(found.losses) - known["losses"])
    close = apart <= np.array(_TOLERANCES) * np.maximum(1.0, np.abs(known["losses"]))
    if scale == _WRITTEN_AT and not close.all():  # a NaN is close to nothing
        failures.append(f"losses, expected {' '.join(f'{loss:.4f}' for loss in known['losses'])}")
    return failures


def verify(recipe: Recipe, *, scale: str = "small", known: dict[str, Any] | None) -> Verified:
    """Compare a recipe with its golden values, and check that its network can overfit eight images.

    Args:
        recipe: A bundled recipe.
        scale: A key of SCALES; losses are compared at "small" only.
        known: Its entry of golden.json; None if there is none.

    Raises:
        InputError: An unknown scale.
    """
    small = scaled(recipe, scale)
    with drawn_images(small) as data:
        facts, iou = facts_of(recipe, data, scale=scale), learn(small, data)
    failures = differences(facts, known, scale=scale)
    if not iou > _IOU_LEAST:
        failures.append(f"IoU {iou:.3f} on the eight images, expected above {_IOU_LEAST}")
    return Verified(recipe.name, facts, iou, failures, scale)


@dataclass(frozen=True)
class VerifiedEnsemble:
    """Result of verifying an ensemble."""

    name: str
    members: list[str]
    failures: list[str]

    def __str__(self) -> str:
        fine = f"{len(self.members)} members that agree on folds and metric: {', '.join(self.members)}"
        return f"{self.name}: {'; '.join(self.failures) if self.failures else fine}"


def verify_ensemble(name: str) -> VerifiedEnsemble:
    """Check that the members of an ensemble exist, can be read, and agree.

    Their networks are not built: ``verify`` of a bundled recipe checks its own.
    """
    try:
        return VerifiedEnsemble(name, [recipe.name for recipe in member_recipes(load_ensemble(name))], [])
    except InputError as error:
        return VerifiedEnsemble(name, [], [str(error)])


@dataclass(frozen=True)
class Verdicts:
    """Results of several recipes and ensembles; ``print`` shows a line for each."""

    each: Sequence[Verified | VerifiedEnsemble]

    @property
    def failed(self) -> list[str]:
        """Names of the recipes that failed."""
        return [one.name for one in self.each if one.failures]

    def __str__(self) -> str:
        lines = [str(one) for one in self.each]
        return "\n".join(
            [*lines, f"{len(self.each) - len(self.failed)} of {len(self.each)} recipes verified"]
        )


def refuse_failed(verdicts: Verdicts) -> None:
    """Raise InputError if a recipe failed."""
    if verdicts.failed:
        raise InputError(f"recipes: {', '.join(verdicts.failed)} failed the check:\n{verdicts}")
