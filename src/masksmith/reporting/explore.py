"""Write ``explore.html``, one page of a data set before training that needs no network, and the numbers behind it.

All text from the data is escaped. What is drawn is capped, so that the page of 20,000 images is as small as that of
200.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from masksmith.core.arrays import Int
from masksmith.core.files import write_text
from masksmith.core.randomness import stream
from masksmith.data.catalog import BACKGROUND, Catalog
from masksmith.data.columns import Column
from masksmith.data.findings import Finding
from masksmith.data.groups import Likeness
from masksmith.data.look import number_names
from masksmith.data.pairs import Leak, Pair
from masksmith.data.shift import Shift
from masksmith.data.tally import BandTally, MaskTally, area_quantiles
from masksmith.data.target import Target
from masksmith.folds.table import NUM_CLASSES
from masksmith.reporting import data_figures as figures
from masksmith.reporting.advice import Advice, related_to_coverage
from masksmith.reporting.pictures import class_colours
from masksmith.reporting.thumbnails import Gallery, Shown

GRID = 60
"""Pictures of a grid at most."""
_TEST_GRID = 30
_OF_CLASS = 6
_OF_COVERAGE = 3
_OF_FINDING = 8
_OF_SHIFT = 12
_OF_OBJECTS = 8
_MOST_CLASSES = 24  # with samples
_MOST_MAPS = 9  # mean masks
_MOST_COLUMNS = 12
_MOST_BANDS = 6  # with curves
_MOST_FINDINGS = 30  # with pictures
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ExploreFacts:
    """Everything the page shows."""

    catalog: Catalog
    target: Target
    facts: dict[str, Any]
    """What ``check`` says in a line each."""
    findings: list[Finding]
    gallery: Gallery
    bands: dict[str, list[BandTally]]
    """Of the training and, where there are some, of the test images."""
    masks: MaskTally
    columns: list[Column]
    columns_of_many: list[str]
    """Columns of text with too many values to be shown."""
    alike: Likeness
    shift: Shift | None
    leaks: list[Leak]
    advice: list[Advice]

    @cached_property
    def coverage_classes(self) -> Int[np.ndarray, " n"]:
        """Coverage class 0 … 10 of each training image: the least i with coverage <= i/10."""
        return np.ceil(np.round(self.masks.coverage * 10, 9)).astype(np.int64)

    @cached_property
    def sizes(self) -> dict[str, Counter[str]]:
        """HEIGHTxWIDTH -> images, of each set."""
        num = self.alike.num_train
        rows = self.alike.seen.sizes.tolist()
        sets = {"training": rows[:num], "test": rows[num:]}
        return {name: Counter(f"{h}x{w}" for h, w in part) for name, part in sets.items() if part}

    @property
    def first_is_background(self) -> bool:
        """Whether the first class is what is not looked for."""
        return self.masks.names[0] == BACKGROUND


def numbers(facts: ExploreFacts) -> dict[str, Any]:
    """Return what ``explore.json`` holds: plain dicts, lists and numbers, null where there is none."""
    masks, shift, catalog = facts.masks, facts.shift, facts.catalog
    coverage = {name: float(share) for name, share in zip(masks.ids, masks.coverage, strict=True)}
    found = {
        "format": 1,
        "data": catalog.root,
        "layout": catalog.layout,
        "task": facts.target.task,
        "classes": list(masks.names),
        "images": {"training": len(catalog.train), "test": len(catalog.test)},
        "sizes": {name: dict(counts.most_common()) for name, counts in facts.sizes.items()},
        "bands": {name: [_band(one) for one in bands] for name, bands in facts.bands.items()},
        "masks": {
            "empty": int((masks.coverage == 0).sum()),
            "empty_share": float((masks.coverage == 0).mean()),
            "mean_coverage": float(masks.coverage.mean()),
            "coverage_quantiles": _quantiles(masks.coverage.tolist()),
            "coverage_classes": np.bincount(facts.coverage_classes, minlength=NUM_CLASSES).tolist(),
            "unjudged_share": float(masks.unjudged.mean()),
            "mean_mask": np.round(masks.mean_masks, 4).tolist() if len(masks.names) <= _MOST_MAPS else None,
        },
        "class_table": [asdict(line) for line in class_lines(facts)],
        "together": masks.together.tolist(),
        "imbalance": _imbalance(masks),
        "objects": _objects(masks),
        "columns": [_column(one, coverage) for one in facts.columns],
        "columns_of_many_values": facts.columns_of_many,
        "shift": None
        if shift is None
        else {
            "auc": shift.auc,
            "low": shift.low,
            "high": shift.high,
            "worth_saying": shift.is_worth_saying,
            "reasons": shift.reasons,
        },
        "leaks": [
            {"title": one.title, "count": one.count, "pairs": [asdict(pair) for pair in one.pairs]}
            for one in facts.leaks
        ],
        "findings": [asdict(one) for one in facts.findings],
        "advice": [asdict(one) for one in facts.advice],
        "facts": facts.facts,
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a value with null in place of what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _band(band: BandTally) -> dict[str, Any]:
    return {
        "low": band.low,
        "high": band.high,
        "mean": band.mean,
        "std": band.std,
        "no_data_share": band.no_data,
        "percentiles": {f"p{at}": value for at, value in band.percentiles().items()},
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    found = np.quantile(values, _QUANTILES).tolist()
    return {f"p{round(100 * share)}": value for share, value in zip(_QUANTILES, found, strict=True)}


def _imbalance(masks: MaskTally) -> float | None:
    """Return how many times as many pixels the commonest class has as the rarest one that occurs."""
    there = masks.shares[masks.shares > 0]
    return float(there.max() / there.min()) if len(there) > 1 else None


def _objects(masks: MaskTally) -> dict[str, Any]:
    counts = masks.objects.sum(axis=1)
    every = _all_areas(masks)
    found = area_quantiles(every, (0, *_QUANTILES, 1))
    names = ("least", *(f"p{round(100 * share)}" for share in _QUANTILES), "largest")
    return {
        "count": int(counts.sum()),
        "per_image": {**_quantiles(counts.tolist()), "most": int(counts.max(initial=0))},
        "areas_px": dict(zip(names, found, strict=True)) if found else None,
    }


def _all_areas(masks: MaskTally) -> Counter[int]:
    return sum(masks.areas, start=Counter())


def _column(column: Column, coverage: dict[str, float]) -> dict[str, Any]:
    return {
        "name": column.name,
        "kind": "numbers" if column.numeric else "texts",
        "training": len(column.train),
        "test": len(column.test),
        "gap": column.gap,
        "chance": column.chance,
        "shifted": column.shifted,
        "only_in_test": column.only_test,
        "rank_correlation_with_coverage": related_to_coverage(column, coverage) if column.numeric else None,
    }


@dataclass(frozen=True)
class ClassLine:
    """A class: its share of the pixels and of the images, and its objects."""

    name: str
    colour: str
    pixels: float
    """Share of the judged pixels."""
    images: int
    objects: int
    median_area: int | None


def class_lines(facts: ExploreFacts) -> list[ClassLine]:
    """Return a line for each class, or one for the foreground or the objects."""
    masks = facts.masks
    colours = class_colours(facts.target)
    images = (masks.pixels > 0).sum(axis=0)
    return [
        ClassLine(
            name,
            "#" + "".join(f"{part:02x}" for part in colours[at].tolist()),
            float(masks.shares[at]),
            int(images[at]),
            int(masks.objects[:, at].sum()),
            next(iter(area_quantiles(masks.areas[at], (0.5,))), None),
        )
        for at, name in enumerate(masks.names)
    ]


def write_explore(path: Path, facts: ExploreFacts) -> Path:
    """Write the page and return its path."""
    environment = Environment(
        loader=PackageLoader("masksmith", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = resources.files("masksmith") / "reporting"
    style = "".join((folder / name).read_text() for name in ("report.css", "explore.css"))
    html = environment.get_template("explore.html").render(
        facts=facts,
        numbers=numbers(facts),
        lines=class_lines(facts),
        title=Path(facts.catalog.root).name,
        style=Markup(style),
        plotly=Markup(get_plotlyjs()),
        charts={name: Markup(chart) for name, chart in _charts(facts).items() if chart},
        maps=[Markup(chart) for chart in _mean_masks(facts)],
        columns=_column_charts(facts),
        columns_left_out=max(0, len(facts.columns) - _MOST_COLUMNS),
        grids=_grids(facts),
        by_coverage=_by_coverage(facts),
        by_class=_by_class(facts),
        extremes=_extremes(facts),
        shifted=_shifted(facts),
        leaks=[(leak, _leak_pictures(facts, leak)) for leak in facts.leaks],
        findings=_finding_pictures(facts),
        percentiles=_band_rows(facts),
        counts={
            level: sum(one.level == level for one in facts.findings) for level in ("error", "warning", "note")
        },
    )
    write_text(path, html)
    return path


def _charts(facts: ExploreFacts) -> dict[str, str]:
    masks = facts.masks
    filled = masks.coverage[masks.coverage > 0]
    counts = masks.objects.sum(axis=1)
    areas = _all_areas(masks)
    several = len(masks.names) > 1
    return {
        "bands": figures.band_curves(
            {name: [one.sample for one in bands[:_MOST_BANDS]] for name, bands in facts.bands.items()},
            title="intensities",
            unit="value in the file, 0.1% to 99.9%",
        )
        if any(len(one.sample) for one in facts.bands["training"])
        else "",
        "coverage": figures.histograms(
            {"training": filled},
            title=f"coverage of {len(filled):,} masks, none empty",
            x="foreground of the image",
            share=True,
        )
        if len(filled)
        else "",
        "coverage_classes": figures.coverage_classes(
            np.bincount(facts.coverage_classes, minlength=NUM_CLASSES).tolist()
        ),
        "class_against_coverage": figures.class_against_coverage(
            masks.coverage.tolist(), facts.coverage_classes.tolist()
        ),
        "classes": figures.class_bars(
            masks.names, masks.shares.tolist(), ((masks.pixels > 0).mean(axis=0)).tolist()
        )
        if several
        else "",
        "together": figures.together(masks.names, masks.together) if several else "",
        "object_counts": figures.object_counts(counts) if areas else "",
        "object_areas": figures.object_areas(areas) if areas else "",
        "likeness": ""
        if facts.shift is None
        else figures.histograms(
            {"training": facts.shift.likeness},
            title="how much training images look like the test set",
            x="probability of being a test image (50%: as likely as not)",
            share=True,
        ),
        "brightness": _brightness(facts),
    }


def _brightness(facts: ExploreFacts) -> str:
    """Draw the number of an image that alone tells the two sets apart best."""
    if facts.shift is None or not facts.shift.reasons:
        return ""
    name = facts.shift.reasons[0].partition(": train ")[0]
    names = number_names(facts.gallery.train.channels)
    seen = facts.alike.seen
    values = seen.numbers[:, names.index(name)]
    kept = np.isfinite(values) & ~seen.constant
    is_test = np.arange(len(values)) >= facts.alike.num_train
    sets = {"training": values[kept & ~is_test], "test": values[kept & is_test]}
    return figures.histograms(sets, title=f"what tells them apart best: {name}", x=name)


def _mean_masks(facts: ExploreFacts) -> list[str]:
    masks = facts.masks
    filled = int((masks.coverage > 0).sum())
    shown = [at for at in range(len(masks.names)) if masks.pixels[:, at].any()][:_MOST_MAPS]
    what = {1: f"mean mask of {len(masks.ids):,} images ({filled:,} not empty)"}
    return [
        figures.mean_mask(
            masks.mean_masks[at], title=what.get(len(masks.names), figures.short(masks.names[at], 40))
        )
        for at in shown
    ]


@dataclass(frozen=True)
class ColumnCharts:
    """A column, and what is drawn of it."""

    column: Column
    charts: list[Markup]


def _column_charts(facts: ExploreFacts) -> list[ColumnCharts]:
    coverage = dict(zip(facts.masks.ids, facts.masks.coverage.tolist(), strict=True))
    return [ColumnCharts(one, _charts_of(one, coverage)) for one in facts.columns[:_MOST_COLUMNS]]


def _charts_of(column: Column, coverage: dict[str, float]) -> list[Markup]:
    if not column.numeric:
        kinds, theirs = (Counter(map(str, values.values())) for values in (column.train, column.test))
        return [Markup(figures.kinds(kinds, theirs, name=column.name, title=figures.short(column.name, 40)))]
    train = np.array(list(column.train.values()), np.float64)
    test = np.array(list(column.test.values()), np.float64)
    ours = np.array([coverage[name] for name in column.train])
    return [
        Markup(
            figures.histograms(
                {"training": train, "test": test}, title=figures.short(column.name, 40), x=column.name
            )
        ),
        Markup(figures.against_coverage(train, ours, name=column.name)),
    ]


def _drawn(names: Sequence[str], count: int, key: int) -> list[str]:
    """Return random names, in an order that does not depend on how many are asked for."""
    return [names[at] for at in stream(7, key).permutation(len(names))[:count]]


def _grids(facts: ExploreFacts) -> dict[str, list[Shown]]:
    gallery, masks = facts.gallery, facts.masks
    train = _drawn(masks.ids, GRID, 0)
    coverage = dict(zip(masks.ids, masks.coverage.tolist(), strict=True))
    notes = {name: _percent(coverage[name]) for name in train}
    return {
        "training": [gallery.image(("train", name)) for name in train],
        "masks": [gallery.mask(name, notes[name]) for name in train],
        "overlays": [gallery.overlay(name, notes[name]) for name in train],
        "test": [gallery.image(("test", name)) for name in _drawn(list(gallery.test), _TEST_GRID, 1)],
    }


def _percent(share: float) -> str:
    if share == 0:
        return "empty"
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def _by_coverage(facts: ExploreFacts) -> list[tuple[str, int, list[Shown]]]:
    """Return (class, images, samples) of each coverage class that occurs."""
    masks, found = facts.masks, []
    for kind in range(NUM_CLASSES):
        at = np.flatnonzero(facts.coverage_classes == kind)
        if len(at):
            coverage = {masks.ids[one]: float(masks.coverage[one]) for one in at}
            shown = [
                facts.gallery.overlay(name, _percent(coverage[name]))
                for name in _drawn(list(coverage), _OF_COVERAGE, 10 + kind)
            ]
            found.append(("empty" if kind == 0 else f"≤ {10 * kind}%", len(at), shown))
    return found


def _by_class(facts: ExploreFacts) -> list[tuple[ClassLine, list[Shown]]]:
    """Return samples of each class, the rarest class first; none of a data set of one."""
    masks = facts.masks
    if len(masks.names) < 2:
        return []
    lines = class_lines(facts)
    order = [int(at) for at in np.argsort(masks.shares, kind="stable") if lines[int(at)].images][
        :_MOST_CLASSES
    ]
    found = []
    for kind in order:
        there = np.flatnonzero(masks.pixels[:, kind])
        share = {masks.ids[at]: masks.pixels[at, kind] / max(1, masks.judged[at]) for at in there}
        names = _drawn(list(share), _OF_CLASS, 100 + kind)
        found.append(
            (lines[kind], [facts.gallery.overlay(one, f"{share[one]:.2%}", only=kind) for one in names])
        )
    return found


def _extremes(facts: ExploreFacts) -> dict[str, list[Shown]]:
    """Return the images of the most objects, and those whose objects are smallest on average."""
    masks = facts.masks
    counts, pixels = masks.objects.sum(axis=1), masks.pixels[:, int(facts.first_is_background) :].sum(axis=1)
    filled = np.flatnonzero(counts > 0)
    if not len(filled):
        return {}
    mean = pixels[filled] / counts[filled]
    most = filled[np.argsort(-counts[filled], kind="stable")][:_OF_OBJECTS]
    least = filled[np.argsort(mean, kind="stable")][:_OF_OBJECTS]
    overlay = facts.gallery.overlay
    return {
        "most objects": [overlay(masks.ids[at], f"{counts[at]:,} objects") for at in most],
        "smallest objects": [
            overlay(masks.ids[at], f"{pixels[at] / counts[at]:,.0f} px each") for at in least
        ],
    }


def _shifted(facts: ExploreFacts) -> dict[str, list[Shown]]:
    """Return the training images that look most and least like the test set."""
    if facts.shift is None:
        return {}
    seen, num = facts.alike.seen, facts.alike.num_train
    names = seen.names[:num][~seen.constant[:num]].tolist()  # as the shift was measured
    order = np.argsort(facts.shift.likeness, kind="stable")
    likeness = facts.shift.likeness
    return {
        "training images most like the test set": [
            facts.gallery.image(("train", names[at]), f"{likeness[at]:.2f}") for at in order[::-1][:_OF_SHIFT]
        ],
        "training images least like the test set": [
            facts.gallery.image(("train", names[at]), f"{likeness[at]:.2f}") for at in order[:_OF_SHIFT]
        ],
    }


def _leak_pictures(facts: ExploreFacts, leak: Leak) -> list[list[Shown]]:
    """Return the pictures of each pair: two, or one of two neighbours."""
    return [_pair_pictures(facts.gallery, pair) for pair in leak.pairs]


def _pair_pictures(gallery: Gallery, pair: Pair) -> list[Shown]:
    if pair.lies:
        return [gallery.joined(pair)]
    return [gallery.any(place, place[0].replace("train", "training")) for place in (pair.first, pair.second)]


def _finding_pictures(facts: ExploreFacts) -> list[tuple[Finding, list[Shown]]]:
    train, test = set(facts.gallery.train), set(facts.gallery.test)
    found = []
    for at, finding in enumerate(facts.findings):
        ids = finding.ids[:_OF_FINDING] if at < _MOST_FINDINGS else []
        first, second = ("test", "train") if finding.title.startswith("test") else ("train", "test")
        sets = {"train": train, "test": test}
        places = [(first if name in sets[first] else second, name) for name in ids if name in train | test]
        found.append((finding, [facts.gallery.any(place) for place in places]))
    return found


def _band_rows(facts: ExploreFacts) -> list[tuple[str, int, BandTally, dict[int, float]]]:
    """Return (set, band, numbers, percentiles) of each band."""
    return [
        (name, at, band, band.percentiles())
        for name, bands in facts.bands.items()
        for at, band in enumerate(bands)
    ]
