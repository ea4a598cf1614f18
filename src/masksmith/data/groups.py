"""What binds images to one fold: pictures that are alike, known groups, columns, and names that pictures confirm."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import Int
from masksmith.core.files import digest
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.look import Look, Thumbnail, joined, look, read_arrays, thumbnail, write_arrays
from masksmith.data.near_duplicates import near_groups, own_kind
from masksmith.data.neighbours import Neighbours, find_neighbours
from masksmith.data.store import Store

LEAST_GROUPS = 5
"""Columns and names of fewer groups bind nothing: five folds could not be made. They are a finding."""
_LEAST_OWN = 0.8  # of the images look most like one of their own group, where pictures confirm names
_MOST_CHANCE = 0.5
_COLUMN = re.compile(
    r"(?:^|[ _.-])(patient|subject|case|location|scene|study|volume|video|sequence|group)s?"
    r"(?:[ _.-]?(?:id|name|no|number))?$",
    re.IGNORECASE,
)
_VERSION = "likeness 2"


@dataclass(frozen=True)
class Likeness:
    """Which images of a data set are alike, the training images first."""

    seen: Look
    num_train: int
    groups: Int[np.ndarray, " n"]
    """Group of identical and nearly equal images (see near_groups)."""
    neighbours: Neighbours

    def id(self, at: int) -> str:
        """Return the id of an image by its number."""
        return str(self.seen.names[at])


def find_likeness(train: Store, test: Store) -> Likeness:
    """Return which images are alike; kept beside the stores, as what was seen of them.

    Raises:
        InputError: An image was damaged since it was decoded.
    """
    first, second = look(train), look(test)
    seen, num = joined(first, second), len(first)
    key = digest(_VERSION, str(num), str(seen.names.dtype), seen.names.tobytes(), seen.pixels.tobytes())
    path = train.path.with_name("likeness.npz")
    if (kept := read_arrays(path, key)) is not None:
        pairs = [(int(a), int(b)) for a, b in kept["pairs"]]
        return Likeness(seen, num, kept["groups"], Neighbours(pairs, int(kept["chance"])))

    def small(at: int) -> Thumbnail:
        store = train if at < num else test
        return thumbnail(store[str(seen.names[at])])

    groups = near_groups(seen, small, folder=path.parent)
    neighbours = find_neighbours(seen, groups)
    told = {
        "pairs": np.array(neighbours.pairs, np.int64).reshape(-1, 2),
        "chance": np.array(neighbours.chance),
    }
    write_arrays(path, key, told | {"groups": groups})
    return Likeness(seen, num, groups, neighbours)


@dataclass(frozen=True)
class Suggestion:
    """Groups that a column or the ids suggest."""

    line: str
    """What binds them: the line of dataset.yaml."""
    values: dict[str, str]
    """Id of a training image -> its group."""
    own: float
    """Share of the images that look most like another of their group."""
    chance: float
    """The same if pictures said nothing."""
    binds: bool
    """Whether they bind the folds without that line."""

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(set(self.values.values()))


def suggested_columns(samples: Sequence[Sample]) -> dict[str, dict[str, str]]:
    """Return column -> id -> value, of tables' columns that are named as what groups images (patient_id, location).

    Every image has a value, there are two or more values, and fewer than images.
    """
    columns = sorted({name for sample in samples for name in sample.texts if _COLUMN.search(name)})
    found = {}
    for column in columns:
        values = {one.id: one.texts.get(column, "").strip() for one in samples}
        if all(values.values()) and 1 < len(set(values.values())) < len(values):
            found[column] = values
    return found


def name_pattern(ids: Sequence[str]) -> str | None:
    """Return a regular expression whose group is what several ids share: ``^([^_]+)_`` of pat003_1 and pat003_2.

    The coarsest is taken by which every id has a group, there are three groups or more, four of five images are in a
    group of several, and no group has more than 80% of them. None: the ids suggest nothing.
    """
    for pattern in _patterns(ids):
        shared = _shared_part(pattern, ids)
        if shared is None:
            continue
        counts = np.array(list(Counter(shared).values()))
        several = counts[counts > 1].sum()
        if len(counts) >= 3 and several >= 0.8 * len(ids) and counts.max() <= 0.8 * len(ids):
            return pattern
    return None


def _shared_part(pattern: str, ids: Sequence[str]) -> list[str] | None:
    """Return what a pattern takes of each id; None where one does not match."""
    found = []
    for name in ids:
        match = re.search(pattern, name)
        if match is None:
            return None
        found.append(match[1])
    return found


def _patterns(ids: Sequence[str]) -> Iterable[str]:
    yield from (r"^([^/]+)/", r"^(.+)/")
    for separator in ("_", "-", r"\.", " "):
        part = f"[^{separator}]+"
        if all(re.search(separator, name) for name in ids):
            yield from (f"^({separator.join([part] * num)}){separator}" for num in (1, 2, 3, 4))
            yield f"^(.+){separator}"
    yield from (r"^(.*\d)[A-Za-z]+$", r"^(.*[A-Za-z])\d+$")


def suggestions(catalog: Catalog, alike: Likeness) -> list[Suggestion]:
    """Return the groups of training images that columns and ids suggest; none where the data's groups are known."""
    if any(sample.group is not None for sample in catalog.train):
        return []
    found = [
        _suggestion(f"groups: {{column: {column}}}", values, alike, by_name=False)
        for column, values in suggested_columns(catalog.train).items()
    ]
    ids = [sample.id for sample in catalog.train]
    if (pattern := name_pattern(ids)) is not None:
        values = {name: str(match[1]) for name in ids if (match := re.search(pattern, name))}
        found.append(_suggestion(f"groups: {{pattern: '{pattern}'}}", values, alike, by_name=True))
    return found


def _suggestion(line: str, values: dict[str, str], alike: Likeness, *, by_name: bool) -> Suggestion:
    train = Look(**{name: part[: alike.num_train] for name, part in vars(alike.seen).items()})
    kinds = np.unique([values[str(name)] for name in train.names], return_inverse=True)[1].ravel()
    own, chance = own_kind(train, kinds)
    confirmed = (own >= _LEAST_OWN and chance <= _MOST_CHANCE) or _mostly_near(kinds, alike)
    binds = len(set(values.values())) >= LEAST_GROUPS and (confirmed or not by_name)
    return Suggestion(line, values, own, chance, binds)


def _mostly_near(kinds: Int[np.ndarray, " n"], alike: Likeness) -> bool:
    """Whether in most groups of several images all of them are near-duplicates."""
    near = alike.groups[: alike.num_train]
    several = [near[kinds == kind] for kind in np.flatnonzero(np.bincount(kinds) > 1)]
    return 2 * sum(len(set(one.tolist())) == 1 for one in several) > len(several)


def neighbour_groups(alike: Likeness) -> dict[str, str]:
    """Return id -> group of the training images: neighbouring tiles share one (also by way of a test image)."""
    home = joined_pairs(len(alike.seen), alike.neighbours.pairs)
    return {alike.id(at): alike.id(home[at]) for at in range(alike.num_train)}


def bound_groups(catalog: Catalog, alike: Likeness, *, split_is_given: bool = False) -> dict[str, str]:
    """Return id -> group of the training images: those that must be in one fold share it.

    Bound are images of one ``Sample.group``, identical and nearly equal ones (also by way of a test image), those of
    one value of a column (patient, location, …) of five values or more, and those whose names share a part where the
    pictures confirm it (see suggestions). Constant images are bound to each other only where nothing else
    groups them and no split is given. A group is called by what it shares, else by its first image.

    Args:
        catalog: What the data set holds.
        alike: Which of its images are alike.
        split_is_given: The data's own validation set is taken as it is: only identical images and known groups bind.
    """
    ids = [sample.id for sample in catalog.train]
    at = {alike.id(number): number for number in range(alike.num_train)}
    known = {sample.id: sample.group for sample in catalog.train if sample.group is not None}
    labels = [known] if known else []
    pixels = {name: str(alike.seen.pixels[at[name]]) for name in ids}
    near = {name: str(alike.groups[at[name]]) for name in ids}
    if not split_is_given:
        labels += [one.values for one in suggestions(catalog, alike) if one.binds]
    grouped = {name for values in labels for name in values}
    blank = {name for name in ids if (name in grouped or split_is_given) and alike.seen.constant[at[name]]}
    alone = {name: key for name, key in (pixels if split_is_given else near).items() if name not in blank}
    home = merged(ids, [*labels, alone])
    return _named(ids, home, labels)


def merged(ids: Sequence[str], bonds: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """Return id -> number of its group: images of one value in any of the mappings (id -> value) are in one group."""
    pairs = []
    for bond in bonds:
        first: dict[str, int] = {}
        pairs += [(first.setdefault(bond[name], at), at) for at, name in enumerate(ids) if name in bond]
    return dict(zip(ids, joined_pairs(len(ids), pairs), strict=True))


def joined_pairs(num: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return the group of each of some numbered things, its smallest number; the two of a pair are in one group."""
    parent = list(range(num))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = at = parent[parent[at]]
        return at

    for pair in pairs:
        low, high = sorted(map(root, pair))
        parent[high] = low
    return [root(at) for at in range(num)]


def group_name(values: Sequence[str]) -> str:
    """Return the name of a group that joins several values."""
    return " + ".join(values) if len(values) < 4 else f"{values[0]} + {len(values) - 1} more"


def _named(ids: Sequence[str], home: dict[str, int], labels: Sequence[dict[str, str]]) -> dict[str, str]:
    """Return id -> name of its group; no two groups share one."""
    shared: dict[int, list[str]] = {}
    for name in ids:
        said = shared.setdefault(home[name], [])
        said += [values[name] for values in labels[:1] if name in values and values[name] not in said]
    names: dict[int, str] = {}
    taken: set[str] = set()
    for group, said in shared.items():
        text = group_name(sorted(said)) if said else ids[group]
        while text in taken:
            text += "'"
        taken.add(text)
        names[group] = text
    return {name: names[home[name]] for name in ids}
