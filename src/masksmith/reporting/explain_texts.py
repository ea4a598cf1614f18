"""What ``masksmith explain`` says beside docstrings: notes on metrics, losses and methods, and the topics of theory.

Where a write-up of a contest is known to err, the right form stands here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from masksmith.reporting import theory
from masksmith.reporting.drawing import Drawing

NOTES: dict[str, tuple[str, ...]] = {
    # metrics
    "tgs_map": (
        "For each image the IoU of the true and the predicted mask is held against ten thresholds, 0.50 "
        "to 0.95. The score is the share of thresholds that it exceeds, strictly: an IoU of exactly 0.5 "
        "exceeds none. There is one mask an image, so no objects are matched.",
        "The drawn example has an intersection of 872 and a union of 1349 pixels: IoU 0.6464 exceeds "
        "0.50, 0.55 and 0.60, so the image scores 0.3. It is decided in whole numbers (20 · intersection "
        "> k · union), since 0.6 as a sum of floats is 0.6000000000000001.",
        "Predicting nothing scores 1 on every empty image: read a score beside that of predicting nothing.",
    ),
    "dice_per_image": (
        "Dice = 2 · TP / (2 · TP + FP + FN) = 2 · IoU / (1 + IoU). Of one image it orders predictions as "
        "the IoU does; the means over images do not, so the two are not interchangeable. Both empty "
        "counts 1 here, as at Kaggle.",
    ),
    "iou_by_group": (
        "Both empty counts 0 here, as the satellite contests of DrivenData have it; tgs_map counts 1.",
    ),
    # losses
    "bce": (
        "−t · log p − (1 − t) · log(1 − p), both signs minus, with p the sigmoid of the logit. By the "
        "probability its slope is (p − t) / (p · (1 − p)), by the logit simply p − t: never more than 1, "
        "whatever the pixel.",
    ),
    "focal": (
        "BCE times (1 − p of the true class)^gamma: it weighs easy pixels down, not up. With gamma 2 a "
        "pixel at 0.9 counts a hundredth of its BCE, one at 0.1 still four fifths.",
    ),
    "dice": (
        "1 − Dice of probabilities: the sums are of the whole mask, so all pixels pull together, however "
        "few they are.",
    ),
    "log_dice": (
        "Minus the log of the Dice coefficient, not of the Dice loss: it grows without bound as Dice goes "
        "to 0.",
    ),
    "lovasz": (
        "The IoU of a mask is a step function of its logits and has no gradient. Lovász takes its convex "
        "extension: sort the errors from the worst down; let the pixels join the set of wrong ones in "
        "that order; each weighs as much as the Jaccard loss grows when it joins. Loss = sum of error · "
        "weight.",
        "The first pixels weigh most, and a missed pixel of a small mask weighs more than one of a large "
        "mask: 1 / its size. The order is found anew in every step; equal errors may stand in any order.",
        "Logits are its input: the net has no sigmoid at its end, and the threshold is 0, not 0.5.",
    ),
    "lovasz_elu": (
        "As lovasz, with ELU(error) + 1 in the place of max(0, error): pixels that are right with a "
        "margin keep a small gradient. The write-up of the first place of TGS Salt uses it.",
    ),
    "lovasz_softmax": (
        "As lovasz, on probabilities: error = |truth − probability|, mean over the classes that are there.",
    ),
    "objects": (
        "Of a foreground, a border where objects touch, and a distance to the outline. Here the logits of the image "
        "are those of the foreground; no border is predicted, and half the distance everywhere, so it is never 0.",
    ),
    # methods
    "hflip": (
        "Of an image of 101 pixels that is padded to 112, five pixels come on one side and six on the "
        "other: flip before the padding, or the picture is shifted by one.",
    ),
    "noise": ("Drawn anew for each sample and epoch, in shares of the range of values.",),
    "elastic": (
        "One smooth field of displacements, with the sum of all other geometry in it, so each pixel is "
        "looked up once.",
    ),
}
"""Name -> paragraphs on top of what its docstring says."""


@dataclass(frozen=True)
class Topic:
    """A topic of theory."""

    title: str
    text: tuple[str, ...]
    draw: tuple[Callable[[], Drawing], ...]
    source: str = ""


THEORY: dict[str, Topic] = {
    "unet": Topic(
        "U-Net",
        (
            "An encoder halves the image step by step and widens what it knows of each place; a decoder "
            "doubles it again. At each size the decoder gets what the encoder saw there (concatenated), "
            "so outlines are as fine as the image.",
            "A net with d halvings needs sides that are multiples of 2^d: 101 is padded to 112 for four "
            "of them, not to 128.",
        ),
        (theory.classical_unet,),
        "Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597",
    ),
    "residual": Topic(
        "Residual block",
        (
            "The block learns what is to be added to its input. Where a drawing shows “concatenation” at "
            "the join, the code adds: the number of channels stays.",
        ),
        (theory.residual_block,),
        "He et al. 2016, https://arxiv.org/abs/1603.05027",
    ),
    "max_pool": Topic(
        "Max pooling",
        (
            "Of each square of 2×2 the largest value goes on: half the height and width, the same number "
            "of channels.",
        ),
        (theory.max_pool,),
    ),
    "convolution": Topic(
        "Convolution",
        (
            "Each value of the result is the sum of nine products of a window and a kernel; then comes "
            "the bias. A layer of k kernels on c channels has k · (9 · c + 1) weights. With stride 2 the "
            "window moves by two, and the sides halve.",
        ),
        (theory.convolution,),
    ),
    "activations": Topic(
        "Activations",
        (
            "Without something that is not linear between them, two convolutions are one. ReLU is max(0, "
            "x); it is cheap, and its slope does not vanish for large x as those of tanh and sigmoid do. "
            "How much faster training gets by it depends on net and data: no factor holds in general.",
        ),
        (theory.activations,),
    ),
    "sigmoid": Topic(
        "Sigmoid",
        (
            "p = 1 / (1 + exp(−logit)). A net that ends with logits is judged at 0, one that ends with a "
            "sigmoid at 0.5: these are the same mask. masksmith's nets end with logits, and losses take "
            "logits.",
        ),
        (theory.sigmoid,),
    ),
    "batch_norm": Topic(
        "Batch normalisation",
        (
            "μ = mean of z, σ² = mean of (z − μ)², ẑ = (z − μ) / √(σ² + ε), result = γ · ẑ + β; for each "
            "channel alone.",
            "With fewer than about eight images a batch the statistics are too noisy: take group norm, or "
            "longer batches.",
        ),
        (theory.batch_norm,),
        "Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167",
    ),
    "adam": Topic(
        "Adam",
        (
            "v ← β1 · v + (1 − β1) · g and s ← β2 · s + (1 − β2) · g²; both begin at 0 and are corrected: "
            "v / (1 − β1^t) and s / (1 − β2^t). Step: −rate · v̂ / (√ŝ + ε). The second correction has β2 "
            "in it; with β1 the early steps are far too long, as the drawing shows.",
        ),
        (theory.adam,),
        "Kingma and Ba 2015, https://arxiv.org/abs/1412.6980",
    ),
    "tta": Topic(
        "Test-time augmentation",
        (
            "The same net looks at the image in several views; each prediction is brought back, and the "
            "mean is cut at the threshold. It helps as far as the errors of the views are different ones, "
            "and costs a forward pass a view.",
            "`masksmith explain hflip` shows one view; `masksmith ablate P` measures what each of yours "
            "gained.",
        ),
        (theory.views,),
    ),
    "resolutions": Topic(
        "Ensembles of resolutions",
        (
            "Nets of two sizes predict the same image; probabilities are brought to one size and "
            "averaged, then cut at the threshold, and small parts are removed last, at the full size.",
        ),
        (theory.resolutions,),
    ),
    "out_of_fold": Topic(
        "Out-of-fold judgement",
        (
            "Every training image is predicted by a model that has not seen it. Thresholds, weights and "
            "ensembles are chosen on these predictions; a choice on the fold that is scored flatters "
            "itself, so it is named beside it.",
        ),
        (theory.pipeline,),
    ),
    "coverage": Topic(
        "Coverage classes",
        (
            "The share of foreground of a mask as one of eleven classes: 0 is exactly nothing, class i "
            "from 1 to 10 is above (i − 1) / 10 and up to i / 10. Folds are made so that each has its "
            "share of all classes.",
        ),
        (theory.coverage_classes,),
    ),
}
"""What can be explained besides the names of recipes."""
