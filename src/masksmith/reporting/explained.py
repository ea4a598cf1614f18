"""The pictures and tables of ``masksmith explain``: metrics, losses, views and augmentation on one image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor

from masksmith.augment.object_planes import object_planes
from masksmith.core.arrays import Float, Mask, UInt8
from masksmith.losses.build import IMAGE_LOSSES, MASK_LOSSES
from masksmith.metrics import Metric
from masksmith.metrics.counts import count_stats
from masksmith.prediction.tta import TTA, View
from masksmith.reporting.augmented import RGB, Made, outlined
from masksmith.reporting.drawing import BLUE, FAINT, GREEN, ORANGE, SERIES, Chart, Drawing, W
from masksmith.reporting.examples import Example, moved_mask, small, soft
from masksmith.reporting.pictures import difference
from masksmith.reporting.theory import iou_walk, lovasz_order, lovasz_rows

Heat = UInt8[np.ndarray, "h w 3"]
Panel = UInt8[np.ndarray, "_ _ 3"]
_THRESHOLDS = np.linspace(0, 1, 51)
_OF_PIXELS = ("bce", "focal", "mse", "smooth_l1")  # losses that know each pixel alone
_WHOLE = 1024  # pixels of the longer side up to which a metric is measured 72 times
_SURE = 4.0  # logit of a mock prediction that is sure


@dataclass(frozen=True)
class Explained:
    """Pictures, and numbers as a table: its head, and its rows."""

    drawings: list[Drawing] = field(default_factory=list)
    head: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()


def strip(title: str, panels: Sequence[tuple[str, str, Panel]]) -> Drawing:
    """Return pictures beside each other, each with a caption of two lines."""
    side = min(176, (W - 40 - 12 * (len(panels) - 1)) // len(panels))
    tall = max(side * rgb.shape[0] / rgb.shape[1] for _, _, rgb in panels)
    tall = min(tall, 260)
    drawing = Drawing(W, round(tall) + 100, title)
    for at, (name, words, rgb) in enumerate(panels):
        x, height, width = 20 + (side + 12) * at, rgb.shape[0], rgb.shape[1]
        scale = min(side / width, tall / height)
        shown = rgb
        if max(height, width) * 2 < side:  # pixels stay squares
            shown = cv2.resize(rgb, None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
        drawing.picture(x, 46, width * scale, shown, quality=85)
        drawing.text(x, 46 + tall + 18, name, weight="600")
        drawing.text(x, 46 + tall + 34, words, size=11, colour=FAINT)
    return drawing


# --- metrics ----------------------------------------------------------------------------------------------


def explain_metric(metric: Metric, example: Example) -> Explained:
    """Show a metric on an image: what is counted, the score at every threshold, and what an error costs."""
    truth, pred = example.truth, example.pred
    hit, false, missed, right = (int(count) for count in count_stats(pred, truth))
    shown = small(example)
    swept = example if max(truth.shape) <= _WHOLE else shown
    drawings = [
        strip(
            "What is compared",
            [
                ("image", "", shown.image),
                ("truth", f"{hit + missed:,} pixels", outlined(_grey(shown.truth), shown.truth)),
                ("prediction", f"{hit + false:,} pixels", outlined(_grey(shown.pred), shown.pred)),
                ("difference", f"{false:,} false, {missed:,} missed",
                 difference(shown.image, shown.truth, shown.pred)),
            ],
        )
    ]  # fmt: skip
    if metric.name == "tgs_map" and hit + false + missed:
        drawings.append(iou_walk(hit, hit + false + missed))
    drawings.append(_over_threshold(metric, swept))
    title, label = (
        f"{metric.name}: the true mask, moved down and right",
        "score" if metric.higher_is_better else "distance",
    )
    drawings.append(_over_shift(title, _shifted_scores(metric, swept.truth), label, _steps(swept.truth)[1]))
    rows = [(name, f"{value:.4f}") for name, value in special_scores(metric, truth, pred).items()]
    if swept is not example:
        rows.append(("the curves", f"of the masks shrunk to {max(swept.truth.shape)} pixels"))
    counts = f"{hit:,} right, {false:,} false, {missed:,} missed, {right:,} background"
    return Explained(drawings, ("predicted", metric.name), [("pixels of this image", counts), *rows])


def special_scores(metric: Metric, truth: Mask, pred: Mask) -> dict[str, float]:
    """Return the score of an image in the cases that definitions differ in."""
    empty = np.zeros_like(truth)
    cases = {
        "this prediction": (pred, truth),
        "the truth itself": (truth, truth),
        "nothing, where there is something": (empty, truth),
        "something, where there is nothing": (truth if truth.any() else empty + 1, empty),
        "nothing, where there is nothing": (empty, empty),
    }
    return {name: _score(metric, one, true) for name, (one, true) in cases.items()}


def _score(metric: Metric, pred: Mask, truth: Mask) -> float:
    groups = np.array(["all"]) if metric.by_group else None
    return metric.score(metric.stats(pred, truth)[None], groups)


def _over_threshold(metric: Metric, example: Example) -> Drawing:
    scores = [_score(metric, (example.probs > t).astype(np.uint8), example.truth) for t in _THRESHOLDS]
    drawing = Drawing(W, 290, f"{metric.name} of this image at every threshold of the probability")
    top = (
        max(1.0, max((s for s in scores if np.isfinite(s)), default=1.0))
        if not metric.higher_is_better
        else 1.0
    )
    chart = Chart(
        drawing, (70, 60, 660, 170), x_range=(0, 1), y_range=(0, top), x_label="threshold", y_label=""
    )
    chart.line(_THRESHOLDS.tolist(), np.minimum(scores, top).tolist())
    chart.upright(0.5, "0.5", colour=GREEN)
    return drawing


def _shifted_scores(metric: Metric, truth: Mask) -> list[float]:
    return [_score(metric, moved_mask(truth, step), truth) for step in _steps(truth)]


def _steps(mask: Mask) -> list[int]:
    """Return 21 distances, up to a fifth of the longer side."""
    each = max(1, round(max(mask.shape) / 100))
    return [each * at for at in range(21)]


def _over_shift(title: str, values: Sequence[float], label: str, step: int) -> Drawing:
    drawing = Drawing(W, 270, title)
    top = max(max((v for v in values if np.isfinite(v)), default=1.0), 1e-6)
    top = 1.0 if 0.5 < top <= 1 else 1.1 * top
    chart = Chart(drawing, (70, 60, 660, 150), x_range=(0, 20 * step), y_range=(0, top),
                  x_label="pixels", y_label=label)  # fmt: skip
    chart.line([step * at for at in range(21)], np.minimum(values, top).tolist(), colour=ORANGE)
    return drawing


def _grey(mask: Mask) -> Heat:
    return np.repeat((60 + 150 * mask)[..., None], 3, axis=2).astype(np.uint8)


# --- losses -----------------------------------------------------------------------------------------------


def explain_loss(name: str, example: Example) -> Explained:
    """Show a loss on an image: its value, where its gradient pulls, and what it says of other predictions."""
    if name in IMAGE_LOSSES:
        return _image_loss(name, example)
    shown = small(example)
    logits = np.clip(_logit(shown.probs), -12, 12)
    value, pull = loss_and_pull(name, logits, shown.truth)
    drawings = [
        strip(
            f"{name} = {value:.4f}: where it pulls",
            [
                ("image", "", shown.image),
                ("truth", f"{int(shown.truth.sum()):,} pixels", outlined(_grey(shown.truth), shown.truth)),
                ("probability", "white: 1", np.repeat(np.rint(255 * shown.probs)[..., None], 3, 2).astype(np.uint8)),
                ("gradient", "blue: raise it, orange: lower it", _pull_map(pull)),
            ],
        )
    ]  # fmt: skip
    if name.startswith("lovasz"):
        drawings += [lovasz_order(), _lovasz_here(shown.truth, logits)]
    if name in _OF_PIXELS:
        drawings.append(_one_pixel(name))
    mask = shown.truth if shown.truth.any() else shown.pred
    values = [loss_and_pull(name, _logit(soft(moved_mask(mask, step))), mask)[0] for step in _steps(mask)]
    title = f"{name}: a prediction of the true mask, moved down and right"
    drawings.append(_over_shift(title, values, "loss", _steps(mask)[1]))
    rows = [(case, f"{value:.4f}") for case, value in special_losses(name, shown.truth).items()]
    return Explained(drawings, ("predicted", name), [("this prediction", f"{value:.4f}"), *rows])


def special_losses(name: str, truth: Mask) -> dict[str, float]:
    """Return the loss of predictions that are right, unsure and wrong."""
    sign, empty = 2.0 * truth - 1, np.zeros_like(truth)
    cases = {
        f"right and sure (logits ±{_SURE:g})": (_SURE * sign, truth),
        "right and unsure (logits ±0.5)": (0.5 * sign, truth),
        "probability 0.5 everywhere": (0.0 * sign, truth),
        "nothing, and sure, where there is something": (np.full(truth.shape, -_SURE), truth),
        "nothing, and sure, where there is nothing": (np.full(truth.shape, -_SURE), empty),
        "wrong and sure": (-_SURE * sign, truth),
    }
    return {case: loss_and_pull(name, logits, true)[0] for case, (logits, true) in cases.items()}


def loss_and_pull(
    name: str, logits: Float[np.ndarray, "h w"], truth: Mask
) -> tuple[float, Float[np.ndarray, "h w"]]:
    """Return a loss of the mask's logits, and its gradient by the logit of each pixel."""
    scores = torch.from_numpy(np.asarray(logits, np.float32)).requires_grad_()
    inputs, target = _as_asked(name, scores, truth)
    value = MASK_LOSSES[name](inputs, target)
    (gradient,) = torch.autograd.grad(value, scores)
    return float(value.detach()), gradient.numpy().astype(np.float64)


def _as_asked(name: str, scores: Tensor, truth: Mask) -> tuple[Tensor, Tensor]:
    """Return logits and target in the form that a loss takes: a plane, two classes, or the planes of objects."""
    if name == "cross_entropy":
        return torch.stack([torch.zeros_like(scores), scores])[None], torch.from_numpy(truth)[None]
    if name == "objects":
        labels = cv2.connectedComponents(truth)[1].astype(np.int32)
        planes = torch.from_numpy(object_planes(labels)).permute(2, 0, 1)  # (h, w, 3) -> (3, h, w)
        rest = torch.stack([torch.full_like(scores, -_SURE), torch.zeros_like(scores)])
        return torch.cat([scores[None], rest])[None], planes[None]
    return scores[None, None], torch.from_numpy(truth)[None]


def _logit(probs: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    inside = np.clip(probs, 1e-5, 1 - 1e-5)
    return np.log(inside / (1 - inside))


def _pull_map(pull: Float[np.ndarray, "h w"]) -> Heat:
    """Return a gradient as a picture: blue where the logit is to rise, orange where it is to fall."""
    top = float(np.quantile(np.abs(pull), 0.995)) or float(np.abs(pull).max()) or 1.0
    share = np.clip(np.abs(pull) / top, 0, 1)[..., None] ** 0.6
    colour = np.where(pull[..., None] < 0, np.array([37, 99, 235]), np.array([217, 119, 6]))
    return np.rint(255 + share * (colour - 255.0)).astype(np.uint8)


def _lovasz_here(truth: Mask, logits: Float[np.ndarray, "h w"]) -> Drawing:
    """Return the errors of the image's pixels in order, and how the Jaccard loss grows along them."""
    rows = lovasz_rows(truth.ravel(), logits.ravel())
    there = max(1, sum(error > 0 for _, _, error, _, _ in rows))
    errors, loss = [row[2] for row in rows[:there]], [row[4] for row in rows[:there]]
    drawing = Drawing(W, 300, f"This image: {there:,} of {len(rows):,} pixels have an error above 0")
    top = max(errors[0], 1.0)
    chart = Chart(
        drawing, (70, 70, 650, 170), x_range=(0, max(2, there)), y_range=(0, 1), x_label="pixels, the worst first",
    )  # fmt: skip
    chart.line(list(range(there)), [max(0.0, error) / top for error in errors], colour=ORANGE)
    chart.line(list(range(there)), loss, colour=BLUE)
    chart.key([f"error / {top:.2f}", "Jaccard loss so far"], (ORANGE, BLUE))
    return drawing


def _one_pixel(name: str) -> Drawing:
    probs = np.linspace(0.01, 0.99, 99)
    drawing = Drawing(W, 290, f"{name} of one pixel, over the probability that is predicted for it")
    curves = [
        [loss_and_pull(name, np.array([[score]]), np.array([[true]], np.uint8))[0] for score in _logit(probs)]
        for true in (1, 0)
    ]
    top = 1.05 * max(map(max, curves))
    chart = Chart(drawing, (70, 60, 660, 170), x_range=(0, 1), y_range=(0, top), x_label="probability of foreground",
                  y_label="loss")  # fmt: skip
    for curve, colour in zip(curves, SERIES, strict=False):
        chart.line(probs.tolist(), curve, colour=colour)
    names = ["it is foreground", "it is background"]
    if name == "focal":
        bce = [min(top, -math.log(p)) for p in probs]
        chart.line(probs.tolist(), bce, colour=FAINT, dash="5 4", width=1.5)
        names.append("BCE of foreground")
    chart.key(names, (*SERIES[:2], FAINT))
    return drawing


def _image_loss(name: str, example: Example) -> Explained:
    probs = np.linspace(0.01, 0.99, 99)
    target = torch.from_numpy(example.truth)[None]
    empty = torch.zeros_like(target)
    full = target if target.any() else torch.ones_like(target)
    curves = [
        [
            float(IMAGE_LOSSES[name](torch.tensor([[score]], dtype=torch.float32), one))
            for score in _logit(probs)
        ]
        for one in (full, empty)
    ]
    drawing = Drawing(W, 290, f"{name} of one image, over the probability that it has any foreground")
    chart = Chart(drawing, (70, 60, 660, 170), x_range=(0, 1), y_range=(0, 1.05 * max(map(max, curves))),
                  x_label="probability that something is there", y_label="loss")  # fmt: skip
    for curve, colour in zip(curves, SERIES, strict=False):
        chart.line(probs.tolist(), curve, colour=colour)
    chart.key(["something is there", "nothing is there"])
    rows = [
        (f"{probs[at]:.2f}", f"{curves[0][at]:.4f}", f"{curves[1][at]:.4f}") for at in (0, 24, 49, 74, 98)
    ]
    return Explained([drawing], ("probability", "something is there", "nothing is there"), rows)


# --- views and augmentation -------------------------------------------------------------------------------


def explain_view(name: str, example: Example) -> Explained:
    """Show a view of test-time augmentation: seen, predicted, brought back, and what the mean of two gains."""
    shown, view, rng = small(example), View(TTA[name]), np.random.default_rng(0)
    seen = np.ascontiguousarray(view.apply(shown.image))

    def mock_net(probs: Float[np.ndarray, "h w 1"]) -> Float[np.ndarray, "h w 1"]:
        """Stand in for a net that errs by chance, and otherwise in each view than in the other."""
        noise = cv2.GaussianBlur(rng.normal(0, 6, probs.shape[:2]), (0, 0), 3)[..., None]
        return 1 / (1 + np.exp(-(_logit(probs) + noise)))

    probs = soft(shown.truth)[..., None]
    if not shown.truth.any():  # without a mask the net sees what is light
        probs = cv2.GaussianBlur(shown.image.mean(axis=2) / 255, (0, 0), 2)[..., None]
    there = mock_net(probs)
    answered = mock_net(np.ascontiguousarray(view.apply(probs)))
    back = np.ascontiguousarray(view.undo(answered))
    mean = (there + back) / 2
    off = [float(np.sqrt(np.mean((one - probs) ** 2))) for one in (there, back, mean)]

    def grey(values: Float[np.ndarray, "h w 1"]) -> RGB:
        return np.repeat(np.rint(255 * values), 3, axis=2).astype(np.uint8)

    drawing = strip(
        f"The view {name}: look, predict, bring back, average",
        [
            ("image", "", shown.image),
            ("as it is seen", name, seen),
            ("predicted of that", "a mock net", grey(answered)),
            ("brought back", f"off by {off[1]:.3f}", grey(back)),
        ],
    )
    both = strip(
        "The mean of two views errs less than they do on average",
        [
            ("identity", f"off by {off[0]:.3f}", grey(there)),
            (name, f"off by {off[1]:.3f}", grey(back)),
            ("mean", f"off by {off[2]:.3f}", grey(mean)),
            ("what is there", "", grey(probs)),
        ],
    )
    names = ("identity alone", f"{name} alone", "their mean")
    rows = [(words, f"{value:.4f}") for words, value in zip(names, off, strict=True)]
    return Explained([drawing, both], ("mock net", "root mean square error of the probability"), rows)


def explain_augmentation(
    name: str, make: Made, example: Example | None, drawn: tuple[RGB, Mask]
) -> Explained:
    """Show what an augmentation makes of an image and its mask: four draws.

    Args:
        name: Of the field.
        make: What it does.
        example: A person's own; None: ``drawn``.
        drawn: An image with lines, on which bends are seen.
    """
    image, mask = drawn
    if example is not None:
        shown = small(example)
        image, mask = shown.image, shown.truth
    made = [make(image, mask, seed) for seed in (1, 2, 3)]
    panels = [("before", "", outlined(image, mask))]
    panels += [(f"draw {at}", "", outlined(*one)) for at, one in enumerate(made, start=1)]
    areas = [int((labels == 1).sum()) for _, labels in made]
    rows = [("before", f"{int((mask == 1).sum()):,}")]
    rows += [(f"draw {at}", f"{area:,}") for at, area in enumerate(areas, start=1)]
    drawing = strip(f"{name}: strongly, so that it is seen; the outline is the mask's", panels)
    return Explained([drawing], ("image", "pixels of the mask"), rows)
