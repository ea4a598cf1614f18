"""Which images come first: a thread looks at every prediction, and what it has found by now can be asked for.

A look at 100,000 images takes a while; the page does not wait for it.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from masksmith.core.arrays import Float, Int, Shaped, judged_pixels
from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.data.catalog import BACKGROUND
from masksmith.metrics.costs import image_costs
from masksmith.metrics.protocol import GROUPED, Groups, Row
from masksmith.postprocess.rules import apply_rule
from masksmith.postprocess.scoring import one_layer
from masksmith.project.folder import Project
from masksmith.reporting.causes import CAUSES, cause_of
from masksmith.steps.out_of_fold import beside_of
from masksmith.steps.review.doubt import doubt_of
from masksmith.steps.review.predictions import Predicted, find_predictions, version_of

Split = Literal["train", "test"]
CAUSE_NAMES = list(CAUSES)
_PUBLISH_S = 1.0
_LOOK_AGAIN_S = 5.0
_STOP_S = 2.0


@dataclass(frozen=True)
class Ranked:
    """What is known of the images of a split, in the order of the catalogue; NaN and -1 where nothing is."""

    ids: Sequence[str]
    score: Float[np.ndarray, " n"]
    cost: Float[np.ndarray, " n"]
    doubt: Float[np.ndarray, " n"]
    cause: Int[np.ndarray, " n"]
    """Index in CAUSE_NAMES."""
    done: int = 0
    todo: int = 0
    """Predicted images, of which ``done`` were looked at."""
    edition: int = 0
    """Goes up whenever more is known."""

    @classmethod
    def unknown(cls, ids: Sequence[str], edition: int = 0) -> "Ranked":
        """Return the images of which nothing is known yet."""
        score, cost, doubt = np.full((3, len(ids)), np.nan)
        return cls(ids, score, cost, doubt, np.full(len(ids), -1), edition=edition)


@dataclass
class _Found:
    """What was found of the images so far."""

    ranked: Ranked
    place: dict[str, int]
    rows: list[Row] = field(default_factory=list)
    perfect: list[Row] = field(default_factory=list)
    at: list[int] = field(default_factory=list)


class Ranking:
    """Looks at the predictions of a project in a thread, and again when there are others.

    Args:
        project: The project.
        run: The run, None: the current one.
    """

    def __init__(self, project: Project, run: str | None = None) -> None:
        self.project, self.run = project, run
        self.predicted = Predicted(said="the predictions are being opened")
        names = {"train": project.catalog.train, "test": project.catalog.test}
        self.ranked: dict[str, Ranked] = {
            split: Ranked.unknown([sample.id for sample in samples]) for split, samples in names.items()
        }
        self._places = {
            split: {name: at for at, name in enumerate(one.ids)} for split, one in self.ranked.items()
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ranking", daemon=True)

    def place(self, split: str, name: str) -> int:
        """Return where an image is in the catalogue."""
        return self._places[split][name]

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that is just opening predictions is left behind, for it writes nothing."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_STOP_S)

    def _work(self) -> None:
        seen: tuple[object, ...] | None = None
        while not self._stop.is_set():
            now = version_of(self.project.root, self.run)
            if now != seen:
                seen = now
                try:
                    self.look()
                except (InputError, OSError) as error:  # half-written, removed or damaged meanwhile
                    self.predicted = replace(self.predicted, said=str(error))
                except Exception:
                    logger.exception("review: the images cannot be ranked")
                    self.predicted = replace(self.predicted, said="the images cannot be ranked; see the log")
            self._stop.wait(_LOOK_AGAIN_S)

    def look(self) -> None:
        """Open the predictions and look at every image."""
        project = Project.open(self.project.root)
        predicted = replace(find_predictions(project, self.run), number=self.predicted.number + 1)
        wanted = dict[str, list[str]]()
        for split, before in self.ranked.items():
            blank = project.blank_train if split == "train" and predicted.oof else ()  # no score counts these
            wanted[split] = [
                name for name in before.ids if name not in blank and self._codes_there(predicted, split, name)
            ]
            self.ranked[split] = replace(before, done=0, todo=len(wanted[split]))
        self.predicted = predicted
        for split, names in wanted.items():
            before = self.ranked[split]
            ranked = replace(Ranked.unknown(before.ids, before.edition + 1), todo=len(names))
            found = _Found(ranked, self._places[split])
            groups = self._groups(project, predicted, names) if split == "train" else None
            later = time.monotonic() + _PUBLISH_S
            for number, _ in enumerate(self._look_at(project, predicted, split, names, found), start=1):
                if self._stop.is_set():
                    return
                if (began := time.monotonic()) > later:
                    self.ranked[split] = _publish(found, predicted, number, groups)
                    ended = (
                        time.monotonic()
                    )  # of many images a summary takes a while: it takes a tenth of the time
                    later = ended + max(_PUBLISH_S, 9 * (ended - began))
            self.ranked[split] = _publish(found, predicted, len(names), groups)

    @staticmethod
    def _codes_there(predicted: Predicted, split: str, name: str) -> bool:
        return predicted.test is not None if split == "test" else name in predicted.oof

    @staticmethod
    def _groups(project: Project, predicted: Predicted, names: Sequence[str]) -> Groups | None:
        if predicted.metric is None or predicted.metric.average not in GROUPED:
            return None
        return project.metric_groups(predicted.members[0].scored_by, names)

    def _look_at(
        self, project: Project, predicted: Predicted, split: str, names: Sequence[str], found: _Found
    ) -> Iterator[None]:
        cache, target = project.cache, project.target
        rule, metric = predicted.rule, predicted.metric
        background, beside = target.classes[0] == BACKGROUND, beside_of(project)
        for name in names:
            at = found.place[name]
            if split == "test":
                assert predicted.test is not None
                found.ranked.doubt[at] = doubt_of(predicted.test[name], target)
                yield
                continue
            assert rule is not None
            assert metric is not None
            codes = predicted.oof[name][name]
            truth, mask = one_layer(cache.train_masks[name]), apply_rule(rule, codes, name, beside)
            found.rows.append(metric.stats(mask, truth))
            found.perfect.append(metric.stats(_right(truth), truth))
            found.at.append(at)
            found.ranked.doubt[at] = doubt_of(codes, target)
            found.ranked.cause[at] = CAUSE_NAMES.index(cause_of(truth, mask, target, background=background))
            yield


def _right(truth: Shaped[np.ndarray, "h w *k"]) -> Shaped[np.ndarray, "h w *k"]:
    return np.where(judged_pixels(truth), truth, 0).astype(truth.dtype)


def _publish(found: _Found, predicted: Predicted, done: int, groups: Groups | None) -> Ranked:
    """Return what is known by now; the costs are those among the images that were looked at."""
    now = found.ranked
    score, cost = np.full(len(now.ids), np.nan), np.full(len(now.ids), np.nan)
    if found.rows and predicted.metric is not None:
        rows, perfect = np.stack(found.rows), np.stack(found.perfect)
        among = None if groups is None else groups[: len(rows)]
        score[found.at] = predicted.metric.value(rows)
        cost[found.at] = image_costs(predicted.metric, rows, perfect, among)
    found.ranked = replace(now, done=done, edition=now.edition + 1)
    return replace(found.ranked, score=score, cost=cost, doubt=now.doubt.copy(), cause=now.cause.copy())
