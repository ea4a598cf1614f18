"""The list of the page: which images, in which order, a part at a time."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from masksmith.core.arrays import Float, Int
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.project.corrections import ACTIONS, Correction
from masksmith.steps.review.ranking import CAUSE_NAMES, Ranked

ORDERS = {
    "cost": "what the score would gain if the image were right",
    "doubt": "mean entropy of the predicted probabilities",
    "name": "as the data has them",
}
"""Name of an order -> what comes first: the most of it; unknown ones last."""
STATES = {"all": "all", "open": "nothing said yet", "done": "something said", **ACTIONS}
MOST = 200
"""Images that are listed at once."""


@dataclass(frozen=True)
class Query:
    """What is asked for.

    Raises:
        InputError: An unknown order, state or cause, or a part that is none.
    """

    order: str = "cost"
    cause: str = ""
    state: str = "all"
    find: str = ""
    """Text in the id."""
    offset: int = 0
    limit: int = 60

    def __post_init__(self) -> None:
        look_up(ORDERS, self.order, where="order")
        look_up(STATES, self.state, where="state")
        if self.cause:
            look_up(dict.fromkeys(CAUSE_NAMES), self.cause, where="cause")
        if self.offset < 0 or not 1 <= self.limit <= MOST:
            raise InputError(
                f"offset {self.offset}, limit {self.limit}; expected 0 or more, and 1 to {MOST} images at once"
            )


def listed(ranked: Ranked, said: Mapping[str, Correction], query: Query) -> dict[str, Any]:
    """Return a part of the list, the number of images in all of it, and how many there are of each cause and state."""
    kept = np.ones(len(ranked.ids), bool)
    if query.find:
        text = query.find.lower()
        kept &= np.fromiter((text in name.lower() for name in ranked.ids), bool, len(ranked.ids))
    kept &= _of_state(ranked, said, query.state)
    causes = Counter(CAUSE_NAMES[at] for at in ranked.cause[kept & (ranked.cause >= 0)])
    if query.cause:
        kept &= ranked.cause == CAUSE_NAMES.index(query.cause)
    order = _order(ranked, query.order)
    order = order[kept[order]]
    part = order[query.offset : query.offset + query.limit]
    return {
        "total": len(order),
        "edition": ranked.edition,
        "causes": {name: causes[name] for name in CAUSE_NAMES if causes[name]},
        "states": dict(Counter(one.action for one in said.values())),
        "items": [line(ranked, said, int(at)) for at in part],
    }


def line(ranked: Ranked, said: Mapping[str, Correction], at: int) -> dict[str, Any]:
    """Return what the list says of an image."""
    name = ranked.ids[at]
    now = said.get(name, Correction(name))
    cause = int(ranked.cause[at])
    return {
        "id": name,
        "score": _number(ranked.score[at]),
        "cost": _number(ranked.cost[at]),
        "doubt": _number(ranked.doubt[at]),
        "cause": CAUSE_NAMES[cause] if cause >= 0 else "",
        "action": now.action,
        "note": now.note,
        "version": now.version,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _of_state(ranked: Ranked, said: Mapping[str, Correction], state: str) -> Any:  # noqa: ANN401
    if state == "all":
        return True
    inside = (
        (name in said) == (state == "done")
        if state in ("open", "done")
        else name in said and said[name].action == state
        for name in ranked.ids
    )
    return np.fromiter(inside, bool, len(ranked.ids))


def _order(ranked: Ranked, order: str) -> Int[np.ndarray, " n"]:
    if order == "name":
        return np.arange(len(ranked.ids))
    values: Float[np.ndarray, " n"] = ranked.cost if order == "cost" else ranked.doubt
    return np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")
