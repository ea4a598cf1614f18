"""Encoder weights: where they come from, and how a pretrained stem takes another number of channels.

Sources:
    Encoders: timm (https://github.com/huggingface/pytorch-image-models, Apache-2.0) and
    segmentation-models-pytorch (https://github.com/qubvel-org/segmentation_models.pytorch, MIT).
"""

import difflib
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import huggingface_hub
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.models.architectures import OWN_ENCODER
from masksmith.models.config import (
    CLASSIFIERS,
    FILE_ENCODER,
    PRETRAINED_ENCODER,
    SCRATCH_ENCODER,
    WEIGHTS,
    tensor_names,
)
from masksmith.models.convert import read_checkpoint
from masksmith.models.layers import SCSE
from masksmith.models.wheels import WHEELS, no_wheel, plain_name, wheel_file
from masksmith.preprocess.inputs import Statistics

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)
_LITE_STATISTICS = ((127 / 255,) * 3, (128 / 255,) * 3)
"""What EfficientNet-Lite was trained with; timm rounds both to 0.5."""
_DPN = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3
_OTHER_STATISTICS = {
    **{f"dpn{number}": _DPN for number in ("68", "68b", "92", "98", "107", "131")},
    "inceptionv4": (_HALF, _HALF),
    "inceptionresnetv2": (_HALF, _HALF),
    "xception": (_HALF, _HALF),
}
"""Mean and standard deviation of the library's encoders that were trained with others than ImageNet's."""
_REACH_S = 3.0  # a hub that does not answer in this time counts as absent


class HubSource(NamedTuple):
    """Where pretrained weights of an encoder lie."""

    repo_id: str
    revision: str | None
    filename: str


def known_encoders() -> list[str]:
    """Names that segmentation-models-pytorch knows, and nets of timm with padding; every other timm name works too."""
    return sorted([*smp.encoders.get_encoder_names(), "inception_v3", "nasnetalarge", "pnasnet5large"])


def timm_name(encoder: str) -> str | None:
    """Return the name by which timm knows an encoder; None if it is one of segmentation-models-pytorch.

    A name that both know means the latter's; "tu-" before it means timm's.
    """
    return None if encoder in smp.encoders.encoders else encoder.removeprefix("tu-")


def _timm_knows(name: str) -> bool:

    model, dot, _ = name.partition(".")
    if not timm.is_model(model):
        return False
    return not dot or name in timm.list_models(f"{model}.*", pretrained=True, include_tags=True)


def check_encoder(name: str) -> None:
    """Refuse an encoder name that neither library knows and that is not "own".

    Raises:
        InputError: The name is unknown; the message suggests the nearest.
    """
    plain = timm_name(name)
    if name == OWN_ENCODER or plain is None or _timm_knows(plain):
        return

    model, dot, _ = plain.partition(".")
    if dot and timm.is_model(model):
        known = timm.list_models(f"{model}.*", pretrained=True, include_tags=True) or [model]
    else:
        known = timm.list_models()
    if name.startswith("tu-"):
        known = [f"tu-{one}" for one in known]
    else:
        known = list(dict.fromkeys([*known_encoders(), *known]))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise InputError(
        f"model.encoder: {name!r} is unknown; did you mean {', '.join(map(repr, close)) or 'resnet18'}? "
        "Known: the encoders of segmentation-models-pytorch, and every name of timm (where both know it, 'tu-' before "
        "it means timm's)"
    )


def hub_source(encoder: str) -> HubSource | None:
    """Return where the ImageNet weights of an encoder are on the hub, or None where there are none."""
    name = timm_name(encoder)
    if name is not None:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if config is None or not config.hf_hub_id:
            return None
        return HubSource(config.hf_hub_id, None, "model.safetensors")
    settings = smp.encoders.encoders[encoder].get("pretrained_settings", {}).get("imagenet")
    if not settings or "repo_id" not in settings:
        return None
    return HubSource(settings["repo_id"], settings.get("revision"), "model.safetensors")


def _get(source: HubSource, *, local: bool) -> Path:
    return Path(
        huggingface_hub.hf_hub_download(
            source.repo_id,
            source.filename,
            revision=source.revision,
            local_files_only=local,
            etag_timeout=_REACH_S,
        )
    )


def find_in_cache(source: HubSource) -> Path | None:
    """Return the local path of weights in the hub's cache (``HF_HOME``); None where they are not in it."""
    try:
        return _get(source, local=True)
    except LocalEntryNotFoundError:
        return None


def fetch_from_hub(source: HubSource) -> Path | None:
    """Return the local path of hub weights, downloading them where the hub answers; None where they cannot be reached.

    The hub's own cache is looked at first (``HF_HOME``), so a machine without internet can be given files.
    """
    cached = find_in_cache(source)
    if cached is not None:
        return cached
    if constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT):
        return None
    try:
        return _get(source, local=False)
    except Exception as error:  # any failure of the network means that it cannot be reached
        logger.warning("%s: the hub answered, but the download failed (%s)", source.repo_id, error)
        return None


def _answers(endpoint: str) -> bool:
    address = urlparse(endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=_REACH_S):
            return True
    except OSError:
        return False


class Settled(NamedTuple):
    """A choice that "auto" came to, and the sentence that says why."""

    encoder: str
    weights: str
    reason: str


def settle_encoder(encoder: str, weights: str) -> Settled:
    """Settle "auto" for the encoder and its weights.

    Returns:
        The encoder's name, and its weights as "none", "imagenet", "wheel" or the path of a file.

    Raises:
        InputError: Unknown encoder; "imagenet" was asked for and cannot be reached; "wheel" was asked for and is not
            installed; a file that is not there.
    """
    if encoder == OWN_ENCODER:
        return Settled(encoder, "none", "the architecture's own, with random weights")
    if encoder != "auto":
        check_encoder(encoder)
    if weights not in WEIGHTS:
        tensor_names(Path(weights))
        chosen = FILE_ENCODER if encoder == "auto" else encoder
        return Settled(chosen, str(Path(weights).resolve()), f"weights from the file {weights}")
    if weights == "none":
        chosen = SCRATCH_ENCODER if encoder == "auto" else encoder
        return Settled(chosen, "none", "random weights, as asked")
    wanted = PRETRAINED_ENCODER if encoder == "auto" else encoder
    found = _pretrained(wanted, weights)
    if found is not None:
        return found
    if weights == "wheel":
        raise InputError(no_wheel(wanted))
    source = hub_source(wanted)
    if weights == "imagenet":
        where = f"{source.repo_id} cannot be reached" if source else f"there are none for {wanted}"
        package = "'wheel', " if wheel_file(wanted) else ""
        raise InputError(
            f"model.encoder_weights: 'imagenet' was asked for, but {where}; give a .safetensors file, {package}'auto' "
            "or 'none'"
        )
    chosen = SCRATCH_ENCODER if encoder == "auto" else encoder
    missing = WHEELS.get(plain_name(wanted))
    install = f"; pip install {missing} brings them" if missing else ""
    reason = f"random weights: no ImageNet weights of {wanted} within {_REACH_S:.0f} s{install}"
    return Settled(chosen, "none", reason)


def _pretrained(encoder: str, weights: str) -> Settled | None:
    """Look for ImageNet weights in the hub's cache, in the encoder's package and on the hub, in this order.

    "imagenet" does not look into the package, and "wheel" nowhere else.
    """
    source = hub_source(encoder) if weights != "wheel" else None
    if source is not None and find_in_cache(source) is not None:
        return Settled(encoder, "imagenet", f"ImageNet weights of {source.repo_id}, in the hub's cache")
    if weights != "imagenet" and wheel_file(encoder) is not None:
        package = WHEELS[plain_name(encoder)]
        return Settled(encoder, "wheel", f"ImageNet weights of the installed package {package}")
    if source is not None and fetch_from_hub(source) is not None:
        return Settled(encoder, "imagenet", f"ImageNet weights of {source.repo_id}, from the hub")
    return None


def _pretrained_statistics(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the images that an encoder was pretrained on."""
    name = timm_name(encoder)
    if name is None:
        return _OTHER_STATISTICS.get(encoder, (IMAGENET_MEAN, IMAGENET_STD))
    if plain_name(name) in WHEELS:
        return _LITE_STATISTICS
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return IMAGENET_MEAN, IMAGENET_STD
    return tuple(config.mean), tuple(config.std)


def normalisation(
    in_channels: int,
    *,
    pretrained: bool,
    encoder: str = SCRATCH_ENCODER,
    statistics: Statistics | None = None,
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (1, c, 1, 1) for images in 0…1.

    With pretrained weights those that they were trained with (of many ViTs 0.5); other numbers of channels take their
    mean. Without, ImageNet's mean. Where the channels were measured, their own: a band that is scaled by its largest
    possible value lies within a few hundredths, far from what any fixed numbers expect, and then a pretrained stem,
    too, meets channels of mean 0 and deviation 1, as it was trained. Nets with an encoder of their own take images as
    they are, with 0 and 1.
    """
    if statistics is not None:
        assert len(statistics.mean) == in_channels, (len(statistics.mean), in_channels)
        mean, std = statistics.mean, statistics.std
        return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
    if encoder == OWN_ENCODER:
        shape = (1, in_channels, 1, 1)
        return torch.zeros(shape), torch.ones(shape)
    mean, std = _pretrained_statistics(encoder) if pretrained else (IMAGENET_MEAN, IMAGENET_STD)
    if not pretrained or in_channels != 3:
        mean, std = (sum(mean) / len(mean),) * in_channels, (sum(std) / len(std),) * in_channels
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)


def adapt_stem(weight: Tensor, in_channels: int, *, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Adapt the first convolution (out, 3, kh, kw) of an RGB encoder to ``in_channels``.

    One channel: the sum over RGB, each channel weighted by how its standard deviation differs from the mean one, so
    a grey image gives what its RGB copy gave (up to a constant, which batch norm removes). More than three:
    the three repeat, scaled so that the sum over channels keeps its size.
    """
    if in_channels == 3:
        return weight
    if in_channels == 1:
        spread = torch.tensor(std)
        return (weight * (spread.mean() / spread).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    repeats = -(-in_channels // 3)
    return weight.repeat(1, repeats, 1, 1)[:, :in_channels] * (3 / in_channels)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: The file is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def read_wheel(encoder: str) -> dict[str, Tensor]:
    """Read the weights in the package of an encoder, by the names that timm gives them.

    The package has them in the order of timm's module, under other names.

    Raises:
        InputError: The package is not installed, its file is damaged, or a tensor is not that of timm's module.
    """
    path = wheel_file(encoder)
    if path is None:
        raise InputError(no_wheel(encoder))
    stored = read_checkpoint(path)
    with torch.device("meta"):
        own = timm.create_model(plain_name(encoder)).state_dict()
    if len(stored) != len(own):
        raise InputError(
            f"model.encoder_weights: {path}: {len(stored)} tensors; expected the {len(own)} of {encoder!r}; install "
            f"{WHEELS[plain_name(encoder)]} again"
        )
    for (name, value), (theirs, found) in zip(own.items(), stored.items(), strict=True):
        if found.shape != value.shape or name.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise InputError(
                f"model.encoder_weights: {path}: {theirs!r} has shape {tuple(found.shape)} where {encoder!r} has "
                f"{name!r} of {tuple(value.shape)}; install {WHEELS[plain_name(encoder)]} again"
            )
    return dict(zip(own, stored.values(), strict=True))


_STAGE = re.compile(r"^([a-z]+(?:_[a-z]+)*)_(\d+)\.")


def _stored_names(own: str) -> list[str]:
    """Return how a weight of an encoder may be called in a file of the whole net.

    segmentation-models-pytorch puts "model." before timm's names, timm's feature extractor "body." or "model.", and it
    writes a stage of a list as "stages_0" instead of "stages.0".
    """
    names = [own, own.removeprefix("model.")]
    names += [names[-1].removeprefix(prefix) for prefix in ("model.", "body.")]
    names += [_STAGE.sub(r"\1.\2.", name) for name in names[1:]]
    return list(dict.fromkeys(names))


def stem_weight(encoder: nn.Module) -> str:
    """Return the name of the weights that meet the image: of the first convolution."""
    return next(f"{name}.weight" for name, one in encoder.named_modules() if isinstance(one, nn.Conv2d))


def _matched(own: dict[str, Tensor], stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the stored tensors by the names of the encoder; those that are not there are missing."""
    found = {}
    for name in own:
        spelling = next((one for one in _stored_names(name) if one in stored), None)
        if spelling is not None:
            found[name] = stored[spelling]
    return found


def _own_attention(encoder: nn.Module) -> list[str]:
    """Return the names of the weights of attention that was put into an encoder."""
    gates = [(name, one) for name, one in encoder.named_modules() if isinstance(one, SCSE)]
    return [f"{name}.{weight}" for name, gate in gates for weight in gate.state_dict()]


def _stored_weights(encoder: str, weights: str) -> tuple[str, dict[str, Tensor]]:
    """Return where the weights lie, for messages, and the weights."""
    if weights == "wheel":
        return str(wheel_file(encoder)), read_wheel(encoder)
    path: Path | None = Path(weights)
    if weights == "imagenet":
        source = hub_source(encoder)
        path = fetch_from_hub(source) if source else None
        if path is None:
            raise InputError(f"model.encoder_weights: the weights of {encoder} can no longer be reached")
    assert path is not None
    return str(path), read_weights(path)


def load_encoder_weights(
    encoder: nn.Module, weights: str, *, encoder_name: str, in_channels: int, new_stem: bool = False
) -> None:
    """Load "imagenet", "wheel" or a file into an encoder; "none" leaves it as it is.

    A classifier's weights, and those of stages that the encoder was built without, are left out. Attention within the
    encoder keeps its random weights.

    Args:
        encoder: Changed in place.
        weights: "imagenet", "wheel", "none" or the path of a safetensors file.
        encoder_name: As in the configuration.
        in_channels: Channels of the images; the first convolution is adapted.
        new_stem: Whether the first convolution was replaced by another; it keeps its random weights, and the log says
            so.

    Raises:
        InputError: Weights are missing or have another shape: the message says how many, and which first.
    """
    if weights == "none":
        return
    where, stored = _stored_weights(encoder_name, weights)
    own = encoder.state_dict()
    wanted = {name: value for name, value in own.items() if not name.startswith(CLASSIFIERS)}
    found = _matched(wanted, stored)
    stem = stem_weight(encoder)
    if new_stem:
        logger.warning("model.stem: %s keeps random weights; the other %d load", stem, len(wanted) - 1)
        found[stem] = own[stem]
    elif stem in found and found[stem].ndim == 4 and found[stem].shape[1] == 3:
        found[stem] = adapt_stem(found[stem], in_channels, std=_pretrained_statistics(encoder_name)[1])
    found |= {name: own[name] for name in _own_attention(encoder)}  # which no file of a classifier has
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, value)
    misfits = sorted(name for name in wanted if name not in found or found[name].shape != own[name].shape)
    if misfits:
        raise InputError(
            f"model.encoder_weights: {where}: {len(misfits)} of {len(wanted)} weights of {encoder_name!r} do not fit "
            f"(first {misfits[0]!r}); is it a file of another encoder?"
        )
    nn.Module.load_state_dict(encoder, own | found)
