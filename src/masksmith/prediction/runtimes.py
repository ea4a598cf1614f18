"""Runtimes compute the logits of a batch: torch is the reference, OpenVINO is faster on a CPU.

A runtime is a function from image planes to logits, both numpy arrays, so padding, test-time augmentation and codes do
not depend on it. To add one, write its builder and a line in RUNTIMES.

OpenVINO (CPU only) takes the traced network, folds normalisation layers into convolutions and computes in the
precision of training. That precision is always set, because OpenVINO's default depends on the machine. As in torch,
logits are float32 (see ``_Float32Head``), the number of threads is torch's, and no shape is padded beyond the model's
divisor.
"""

import copy
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.models.segmentation import SegmentationModel
from masksmith.prediction.combine import Combine, mask_only

Planes = Float[np.ndarray, "b c h w"]
Logits = Float[np.ndarray, "b k h w"]
Scalars = Float[np.ndarray, "b s"]
Runtime = Callable[..., Logits]
"""``runtime(planes)``, or ``runtime(planes, scalars)`` for a model that takes scalars."""

_OPENVINO_PRECISIONS = {"bf16-mixed": "bf16", "32-true": "f32"}
_EXAMPLE_SIDE = 32  # of the image that a model with divisor 1 is traced with; it can be halved four times
_COMPILED = 8  # compiled shapes that are kept; each holds a copy of the weights
_TELEMETRY = "openvino_telemetry"


def torch_runtime(fabric: Fabric, model: SegmentationModel, combine: Combine = mask_only) -> Runtime:
    """Return the runtime that calls the model itself, on Fabric's device and in its precision.

    Args:
        fabric: Device and precision.
        model: A model on that device. The caller puts it into evaluation mode.
        combine: How the image head changes the mask.
    """

    def forward(planes: Planes, scalars: Scalars | None = None) -> Logits:
        image = fabric.to_device(torch.from_numpy(planes))
        numbers = None if scalars is None else fabric.to_device(torch.from_numpy(scalars))
        with torch.inference_mode(), fabric.autocast():
            output = model(image) if numbers is None else model(image, numbers)
        with torch.inference_mode():
            return combine(output).float().cpu().numpy()

    return forward


class _Float32Head(nn.Module):
    """The 1x1 head as a weighted sum over channels.

    In bfloat16 OpenVINO computes every convolution and matrix product with 8 bits, the logits too, so many pixels share
    a probability. Elementwise operations after the last convolution stay float32. Mean difference of probabilities from
    float32 on a trained net: 0.00108 in this form, 0.00132 as a convolution, 0.00113 with torch's autocast.
    """

    def __init__(self, head: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return the logits of one class."""
        summed = (features * self.weight.reshape(1, -1, 1, 1)).sum(1, keepdim=True)
        return summed if self.bias is None else summed + self.bias


class _Traced(nn.Module):
    """A copy of a model for tracing: evaluation mode, combined mask logits only, float32 head."""

    def __init__(self, model: SegmentationModel, combine: Combine) -> None:
        super().__init__()
        self.combine = combine
        self.model = copy.deepcopy(model).eval()
        head = getattr(self.model, "head", None)
        if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1) and head.out_channels == 1:
            self.model.head = cast(Any, _Float32Head(head))

    def forward(self, image: Tensor) -> Tensor:
        """Return the mask logits."""
        return self.combine(self.model(image))


def import_openvino() -> Any:  # noqa: ANN401
    """Import OpenVINO without its telemetry, which reports the import and each conversion to its makers.

    Raises:
        InputError: OpenVINO cannot be imported.
    """
    silenced = _TELEMETRY not in sys.modules
    if silenced:
        sys.modules[_TELEMETRY] = cast(Any, None)  # as if not installed; openvino has a stub for that case
    try:
        import openvino
        import openvino.tools.ovc
    except ImportError as error:
        raise InputError(
            f"prediction.runtime: 'openvino' was asked for, but it cannot be imported ({error}); "
            "run `pip install masksmith[openvino]`, or choose 'torch'"
        ) from error
    finally:
        if silenced:
            del sys.modules[_TELEMETRY]
    return openvino


@cache
def openvino_core(openvino: Any) -> Any:  # noqa: ANN401
    """Return the one core of this process, which lives as long as it.

    Each core gives its thread a stack for signals and frees it at the end. After two cores the thread is left with the
    freed stack of the first, and the next signal, a Ctrl-C for example, ends the process with a segmentation fault.
    """
    return openvino.Core()


def _convert(openvino: Any, model: SegmentationModel, combine: Combine) -> Any:  # noqa: ANN401
    """Trace a model and return it as an OpenVINO network of any batch and image size."""
    channels, side = model.in_channels, 2 * model.divisor if model.divisor > 1 else _EXAMPLE_SIDE
    example = torch.zeros(1, channels, side, side)
    with torch.no_grad(), warnings.catch_warnings():
        # Python reads sizes while tracing; the gate tests whether the result is right
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        try:
            traced = _Traced(model, combine)
            return openvino.convert_model(traced, example_input=example, input=[-1, channels, -1, -1])
        except RuntimeError as error:
            raise InputError(
                f"prediction.runtime: 'openvino' cannot convert this network ({error}); choose 'torch'"
            ) from error


def openvino_runtime(
    model: SegmentationModel, *, precision: str, threads: int | None = None, combine: Combine = mask_only
) -> Runtime:
    """Convert a model and return its OpenVINO runtime; the model itself is not changed.

    The network is traced once for any size. Each (b, h, w) is compiled with fixed sizes when it first occurs, and the
    last few are kept, which is enough because prediction goes canvas by canvas. A batch is filled up to the next power
    of two by repeating its last image, so its numbers do not depend on what was computed before, for example before an
    interruption.

    Args:
        model: A model on the CPU.
        precision: "bf16" or "f32".
        threads: Threads of a forward pass; None: torch's.
        combine: How the image head changes the mask.

    Raises:
        InputError: OpenVINO is not installed, or cannot convert this network.
    """
    openvino = import_openvino()
    network = _convert(openvino, model, combine)
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # two processes would be pinned to the same cores
    }
    core = openvino_core(openvino)
    compiled: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def compiled_for(num: int, rest: tuple[int, ...]) -> tuple[int, Any]:
        key = (1 << (num - 1).bit_length(), *rest)
        if key not in compiled:
            fixed = network.clone()
            fixed.reshape(list(key))
            compiled[key] = core.compile_model(fixed, "CPU", options).create_infer_request()
        compiled.move_to_end(key)
        if len(compiled) > _COMPILED:
            compiled.popitem(last=False)
        return key[0], compiled[key]

    def forward(planes: Planes) -> Logits:
        num = len(planes)
        batch, request = compiled_for(num, planes.shape[1:])
        filled = np.concatenate([planes, np.repeat(planes[-1:], batch - num, axis=0)])
        logits = request.infer([np.ascontiguousarray(filled)])[0]
        return cast(np.ndarray, logits)[:num]

    return forward


def check_runtime(name: str, *, device: str, precision: str, scalars: Sequence[str] = ()) -> None:
    """Refuse a runtime that cannot be used here. Called before training.

    Args:
        name: A key of RUNTIMES.
        device: "cpu", "cuda" or "mps".
        precision: Precision of training, with "auto" resolved.
        scalars: ``ModelConfig.scalars``.

    Raises:
        InputError: The runtime is unknown; or it is OpenVINO and the device is not the CPU, the precision has no
            counterpart, the model takes scalars, or it is not installed.
    """
    look_up(RUNTIMES, name, where="prediction.runtime")
    if name != "openvino":
        return
    if device != "cpu":
        raise InputError(
            f"prediction.runtime: 'openvino' runs on the CPU, and training.device is {device!r}; "
            "choose prediction.runtime=torch or training.device=cpu"
        )
    if precision not in _OPENVINO_PRECISIONS:
        raise InputError(
            f"prediction.runtime: 'openvino' has no form of training.precision {precision!r}; "
            f"expected {' or '.join(_OPENVINO_PRECISIONS)}, or choose prediction.runtime=torch"
        )
    if scalars:
        raise InputError(
            f"prediction.runtime: 'openvino' has no form for a model that takes scalars ({', '.join(scalars)}); "
            "choose prediction.runtime=torch"
        )
    import_openvino()


def _openvino_of(fabric: Fabric, model: SegmentationModel, combine: Combine) -> Runtime:
    precision = str(fabric.strategy.precision.precision)
    check_runtime("openvino", device=fabric.device.type, precision=precision)
    return openvino_runtime(model, precision=_OPENVINO_PRECISIONS[precision], combine=combine)


RUNTIMES: dict[str, Callable[[Fabric, SegmentationModel, Combine], Runtime]] = {
    "torch": torch_runtime,
    "openvino": _openvino_of,
}
