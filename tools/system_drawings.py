"""The drawings of docs/systems that need no run: nets, schedules, activations, and how predictions are joined."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from drawing import BLUE, FAINT, GREEN, ORANGE, PURPLE, RED, SERIES, Chart, Drawing

from masksmith.training.config import ScheduleConfig
from masksmith.training.optim import lr_factor

Lines = Sequence[str]
_W, _BOX, _ROW = 760, 190, 62  # width of a picture, of a box, height of a level


# --- nets -------------------------------------------------------------------------------------------------


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
    drawing = Drawing(_W, 124 + _ROW * (rows + 1) + 16 * len(notes), title)
    x_left, x_right, top = 40, _W - 40 - _BOX, 46
    drawing.box(x_left, top, _BOX, 40, entry)
    drawing.box(x_right, top, _BOX, 40, head, colour=GREEN)
    first_left, first_right = rows - len(left), rows - len(right)
    for at, lines in enumerate(left, start=first_left):
        y = top + _ROW * (at + 1)
        above = top if at == first_left else y - _ROW
        drawing.arrow((x_left + _BOX / 2, above + 40), (x_left + _BOX / 2, y))
        drawing.box(x_left, y, _BOX, 40, lines, colour=RED)
        drawing.arrow((x_left + _BOX, y + 20), (x_right, y + 20), dash="4 3")
        drawing.text(_W / 2, y + 15, skip, size=11, colour=FAINT, anchor="middle")
    for at, lines in enumerate(right, start=first_right):
        y = top + _ROW * (at + 1)
        drawing.arrow((x_right + _BOX / 2, y), (x_right + _BOX / 2, y - _ROW + 40))
        drawing.box(x_right, y, _BOX, 40, lines, colour=BLUE)
    bottom = top + _ROW * (rows + 1)
    x_middle = _W / 2 - _BOX / 2
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


def depth_unet() -> Drawing:
    """Return seed 000's net."""
    widths, sizes = (8, 16, 32, 64), (128, 64, 32, 16)
    return u_net(
        "U-Net with depth: 128×128, one number for each image",
        [(f"{w} × {s}²", "2 conv 3×3, ReLU") for w, s in zip(widths, sizes, strict=True)],
        ("128 × 8²", "64 maps + z as one more"),
        [(f"{w} × {s}²", "up-conv 2×2, 2 conv 3×3") for w, s in zip(widths, sizes, strict=True)],
        skip="concat",
        head=("1 × 128²", "conv 1×1, sigmoid"),
        entry=("1 × 128²", "image, 0…1"),
        notes=(
            "Between levels: max pooling 2×2. z is standardised, repeated over the 8×8 grid and concatenated there.",
        ),
    )


def model1() -> Drawing:
    """Return seed 004's Model 1."""
    widths, sizes, drops = (16, 32, 64, 128), (128, 64, 32, 16), (0.25, 0.5, 0.5, 0.5)
    return u_net(
        "Model 1: plain U-Net with dropout, 2,158,417 weights",
        [(f"{w} × {s}²", f"2 conv, pool, dropout {d}") for w, s, d in zip(widths, sizes, drops, strict=True)],
        ("256 × 8²", "2 conv 3×3, ReLU"),
        [(f"{w} × {s}²", "ConvT 3×3/2, dropout, 2 conv") for w, s in zip(widths, sizes, strict=True)],
        skip="concat",
        head=("1 × 128²", "conv 1×1, sigmoid"),
        entry=("1 × 128²", "101² scaled up"),
        notes=("All convolutions 3×3, ReLU. Dropout in the decoder: 0.5, after the skip is joined.",),
    )


def model2() -> Drawing:
    """Return seed 004's Model 2."""
    widths, sizes = (16, 32, 64, 128), (101, 50, 25, 12)
    ups = ("valid, 50 → 101", "same, 25 → 50", "valid, 12 → 25", "same, 6 → 12")
    return u_net(
        "Model 2: U-Net with residual blocks, 5,119,857 weights",
        [(f"{w} × {s}²", "conv, 2 residual blocks") for w, s in zip(widths, sizes, strict=True)],
        ("256 × 6²", "conv, 2 residual blocks"),
        [(f"{w} × {s}²", f"ConvT 3×3/2 {up}") for w, s, up in zip(widths, sizes, ups, strict=True)],
        skip="concat, dropout 0.5",
        head=("1 × 101²", "conv 1×1, logits"),
        entry=("1 × 101²", "image, 0…1"),
        notes=(
            "Between levels: max pooling 2×2 and dropout (0.25 on the first, 0.5 on the others).",
            "Residual block: BN, ReLU, conv 3×3, BN, ReLU, conv 3×3, plus its input.",
        ),
    )


def tiny_diagram_unet() -> Drawing:
    """Return the ten levels of seed 004's diagram."""
    return u_net(
        "The diagram's net: ten levels, few weights",
        [("l1", "1 → 3 → 3 → 3"), ("l2", "3 → 6 → 6"), ("l3", "6 → 12 → 12"), ("l4", "12 → 24 → 24")],
        ("l5", "24 → 48 → 48 → 24"),
        [("l9", "up, 3 → 3"), ("l8", "up, 6 → 3"), ("l7", "up, 12 → 6"), ("l6", "up, 24 → 12")],
        skip="concat, then up",
        head=("l10", "3 → 1"),
        entry=("1 channel", "image"),
        notes=(
            "Counts are channels before and after each layer; the left half doubles them, the right half halves them.",
        ),
    )


def hyper_unet() -> Drawing:
    """Return the ResNet34 net of TGS Salt's first place."""
    widths, sizes = (64, 128, 256, 512), (128, 64, 32, 16)
    return u_net(
        "First place, ResNet34 padded to 128: FPA, scSE, hypercolumns",
        [(f"{w} × {s}²", "ResNet34 stage, scSE") for w, s in zip(widths, sizes, strict=True)],
        ("256 × 8²", "FPA without 7×7, max pool"),
        [(f"64 × {s}²", "ConvT ‖ skip, BN, ReLU, scSE") for s in sizes],
        skip="1×1",
        head=("1 × 128²", "256 → dropout → 32 → 1"),
        entry=("3 × 128²", "conv 3×3/1, no pooling"),
        notes=(
            "Input: the image, a ramp of rows from 0 to 1, and their product. A decoder block: half ConvT, half skip.",
            "Head: four decoder maps resized to 128² and stacked (256), Dropout2d 0.4, conv 3×3, ELU, conv 1×1.",
        ),
    )


def resnext_unet() -> Drawing:
    """Return the ResNeXt50 net of TGS Salt's first place."""
    left = ((64, 112), (256, 56), (512, 28), (1024, 14))
    right = ((8, 224), (16, 112), (32, 56), (64, 28), (128, 14))
    return u_net(
        "First place, ResNeXt50: 101 resized to 192, padded to 224",
        [(f"{w} × {s}²", "stem" if at == 0 else "ResNeXt50 stage") for at, (w, s) in enumerate(left)],
        ("2048 × 7²", "ResNeXt50 stage 4"),
        [(f"{w} × {s}²", "ConvT 4×4, conv 3×3, BN, scSE") for w, s in right],
        skip="concat",
        head=("1 × 224²", "dropout 0.2, conv 1×1"),
        entry=("3 × 224²", "grey repeated"),
    )


def cloud_unet() -> Drawing:
    """Return seed 001's net with its first encoder."""
    left = ((24, 256), (48, 128), (64, 64), (160, 32))
    right = ((32, 512), (48, 256), (96, 128), (128, 64), (256, 32))
    return u_net(
        "Satellite net with EfficientNetV2-S: 512×512, four bands",
        [(f"{w} × {s}²", "encoder stage") for w, s in left],
        ("256 × 16²", "encoder's last stage"),
        [(f"{w} × {s}²", "×2 nearest, conv, concat, conv") for w, s in right],
        skip="concat",
        head=("1 × 512²", "conv 1×1"),
        entry=("4 × 512²", "B02, B03, B04, B08"),
        notes=(
            "Activation: SiLU for EfficientNetV2, ReLU otherwise. With ResNet34 the decoder is 64-32-24-16-8.",
        ),
    )


def hyperkernel_unetpp() -> Drawing:
    """Return seed 002's net: which map goes where."""
    drawing = Drawing(_W, 486, "Simplified U-Net++ on EfficientNet-B4: hyperkernel paths, 512×512")
    levels = (("256²", 144, 384), ("128²", 192, 416), ("64²", 336, 528), ("32²", 960, 1088))
    widths, x_tap, x_out, top = (16, 32, 64, 128), 40, 630, 116
    drawing.box(x_tap, 46, 150, 40, ("3 × 512²", "swish inside"))
    drawing.box(x_out - 60, 46, 150, 40, ("8 × 512² → 1", "ResBlock, conv 1×1"), colour=GREEN)
    for at, ((size, tap, stacked), width) in enumerate(zip(levels, widths, strict=True)):
        y = top + 72 * at
        drawing.box(x_tap, y, 110, 40, (f"{tap} × {size}", "encoder tap"), colour=RED)
        drawing.box(x_out - 60, y, 150, 40, (f"{width} × {size}", f"{stacked} in, ResBlock"), colour=BLUE)
        ups = [widths[deep] for deep in range(at, 4)]
        first = 200
        for k, up in enumerate(ups):
            x = first + 86 * (3 - at - k)
            drawing.box(x, y, 74, 40, (f"{up}", "up-conv"), colour=ORANGE)
            if k:  # the chain comes from the level below, in the same column
                drawing.arrow((x + 37, y + 72), (x + 37, y + 40))
        drawing.path([(150, y + 20), (200, y + 20)], colour=FAINT, dash="3 3")
        drawing.arrow((first + 86 * (4 - at) - 12, y + 20), (x_out - 60, y + 20), dash="3 3")
        drawing.arrow((x_tap + 55, y - 32 if at else 86), (x_tap + 55, y))
        if at < 3:  # the newest chain of a level begins with the decoder map below
            newest = first + 86 * (3 - at) + 37
            drawing.arrow((x_out, y + 72), (x_out, y + 56), (newest, y + 56), (newest, y + 40))
    drawing.arrow((x_out + 15, top), (x_out + 15, 86))
    y = top + 72 * 4
    drawing.box(
        200, y, 332, 40, ("256 × 16²", "LeakyReLU, max pool, dropout, conv, 2 ResBlocks"), colour=PURPLE
    )
    drawing.arrow((x_tap + 55, y - 32), (x_tap + 55, y + 20), (200, y + 20))
    drawing.arrow((237, y), (237, y - 32))
    notes = (
        "Orange: transposed conv 3×3/2, a column is a chain. The maps of a row and its tap are concatenated."
    )
    drawing.text(20, 472, notes, colour=FAINT)
    return drawing


# --- curves ---------------------------------------------------------------------------------------------------


def activations() -> Drawing:
    """Return ReLU, leaky ReLU, swish and ELU."""
    drawing = Drawing(_W, 300, "Activations")
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
        chart.line(x, curve(x), colour=colour, dash="6 4" if name == "ELU" else "")
    chart.key(list(curves))
    return drawing


def _rates(schedule: ScheduleConfig, peak: float, epochs: int) -> tuple[list[float], list[float]]:
    xs = np.linspace(0, epochs, 4 * epochs + 1).tolist()
    return xs, [peak * lr_factor(schedule, min(x / epochs, 1 - 1e-9)) for x in xs]


def cosine_cycles() -> Drawing:
    """Return the rate of TGS Salt's first place, by our schedule."""
    drawing = Drawing(_W, 300, "Cosine annealing with restarts: a snapshot at the end of each cycle")
    stages = (("pretraining on pseudo-labels", 150, 3, 0), ("fine-tuning on the training masks", 200, 4, 150))
    chart = Chart(
        drawing,
        (90, 70, 640, 170),
        x_range=(0, 350),
        y_range=(0, 0.011),
        x_label="epoch",
        y_label="learning rate",
    )
    for (name, epochs, cycles, start), colour in zip(stages, SERIES, strict=False):
        schedule = ScheduleConfig(name="cosine_restarts", cycles=cycles, warmup_frac=0.0, final_frac=0.1)
        xs, rates = _rates(schedule, 0.01, epochs)
        chart.line([start + x for x in xs], rates, colour=colour)
        for cycle in range(cycles) if start else ():
            x, y = chart.at(start + epochs * (cycle + 1) / cycles, 0.001)
            drawing.cross(x, y)
        drawing.text(chart.at(start + 4, 0)[0], 58, name, colour=colour, weight="600")
    return drawing


def siim_rate() -> Drawing:
    """Return seed 002's two trainings at 768 pixels."""
    drawing = Drawing(_W, 280, "Cosine annealing of the two trainings at 768 pixels")
    for at, (title, peak, epochs) in enumerate(
        (("first: from 5e-4", 5e-4, 45), ("second: from 1e-5", 1e-5, 19))
    ):
        schedule = ScheduleConfig(name="cosine", warmup_frac=0.0, final_frac=0.0)
        frame = (90 + 360 * at, 70, 280, 150)
        chart = Chart(
            drawing, frame, x_range=(0, epochs), y_range=(0, peak * 1.1), title=title, x_label="epoch",
            y_label="" if at else "learning rate",
        )  # fmt: skip
        chart.line(*_rates(schedule, peak, epochs), colour=SERIES[at])
        chart.upright(epochs - 3 if at == 0 else 8, "SWA from here", before=at == 0)
    return drawing


# --- how predictions are joined -------------------------------------------------------------------------------


def views() -> Drawing:
    """Return test-time augmentation with a mirror image."""
    drawing = Drawing(_W, 230, "Test-time augmentation: flip, predict, flip back, mean")
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
    drawing = Drawing(_W, 250, "Two resolutions, one mask")
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
    drawing = Drawing(_W, 260, "The whole way, every choice judged out of fold")
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


def iou_walk() -> Drawing:
    """Return the metric of TGS Salt on one image: an IoU, the thresholds it exceeds, their share."""
    hits, union = 872, 1349
    drawing = Drawing(_W, 300, f"One image's score: IoU {hits} / {union} = {hits / union:.4f}")
    scale, side = 3.6, math.sqrt((hits + union) / 2)  # two equal squares that share ``hits`` pixels
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
    chart = Chart(
        drawing, (330, 80, 400, 150), x_range=(47, 98), y_range=(0, 1.15), x_label="IoU threshold, %", ticks=False,
        title="hit where IoU > threshold: 3 of 10, so the score is 0.3",
    )  # fmt: skip
    for threshold in thresholds:
        hit = 100 * hits > threshold * union
        chart.bars([threshold - 2], [threshold + 2], [1 if hit else 0.03], colour=GREEN if hit else RED)
        place, low = chart.at(threshold, 0)
        drawing.text(place, low + 16, str(threshold), size=11, colour=FAINT, anchor="middle")
    chart.upright(100 * hits / union, f"{100 * hits / union:.1f}", colour=RED)
    return drawing


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "net-depth-unet": depth_unet,
    "net-model1": model1,
    "net-model2": model2,
    "net-diagram": tiny_diagram_unet,
    "net-hyper": hyper_unet,
    "net-resnext50": resnext_unet,
    "net-cloud": cloud_unet,
    "net-hyperkernel": hyperkernel_unetpp,
    "activations": activations,
    "cosine-cycles": cosine_cycles,
    "siim-rate": siim_rate,
    "views": views,
    "two-resolutions": resolutions,
    "pipeline": pipeline,
    "iou-walk": iou_walk,
}
"""Name of the file -> what draws it."""
