"""Encoder weights: where they come from, and how a pretrained stem takes another number of channels.

Sources:
    Encoders: timm (https://github.com/huggingface/pytorch-image-models, Apache-2.0) and
    segmentation-models-pytorch (https://github.com/qubvel-org/segmentation_models.pytorch, MIT).
"""

import difflib
import socket
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import segmentation_models_pytorch as smp
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from masksmith.errors import InputError
from masksmith.models.config import CLASSIFIERS, PRETRAINED_ENCODER, SCRATCH_ENCODER, tensor_names
from masksmith.progress import logger

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_REACH_S = 3.0  # a hub that does not answer in this time counts as absent


class HubSource(NamedTuple):
    """Where pretrained weights of an encoder lie."""

    repo_id: str
    revision: str | None
    filename: str


def known_encoders() -> list[str]:
    """Names that segmentation-models-pytorch knows; every timm name works too, after "tu-"."""
    return sorted(smp.encoders.get_encoder_names())


def check_encoder(name: str) -> None:
    """Refuse an encoder name that neither library knows.

    Raises:
        InputError: The name is unknown; the message suggests the nearest.
    """
    if name.startswith("tu-"):
        import timm

        known = [f"tu-{model}" for model in timm.list_models()]
    else:
        known = known_encoders()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        raise InputError(
            f"model.encoder: {name!r} is unknown; did you mean {', '.join(map(repr, close)) or 'resnet18'}? "
            "Known: the encoders of segmentation-models-pytorch, and 'tu-' with any timm name"
        )


def hub_source(encoder: str) -> HubSource | None:
    """Return where the ImageNet weights of an encoder lie on the hub, or None where there are none."""
    if encoder.startswith("tu-"):
        import timm

        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"), allow_unregistered=True)
        if config is None or not config.hf_hub_id:
            return None
        return HubSource(config.hf_hub_id, None, "model.safetensors")
    settings = smp.encoders.encoders[encoder].get("pretrained_settings", {}).get("imagenet")
    if not settings or "repo_id" not in settings:
        return None
    return HubSource(settings["repo_id"], settings.get("revision"), "model.safetensors")


def fetch_from_hub(source: HubSource) -> Path | None:
    """Return the local path of hub weights, downloading them where the hub answers; None where they are out of reach.

    The hub's own cache is looked at first (``HF_HOME``), so a machine without internet can be given files.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def get(*, local: bool) -> Path:
        return Path(
            hf_hub_download(
                source.repo_id,
                source.filename,
                revision=source.revision,
                local_files_only=local,
                etag_timeout=_REACH_S,
            )
        )

    try:
        return get(local=True)
    except LocalEntryNotFoundError:
        pass
    if constants.HF_HUB_OFFLINE or not _answers(constants.ENDPOINT):
        return None
    try:
        return get(local=False)
    except Exception as error:  # whatever the network does, it is out of reach
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
        The encoder's name, and its weights as "none", "imagenet" or the path of a file.

    Raises:
        InputError: Unknown encoder; "imagenet" asked for and out of reach; a file that is not there.
    """
    if encoder != "auto":
        check_encoder(encoder)
    if weights not in ("auto", "none", "imagenet"):
        tensor_names(Path(weights))
        chosen = PRETRAINED_ENCODER if encoder == "auto" else encoder
        return Settled(chosen, str(Path(weights).resolve()), f"weights from the file {weights}")
    if weights == "none":
        chosen = SCRATCH_ENCODER if encoder == "auto" else encoder
        return Settled(chosen, "none", "random weights, as asked")
    wanted = PRETRAINED_ENCODER if encoder == "auto" else encoder
    source = hub_source(wanted)
    if source is not None and fetch_from_hub(source) is not None:
        return Settled(wanted, "imagenet", f"ImageNet weights of {source.repo_id}")
    if weights == "imagenet":
        where = f"{source.repo_id} cannot be reached" if source else f"there are none for {wanted}"
        raise InputError(
            f"model.encoder_weights: 'imagenet' was asked for, but {where}; give a .safetensors file, 'auto' or 'none'"
        )
    chosen = SCRATCH_ENCODER if encoder == "auto" else encoder
    return Settled(chosen, "none", f"random weights: no ImageNet weights of {wanted} within {_REACH_S:.0f} s")


def normalisation(in_channels: int, *, pretrained: bool) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (1, c, 1, 1) for images in 0…1."""
    if pretrained and in_channels == 3:
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    else:
        mean = torch.full((in_channels,), sum(IMAGENET_MEAN) / 3)
        std = torch.full((in_channels,), sum(IMAGENET_STD) / 3)
    return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Adapt the first convolution (out, 3, kh, kw) of an RGB encoder to ``in_channels``.

    One channel: the sum over RGB, each channel weighted by how its standard deviation differs from the mean one, so
    a grey image gives what its RGB copy gave (up to a constant, which batch norm removes). More than three:
    the three repeat, scaled so that the sum over channels keeps its size.
    """
    if in_channels == 3:
        return weight
    if in_channels == 1:
        std = torch.tensor(IMAGENET_STD)
        return (weight * (std.mean() / std).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
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


def load_encoder_weights(encoder: nn.Module, weights: str, *, encoder_name: str, in_channels: int) -> None:
    """Load "imagenet" or a file into an encoder; "none" leaves it as it is.

    A classifier's weights, and those of stages that the encoder was built without, are left out.

    Raises:
        InputError: Weights are missing or have another shape: the message says how many, and which first.
    """
    if weights == "none":
        return
    path: Path | None = Path(weights)
    if weights == "imagenet":
        source = hub_source(encoder_name)
        path = fetch_from_hub(source) if source else None
        if path is None:
            raise InputError(f"model.encoder_weights: the weights of {encoder_name} are no longer in reach")
    assert path is not None
    stored = read_weights(path)
    own = encoder.state_dict()
    wanted = {name: value for name, value in own.items() if not name.startswith(CLASSIFIERS)}
    fitting: dict[str, Any] = {}
    stem = next(name for name, value in own.items() if value.ndim == 4)
    plain_stem = stem.removeprefix("model.")
    for name, value in wanted.items():
        candidate = stored.get(name, stored.get(name.removeprefix("model.")))
        if candidate is not None and name.removeprefix("model.") == plain_stem and candidate.shape[1] == 3:
            candidate = adapt_stem(candidate, in_channels)
        if candidate is None and name.endswith("num_batches_tracked"):
            candidate = value
        if candidate is not None and candidate.shape == value.shape:
            fitting[name] = candidate
    misfits = sorted(set(wanted) - set(fitting))
    if misfits:
        raise InputError(
            f"model.encoder_weights: {path}: {len(misfits)} of {len(wanted)} weights of {encoder_name!r} do not fit "
            f"(first {misfits[0]!r}); is it a file of another encoder?"
        )
    nn.Module.load_state_dict(encoder, own | fitting)
