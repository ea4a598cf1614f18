"""The trials of a search, as Optuna keeps them in an SQLite file: what to try next by what was tried.

Every draw has a seed of its own, of the search's seed and the number of what was tried: a search that was stopped, or
whose file was lost, draws what it would have drawn.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksmith.core.errors import InputError
from masksmith.core.randomness import stream
from masksmith.planning.space import Range, Space, Values
from masksmith.postprocess.operator_search import import_optuna

_LISTED = 10_000
_MOST_REPEATS = 50
"""Combinations in a row that were tried before, after which an endless space counts as tried."""
_NAME = "search"


@dataclass(frozen=True)
class Record:
    """A trial that came to an end."""

    number: int
    values: Values
    state: str
    """whole, pruned or failed."""
    why: str = ""
    """It failed for."""


class Study:
    """What was tried, and what is to be tried next.

    Args:
        path: The file; made if it is absent.
        space: What may be tried.
        seed: Of all draws.

    Raises:
        InputError: Optuna is not installed, the file is damaged, or its path has a question mark.
    """

    def __init__(self, path: Path, space: Space, *, seed: int) -> None:
        self.path, self.space, self.seed = path, space, seed
        if "?" in str(path):  # the rest of the name would be options of SQLite
            raise InputError(
                f"{path}: Optuna cannot keep a search in a path with a question mark; give another --out"
            )
        self._optuna = need_optuna()
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._states = self._optuna.trial.TrialState
        self._under_way: dict[int, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._readable():
            self._storage = self._optuna.storages.RDBStorage(f"sqlite:///{path}")
            self._study = self._optuna.create_study(
                storage=self._storage, study_name=_NAME, direction="maximize", load_if_exists=True
            )
            self._axes = self._distributions()
            self._resume()
            self._tried = {_text(self._values(one.params)) for one in self._all() if self._is_own(one)}

    def close(self) -> None:
        """Let go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def learn(self, values: Values, useful: float) -> None:
        """Let the draws know what values score that were trained anyway, if they lie in the space."""
        known = any(one.user_attrs.get("known") for one in self._all())
        if known or not all(axis.holds(values[key]) for key, axis in self.space.axes.items()):
            return
        with self._readable():
            trial = self._optuna.trial.create_trial(
                params=self._params(values),
                distributions=self._axes,
                value=useful,
                user_attrs={"known": True},
            )
            self._study.add_trial(trial)
        self._tried.add(_text(self._values(self._params(values))))

    def next(self) -> tuple[int, Values] | None:
        """Return number and values of the next trial; None: all was tried."""
        repeats = 0
        while len(self._tried) < self.space.count and repeats < _MOST_REPEATS:
            with self._readable():
                self._study.sampler = self._sampler(repeats)
                trial = self._study.ask(self._axes)
                values = self._values(trial.params)
                if _text(values) not in self._tried:
                    self._tried.add(_text(values))
                    number = self._number(trial)
                    self._under_way[number] = trial
                    return number, values
                self._study.tell(trial, state=self._states.FAIL)
                repeats += 1
                if (untried := self._any_untried()) is not None:
                    self._study.enqueue_trial(self._params(untried))
                elif self.space.count <= _LISTED:
                    return None  # what is left are the same values again
        return None

    def report(self, number: int, step: int, useful: float) -> None:
        """Note what the folds of a trial scored so far."""
        with self._readable():
            self._under_way[number].report(useful, step)

    def finish(self, number: int, useful: float) -> None:
        """Note the score of a whole trial."""
        self._tell(number, useful)

    def prune(self, number: int) -> None:
        """Note that a trial was given up."""
        self._tell(number, state=self._states.PRUNED)

    def fail(self, number: int, why: str) -> None:
        """Note that a trial cannot be trained."""
        with self._readable():
            self._under_way[number].set_user_attr("failed", why[:1000])
        self._tell(number, state=self._states.FAIL)

    def is_under_way(self, number: int) -> bool:
        """Whether nothing was noted of a trial's end."""
        return number in self._under_way

    def records(self) -> list[Record]:
        """Return the trials that came to an end, by number."""
        state = {self._states.COMPLETE: "whole", self._states.PRUNED: "pruned", self._states.FAIL: "failed"}
        with self._readable():
            own = [one for one in self._all() if self._is_own(one) and not one.user_attrs.get("known")]
            return [
                Record(
                    one.user_attrs["trial"],
                    self._values(one.params),
                    state[one.state],
                    one.user_attrs.get("failed", ""),
                )
                for one in own
            ]

    # --- Optuna's side ---

    def _number(self, trial: Any) -> int:  # noqa: ANN401
        """Return the number of a trial, from 1 on; one that was stopped keeps its own."""
        number = trial.user_attrs.get("trial")
        if number is None:
            number = 1 + max((one.user_attrs.get("trial", 0) for one in self._all()), default=0)
            trial.set_user_attr("trial", number)
        return int(number)

    def _all(self) -> list[Any]:
        found: list[Any] = self._study.get_trials(deepcopy=False)
        return found

    def _is_own(self, trial: Any) -> bool:  # noqa: ANN401
        """Whether a trial came to an end: not one that was stopped, nor a repeated draw."""
        if trial.state == self._states.FAIL:
            return "failed" in trial.user_attrs
        return trial.state in (self._states.COMPLETE, self._states.PRUNED)

    def _resume(self) -> None:
        """Put trials that a killed process had under way first: their folds are found."""
        for one in self._study.get_trials(deepcopy=False, states=[self._states.RUNNING]):
            if one.params.keys() == self.space.axes.keys() and "trial" in one.user_attrs:
                self._study.enqueue_trial(one.params, user_attrs={"trial": one.user_attrs["trial"]})
            self._study.tell(one.number, state=self._states.FAIL)

    def _tell(self, number: int, value: float | None = None, **state: Any) -> None:  # noqa: ANN401
        with self._readable():
            self._study.tell(self._under_way.pop(number), value, **state)

    def _sampler(self, repeats: int) -> Any:  # noqa: ANN401
        seed = int(stream(self.seed, len(self._tried), repeats).integers(2**31))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            # constant liar: trials under way beside this one count as bad, so that it looks elsewhere
            return self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _any_untried(self) -> Values | None:
        """Return one of the combinations that were not tried, at random, where they are few enough to be listed."""
        if self.space.count > _LISTED:
            return None
        left = [one for one in self.space.combinations() if _text(one) not in self._tried]
        if not left:  # steps that are equal in four digits
            return None
        return left[int(stream(self.seed, len(self._tried)).integers(len(left)))]

    def _values(self, params: dict[str, Any]) -> Values:
        return {key: axis.of_param(params[key]) for key, axis in self.space.axes.items()}

    def _params(self, values: Values) -> dict[str, Any]:
        return {key: axis.to_param(values[key]) for key, axis in self.space.axes.items()}

    def _distributions(self) -> dict[str, Any]:
        made, kinds = dict[str, Any](), self._optuna.distributions
        for key, axis in self.space.axes.items():
            if not isinstance(axis, Range):
                made[key] = kinds.CategoricalDistribution([axis.to_param(one) for one in axis.values])
            elif axis.int:
                step = int(axis.step or 1)
                made[key] = kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=step)
            else:
                made[key] = kinds.FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)
        return made

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn what Optuna says of a damaged file into a refusal.

        Raises:
            InputError: It is damaged.
        """
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, self._optuna.exceptions.StorageInternalError) as error:
            first = str(error).splitlines()[0]
            raise InputError(
                f"{self.path}: damaged or not readable ({first}); remove it and repeat the command: what was "
                "trained is found again"
            ) from error
        except RuntimeError as error:
            if "Optuna" not in str(error) and "optuna" not in str(error):
                raise
            raise InputError(f"{self.path}: written by another Optuna ({error}); install that one") from error


def _text(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def need_optuna() -> Any:  # noqa: ANN401
    """Import Optuna.

    Raises:
        InputError: It is not installed.
    """
    return import_optuna(
        "search: trials are drawn by Optuna", "try a grid with `masksmith sweep`, which needs no Optuna"
    )
