"""``masksmith explain``: a metric, a loss, a view, an augmentation or a topic, on an image, as text and a page."""

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from masksmith.augment import GeometryConfig, IntensityConfig, MixingConfig
from masksmith.core.config import suggest
from masksmith.core.errors import InputError
from masksmith.core.files import write_text
from masksmith.losses.build import LOSSES
from masksmith.metrics import METRICS, get_metric
from masksmith.prediction.tta import TTA
from masksmith.recipes.vocabulary import field_texts
from masksmith.reporting.augmented import GEOMETRY, INTENSITY, MIXING, Made, moved, patterned
from masksmith.reporting.drawing import Drawing
from masksmith.reporting.examples import Example, drawn_example, read_example
from masksmith.reporting.explain_texts import NOTES, THEORY
from masksmith.reporting.explained import (
    Explained,
    explain_augmentation,
    explain_loss,
    explain_metric,
    explain_view,
)

_OURS = '<meta name="generator" content="masksmith explain">'
_WIDTH = 100  # of text on a terminal


@dataclass(frozen=True)
class Part:
    """One meaning of a name."""

    kind: str
    """a metric, a loss, a view, an augmentation, theory"""
    text: tuple[str, ...]
    drawings: tuple[Drawing, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    says: str = ""
    """Where the image comes from."""
    usage: str = ""
    """How it is written in a recipe."""
    source: str = ""


@dataclass(frozen=True)
class Explanation:
    """All that is said of a name; ``print`` shows the text, ``page`` has the pictures."""

    title: str
    parts: tuple[Part, ...]
    page: Path | None = None

    @property
    def kinds(self) -> list[str]:
        """The kinds of its meanings."""
        return [part.kind for part in self.parts]

    @property
    def usage(self) -> str:
        """How it is written in a recipe."""
        return "; ".join(part.usage for part in self.parts if part.usage)

    def __str__(self) -> str:
        lines = [f"{self.title} ({', '.join(self.kinds)})" + (f": {self.usage}" if self.usage else "")]
        for part in self.parts:
            for paragraph in (*part.text, part.says):
                lines += ["", *textwrap.wrap(paragraph, _WIDTH)] if paragraph else []
            table = [part.head, *part.rows] if part.rows else []
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines += [""] if table else []
            lines += [
                "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in table
            ]
            lines += ["", f"source: {part.source}"] if part.source else []
        pictures = sum(len(part.drawings) for part in self.parts)
        where = f"page: {self.page}" if self.page else f"{pictures} pictures: add --out FILE.html"
        return "\n".join([*lines, "", where])


def names_by_kind() -> dict[str, list[str]]:
    """Return what can be explained, by kind."""
    return {
        "metrics": list(METRICS),
        "losses": list(LOSSES),
        "views": list(TTA),
        "augmentation": list(dict.fromkeys([*GEOMETRY, *INTENSITY, *MIXING])),
        "theory": list(THEORY),
    }


def explain_name(
    name: str,
    *,
    image: Path | None = None,
    mask: Path | None = None,
    pred: Path | None = None,
    out: Path | None = None,
) -> Explanation:
    """Explain a name; see pipeline.explain.

    Raises:
        InputError: An unknown name, files that cannot be used, or ``out`` is somebody else's file.
    """
    if out is not None:
        _refuse_page(out)
    asked = name.strip()
    makers = _makers(asked)
    own = None if image is None and mask is None and pred is None else read_example(image, mask, pred)
    parts = tuple(make(own) for make in makers)
    title = THEORY[asked].title if asked in THEORY and len(parts) == 1 else asked
    found = Explanation(title, parts)
    if out is None:
        return found
    write_text(out, _page(found))
    return replace(found, page=out)


def _makers(name: str) -> list[Callable[[Example | None], Part]]:
    """Return what explains each meaning of a name."""
    found: list[Callable[[Example | None], Part]] = []
    if name.partition("(")[0].strip() in METRICS:
        found.append(partial(_metric, name))
    if name in LOSSES:
        found.append(partial(_loss, name))
    if name in TTA:
        found.append(partial(_view, name))
    for key, table, model in (
        ("geometry", GEOMETRY, GeometryConfig),
        ("intensity", INTENSITY, IntensityConfig),
        ("mixing", MIXING, MixingConfig),
    ):
        if name in table:
            make: Made = (
                partial(moved, GEOMETRY[name]) if key == "geometry" else {**INTENSITY, **MIXING}[name]
            )
            found.append(partial(_augmentation, name, key, make, field_texts(model).get(name, "")))
    if name in THEORY:
        found.append(partial(_theory, name))
    if not found:
        known = names_by_kind()
        every = [one for names in known.values() for one in names]
        hint = suggest(name, every).partition("Known:")[0]
        listed = "\n".join(f"  {kind}: {', '.join(names)}" for kind, names in known.items())
        raise InputError(f"explain: {name!r} is unknown; {hint}known are\n{listed}")
    return found


def _part(kind: str, text: list[str], made: Explained, example: Example | None, **more: str) -> Part:
    says = "" if example is None else example.says
    return Part(
        kind, tuple(filter(None, text)), tuple(made.drawings), made.head, tuple(made.rows), says, **more
    )


def _metric(name: str, own: Example | None) -> Part:
    metric, example = get_metric(name, where="explain"), _with_mask(name, own)
    plain = name.partition("(")[0].strip()
    text = [f"{metric.describes[0].upper()}{metric.describes[1:]}.", *NOTES.get(plain, ())]
    return _part("a metric", text, explain_metric(metric, example), example, usage=f"metric: {name}")


def _loss(name: str, own: Example | None) -> Part:
    example, (text, source) = _with_mask(name, own), _documented(LOSSES[name])
    made = explain_loss(name, example)
    usage = f"loss: [{{name: {name}}}]"
    return _part("a loss", [*text, *NOTES.get(name, ())], made, example, usage=usage, source=source)


def _with_mask(name: str, own: Example | None) -> Example:
    """Return what a metric or a loss is explained on.

    Raises:
        InputError: A person's image without a mask.
    """
    if own is not None and not own.has_mask:
        raise InputError(
            f"explain {name}: --image alone; it compares masks: add --mask TRUTH, and --pred if there is one"
        )
    return own or drawn_example()


def _view(name: str, own: Example | None) -> Part:
    example = own or drawn_example()
    text = [
        "The net looks at the image in this view, the prediction is brought back exactly, and the probabilities of all "
        "views are averaged (test-time augmentation).",
        *NOTES.get(name, ()),
    ]
    usage = f"prediction.tta: [identity, {name}]" if name != "identity" else "prediction.tta: [identity]"
    return _part("a view", text, explain_view(name, example), example, usage=usage)


def _augmentation(name: str, key: str, make: Made, described: str, own: Example | None) -> Part:
    text = [described or "The preset: everything moderately.", *([] if name in TTA else NOTES.get(name, ()))]
    made = explain_augmentation(name, make, own, patterned(0))
    usage = f"training.{key}: {name}" if name == "heavy" else f"training.{key}.{name}"
    return _part("an augmentation", text, made, own, usage=usage)


def _theory(name: str, _own: Example | None) -> Part:
    topic = THEORY[name]
    return Part("theory", topic.text, tuple(draw() for draw in topic.draw), source=topic.source)


def _documented(function: Callable[..., object]) -> tuple[list[str], str]:
    """Return the paragraphs of a docstring before its Args, and the address in them."""
    text = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0].partition("\n\nRaises:")[0]
    paragraphs = [" ".join(part.split()).replace("``", "") for part in text.split("\n\n")]
    found = re.search(r"https?://[^\s),;]+", text)
    return paragraphs, found[0].rstrip(".") if found else ""


def _refuse_page(out: Path) -> None:
    """Refuse a file that masksmith explain did not write, and names that no browser opens."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {out}: a page is written; expected a name that ends in .html")
    if out.is_dir() or (out.exists() and _OURS not in out.read_text(errors="replace")[:4096]):
        raise InputError(
            f"--out {out}: it is there, and masksmith explain did not write it; name another file"
        )


def _page(found: Explanation) -> str:
    environment = Environment(
        loader=PackageLoader("masksmith", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    style = Markup((resources.files("masksmith") / "reporting" / "report.css").read_text())
    template = environment.get_template("explain.html")
    return template.render(found=found, style=style, svg=lambda drawing: Markup(drawing.svg()))
