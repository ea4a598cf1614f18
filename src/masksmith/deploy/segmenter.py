"""Segment images with a bundle: no project, no training data.

An image goes the way that a test image of the project goes: scaled, framed, tiled, seen in all views, by all members;
the rule then makes a mask of the mean probabilities.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from PIL import Image as Pillow
from torch import Tensor

from masksmith.core.arrays import AnyMask, Image, Shaped, UInt8, UInt16
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.array_store import ArrayStore, Images, bands_of
from masksmith.data.decode.pictures import is_grey
from masksmith.data.look import is_constant
from masksmith.data.store import Store, is_whole
from masksmith.deploy.bundle import Bundle, MemberFacts
from masksmith.deploy.drawing import overlay, png
from masksmith.models.segmentation import SegmentationModel, build_model, to_channels_last
from masksmith.postprocess.rules import Beside, columns_of, mask_of, read_rule
from masksmith.prediction.combine import build_combine
from masksmith.prediction.means import Blend
from masksmith.prediction.predict import predict_parts, write_codes
from masksmith.prediction.runtimes import RUNTIMES, Runtime, check_runtime
from masksmith.prediction.store import MAX_CODE, MeanCodes, to_codes
from masksmith.prediction.tiles import Part, Tiling
from masksmith.preprocess.chains import looks_at_whole
from masksmith.preprocess.inputs import Limits, Scaler, Statistics, image_limits, select
from masksmith.recipes.recipe import Recipe
from masksmith.training.checkpoint import copy_weights
from masksmith.training.machine import make_fabric

AnyImage = Any
"""A numpy array (h, w) or (h, w, c), a torch tensor (c, h, w), or a PIL image."""

Batches = Callable[..., Iterator[list[tuple[str, Part]]]]
"""Called with ``finished`` and ``rows`` (see predict_parts), it yields the probabilities of images."""
_COLOURS = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
"""Modes of PIL images whose numbers are colours in another form."""


class ScaledView:
    """Images as a member sees them: scaled when they are read."""

    def __init__(self, images: Images, scaler: Scaler) -> None:
        self.images, self.scaler = images, scaler
        self._own: tuple[str, Limits] | None = None  # of the image of which a part was asked for last
        self._whole: tuple[str, np.ndarray] | None = None  # the same, where a part depends on the whole

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return np.dtype(np.uint16)

    @property
    def channels(self) -> int:
        """Channels that the model sees."""
        return self.scaler.config.channels(self.images.channels)

    def __iter__(self) -> Iterator[str]:
        return iter(self.images)

    def shape(self, name: str) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.images.shape(name)

    def checked(self, name: str) -> UInt16[np.ndarray, "h w k"]:
        """Return an image, scaled."""
        return self.scaler(self.images.checked(name))

    def __getitem__(self, name: str) -> UInt16[np.ndarray, "h w k"]:
        return self.checked(name)

    def window(self, name: str, rows: slice, columns: slice) -> UInt16[np.ndarray, "n m k"]:
        """Return a part of an image, scaled as the whole image is.

        Where ``input.chain`` looks at the whole image, it is held in memory.
        """
        if looks_at_whole(self.scaler.config.chain):
            if self._whole is None or self._whole[0] != name:
                self._whole = name, self.checked(name)
            return self._whole[1][rows, columns]
        limits = self.scaler.limits or self._limits(name)
        return replace(self.scaler, limits=limits)(self.images.window(name, rows, columns))

    def _limits(self, name: str) -> Limits:
        """Return an image's own limits, measured in bands of rows."""
        if self._own is None or self._own[0] != name:
            height, width = self.images.shape(name)
            own = self.scaler.config.no_data
            bands = (
                image_limits(
                    select(self.images.window(name, rows, slice(0, width)), self.scaler.bands, no_data=own)
                )
                for rows in bands_of(height, width)
            )
            low, high = zip(*bands, strict=True)
            self._own = name, (np.fmin.reduce(low), np.fmax.reduce(high))
        return self._own[1]


@dataclass(frozen=True)
class Member:
    """A trained fold, ready to predict."""

    facts: MemberFacts
    recipe: Recipe
    fabric: Fabric
    models: list[SegmentationModel]
    runtimes: list[Runtime]
    scaler: Scaler | None

    @property
    def model(self) -> SegmentationModel:
        """The first of its weights' models."""
        return self.models[0]

    def see(self, images: Images) -> Images:
        """Return images as this member sees them."""
        return images if self.scaler is None else ScaledView(images, self.scaler)


class Segmentation:
    """The segmentation of one image."""

    def __init__(
        self, image: Image, codes: UInt16[np.ndarray, "h w k"], mask: AnyMask, model: "Segmenter"
    ) -> None:
        self.image, self.mask, self._model = image, mask, model
        self.codes = codes
        """Probabilities as 16-bit codes: 65535 is 1."""
        self.classes = model.classes

    @property
    def probs(self) -> Shaped[np.ndarray, "h w k"]:
        """Probabilities of the classes, 0…1; of objects: foreground, border, distance."""
        return self.codes.astype(np.float32) / MAX_CODE

    @property
    def objects(self) -> list[Shaped[np.ndarray, "h w"]]:
        """A mask (bool) of each object; of a binary mask: of each connected region."""
        from masksmith.metrics.objects import label_components

        labels = self.mask
        if self._model.task != "instances":
            if labels.ndim == 3:
                raise InputError("objects: the masks of several labels have none; take the layers of mask")
            labels, _ = label_components(labels > 0)
        return [labels == number for number in range(1, int(labels.max()) + 1)]

    @property
    def confidence(self) -> float:
        """How sure the probabilities are on average, 0.5…1 of a binary mask."""
        return certainty(self.codes, exclusive=self._model.target.exclusive)

    def overlay(self, alpha: float = 0.5) -> UInt8[np.ndarray, "h w 3"]:
        """Return the image with the mask over it in colours."""
        return overlay(self.image, self.mask, self._model.target, alpha=alpha)

    def _repr_png_(self) -> bytes:
        return png(self.overlay())

    def __repr__(self) -> str:
        return f"Segmentation({self.mask.shape[0]}x{self.mask.shape[1]}, confidence {self.confidence:.3f})"


def certainty(codes: UInt16[np.ndarray, "h w k"], *, exclusive: bool) -> float:
    """Return the mean probability of what was decided: of the likeliest class, or of yes or no for each label."""
    if exclusive:
        return float(codes.max(axis=2).mean() / MAX_CODE)
    return float(np.maximum(codes, MAX_CODE - codes).mean() / MAX_CODE)


class Segmenter:
    """A model that segments images.

    Examples:
        >>> import masksmith as ms
        >>> model = ms.load("model.msk")  # doctest: +SKIP
        >>> model.segment(array).mask  # doctest: +SKIP

    It may be used from several threads: images are segmented one call after another.

    Args:
        path: The bundle.
        device: "cpu", "cuda", "mps" or "auto"; None: the CPU, where bit-for-bit agreement with the project holds.
        runtime: A key of RUNTIMES; None: the one that made the project's predictions.

    Raises:
        InputError: As Bundle; the runtime or the device is not there.
    """

    def __init__(self, path: str | Path, *, device: str | None = None, runtime: str | None = None) -> None:
        self.bundle = Bundle(Path(path))
        self.target = self.bundle.target
        self.task = self.target.task
        self.classes = self.target.classes
        self.rule = read_rule(dict(self.bundle.facts.rule))
        self._device, self._runtime = device, runtime
        self._lock = threading.Lock()
        if runtime is not None:
            look_up(RUNTIMES, runtime, where="runtime")

    def __reduce__(self) -> tuple[Any, ...]:
        """To be pickled: another process opens the file again."""
        return partial(type(self), device=self._device, runtime=self._runtime), (self.bundle.path,)

    @property
    def asked(self) -> tuple[str | None, str | None]:
        """Device and runtime that were asked for."""
        return self._device, self._runtime

    @property
    def scalars(self) -> list[str]:
        """Names of the numbers that some member, or the rule, takes beside each image."""
        return list(dict.fromkeys([*self.model_scalars, *columns_of(self.rule)]))

    @property
    def planes(self) -> int:
        """Planes of the mean probabilities: those of image heads are there if all members keep them."""
        return min(map(self._planes_of, range(len(self.bundle.recipes))))

    def _planes_of(self, at: int) -> int:
        return self.bundle.recipes[at].prediction.planes(self.target.outputs)

    @property
    def model_scalars(self) -> list[str]:
        """Names of the numbers that some member takes beside each image."""
        return list(dict.fromkeys(name for recipe in self.bundle.recipes for name in recipe.model.scalars))

    @cached_property
    def members(self) -> list[Member]:
        """The trained folds, loaded when they are needed."""
        return [
            self._load(facts, recipe)
            for facts, recipe in zip(self.bundle.facts.members, self.bundle.recipes, strict=True)
        ]

    def _load(self, facts: MemberFacts, recipe: Recipe) -> Member:
        training = recipe.training
        if self._device is not None:
            training = training.model_copy(update={"device": self._device})
        fabric = make_fabric(training)
        statistics = None
        if facts.mean is not None and facts.std is not None:
            statistics = Statistics(tuple(facts.mean), tuple(facts.std))
        channels = self.bundle.facts.channels
        models, runtimes = [], []
        for (name, checksum), runtime in zip(facts.weights.items(), facts.runtimes, strict=True):
            model = build_model(
                recipe.model,
                in_channels=recipe.input.channels(channels) if facts.scaled else channels,
                seed=0,
                classes=self.target.outputs,
                exclusive=self.target.exclusive,
                load_weights=False,
                statistics=statistics,
            )
            tensors: dict[str, Tensor] = self.bundle.tensors(name, checksum)
            copy_weights(model, tensors, where=f"{self.bundle.path}: {name}")
            if training.channels_last:
                to_channels_last(model)
            fabric.to_device(model)
            chosen = self._runtime or runtime
            check_runtime(
                chosen,
                device=fabric.device.type,
                precision=str(fabric.strategy.precision.precision),
                scalars=recipe.model.scalars,
            )
            models.append(model.eval())
            runtimes.append(RUNTIMES[chosen](fabric, model, build_combine(recipe.prediction)))
        scaler = None
        if facts.scaled:
            limits = None if facts.low is None else (np.array(facts.low), np.array(facts.high))
            scaler = Scaler(recipe.input, recipe.input.bands_of(channels), limits)
        return Member(facts, recipe, fabric, models, runtimes, scaler)

    def fit(self, image: AnyImage, *, where: str = "image") -> Image:
        """Return an image as the model takes it: (h, w, c) of the bands and the type that it was trained on.

        Args:
            image: A numpy array (h, w) or (h, w, c), a torch tensor (c, h, w) or a PIL image. Grey images become those
                in colours and grey ones in colours grey, where the model was trained on the other; alpha is left out.
            where: What to call it in messages.

        Raises:
            InputError: Another number of bands, another type, or no pixels.
        """
        array = _array_of(image)
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim != 3 or not array.size:
            raise InputError(
                f"{where}: an array of shape {array.shape}; expected (height, width) or (height, width, bands)"
            )
        channels, dtype = self.bundle.facts.channels, np.dtype(self.bundle.facts.dtype)
        if array.shape[2] in (2, 4) and channels in (1, 3):
            array = array[..., :-1]  # without alpha
        if array.shape[2] == 3 and channels == 1 and is_grey(array):
            array = array[..., :1]
        elif array.shape[2] == 1 and channels == 3:
            array = np.repeat(array, 3, axis=2)
        if array.shape[2] != channels:
            raise InputError(
                f"{where}: {array.shape[2]} bands; this model was trained on {channels}, give it the same"
            )
        if array.dtype != dtype:
            raise InputError(
                f"{where}: pixels of {array.dtype}; this model was trained on {dtype}, convert the image with the same "
                "scale as the training images"
            )
        return np.ascontiguousarray(array)

    def segment(self, image: AnyImage, *, scalars: Mapping[str, float] | None = None) -> Segmentation:
        """Segment one image.

        Args:
            image: See fit.
            scalars: The numbers that the model takes beside each image (``model.scalars``), by name.

        Raises:
            InputError: As fit; a number is missing.
        """
        return self.segment_batch([image], scalars=None if scalars is None else [scalars])[0]

    def segment_batch(
        self, images: Sequence[AnyImage], *, scalars: Sequence[Mapping[str, float]] | None = None
    ) -> list[Segmentation]:
        """Segment several images, of any sizes; they go through the model in batches.

        Raises:
            InputError: As segment.
        """
        fitted = {str(at): self.fit(image, where=f"image {at}") for at, image in enumerate(images)}
        if not fitted:
            return []
        numbers = {str(at): one for at, one in enumerate(scalars)} if scalars is not None else {}
        store = ArrayStore(fitted)
        codes, beside = self.predict(store, list(fitted), scalars=numbers), Beside(store, numbers)
        probs = codes.first(self.target.outputs)
        return [
            Segmentation(image, probs[name], mask_of(self.rule, codes, name, beside), self)
            for name, image in fitted.items()
        ]

    def predict(
        self,
        images: Images,
        names: Sequence[str],
        *,
        scalars: Mapping[str, Mapping[str, float]] | None = None,
        folder: Path | None = None,
        key: str | None = None,
    ) -> MeanCodes:
        """Return the mean probabilities of all members, as codes; behind them those of image heads, if all keep them.

        Args:
            images: Fitted images.
            names: Which, in the order in which they form batches.
            scalars: Id -> name -> number.
            folder: Where probabilities are written; None: they are held in memory.
            key: Hash of what they depend on: with it a call goes on where one that was killed ended; the folder is then
                that of this key alone.

        Raises:
            InputError: A number is missing.
        """
        blank = {name for name in names if self._is_blank(images, name)}
        seen = [name for name in names if name not in blank]
        stores = list[Images]()
        with self._lock:
            passes = self._passes(images, seen, scalars or {})
            for at, (batches, _) in enumerate(passes):
                channels = self._planes_of(at)
                if folder is None:
                    arrays = {name: np.zeros((*images.shape(name), channels), np.uint16) for name in names}
                    for name, part in (one for batch in batches() for one in batch):
                        arrays[name][part.first : part.first + len(part.probs)] = to_codes(part.probs)
                    stores.append(ArrayStore(arrays))
                    continue
                path = folder / f"{at}.npy"
                if key is None or not is_whole(path):
                    write_codes(path, images, names, batches, blank=blank, channels=channels, key=key)
                stores.append(Store(path))
        return self._mean(stores, [weight for _, weight in passes])

    def _mean(self, stores: list[Images], weights: list[float]) -> MeanCodes:
        """Return the mean of what the passes predicted, of the bundle's kind."""
        facts = self.bundle.facts
        if facts.blend is None:
            return MeanCodes(stores, weights)
        parts = list(dict.fromkeys(member.part for member in facts.members))
        blend = Blend.from_json(facts.blend, str(self.bundle.path)).of(parts)
        groups = [parts.index(member.part) for member in facts.members]
        return MeanCodes(stores, weights, blend=blend, groups=groups)

    def _passes(
        self, images: Images, names: Sequence[str], scalars: Mapping[str, Mapping[str, float]]
    ) -> list[tuple[Batches, float]]:
        """Return what predicts images, once for each member, and its weight in the mean."""
        return [
            (
                partial(
                    predict_parts,
                    member.fabric,
                    member.model,
                    member.see(images),
                    names,
                    **self._options(member, names, scalars),
                ),
                member.facts.weight,
            )
            for member in self.members
        ]

    def _options(
        self, member: Member, names: Sequence[str], scalars: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Any]:
        recipe = member.recipe
        numbers: dict[str, tuple[float, ...]] = {}
        for name in names if recipe.model.scalars else ():
            missing = [one for one in recipe.model.scalars if one not in scalars.get(name, {})]
            if missing:
                raise InputError(
                    f"image {name!r}: no {missing[0]!r}, which this model takes beside each image; give a table with "
                    f"the columns {', '.join(recipe.model.scalars)}"
                )
            numbers[name] = tuple(scalars[name][one] for one in recipe.model.scalars)
        return {
            "tta": recipe.prediction.tta,
            "scales": recipe.prediction.tta_scales,
            "shifts": recipe.prediction.tta_shifts,
            "mirror": self.target.mirrored(recipe.training.augment.mirror_pairs),
            "batch_size": recipe.prediction.batch_size,
            "size": recipe.size,
            "tiling": Tiling.of(recipe.prediction),
            "runtime": member.runtimes,
            "shares": recipe.prediction.shares(len(member.runtimes)),
            "scalars": numbers,
            "what": "segmenting",
        }

    def _is_blank(self, images: Images, name: str) -> bool:
        """Whether an image has one value only: it is predicted empty, as the project's are."""
        height, width = images.shape(name)
        step = max(1, 2**22 // width)
        rows = (slice(row, min(height, row + step)) for row in range(0, height, step))
        bands = (images.window(name, part, slice(0, width)) for part in rows)
        first = next(bands)
        if not is_constant(first):
            return False
        return all(is_constant(np.concatenate([first[:1], band])) for band in bands)


def _array_of(image: AnyImage) -> np.ndarray:
    """Return an image's numbers, bands last, in the byte order of this machine."""
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        image = np.moveaxis(image, 0, 2) if image.ndim == 3 else image
    elif isinstance(image, Pillow.Image) and image.mode in _COLOURS:
        image = image.convert("RGB")
    array = np.asarray(image)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    return array.astype(array.dtype.newbyteorder("="), copy=False)
