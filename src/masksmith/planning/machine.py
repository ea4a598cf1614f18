"""The speed of this machine as planning sees it: remembered times, checked against a few steps now."""

import time
from typing import Any

from masksmith import pulse
from masksmith.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.planning.cost import DataFacts, Timed, stage_hw
from masksmith.progress import logger
from masksmith.recipe import Recipe
from masksmith.training.config import TrainingConfig
from masksmith.training.sharing import are_free, candidates

_MEASURE_S = 1.0  # seconds of steps timed for one size
_THREADS_S = 10.0  # after so many seconds no further number of threads is timed
_FASTER, _BUSIER = 0.87, 1.15  # a machine this much off what is remembered is planned for as it is now


class _Scaled:
    """Measured seconds on a machine that is slower by a factor than it was then."""

    def __init__(self, timed: Timed, factor: float) -> None:
        self.build_s, self.first_step_s = timed.build_s * factor, timed.first_step_s * factor
        self.step_s, self.forward_s = timed.step_s * factor, timed.forward_s * factor


class Measurements:
    """Measured times, remembered per machine and counted."""

    def __init__(self, channels: int) -> None:
        from masksmith.planning.timings import Memory

        self.channels = channels
        self.memory = Memory()
        self.known: dict[str, Timed] = {}
        self.remembered: set[str] = set()
        self.spent_s = 0.0
        self.factor = 1.0
        self.is_quiet: bool | None = None
        """Whether this process has its cores for itself; None: not looked at."""
        self.by_threads: dict[str, dict[int, float]] = {}

    @staticmethod
    def cores_share(threads: int) -> float:
        """Return the share of so many cores that this process gets now."""
        from masksmith.training.machine import cores_share

        return cores_share(threads)

    @staticmethod
    def _key(model: ModelConfig, training: TrainingConfig, hw: tuple[int, int], batch_size: int) -> str:
        return f"{model} {training.precision} {training.threads} {hw} {batch_size}"

    def timing_of(
        self, model: ModelConfig, training: TrainingConfig, hw: tuple[int, int], batch_size: int
    ) -> Timed:
        """Return what was measured here before, or measure now."""
        from masksmith.planning.measure import timing_of

        pulse.beat()
        key = self._key(model, training, hw, batch_size)
        if key not in self.known:
            began = time.monotonic()
            timed, remembered = timing_of(
                model,
                training,
                in_channels=self.channels,
                canvas_hw=hw,
                batch_size=batch_size,
                loss=training.stages[-1].loss,
                seconds=_MEASURE_S,
                memory=self.memory,
            )
            self.spent_s += time.monotonic() - began
            self.known[key] = timed
            if remembered:
                self.remembered.add(key)
            else:
                logger.info(
                    "measured: %s on %s, batch %d at %dx%d: %.0f images/s trained, %.0f predicted",
                    model.architecture, model.encoder, batch_size, *hw,
                    batch_size / timed.step_s, batch_size / timed.forward_s,
                )  # fmt: skip
        return _Scaled(self.known[key], self.factor if key in self.remembered else 1.0)

    def runtime_of(
        self, runtime: str, model: ModelConfig, training: TrainingConfig, hw: tuple[int, int], batch_size: int
    ) -> Timed | None:
        """Return the remembered or measured seconds of a prediction runtime; None where it cannot work here."""
        from masksmith.planning.measure import measure_runtime, timing_key

        options: dict[str, Any] = {"in_channels": self.channels, "canvas_hw": hw, "batch_size": batch_size}
        key = f"{runtime}, " + timing_key(model, training, **options, loss=training.stages[-1].loss)
        if key not in self.known:
            began = time.monotonic()
            timed = self.memory.get(key)
            if timed is not None:
                self.remembered.add(key)
            else:
                try:
                    timed = measure_runtime(
                        model, training, runtime=runtime, **options, seconds=_MEASURE_S / 4
                    )
                except InputError as error:
                    logger.info("%s", error)
                    return None
                self.memory.put(key, timed)
            self.spent_s += time.monotonic() - began
            self.known[key] = timed
        return _Scaled(self.known[key], self.factor if key in self.remembered else 1.0)

    def threads_of(self, recipe: Recipe, facts: DataFacts) -> dict[int, float]:
        """Return the seconds of a step now with all threads and with fewer; nothing where all cores are free.

        Threads of one step wait for each other, so that a neighbour on one core holds up those on all. Looked at once
        a command: the answer for a recipe stays the same.
        """
        model, training = recipe.model, recipe.training
        threads = training.threads
        assert threads != "auto", recipe.name
        if training.device != "cpu" or threads == 1:
            return {}
        if self.is_quiet is None:
            began = time.monotonic()
            self.is_quiet = are_free(self.cores_share(threads), threads)
            self.spent_s += time.monotonic() - began
        if self.is_quiet:
            return {}
        hw, batch = _smallest(recipe, facts)
        key = self._key(model, training, hw, batch)
        if key not in self.by_threads:
            seconds, began = dict[int, float](), time.monotonic()
            for number in candidates(threads):
                own = training.model_copy(update={"threads": number})
                seconds[number] = self._step_now(model, own, hw, batch)
                if time.monotonic() - began > _THREADS_S:
                    break  # a training tries fewer by itself
            self.by_threads[key] = seconds
        return self.by_threads[key]

    def _step_now(
        self, model: ModelConfig, training: TrainingConfig, hw: tuple[int, int], batch: int
    ) -> float:
        """Return the seconds of a step that this command has measured, or measures now."""
        from masksmith.planning.measure import measure

        key = self._key(model, training, hw, batch)
        if key in self.known and key not in self.remembered:
            return self.known[key].step_s
        began = time.monotonic()
        now = measure(
            model, training, in_channels=self.channels, canvas_hw=hw, batch_size=batch,
            loss=training.stages[-1].loss, seconds=_MEASURE_S / 4,
        )  # fmt: skip
        self.spent_s += time.monotonic() - began
        return now.step_s

    def drift(self, recipe: Recipe, facts: DataFacts) -> None:
        """Compare what is remembered for a recipe with a few steps now, and believe the present.

        A busy machine makes all estimates longer by the factor; one that is faster than remembered (it was
        measured in a busy hour) is measured again.
        """
        model, training = recipe.model, recipe.training
        hw, batch = _smallest(recipe, facts)
        key = self._key(model, training, hw, batch)
        if key not in self.remembered:
            return
        ratio = self._step_now(model, training, hw, batch) / self.known[key].step_s
        if ratio < _FASTER:
            logger.info("plan: this machine is %.1f times as fast as remembered; measuring anew", 1 / ratio)
            self.memory.forget()
            self.known, self.remembered = {}, set()
        elif ratio > _BUSIER:
            logger.info("plan: this machine is %.1f times as slow as remembered; planning for that", ratio)
            self.factor = ratio


def _smallest(recipe: Recipe, facts: DataFacts) -> tuple[tuple[int, int], int]:
    """Return the canvas and the batch of the stage with the smallest images: its steps are the shortest."""
    training = recipe.training
    stage = min(training.stages, key=lambda one: one.scale)
    return stage_hw(training, stage, facts, recipe.model.divisor), stage.batch_size or training.batch_size
