"""The drawings of docs/systems that need no run: nets, schedules, activations, and how predictions are joined."""

from collections.abc import Callable

import numpy as np

from masksmith.reporting.drawing import BLUE, FAINT, GREEN, ORANGE, PURPLE, RED, SERIES, Chart, Drawing, W
from masksmith.reporting.theory import activations, iou_walk, pipeline, resolutions, u_net, views
from masksmith.training.config import ScheduleConfig
from masksmith.training.optim import lr_factor

# --- nets -------------------------------------------------------------------------------------------------


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
    drawing = Drawing(W, 486, "Simplified U-Net++ on EfficientNet-B4: hyperkernel paths, 512×512")
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


def _rates(schedule: ScheduleConfig, peak: float, epochs: int) -> tuple[list[float], list[float]]:
    xs = np.linspace(0, epochs, 4 * epochs + 1).tolist()
    return xs, [peak * lr_factor(schedule, min(x / epochs, 1 - 1e-9)) for x in xs]


def cosine_cycles() -> Drawing:
    """Return the rate of TGS Salt's first place, by our schedule."""
    drawing = Drawing(W, 300, "Cosine annealing with restarts: a snapshot at the end of each cycle")
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
    drawing = Drawing(W, 280, "Cosine annealing of the two trainings at 768 pixels")
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
