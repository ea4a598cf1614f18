"""Drawings of how things work that need no run: nets, layers, optimizers, how predictions are joined.

What is drawn is computed by the code that is explained, where there is any, or by numpy.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from masksmith.reporting.drawing import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SERIES,
    TINTS,
    Chart,
    Drawing,
    W,
)

Lines = Sequence[str]
_BOX, _ROW = 190, 62  # width of a box, height of a level


# --- nets and their layers --------------------------------------------------------------------------------


def u_net(
    title: str, left: Sequence[Lines], middle: Lines, right: Sequence[Lines], *, skip: str, head: Lines, entry: Lines,
    notes: Lines = (),
) -> Drawing:  # fmt: skip
    """Return a net in the form of a U: encoder red, decoder blue, head green.

    Args:
        title: Of the picture.
        left: Boxes of the encoder, the finest first.
        middle: Box at the bottom.
        right: Boxes of the decoder, the finest first, as many as ``left`` or one more at the top.
        skip: What an arrow from left to right means.
        head: Box after the finest decoder level.
        entry: Box before the finest encoder level.
        notes: Lines below.
    """
    rows = max(len(left), len(right))
    drawing = Drawing(W, 124 + _ROW * (rows + 1) + 16 * len(notes), title)
    x_left, x_right, top = 40, W - 40 - _BOX, 46
    drawing.box(x_left, top, _BOX, 40, entry)
    drawing.box(x_right, top, _BOX, 40, head, colour=GREEN)
    first_left, first_right = rows - len(left), rows - len(right)
    for at, lines in enumerate(left, start=first_left):
        y = top + _ROW * (at + 1)
        above = top if at == first_left else y - _ROW
        drawing.arrow((x_left + _BOX / 2, above + 40), (x_left + _BOX / 2, y))
        drawing.box(x_left, y, _BOX, 40, lines, colour=RED)
        drawing.arrow((x_left + _BOX, y + 20), (x_right, y + 20), dash="4 3")
        drawing.text(W / 2, y + 15, skip, size=11, colour=FAINT, anchor="middle")
    for at, lines in enumerate(right, start=first_right):
        y = top + _ROW * (at + 1)
        drawing.arrow((x_right + _BOX / 2, y), (x_right + _BOX / 2, y - _ROW + 40))
        drawing.box(x_right, y, _BOX, 40, lines, colour=BLUE)
    bottom = top + _ROW * (rows + 1)
    x_middle = W / 2 - _BOX / 2
    drawing.arrow(
        (x_left + _BOX / 2, bottom - _ROW + 40), (x_left + _BOX / 2, bottom + 20), (x_middle, bottom + 20)
    )
    drawing.box(x_middle, bottom, _BOX, 40, middle, colour=PURPLE)
    drawing.arrow(
        (x_middle + _BOX, bottom + 20),
        (x_right + _BOX / 2, bottom + 20),
        (x_right + _BOX / 2, bottom - _ROW + 40),
    )
    for at, words in enumerate(notes):
        drawing.text(20, bottom + 66 + 16 * at, words, size=12, colour=FAINT)
    return drawing


def classical_unet() -> Drawing:
    """Return the U-Net of the paper, with borders that are kept."""
    widths, sizes = (64, 128, 256, 512), (512, 256, 128, 64)
    return u_net(
        "U-Net: what is seen on the left finds its place on the right",
        [(f"{w} × {s}²", "2 conv 3×3, then max pool") for w, s in zip(widths, sizes, strict=True)],
        ("1024 × 32²", "2 conv 3×3"),
        [(f"{w} × {s}²", "up-conv 2×2, join, 2 conv") for w, s in zip(widths, sizes, strict=True)],
        skip="concatenated",
        head=("1 × 512²", "conv 1×1: logits"),
        entry=("1 × 512²", "image"),
        notes=(
            "The paper (2015) has no padding: 572² gives 388², and what goes across is cropped. With padding 1,",
            "as nearly all code has it, sizes stay and nothing is cropped.",
        ),
    )


def residual_block() -> Drawing:
    """Return a residual block with pre-activation."""
    drawing = Drawing(W, 190, "Residual block: the input is added, not concatenated")
    names = (("BN", ""), ("ReLU", ""), ("conv 3×3", ""), ("BN", ""), ("ReLU", ""), ("conv 3×3", ""))
    drawing.box(16, 80, 62, 40, ("x", "c × h × w"))
    for at, (name, _) in enumerate(names):
        x = 106 + 88 * at
        drawing.box(x, 80, 72, 40, (name,), colour=BLUE if "conv" in name else FAINT)
        drawing.arrow((x - 28 if at == 0 else x - 16, 100), (x, 100))
    drawing.arrow((618, 100), (640, 100))
    drawing.box(640, 80, 36, 40, ("+",), colour=GREEN)
    drawing.arrow((676, 100), (692, 100))
    drawing.box(692, 80, 56, 40, ("x + F(x)",))
    drawing.arrow((47, 120), (47, 150), (658, 150), (658, 120), colour=GREEN)
    drawing.text(352, 168, "the same x: a gradient reaches it whatever F does", colour=FAINT, anchor="middle")
    return drawing


def _grid(
    drawing: Drawing, x: float, y: float, values: Float[np.ndarray, "h w"], side: float,
    *, marked: Sequence[tuple[int, int]] = (), colour: str = BLUE,
) -> None:  # fmt: skip
    for (row, column), value in np.ndenumerate(values):
        fill = TINTS[colour] if (row, column) in marked else "#ffffff"
        drawing.rect(x + side * column, y + side * row, side - 2, side - 2, fill=fill, stroke=FAINT)
        drawing.text(
            x + side * column + side / 2 - 1,
            y + side * row + side / 2 + 4,
            f"{value:g}",
            size=13,
            anchor="middle",
        )


def max_pool() -> Drawing:
    """Return a pooling from 4x4 to 2x2 with all its numbers."""
    values = np.array([[1, 3, 2, 1], [4, 6, 5, 0], [7, 2, 9, 8], [0, 1, 3, 4]], np.float64)
    pooled = values.reshape(2, 2, 2, 2).max(axis=(1, 3))
    drawing = Drawing(W, 250, "Max pooling 2×2: the largest of each four, from 4×4 to 2×2")
    places = [
        (int(row), int(column))
        for row, column in zip(*np.nonzero(values == pooled.repeat(2, 0).repeat(2, 1)), strict=True)
    ]
    _grid(drawing, 90, 50, values, 44, marked=places)
    drawing.arrow((290, 138), (380, 138))
    _grid(drawing, 410, 94, pooled, 44, marked=[(0, 0), (0, 1), (1, 0), (1, 1)])
    drawing.text(520, 120, "The largest is kept, not its place:", colour=FAINT)
    drawing.text(520, 138, "skip connections bring that back.", colour=FAINT)
    return drawing


def convolution() -> Drawing:
    """Return a convolution of 5x5 by 3x3 without padding, with all its numbers."""
    image = np.array(
        [[0, 0, 0, 9, 9], [0, 0, 0, 9, 9], [0, 0, 9, 9, 9], [0, 9, 9, 9, 9], [9, 9, 9, 9, 9]], np.float64
    )
    kernel = np.array([[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]], np.float64)
    found = np.array(
        [[(image[r : r + 3, c : c + 3] * kernel).sum() for c in range(3)] for r in range(3)], np.float64
    )
    drawing = Drawing(W, 290, "Convolution 3×3: nine products, one sum, the same nine weights everywhere")
    window = [(row, column) for row in range(3) for column in range(1, 4)]
    _grid(drawing, 40, 50, image, 38, marked=window, colour=ORANGE)
    drawing.text(258, 150, "×", size=20, anchor="middle")
    _grid(drawing, 290, 88, kernel, 38, marked=[(r, c) for r in range(3) for c in range(3)], colour=PURPLE)
    drawing.arrow((420, 145), (480, 145))
    _grid(drawing, 500, 88, found, 38, marked=[(0, 1)], colour=ORANGE)
    drawing.text(40, 264, "This kernel answers where it is dark on the left and light on the right. Nets learn theirs.",
                 colour=FAINT)  # fmt: skip
    drawing.text(40, 281, "Without padding 5×5 gives 3×3; a border of one zero all round (padding 1) keeps 5×5.",
                 colour=FAINT)  # fmt: skip
    return drawing


def activations() -> Drawing:
    """Return ReLU, leaky ReLU, swish and ELU."""
    drawing = Drawing(W, 300, "Activations")
    x = np.linspace(-4, 3, 141)
    curves: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ReLU": lambda v: np.maximum(v, 0),
        "leaky ReLU 0.1": lambda v: np.where(v > 0, v, 0.1 * v),
        "swish": lambda v: v / (1 + np.exp(-v)),
        "ELU": lambda v: np.where(v > 0, v, np.expm1(v)),
    }
    chart = Chart(
        drawing, (70, 60, 660, 190), x_range=(-4, 3), y_range=(-1.2, 3), x_label="x", y_label="f(x)"
    )
    for (name, curve), colour in zip(curves.items(), SERIES, strict=False):
        chart.line(x.tolist(), curve(x).tolist(), colour=colour, dash="6 4" if name == "ELU" else "")
    chart.key(list(curves))
    return drawing


def sigmoid() -> Drawing:
    """Return the sigmoid and its derivative."""
    drawing = Drawing(W, 300, "Sigmoid: logit 0 is probability 0.5")
    x = np.linspace(-6, 6, 121)
    value = 1 / (1 + np.exp(-x))
    chart = Chart(drawing, (70, 60, 660, 190), x_range=(-6, 6), y_range=(0, 1), x_label="logit", y_label="")
    chart.line(x.tolist(), value.tolist(), colour=BLUE)
    chart.line(x.tolist(), (value * (1 - value)).tolist(), colour=ORANGE, dash="6 4")
    chart.upright(0, "threshold 0 of logits = 0.5 of probabilities", before=True)
    chart.key(["sigmoid", "its slope: p · (1 − p)"])
    return drawing


def batch_norm() -> Drawing:
    """Return two channels before and after batch normalisation."""
    rng = np.random.default_rng(0)
    before = [rng.normal(3, 2, 4000), rng.normal(-4, 0.7, 4000)]
    after = [(values - values.mean()) / np.sqrt(values.var() + 1e-5) for values in before]
    drawing = Drawing(
        W, 330, "Batch normalisation: each channel to mean 0 and variance 1, then scaled and shifted"
    )
    titles = ("as they come: 2 channels", "normalised: (z − μ) / √(σ² + ε)", "γ · ẑ + β, both learnt")
    for at, (title, pair) in enumerate(zip(titles, (before, after, after), strict=True)):
        shown = pair if at < 2 else [0.6 * pair[0] - 2, 1.6 * pair[1] + 2]
        chart = Chart(drawing, (50 + 245 * at, 80, 200, 150), x_range=(-8, 10), y_range=(0, 0.7), title=title)
        for values, colour in zip(shown, SERIES, strict=False):
            counts, edges = np.histogram(values, bins=72, range=(-8, 10), density=True)
            chart.line(((edges[1:] + edges[:-1]) / 2).tolist(), counts.tolist(), colour=colour)
    drawing.text(20, 290, "μ and σ² are those of the batch in training (over images, rows and columns), and running",
                 colour=FAINT)  # fmt: skip
    drawing.text(
        20,
        308,
        "means of them in prediction. A bias before it changes nothing: β takes its place.",
        colour=FAINT,
    )
    return drawing


# --- how weights are found --------------------------------------------------------------------------------


def adam() -> Drawing:
    """Return the length of Adam's first steps under a constant gradient, with the right and two wrong corrections."""
    steps = np.arange(1, 61)
    beta1, beta2 = 0.9, 0.999
    mean, square = 1 - beta1**steps, 1 - beta2**steps  # the running means of a gradient that is always 1
    right = (mean / (1 - beta1**steps)) / np.sqrt(square / (1 - beta2**steps))
    wrong = (mean / (1 - beta1**steps)) / np.sqrt(square / (1 - beta1**steps))
    none = mean / np.sqrt(square)
    drawing = Drawing(
        W, 320, "Adam: the first steps under a gradient that does not change, in learning rates"
    )
    chart = Chart(
        drawing, (70, 70, 650, 180), x_range=(0, 60), y_range=(0, 12), x_label="step", y_label="step / rate"
    )
    for values, colour in zip((right, wrong, none), SERIES, strict=False):
        chart.line(steps.tolist(), np.minimum(values, 12).tolist(), colour=colour)
    chart.key(["both corrected: 1", "s corrected with β1: wrong", "not corrected"])
    return drawing


def lovasz_order(
    truth: Sequence[int] = (1, 1, 1, 0, 0, 0, 0, 1), logits: Sequence[float] | None = None
) -> Drawing:
    """Return how the Lovász hinge orders the errors of a few pixels, and what each weighs.

    Args:
        truth: 0 and 1 of each pixel.
        logits: Of each; None: an example.
    """
    scores = np.array(logits or (2.5, 0.4, -0.6, -2.0, 1.2, -0.3, -1.5, 1.0))
    rows = lovasz_rows(np.array(truth), scores)
    total = sum(max(0.0, error) * growth for _, _, error, growth, _ in rows)
    drawing = Drawing(W, 360, f"Lovász hinge on {len(rows)} pixels: sum of error × growth = {total:.3f}")
    chart = Chart(drawing, (70, 70, 660, 100), x_range=(0, len(rows)), y_range=(0, 2.5), ticks=False,
                  title="errors 1 ∓ logit from the worst down (0 where a pixel is right with a margin)")  # fmt: skip
    below = Chart(drawing, (70, 215, 660, 90), x_range=(0, len(rows)), y_range=(0, 0.5), ticks=False,
                  title="how much the Jaccard loss grows as each joins the wrong ones: its weight")  # fmt: skip
    for at, (pixel, true, error, growth, jaccard) in enumerate(rows):
        colour = ORANGE if true else BLUE
        chart.bars([at + 0.12], [at + 0.88], [max(0.0, error)], colour=colour)
        below.bars([at + 0.12], [at + 0.88], [growth], colour=colour)
        middle = chart.at(at + 0.5, 0)[0]
        drawing.text(middle, 186, f"pixel {pixel + 1}", size=11, colour=FAINT, anchor="middle")
        drawing.text(middle, 322, f"{growth:.3f}", size=11, anchor="middle")
        drawing.text(middle, 338, f"→ {jaccard:.3f}", size=11, colour=FAINT, anchor="middle")
    chart.key(["true pixels", "others"], (ORANGE, BLUE), y=28)
    return drawing


def lovasz_rows(
    truth: Float[np.ndarray, " n"] | np.ndarray, logits: Float[np.ndarray, " n"]
) -> list[tuple[int, bool, float, float, float]]:
    """Return (pixel, whether it is true, error, growth of the Jaccard loss, the loss so far), the worst error first."""
    true = np.asarray(truth).astype(bool)
    errors = 1 - np.where(true, logits, -logits)
    order = np.argsort(-errors, kind="stable")
    missed, alarms = np.cumsum(true[order]), np.cumsum(~true[order])
    jaccard = 1 - (true.sum() - missed) / (true.sum() + alarms)
    growth = np.diff(jaccard, prepend=0.0)
    return [
        (int(pixel), bool(true[pixel]), float(errors[pixel]), float(growth[at]), float(jaccard[at]))
        for at, pixel in enumerate(order)
    ]


# --- how predictions are joined, and judged ---------------------------------------------------------------


def views() -> Drawing:
    """Return test-time augmentation with a mirror image."""
    drawing = Drawing(W, 230, "Test-time augmentation: flip, predict, flip back, mean")
    for y, flipped in ((60, False), (150, True)):
        drawing.box(190, y, 110, 44, ("mirrored" if flipped else "as it is", "view"), colour=FAINT)
        drawing.box(340, y, 90, 44, ("net", "same weights"), colour=PURPLE)
        drawing.box(
            470, y, 120, 44, ("mirrored back" if flipped else "as it is", "probabilities"), colour=BLUE
        )
        drawing.arrow((130, 127), (160, 127), (160, y + 22), (190, y + 22))
        drawing.arrow((300, y + 22), (340, y + 22))
        drawing.arrow((430, y + 22), (470, y + 22))
        drawing.arrow((590, y + 22), (620, y + 22), (620, 127), (650, 127))
    drawing.box(30, 105, 100, 44, ("image", "true size"))
    drawing.box(650, 105, 80, 44, ("mean", "> threshold"), colour=GREEN)
    return drawing


def resolutions() -> Drawing:
    """Return the ensemble of two resolutions."""
    drawing = Drawing(W, 250, "Two resolutions, one mask")
    for y, size in ((60, 512), (160, 768)):
        drawing.box(160, y, 110, 44, (f"resize to {size}", "both views"))
        drawing.box(300, y, 110, 44, (f"net of {size}", "U-Net++ B4"), colour=PURPLE)
        drawing.box(440, y, 130, 44, ("resize to 1024", "probabilities"), colour=BLUE)
        drawing.arrow((120, 132), (140, 132), (140, y + 22), (160, y + 22))
        drawing.arrow((270, y + 22), (300, y + 22))
        drawing.arrow((410, y + 22), (440, y + 22))
        drawing.arrow((570, y + 22), (590, y + 22), (590, 132), (610, 132))
    drawing.box(20, 110, 100, 44, ("radiograph", "1024×1024"))
    drawing.box(610, 104, 130, 56, ("mean", "> 0.5, then", "drop small parts"), colour=GREEN)
    return drawing


def pipeline() -> Drawing:
    """Return the way from a data folder to a submission."""
    drawing = Drawing(W, 260, "The whole way, every choice judged out of fold")
    steps = (
        (("data", "images, masks, tables"), FAINT), (("check", "duplicates, blanks"), FAINT),
        (("folds", "written once"), FAINT), (("train", "stages, fold by fold"), PURPLE),
        (("report", "one page"), GREEN), (("submit", "masks and CSV, checked"), GREEN),
        (("tune", "on out-of-fold maps"), BLUE), (("predict", "views, true size"), BLUE),
    )  # fmt: skip
    for at, (lines, colour) in enumerate(steps):
        x, y = 25 + 182 * (at % 4), 60 if at < 4 else 160
        drawing.box(x, y, 158, 48, lines, colour=colour)
    for at in range(3):
        drawing.arrow((183 + 182 * at, 84), (207 + 182 * at, 84))
        drawing.arrow((207 + 182 * at, 184), (183 + 182 * at, 184))
    drawing.arrow((650, 108), (650, 160))
    drawing.text(
        20, 240, "Held-out images are predicted only by a model that has not seen them.", colour=FAINT
    )
    return drawing


def iou_walk(hits: int = 872, union: int = 1349) -> Drawing:
    """Return the metric of TGS Salt on one image: an IoU, the thresholds it exceeds, their share.

    Args:
        hits: Pixels that are true and predicted.
        union: Pixels that are either; above 0.
    """
    drawing = Drawing(W, 300, f"One image's score: IoU {hits} / {union} = {hits / union:.4f}")
    side = math.sqrt((hits + union) / 2)  # two equal squares that share ``hits`` pixels
    scale = 145.74 / (2 * side - hits / side)  # they fit beside the chart
    shift = side - hits / side
    for at, colour in ((0, ORANGE), (1, BLUE)):
        drawing.rect(
            60 + scale * shift * at, 80, scale * side, scale * side, fill=colour, stroke=colour, opacity=0.35
        )
    drawing.text(60, 72, "truth", colour=ORANGE, weight="600")
    drawing.text(60 + scale * (side + shift), 72, "prediction", colour=BLUE, weight="600", anchor="end")
    drawing.text(60 + scale * (side + shift) / 2, 144, f"both: {hits}", anchor="middle", weight="600")
    drawing.text(
        60 + scale * (side + shift) / 2, 216, f"either: {union} pixels", anchor="middle", colour=FAINT
    )
    thresholds = [50 + 5 * i for i in range(10)]
    passed = sum(100 * hits > threshold * union for threshold in thresholds)
    chart = Chart(
        drawing, (330, 80, 400, 150), x_range=(47, 98), y_range=(0, 1.15), x_label="IoU threshold, %", ticks=False,
        title=f"hit where IoU > threshold: {passed} of 10, so the score is {passed / 10:g}",
    )  # fmt: skip
    for threshold in thresholds:
        hit = 100 * hits > threshold * union
        chart.bars([threshold - 2], [threshold + 2], [1 if hit else 0.03], colour=GREEN if hit else RED)
        place, low = chart.at(threshold, 0)
        drawing.text(place, low + 16, str(threshold), size=11, colour=FAINT, anchor="middle")
    chart.upright(100 * hits / union, f"{100 * hits / union:.1f}", colour=RED)
    return drawing


def coverage_classes() -> Drawing:
    """Return the eleven classes of coverage: nothing, and ten tenths."""
    drawing = Drawing(W, 170, "Coverage classes: the smallest i of 0 … 10 with 10 · coverage ≤ i")
    for at in range(11):
        x = 30 + 64 * at
        drawing.rect(x, 56, 54, 54, fill="#ffffff", stroke=INK)
        drawing.rect(x, 110 - 5.4 * at, 54, 5.4 * at, fill=ORANGE, opacity=0.8)
        drawing.text(x + 27, 128, str(at), size=13, anchor="middle", weight="600")
        words = "exactly 0" if at == 0 else f"≤ {10 * at}%"
        drawing.text(x + 27, 144, words, size=11, colour=FAINT, anchor="middle")
    return drawing
