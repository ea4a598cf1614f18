"""The bundle: one file with all that is needed to segment new images, a plain zip without anything executable.

    model.msk
      model.json          what it is: classes, inputs, members, rule, scores, training data (see ModelFacts)
      MODEL_CARD.md       the same for people
      weights/NAME.safetensors

``model.json`` holds the checksum of every weights file. Numbers of a later format are refused by name; keys that this
version does not know are left alone.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.core.files import atomic_path, digest
from masksmith.data.target import Target
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.labels import LabelRules
from masksmith.postprocess.objects import ObjectRule
from masksmith.postprocess.operator_rule import OperatorRule
from masksmith.postprocess.operators import Rule
from masksmith.prediction.means import Blend
from masksmith.recipes.recipe import Recipe

FORMAT_VERSION = 3
"""The second has a blend; bundles without one are written in the first."""
SUFFIX = ".msk"
_FACTS, _CARD = "model.json", "MODEL_CARD.md"
_MAX_FACTS = 2**24
_MOST_PACKED = 16  # weights hardly shrink, if somebody packs them again
_DAMAGED = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, EOFError, RuntimeError)
_STATED = (
    "research and evaluation on images like those it was trained on; not checked for decisions about people"
)


@dataclass(frozen=True)
class MemberFacts:
    """One trained fold: its recipe, and what it does to images before the model sees them."""

    name: str
    recipe: dict[str, Any]
    """Resolved, as ``recipe.yaml``."""
    weights: dict[str, str]
    """Weights file in the bundle -> its checksum; the probabilities of several are averaged."""
    runtimes: list[str]
    """Runtime of each weights file that made the project's predictions."""
    weight: float = 1.0
    """In the mean of the members."""
    mean: list[float] | None = None
    """By which the model normalises; None: fixed numbers."""
    std: list[float] | None = None
    low: list[float] | None = None
    """Value of each band that becomes 0, where the images are scaled; None with ``scaled``: each image's own."""
    high: list[float] | None = None
    scaled: bool = False
    part: str = ""
    """With a blend: what it is a fold of."""


@dataclass(frozen=True)
class ModelFacts:
    """What ``model.json`` holds."""

    name: str
    target: dict[str, Any]
    channels: int
    """Bands of the images' files."""
    dtype: str
    """Of the images: uint8, uint16, int16 or float32."""
    members: list[MemberFacts]
    rule: dict[str, Any]
    """How probabilities become a mask."""
    rule_text: str
    scores: dict[str, Any]
    """Out of fold: metric, score, interval, and that of predicting nothing."""
    data: dict[str, Any]
    """Of the training set: number of images, content hash, layout, sizes."""
    ranges: dict[str, list[float]] = field(default_factory=dict)
    """Feature of an image -> least and largest value in the training set (see features)."""
    blend: dict[str, Any] | None = None
    """Another mean than the arithmetic one (see prediction/means)."""
    submission: dict[str, Any] | None = None
    """What the project's judge expects, without ids (see pack)."""
    masksmith: str = ""
    licence: str = "not stated"
    intended_use: str = _STATED


class Bundle:
    """An open bundle.

    Args:
        path: The file.

    Raises:
        InputError: No such file, no bundle, one of a later format, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; expected a model that `masksmith bundle PROJECT --out {path}` made"
            )
        try:
            value = json.loads(_member(path, _FACTS, most=_MAX_FACTS))
        except (*_DAMAGED, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: not a masksmith model, or damaged ({error}); make it again with `masksmith bundle`"
            ) from error
        self.facts = facts_of(value, path)

    @cached_property
    def target(self) -> Target:
        """The task and its classes."""
        target: Target = _read(Target, self.facts.target, self.path)
        return target

    @cached_property
    def recipes(self) -> list[Recipe]:
        """The recipe of each member.

        Raises:
            InputError: It has keys that this version does not know.
        """
        return [
            validate(Recipe, member.recipe, where=f"{self.path}: {member.name}")
            for member in self.facts.members
        ]

    @property
    def checksum(self) -> str:
        """A hash of what it computes."""
        return digest(json.dumps(asdict(self.facts), sort_keys=True))

    def tensors(self, name: str, checksum: str) -> dict[str, Tensor]:
        """Return a weights file.

        Raises:
            InputError: It is missing or damaged.
        """
        try:
            raw = _member(self.path, name)
            if digest(raw) != checksum:
                raise InputError(
                    f"{self.path}: {name} was damaged or changed (wrong checksum); make it again"
                )
            return load_safetensors(raw)
        except (*_DAMAGED, SafetensorError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.path}: {name} cannot be read ({error}); make it again") from error


def _member(path: Path, name: str, *, most: int | None = None) -> bytes:
    """Return a file of a bundle, at most ``most`` bytes of it.

    Raises:
        InputError: It unpacks to more than such a file can have.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
        if info.file_size > (most or _MOST_PACKED * info.compress_size):
            raise InputError(f"{path}: its {name} is larger than any; do not trust this file")
        return archive.read(name)


def facts_of(value: Any, path: Path) -> ModelFacts:  # noqa: ANN401
    """Return the facts of a parsed ``model.json`` of ``path``.

    Raises:
        InputError: It is not ours, of a later format, or lacks something.
    """
    if not isinstance(value, dict) or not isinstance(value.get("format"), int):
        raise InputError(f"{path}: its {_FACTS} is not ours; make it again with `masksmith bundle`")
    if value["format"] > FORMAT_VERSION:
        raise InputError(
            f"{path}: format {value['format']}, this masksmith reads up to {FORMAT_VERSION}; update masksmith"
        )
    facts = _read(ModelFacts, value, path)
    _read(Target, facts.target, path)
    _read(Rule | ClassRule | LabelRules | ObjectRule | OperatorRule, facts.rule, path)
    if facts.blend is not None:
        tables = Blend.from_json(facts.blend, f"{path}: its {_FACTS}").ranks
        if tables and {one.part for one in facts.members} - {name for name, _ in tables}:
            raise InputError(f"{path}: its {_FACTS} lacks a table of ranks of a member; make it again")
    one_each = all(len(one.weights) == len(one.runtimes) > 0 for one in facts.members)
    if not (facts.members and one_each and min(one.weight for one in facts.members) >= 0 < facts.channels):
        raise InputError(f"{path}: its {_FACTS} lacks something (members with weights); make it again")
    return facts


def _read(kind: Any, value: Any, path: Path) -> Any:  # noqa: ANN401
    """Return parsed JSON as a dataclass; keys that it does not have are left alone."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: its {_FACTS} lacks something ({where}: {first['msg']}); make it again"
        ) from error


def format_of(facts: ModelFacts) -> int:
    """Return the format that facts are of: the first that has all of them."""
    if "decide" in facts.rule or any("decide" in one for one in facts.rule.get("rules", ())):
        return FORMAT_VERSION  # operators
    return 1 if facts.blend is None else 2


def write_bundle(
    path: Path, facts: ModelFacts, weights: Mapping[str, bytes], *, extra: Sequence[str] = ()
) -> None:
    """Write a bundle: the same facts and weights give the same bytes.

    Args:
        path: The file; one that is there is replaced.
        facts: What ``model.json`` is to hold.
        weights: Name in the bundle -> bytes of the safetensors file.
        extra: Lines at the end of the model card.
    """
    value = {"format": format_of(facts), **asdict(facts)}
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in (
            (_FACTS, json.dumps(value, indent=1, ensure_ascii=False).encode()),
            (_CARD, model_card(facts, extra).encode()),
            *weights.items(),
        ):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)


def model_card(facts: ModelFacts, extra: Sequence[str] = ()) -> str:
    """Return the model card in Markdown (Mitchell et al. 2019, https://arxiv.org/abs/1810.03993)."""
    target, scores, data = facts.target, facts.scores, facts.data
    interval = scores.get("interval")
    between = f" (80% interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    nothing = scores.get("nothing")
    lines = [
        f"# {facts.name}",
        "",
        f"A masksmith model for {target['task']} segmentation.",
        "",
        f"- **Classes**: {', '.join(target['classes'])}",
        f"- **Input**: images of {facts.channels} band{'s' if facts.channels > 1 else ''}, {facts.dtype}, of any size",
        f"- **Members**: {len(facts.members)} ({', '.join(member.name for member in facts.members)})",
        f"- **Rule**: {facts.rule_text}",
        f"- **Score out of fold**: {scores['metric']} {scores['score']:.4f}{between}"
        + (f"; predicting nothing scores {nothing:.4f}" if nothing is not None else ""),
        f"- **Training data**: {data['train']} images, layout {data['layout']}, content {data['content_hash'][:12]}",
        f"- **Licence**: {facts.licence}",
        f"- **Intended use**: {facts.intended_use}",
        f"- **Made by**: masksmith {facts.masksmith}",
        "",
        "Images unlike the training set are flagged by `masksmith apply` in the column `unlike`; the score above says "
        "nothing about them.",
        "",
        *extra,
    ]
    return "\n".join(lines)
