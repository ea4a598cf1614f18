"""Predict a store of images: batches of one canvas, test-time augmentation, probabilities at the true size."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from masksmith.core.arrays import Float, Shaped, UInt16
from masksmith.core.config import look_up
from masksmith.core.progress import track
from masksmith.data.store import Store, StoreWriter
from masksmith.models.segmentation import SegmentationModel
from masksmith.prediction.runtimes import Runtime, torch_runtime
from masksmith.prediction.store import to_codes
from masksmith.prediction.tta import TTA, Symmetry
from masksmith.preprocess import TRUE_SIZE, Frame, SizeConfig, names_by_canvas

FrameOf = Callable[[tuple[int, int]], Frame]
"""True (height, width) -> how an image of that size is resized and padded."""


def _cached_frames(size: SizeConfig, divisor: int) -> FrameOf:
    return lru_cache(maxsize=1024)(partial(Frame.of, size=size, divisor=divisor))


def _batches(by_canvas: Iterable[Sequence[str]], batch_size: int) -> Iterator[Sequence[str]]:
    for names in by_canvas:
        for at in range(0, len(names), batch_size):
            yield names[at : at + batch_size]


def _forward(
    runtimes: Sequence[Runtime],
    frame_of: FrameOf,
    images: Sequence[Shaped[np.ndarray, "_ _ c"]],
    max_value: int,
    scalars: Float[np.ndarray, "b s"] | None,
    activation: Callable[[Tensor], Tensor],
) -> list[Float[np.ndarray, "_ _ k"]]:
    """Return the mean probabilities of all runtimes for one view of a batch, each at its image's true size."""
    frames = [frame_of((image.shape[0], image.shape[1])) for image in images]
    framed = np.stack(
        [frame.apply(np.ascontiguousarray(one)) for frame, one in zip(frames, images, strict=True)]
    )
    planes = (framed.astype(np.float32) / max_value).transpose(0, 3, 1, 2)  # (b, h, w, c) -> (b, c, h, w)
    inputs = (planes,) if scalars is None else (planes, scalars)
    each = [activation(torch.from_numpy(runtime(*inputs))) for runtime in runtimes]
    mean = each[0] if len(each) == 1 else torch.stack(each).mean(0)
    probs = mean.permute(0, 2, 3, 1).numpy()  # (b, k, h, w) -> (b, h, w, k)
    return [frame.undo(one) for frame, one in zip(frames, probs, strict=True)]


def predict_batches(
    fabric: Fabric,
    model: SegmentationModel,
    images: Store,
    names: Sequence[str],
    *,
    tta: Sequence[str],
    batch_size: int,
    size: SizeConfig = TRUE_SIZE,
    what: str = "predicting",
    runtime: Runtime | Sequence[Runtime] | None = None,
    scalars: Mapping[str, Sequence[float]] | None = None,
    finished: Collection[str] = (),
) -> Iterator[list[tuple[str, Float[np.ndarray, "h w k"]]]]:
    """Yield batches of (id, probabilities (h, w, k) at the true size); a batch has one canvas (see names_by_canvas).

    Args:
        fabric: Device and precision.
        model: The model; evaluated in evaluation mode, and put back into its own mode.
        images: The images.
        names: Ids to predict.
        tta: Keys of TTA whose probabilities are averaged.
        batch_size: Images per forward pass.
        size: How images are resized and padded.
        what: Text of the progress bar.
        runtime: Computes the logits; None: the model itself. The probabilities of several runtimes are averaged.
        scalars: Id -> numbers, for a model that takes them.
        finished: Ids to leave out, in whole batches only: the last bits of a probability depend on how many images
            go through the model together.

    Raises:
        InputError: An unknown key of TTA, or a damaged image.
    """
    symmetries = [look_up(TTA, key, where="prediction.tta") for key in tta]
    max_value = int(np.iinfo(images.dtype).max)
    upright, turned = (_cached_frames(one, model.divisor) for one in (size, size.turned()))
    runtime = runtime or torch_runtime(fabric, model)
    runtimes = [runtime] if callable(runtime) else list(runtime)
    activation = partial(torch.softmax, dim=1) if model.exclusive else torch.sigmoid
    by_canvas = names_by_canvas({name: images.shape(name) for name in names}, size, divisor=model.divisor)
    batches = [one for one in _batches(by_canvas.values(), batch_size) if not set(one) <= set(finished)]

    def predict(view: Symmetry, planes: Sequence[np.ndarray], numbers: np.ndarray | None) -> list[np.ndarray]:
        seen, frames = [view.apply(one[None])[0] for one in planes], turned if view.turns else upright
        return [
            view.undo(one[None])[0]
            for one in _forward(runtimes, frames, seen, max_value, numbers, activation)
        ]

    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in track(batches, total=len(batches), what=what):
                planes = [images.checked(name) for name in batch]
                numbers = np.array([scalars[name] for name in batch], np.float32) if scalars else None
                views = [predict(view, planes, numbers) for view in symmetries]
                yield [(name, np.mean(probs, axis=0)) for name, *probs in zip(batch, *views, strict=True)]
    finally:
        model.train(training)


def predict_probs(
    fabric: Fabric,
    model: SegmentationModel,
    images: Store,
    names: Sequence[str],
    *,
    tta: Sequence[str],
    batch_size: int,
    size: SizeConfig = TRUE_SIZE,
    what: str = "predicting",
    runtime: Runtime | Sequence[Runtime] | None = None,
    scalars: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[tuple[str, Float[np.ndarray, "h w k"]]]:
    """Yield (id, probabilities (h, w, k)) one by one; the arguments are those of predict_batches."""
    for batch in predict_batches(
        fabric,
        model,
        images,
        names,
        tta=tta,
        batch_size=batch_size,
        size=size,
        what=what,
        runtime=runtime,
        scalars=scalars,
    ):
        yield from batch


def write_codes(
    path: Path,
    images: Store,
    names: Sequence[str],
    batches: Callable[..., Iterable[Sequence[tuple[str, Shaped[np.ndarray, "h w k"]]]]],
    *,
    blank: Collection[str],
    channels: int = 1,
    key: str | None = None,
) -> None:
    """Write probabilities as codes into a store in the order of ``names``.

    Args:
        path: The ``.npy`` file.
        images: The images, for their sizes.
        names: Ids, in the order of the store.
        batches: ``batches(finished=ids)`` yields batches of (id, probabilities or codes), in any order, of all ids but
            these and the blank ones.
        blank: Ids of images without content: their probability is 0.
        channels: Of the probabilities.
        key: Hash of what the probabilities depend on. With it every batch is kept if the process dies, and the same
            call continues after the last one.
    """
    shapes = [(name, (*images.shape(name), channels)) for name in names]
    writer = StoreWriter(path, shapes, dtype=np.uint16, key=key)
    for batch in batches(finished=frozenset(writer.written)):
        for name, value in batch:
            codes: UInt16[np.ndarray, "h w k"] = value if value.dtype == np.uint16 else to_codes(value)
            writer.write(name, codes)
        writer.commit()
    for name in names:
        if name in blank:
            writer.write(name, np.zeros((*images.shape(name), channels), np.uint16))
    writer.close()
