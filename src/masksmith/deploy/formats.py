"""Write a graph as a file of another runtime.

ONNX goes through torch's TorchScript exporter: of EfficientNet-lite0's U-Net it makes the file in 2 s, the newer one
(``dynamo=True``) had not finished after 300 s (torch 2.13, shapes of any size).
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from masksmith.core.arrays import Image
from masksmith.core.errors import InputError
from masksmith.deploy.exported import import_onnx
from masksmith.deploy.graph import Masks, Member
from masksmith.prediction.runtimes import import_openvino

PRECISIONS = {
    "onnx": ("fp32", "fp16"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "torch": ("fp32",),
}
"""Format -> in what it is stored (fp16, int8) or computed (bf16)."""
_OPSET = 17


def import_nncf() -> Any:  # noqa: ANN401
    """Import the package that quantizes.

    Raises:
        InputError: It cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import nncf  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            f"--precision int8 needs nncf, which cannot be imported ({error}); run `pip install nncf`, or choose "
            "another precision"
        ) from error
    return nncf


def _traceable(example: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the example in a type that the tracing exporters know: they have no uint16."""
    return tuple(one.int() if one.dtype == torch.uint16 else one for one in example)


def _names_of(example: Sequence[Tensor]) -> list[str]:
    return ["image", "scalars"][: len(example)]


def _converted(what: str, convert: Callable[[], Any]) -> Any:  # noqa: ANN401
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing reads sizes; the comparison tells if the result is right
        try:
            return convert()
        except OSError:  # of the disk
            raise
        except Exception as error:  # each exporter has errors of its own
            first = str(error).strip().splitlines()[:1]
            raise InputError(
                f"--format {what}: this network cannot be converted ({type(error).__name__}: {' '.join(first)}); "
                "choose another format, or use the bundle itself"
            ) from error


def _write_onnx(
    graph: nn.Module, example: Sequence[Tensor], path: Path, precision: str, calibration: Sequence[Image]
) -> int:
    del calibration
    onnx, names = import_onnx("onnx"), _names_of(example)
    output = "mask" if isinstance(graph, Masks) else "probs"
    _converted(
        "onnx",
        lambda: torch.onnx.export(
            graph,
            _traceable(example),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=names,
            output_names=[output],
            dynamic_axes={
                "image": {0: "b", 1: "h", 2: "w"},
                "scalars": {0: "b"},
                output: {0: "b", 1: "h", 2: "w"},
            },
        ),
    )
    proto = onnx.load(path)
    if example[0].dtype == torch.uint16:
        proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT16
    if precision == "fp16":
        proto = _converted("onnx", lambda: _to_half(proto))
    proto.producer_name = "masksmith"
    onnx.save(proto, path)
    return 1


def _to_half(proto: Any) -> Any:  # noqa: ANN401
    """Store and compute encoders and decoders in float16; what comes before and after, and the heads, stay float32."""
    half = import_onnx("onnxruntime.transformers.float16")
    kept = [node.name for node in proto.graph.node if not _is_inner(node.name)]
    return half.convert_float_to_float16(proto, keep_io_types=True, node_block_list=kept)


def _is_inner(name: str) -> bool:
    """Whether an operation, named /MODULE/…/OPERATION, belongs to a part of a model other than its head."""
    inner = name.partition("/models.")[2].split("/")  # 0, encoder, …, Conv
    return len(inner) > 2 and inner[1] != "head"


def _write_openvino(
    graph: nn.Module, example: Sequence[Tensor], path: Path, precision: str, calibration: Sequence[Image]
) -> int:
    openvino, inputs = import_openvino(), _traceable(example)
    shapes = [[-1, -1, -1, inputs[0].shape[3]], *([-1, one.shape[1]] for one in inputs[1:])]

    def convert() -> Any:  # noqa: ANN401
        traced: Any = torch.jit.trace(graph, inputs, check_trace=False)
        network = openvino.convert_model(traced, example_input=inputs, input=shapes)
        for one, name in zip(network.inputs, _names_of(example), strict=True):
            one.get_tensor().set_names({name})
        network.outputs[0].get_tensor().set_names({"mask" if isinstance(graph, Masks) else "probs"})
        if example[0].dtype == torch.uint16:
            network.inputs[0].get_node().set_element_type(openvino.Type.u16)
            network.validate_nodes_and_infer_types()
        return network

    network = _converted("openvino", convert)
    if precision == "int8":
        nncf = import_nncf()
        data = nncf.Dataset([{"image": image[None]} for image in calibration])
        network = _converted("openvino", lambda: nncf.quantize(network, data, subset_size=len(calibration)))
    openvino.save_model(network, path, compress_to_fp16=precision == "fp16")
    return 1


def _write_torch(
    graph: nn.Module, example: Sequence[Tensor], path: Path, precision: str, calibration: Sequence[Image]
) -> int:
    del precision, calibration
    import torch.fx.experimental._config as config

    divisors = [one.divisor for one in graph.modules() if isinstance(one, Member)]
    least = max(divisors) + 1  # torch makes a constant of a map of one pixel
    sides = {at: torch.export.Dim(name, min=least, max=2**15) for at, name in ((1, "h"), (2, "w"))}
    batch = torch.export.Dim("b", min=1, max=2**12)
    shapes = ({0: batch, **sides}, *({0: batch} for _ in example[1:]))

    def convert() -> Any:  # noqa: ANN401
        program = torch.export.export(
            graph,
            tuple(example),
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        torch.export.save(program, path)

    patch: Any = config
    with patch.patch(backed_size_oblivious=True):  # or a batch of one would need a file of its own
        _converted("torch", convert)
    return least


Writer = Callable[[nn.Module, Sequence[Tensor], Path, str, Sequence[Image]], int]
WRITERS: dict[str, Writer] = {"onnx": _write_onnx, "openvino": _write_openvino, "torch": _write_torch}
"""Format -> what writes a graph and returns the least side of an image, in pixels."""
