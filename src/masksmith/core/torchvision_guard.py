"""Let torchvision import when its compiled operators were built for CUDA and torch was not.

The Linux wheel of torchvision on PyPI links against ``libtorch_cuda``. Beside a CPU build of torch
its ``_C.so`` cannot be loaded, and torchvision dies while it registers a meta kernel for
``torchvision::nms``. Declaring the two operator schemas first is enough: what timm and
segmentation-models-pytorch need of torchvision is Python. Where the library loads, nothing is declared.

The guard is a meta-path finder, so importing masksmith does not import torch.
"""

import importlib.abc
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_OPS = ("nms", "qnms")
_declared: list[Any] = []  # keeps the torch.library.Library alive


def _declare_ops(package_dir: Path) -> None:
    import torch

    for extension in sorted([*package_dir.glob("_C.*"), *package_dir.glob("_C_*")]):
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for op in _OPS:
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:  # the path of a namespace package can be iterated alone
        if fullname != "torchvision":
            return None
        uninstall()
        spec = PathFinder.find_spec(fullname, None if path is None else list(path))
        if spec is not None and spec.origin:
            _declare_ops(Path(spec.origin).parent)
        return spec


_FINDER = _Finder()


def install() -> None:
    """Watch for the first import of torchvision."""
    if "torchvision" not in sys.modules and _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def uninstall() -> None:
    """Stop watching."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
