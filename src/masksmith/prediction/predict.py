"""Run a trained model over a store of images."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from masksmith.arrays import Float, Shaped, UInt16
from masksmith.config import look_up
from masksmith.data.store import Store, StoreWriter
from masksmith.models.segmentation import SegmentationModel
from masksmith.prediction.codes import to_codes
from masksmith.prediction.runtime import Runtime, torch_runtime
from masksmith.prediction.tta import TTA
from masksmith.preprocess import TRUE_SIZE, Frame, SizeConfig
from masksmith.progress import track


def _batches(images: Store, names: Sequence[str], batch_size: int) -> Iterator[list[str]]:
    by_size: dict[tuple[int, int], list[str]] = {}
    for name in names:
        by_size.setdefault(images.shape(name), []).append(name)
    for same_size in by_size.values():
        for at in range(0, len(same_size), batch_size):
            yield same_size[at : at + batch_size]


def _forward(
    runtimes: Sequence[Runtime],
    frame_of: Callable[[tuple[int, int]], Frame],
    planes: Shaped[np.ndarray, "b h w c"],
    max_value: int,
    scalars: Float[np.ndarray, "b s"] | None = None,
) -> Float[np.ndarray, "b h w k"]:
    """Return the mean probabilities of all runtimes for one view of a batch, at its true size."""
    frame = frame_of((planes.shape[1], planes.shape[2]))
    framed = np.stack([frame.apply(np.ascontiguousarray(image)) for image in planes])
    image = (framed.astype(np.float32) / max_value).transpose(0, 3, 1, 2)  # (b, h, w, c) -> (b, c, h, w)
    inputs = (image,) if scalars is None else (image, scalars)
    each = [torch.sigmoid(torch.from_numpy(runtime(*inputs))) for runtime in runtimes]
    mean = each[0] if len(each) == 1 else torch.stack(each).mean(0)
    return np.stack(
        [frame.undo(one) for one in mean.permute(0, 2, 3, 1).numpy()]
    )  # (b, k, h, w) -> (b, h, w, k)


def _listed(runtime: Runtime | Sequence[Runtime]) -> list[Runtime]:
    return [runtime] if callable(runtime) else list(runtime)


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
    """Yield the batches of (id, probabilities (h, w, k) at the true size), grouped by image size.

    Args:
        fabric: Device and precision.
        model: Its weights; it is put into evaluation mode and back.
        images: Where the images are.
        names: Ids to predict.
        tta: Keys of TTA whose probabilities are averaged.
        batch_size: Images a forward pass.
        size: How images lie on the canvas.
        what: What the progress bar says.
        runtime: What computes the logits; None calls the model itself; of several, the probabilities are averaged.
        scalars: Id -> numbers for a model that takes them.
        finished: Ids that need not be predicted. Only whole batches of them are left out: the last bits of a
            probability depend on how many images went through the model together.

    Raises:
        InputError: An unknown key of TTA, or an image was damaged since it was written.
    """
    symmetries = [look_up(TTA, key, where="prediction.tta") for key in tta]
    max_value = int(np.iinfo(images.dtype).max)
    upright, turned = (partial(Frame.of, size=one, divisor=model.divisor) for one in (size, size.turned()))
    runtimes = _listed(runtime or torch_runtime(fabric, model))
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            batches = [one for one in _batches(images, names, batch_size) if not set(one) <= set(finished)]
            for batch in track(batches, total=len(batches), what=what):
                planes = np.stack([images.checked(name) for name in batch])
                numbers = np.array([scalars[name] for name in batch], np.float32) if scalars else None
                probs = [
                    one.undo(
                        _forward(
                            runtimes,
                            turned if one.turns else upright,
                            one.apply(planes),
                            max_value,
                            numbers,
                        )
                    )
                    for one in symmetries
                ]
                yield list(zip(batch, np.mean(probs, axis=0), strict=True))
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
    key: str | None = None,
) -> None:
    """Write probabilities as codes into a store in the order of ``names``.

    Args:
        path: The ``.npy`` file.
        images: For the sizes.
        names: Ids, in the order of the store.
        batches: ``batches(finished=ids)`` gives the batches of (id, probabilities or codes) of all but these ids, in
            any order, without the blank ones.
        blank: Ids of images without content: their probability is 0.
        key: What the probabilities are made from. With it every batch outlasts the process, and the same call goes on
            after the last one.
    """
    shapes = [(name, (*images.shape(name), 1)) for name in names]
    writer = StoreWriter(path, shapes, dtype=np.uint16, key=key)
    for batch in batches(finished=frozenset(writer.written)):
        for name, value in batch:
            codes: UInt16[np.ndarray, "h w k"] = value if value.dtype == np.uint16 else to_codes(value)
            writer.write(name, codes)
        writer.commit()
    for name in names:
        if name in blank:
            writer.write(name, np.zeros((*images.shape(name), 1), np.uint16))
    writer.close()
