"""Which bands of an image a model sees, and how their values are brought to 0…1. Imports no torch.

Published satellite systems differ mainly in this: a fixed maximum per band, the extremes of each image, or one number
for all (third place of On Cloud N, https://github.com/drivendataorg/cloud-cover-winners).

What is scaled is stored once, as 16-bit codes of 0…1 (a 65535th apart), so that augmentation, training and prediction
see images like any others. Images that need no scaling are used as they were decoded. Extremes, means and standard
deviations are those of all training images with content, whatever their fold: two numbers a band, without a look at
the masks, so what a fold's held-out images add to them tells a model nothing about their masks.

The range of a type says little about its values: 12 bits in uint16 fill a sixteenth of it, and signed and floating
numbers have no natural largest value. "auto" therefore looks at what occurs, and is settled into "fixed" with the
limits that it found when a recipe is resolved, so that they travel with the weights.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from masksmith.core.arrays import Float, Image, Shaped, UInt16
from masksmith.core.config import Config
from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, remove, write_json
from masksmith.core.ledger import Ledger
from masksmith.core.progress import logger, track
from masksmith.data.checks import SENTINELS, is_picture
from masksmith.data.store import Store, StoreWriter
from masksmith.preprocess.chains import ValueStep, apply_values

Band = Annotated[int, Field(ge=0)]

_VERSION = "inputs 1"
_FULL = 65535
_STORES = ("train_images", "test_images")
_LEAST_STD = 1e-3  # of a channel that hardly varies: 65 codes


class InputConfig(Config):
    """From an image's file to the numbers that a model sees."""

    bands: list[Band] | None = None
    """Bands of the file by number, from 0, in this order; None: all but those of ``one_hot``."""
    scaling: Literal["auto", "type_max", "fixed", "min_max", "image_min_max", "standard"] = "auto"
    """What becomes 0 and 1: what settle_scaling finds for the data, "type_max" or "fixed"; 0 and the largest value of
    the file's type (8 or 16 bits without sign); ``low`` and ``high``; each band's extremes over the training images;
    each band's extremes in each image (a band of one value becomes 0); or each band's mean minus and plus three
    standard deviations over the training images. Values beyond are clipped."""
    low: list[float] | None = None
    """With scaling "fixed": the value of each band (of ``bands``, in that order) that becomes 0; one number: of all."""
    high: list[float] | None = None
    """With scaling "fixed": the value that becomes 1."""
    no_data: float | None = None
    """Value that means that nothing was measured. Like NaN and infinity it becomes 0 and does not count for extremes,
    means and standard deviations. None: what the files of whole numbers declare, if it is one value, which is then
    written into the resolved recipe; else every finite value is a measurement."""
    one_hot: dict[str, list[int]] = Field(default_factory=dict)
    """Bands whose values are names, not amounts (a class of land cover): number of the band -> its values, each of
    which becomes a channel of 0 and 1 after the others."""
    chain: list[ValueStep] = Field(default_factory=list)
    """What is done to the values of the bands after scaling, in this order, in training and prediction alike: {name:
    clahe, tile_px, clip}, {name: equalize}, {name: percentile, low, high}, {name: gamma, gamma}. The channels of
    ``one_hot`` stay."""
    view: tuple[Band, Band, Band] | None = None
    """Bands of the file that pictures show in red, green and blue; None: the first three, or the first alone in grey.
    It decides nothing else."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse limits that are missing or unused, and bands that are named twice."""
        _refuse_twice(self.bands or [], "bands")
        self._check_limits()
        for band, values in self.one_hot.items():
            if not band.isdecimal() or str(int(band)) != band:
                raise ValueError(f"one_hot: {band!r} is no band; expected its number, from 0")
            if int(band) in (self.bands or ()):
                raise ValueError(
                    f"one_hot: band {band} is in bands too; its values are amounts or names, not both"
                )
            if not values:
                raise ValueError(f"one_hot.{band}: [] makes no channel; name the values")
            _refuse_twice(values, f"one_hot.{band}")
        if self.bands == [] and self.chain:
            raise ValueError(
                "chain: there are no bands that are amounts (bands: []); expected [], or name a band"
            )
        if self.bands == [] and not self.one_hot:
            raise ValueError("bands: [] leaves a model nothing to see; name a band, or null for all")

    def _check_limits(self) -> None:
        for name, limits in (("low", self.low), ("high", self.high)):
            if self.scaling != "fixed" and limits is not None:
                raise ValueError(
                    f"{name}: {limits}, but scaling {self.scaling!r} has no use for it; expected null"
                )
            if self.scaling == "fixed" and not limits:
                raise ValueError(
                    f"{name}: {limits}; with scaling 'fixed' expected a number, or one for each band"
                )
            if limits and self.bands is not None and len(limits) not in (1, len(self.bands)):
                raise ValueError(
                    f"{name}: {len(limits)} numbers for {len(self.bands)} bands; expected 1 or as many"
                )
        low, high = self.low or [0.0], self.high or [1.0]
        if len(low) > 1 and len(high) > 1 and len(low) != len(high):
            raise ValueError(f"low and high: {len(low)} and {len(high)} numbers; expected as many, or one")
        for least, most in zip(*np.broadcast_arrays(low, high), strict=True):
            if least >= most:
                raise ValueError(f"low: {least:g} is not below high, {most:g}")

    @property
    def is_raw(self) -> bool:
        """Whether a model sees images as they were decoded."""
        plain = (self.bands, self.scaling, self.no_data, self.one_hot) == (None, "type_max", None, {})
        return plain and not self.chain

    @property
    def identity(self) -> str:
        """What decides the numbers that a model sees."""
        unused = set() if self.chain else {"chain"}  # what was prepared before there were chains is found
        return self.model_dump_json(exclude={"view", *unused})

    def bands_of(self, available: int) -> list[int]:
        """Return the bands that are amounts, of images with so many."""
        named = set(map(int, self.one_hot))
        return [band for band in range(available) if band not in named] if self.bands is None else self.bands

    def channels(self, available: int) -> int:
        """Return the channels that a model sees of images with so many bands."""
        return len(self.bands_of(available)) + sum(map(len, self.one_hot.values()))


def _refuse_twice(values: list[int], what: str) -> None:
    twice = [value for at, value in enumerate(values) if value in values[:at]]
    if twice:
        raise ValueError(f"{what}: {twice[0]} is named twice; name it once")


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each channel over the training images, for values in 0…1.

    Channels of 0 and 1 (``one_hot``) have 0 and 1: they are to stay as they are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Inputs:
    """The images as a model sees them."""

    train: Store
    test: Store
    statistics: Statistics | None
    """None: images as they were decoded, which models normalise by fixed numbers."""
    limits: "Limits | None" = None
    """What became 0 and 1, of each band; None: of images as they were decoded, or each image's own."""

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.train.channels


def make_inputs(
    config: InputConfig, train: Store, test: Store, folder: Path, *, blank: Collection[str], decoded: str
) -> Inputs:
    """Return what models with this configuration see; scaled images are made once, in ``folder``.

    Args:
        config: Bands and scaling; "auto" is settled first.
        train: Decoded training images.
        test: Decoded test images.
        folder: Where prepared images of all configurations are kept, each in a folder of its own.
        blank: Training images without content, which do not count for extremes and means.
        decoded: Hash of the data's content and of how it was decoded.

    Raises:
        InputError: A band that the images do not have, a scaling that their type does not allow, a band of one value,
            or no value of ``one_hot`` that occurs.
    """
    config = settle_scaling(config, train, folder, blank=blank, decoded=decoded)
    check_input(config, train)
    if config.is_raw:
        return Inputs(train, test, None)
    own = folder / digest(config.identity)[:8]
    ledger = Ledger(own)
    if not ledger.is_done(_VERSION, decoded):
        ledger.forget(_VERSION)
        logger.info("preparing images: %s", config.identity)
        _prepare(config, train, test, own, blank=blank)
        ledger.mark_done(_VERSION, decoded)
    return _open(own)


def _open(folder: Path) -> Inputs:
    def forget() -> None:
        remove(Ledger(folder).path)

    train, test = (Store(folder / f"{name}.npy", on_damage=forget) for name in _STORES)
    facts = read_json(folder / "statistics.json")
    limits = (np.array(facts["low"]), np.array(facts["high"])) if "low" in facts else None
    return Inputs(train, test, Statistics(tuple(facts["mean"]), tuple(facts["std"])), limits)


def check_input(config: InputConfig, images: Store) -> None:
    """Refuse a configuration that these images do not allow.

    Raises:
        InputError: A band that is not there, limits for another number of bands, or a type without a natural maximum.
    """
    available = images.channels
    wanted = [*config.bands_of(available), *map(int, config.one_hot), *(config.view or ())]
    if wanted and max(wanted) >= available:
        raise InputError(
            f"input: band {max(wanted)} was asked for, but the images have {available}; expected 0 to {available - 1}"
        )
    for name, limits in (("low", config.low), ("high", config.high)):
        count = len(config.bands_of(available))
        if limits and len(limits) not in (1, count):
            raise InputError(f"input.{name}: {len(limits)} numbers for {count} bands; expected 1 or as many")
    if config.scaling == "type_max" and images.dtype.kind != "u" and config.bands_of(available):
        raise InputError(
            f"input.scaling: 'type_max' needs images of 8 or 16 bits without sign, these are {images.dtype}, which has "
            "no natural largest value; choose auto, standard, min_max or image_min_max, or fixed with low and high "
            "(`masksmith check` shows each band's range)"
        )


# --- scaling ----------------------------------------------------------------------------------------------

Values = Float[np.ndarray, "h w k"]
Limits = tuple[Shaped[np.ndarray, " k"], Shaped[np.ndarray, " k"]]
"""What becomes 0 and what becomes 1, for each band."""


def select(image: Image, bands: list[int], *, no_data: float | None) -> Values:
    """Return bands as float32 with NaN where nothing was measured: NaN, infinity, or the value ``no_data``."""
    values = image[..., bands].astype(np.float32)
    missing = ~np.isfinite(values)
    if no_data is not None:
        missing |= values == np.float32(no_data)
    values[missing] = np.nan
    return values


def to_unit_codes(values: Values, limits: Limits) -> UInt16[np.ndarray, "h w k"]:
    """Return codes ``rint(65535 v)`` of the values v in 0…1, clipped; NaN, and a band of one value, become 0."""
    low, high = limits
    span = np.where(high > low, high - low, np.inf)
    unit = np.clip((values - low) / span, 0, 1)
    return np.rint(np.nan_to_num(unit, nan=0.0) * _FULL).astype(np.uint16)


def image_limits(values: Values) -> Limits:
    """Return each band's extremes in an image; NaN where nothing was measured."""
    return np.fmin.reduce(values, axis=(0, 1)), np.fmax.reduce(values, axis=(0, 1))


def one_hot_codes(image: Image, one_hot: dict[str, list[int]]) -> UInt16[np.ndarray, "h w k"]:
    """Return a channel for each named value: 65535 where a band has it, 0 elsewhere."""
    planes = [image[..., int(band)] == value for band, values in one_hot.items() for value in values]
    return np.stack(planes, axis=2).astype(np.uint16) * np.uint16(_FULL)


def fit_limits(
    config: InputConfig, images: Iterator[Image], *, bands: list[int], dtype: np.dtype
) -> Limits | None:
    """Return the limits of each band, measured on the images where the scaling says so; None: each image has its own.

    Raises:
        InputError: A band has one value only, or none.
    """
    count = len(bands)
    if config.scaling == "image_min_max":
        return None
    if config.scaling == "fixed":
        low, high = (np.broadcast_to(np.array(one, np.float64), count) for one in (config.low, config.high))
        return low, high
    if config.scaling == "type_max":
        return np.zeros(count), np.full(count, float(np.iinfo(dtype).max))
    measured = (select(image, bands, no_data=config.no_data) for image in images)
    low, high = (
        _extremes(measured, count) if config.scaling == "min_max" else _three_deviations(measured, count)
    )
    for at, band in enumerate(bands):
        if not low[at] < high[at]:
            held = "no measured value" if np.isnan(low[at]) else f"one value only ({low[at]:g})"
            raise InputError(
                f"input.bands: band {band} has {held} in the training images; leave it out of input.bands"
            )
    return low, high


def _extremes(images: Iterator[Values], count: int) -> Limits:
    low, high = np.full(count, np.nan), np.full(count, np.nan)
    for values in images:
        least, most = image_limits(values)
        low, high = np.fmin(low, least), np.fmax(high, most)
    return low, high


def _three_deviations(images: Iterator[Values], count: int) -> Limits:
    moments = _Moments(count)
    for values in images:
        moments.add(values)
    mean, std = moments.mean_and_std()
    return mean - 3 * std, mean + 3 * std


class _Moments:
    """Mean and standard deviation of each channel over many images, one image at a time (Chan et al. 1983)."""

    def __init__(self, channels: int) -> None:
        self.count, self.mean, self.squares = (np.zeros(channels) for _ in range(3))

    def add(self, values: Shaped[np.ndarray, "h w c"]) -> None:
        """Count an image; NaN does not count."""
        flat = values.reshape(-1, values.shape[2]).astype(np.float64)
        known = ~np.isnan(flat)
        count = known.sum(axis=0)
        mean = np.where(known, flat, 0).sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(known, flat - mean, 0) ** 2).sum(axis=0)
        total = np.maximum(self.count + count, 1)
        self.squares += squares + (mean - self.mean) ** 2 * self.count * count / total
        self.mean += (mean - self.mean) * count / total
        self.count += count

    def mean_and_std(self) -> Limits:
        """Return both, NaN where nothing was counted."""
        mean = np.where(self.count > 0, self.mean, np.nan)
        return mean, np.sqrt(self.squares / np.maximum(self.count, 1))


# --- "auto" -----------------------------------------------------------------------------------------------

_SETTLED = "scaling 2"
_LIMITS = "limits.json"
_HALF = 32767
_TAIL = 0.001  # share of an image's pixels at either end that may be outliers: hot pixels, specks
_SAMPLE = 2**16  # pixels of an image that its quantiles are taken from


def with_declared(config: InputConfig, declared: float | None, dtype: np.dtype) -> InputConfig:
    """Return the configuration with what the images' files declare to mean "no data", where nothing was asked for.

    Zeros of images of 8 bits become 0 anyway.
    """
    zero = declared == 0 and dtype == np.uint8 and config.scaling in ("auto", "type_max")
    if declared is None or config.no_data is not None or zero:
        return config
    return config.model_copy(update={"no_data": declared})


def settle_scaling(
    config: InputConfig, train: Store, folder: Path, *, blank: Collection[str], decoded: str
) -> InputConfig:
    """Return the configuration with scaling "auto" settled for these images; any other stays as it is.

    Images of 8 bits, and those of 16 bits without sign in which each band (of pictures: all together) spans more than
    half of the type's range, get "type_max". All others get "fixed" with what occurs in the training images with
    content (see occurring_limits): for pictures (grey or in colours, without sign) one pair of limits, so that colours
    stay what they are, else a pair for each band. Two things do not count: what often means "no data" (SENTINELS),
    which becomes 0 like no data, and the largest value of a whole type, which is saturated and becomes 1.

    Args:
        config: Bands and scaling.
        train: Decoded training images.
        folder: Where prepared images are kept; measured limits are kept there too.
        blank: Training images without content.
        decoded: Hash of the data's content and of how it was decoded.

    Raises:
        InputError: A band that the images do not have.
    """
    if config.scaling != "auto":
        return config
    check_input(config, train)
    bands = config.bands_of(train.channels)
    if train.dtype == np.uint8 or not bands:
        return config.model_copy(update={"scaling": "type_max"})
    own = folder / digest(config.identity)[:8]
    ledger = Ledger(own)
    if not ledger.is_done(_SETTLED, decoded):
        images = _measured(train, _with_content(train, blank))
        measured = (select(image, bands, no_data=config.no_data) for image in images)
        low, high = occurring_limits(
            np.where(np.isin(values, _unmeasured(train.dtype)), np.float32(np.nan), values)
            for values in measured
        )
        write_json(own / _LIMITS, {"low": low.tolist(), "high": high.tolist()})
        ledger.mark_done(_SETTLED, decoded)
    return _with_limits(config, train, read_json(own / _LIMITS))


def _unmeasured(dtype: np.dtype) -> list[float]:
    """Return the values that "auto" does not count: those of no data, and the largest of a whole type (saturated)."""
    return [*SENTINELS, *([float(np.iinfo(dtype).max)] if dtype.kind in "iu" else [])]


def _with_limits(config: InputConfig, train: Store, found: dict[str, list[float]]) -> InputConfig:
    low, high = found["low"], found["high"]
    if is_picture(train):
        low, high = [min(low)], [max(high)]
    if train.dtype == np.uint16 and min(np.subtract(high, low)) > _HALF:
        return config.model_copy(update={"scaling": "type_max"})
    return config.model_copy(update={"scaling": "fixed", "low": low, "high": high})


def occurring_limits(images: Iterator[Values]) -> Limits:
    """Return each band's least and largest value over the images, NaN apart.

    An end that lies farther from the bulk of the values than the bulk is wide belongs to outliers, such as hot pixels:
    there the end of the bulk is taken. The bulk holds all of every image but a thousandth of its pixels at either end.
    A band of one value becomes 0 in all images; one without any value gets 0 and 1.
    """
    each = np.stack([_ends(values) for values in images])  # (n, 4, k)
    least, low = np.fmin.reduce(each[:, 0]), np.fmin.reduce(each[:, 1])
    high, most = np.fmax.reduce(each[:, 2]), np.fmax.reduce(each[:, 3])
    width = high - low
    low = np.where((width > 0) & (least < low - width), low, least)
    high = np.where((width > 0) & (most > high + width), high, most)
    low, high = np.where(np.isnan(low), 0.0, low), np.where(np.isnan(high), 1.0, high)
    return low, np.where(high > low, high, low + np.maximum(1.0, np.abs(low)))


def _ends(values: Values) -> Float[np.ndarray, "4 k"]:
    """Return minimum, low end of the bulk, high end and maximum of each band, NaN where it has no value."""
    columns = []
    for band in np.moveaxis(values, 2, 0).reshape(values.shape[2], -1):
        known = band[~np.isnan(band)]
        if not known.size:
            columns.append(np.full(4, np.nan))
            continue
        some = known[:: -(-known.size // _SAMPLE)]
        bulk = np.quantile(some, [_TAIL, 1 - _TAIL], method="closest_observation")
        columns.append(np.array([known.min(), *bulk, known.max()], np.float64))
    return np.stack(columns, axis=1)


def beyond_limits(config: InputConfig, images: Store) -> list[str]:
    """Return the images of which more than a hundredth of a band lies outside the limits of scaling "fixed"."""
    if config.low is None or config.high is None:
        return []
    bands, found = config.bands_of(images.channels), []
    for name in images:
        height, width = images.shape(name)
        beyond = np.zeros(len(bands))
        for part in images.parts(name):
            values = select(part, bands, no_data=config.no_data)
            outside = (values < config.low) | (values > config.high)
            outside &= ~np.isin(values, _unmeasured(images.dtype))
            beyond += outside.sum(axis=(0, 1))
        if beyond.max() > 0.01 * height * width:
            found.append(name)
    return found


def scaling_text(config: InputConfig, dtype: np.dtype) -> str:
    """Return in words what a settled scaling makes of images of this type."""
    if config.no_data is not None:
        rest = scaling_text(config.model_copy(update={"no_data": None}), dtype)
        return f"{rest}; {config.no_data:g} is no data"
    if config.scaling == "type_max":
        return f"type_max: 0…{np.iinfo(dtype).max} become 0…1"
    if config.low is None or config.high is None:
        return config.scaling
    pairs = np.broadcast(config.low, config.high)
    shown = ", ".join(f"{low:g}…{high:g}" for low, high in pairs)
    return f"{config.scaling}: {shown} become 0…1"


# --- the stores -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaler:
    """From a decoded image to what a model sees."""

    config: InputConfig
    bands: list[int]
    limits: Limits | None

    def __call__(self, image: Image) -> UInt16[np.ndarray, "h w k"]:
        """Return codes of 0…1 of the bands that a model sees."""
        parts = []
        if self.bands:
            values = select(image, self.bands, no_data=self.config.no_data)
            codes = to_unit_codes(values, self.limits or image_limits(values))
            if self.config.chain:
                codes = apply_values(codes, self.config.chain, np.isnan(values))
            parts.append(codes)
        if self.config.one_hot:
            parts.append(one_hot_codes(image, self.config.one_hot))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def _prepare(config: InputConfig, train: Store, test: Store, folder: Path, *, blank: Collection[str]) -> None:
    seen = _with_content(train, blank)
    bands = config.bands_of(train.channels)
    images = _measured(train, seen)
    scaler = Scaler(config, bands, fit_limits(config, images, bands=bands, dtype=train.dtype))
    moments = _Moments(config.channels(train.channels))
    for store, name in zip((train, test), _STORES, strict=True):
        counted = set(seen) if store is train else set()
        _write(store, folder / f"{name}.npy", scaler, moments, counted)
    mean, std = moments.mean_and_std()
    _refuse_absent(config, mean[len(bands) :])
    mean[len(bands) :], std[len(bands) :] = 0, 1
    facts = {"mean": mean.tolist(), "std": np.maximum(std, _LEAST_STD).tolist()}
    limits = {} if scaler.limits is None else {"low": list(scaler.limits[0]), "high": list(scaler.limits[1])}
    write_json(folder / "statistics.json", facts | limits)


def _with_content(train: Store, blank: Collection[str]) -> list[str]:
    return [name for name in train if name not in blank] or list(train)


def _measured(train: Store, names: list[str]) -> Iterator[Image]:
    return (train.checked(name) for name in track(names, total=len(names), what="measuring bands"))


def _write(store: Store, path: Path, scaler: Scaler, moments: _Moments, counted: Collection[str]) -> None:
    """Write the scaled images of a store, and count those of the training."""
    channels = scaler.config.channels(store.channels or 1)
    shapes = [(name, (*store.shape(name), channels)) for name in store]
    writer = StoreWriter(path, shapes, dtype=np.uint16)
    for name in track(list(store), total=len(store), what=f"scaling {path.stem}"):
        codes = scaler(store.checked(name))
        writer.write(name, codes)
        if name in counted:
            moments.add(codes.astype(np.float32) / _FULL)
    writer.close()


def _refuse_absent(config: InputConfig, shares: Shaped[np.ndarray, " k"]) -> None:
    """Refuse a band of names of which none occurs; ``shares`` is how often each does, in the order of ``one_hot``."""
    at = 0
    for band, values in config.one_hot.items():
        if not shares[at : at + len(values)].any():
            raise InputError(
                f"input.one_hot: none of the values {values} occurs in band {band} of the training images; name those "
                "that do (`masksmith check` lists them)"
            )
        at += len(values)
