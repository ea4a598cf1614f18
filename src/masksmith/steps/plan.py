"""The plan of a project under a budget: ``plan.json``, and planning on this machine."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, write_json, write_text
from masksmith.core.progress import clock, logger
from masksmith.data.store import Store
from masksmith.folds.config import ALL
from masksmith.models.config import WEIGHTS, ModelConfig, tensor_names
from masksmith.models.encoders import settle_encoder
from masksmith.models.segmentation import build_model
from masksmith.planning.choose import Choice, Chosen, Tools, choose, second_recipe
from masksmith.planning.cost import Cost, DataFacts, Sizes, cost_of, fit, stage_hw
from masksmith.planning.describe import explain
from masksmith.planning.lengths import with_epochs
from masksmith.planning.rules import Candidate, load_rules
from masksmith.planning.timings import Timings
from masksmith.planning.units import Reference, Unit, Wish, next_unit
from masksmith.preprocess import names_by_canvas
from masksmith.project.folder import Project
from masksmith.project.members import members_of_run
from masksmith.recipes.recipe import Recipe
from masksmith.steps.folds import folds_of
from masksmith.steps.pseudo_rounds import quotas_for
from masksmith.steps.resolve import resolve
from masksmith.steps.train import is_trained
from masksmith.training.machine import settle_device
from masksmith.training.memory import largest_batch

FORMAT_VERSION = 1
_SLOWER_BOUNDS = (0.3, 8.0)


@dataclass(frozen=True)
class Plan:
    """What was chosen for a budget, and what has been done of it."""

    asked: str
    """Hash of what was asked for."""
    recipe: Recipe
    """The reference recipe at its whole length."""
    choices: list[Choice]
    units: list[Unit]

    @property
    def under_way(self) -> int | None:
        """Place of the first unit that is not done."""
        return next((at for at, unit in enumerate(self.units) if not unit.done), None)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "format": FORMAT_VERSION,
            "asked": self.asked,
            "choices": [dict(vars(choice)) for choice in self.choices],
            "units": [unit.to_json() for unit in self.units],
            "recipe": self.recipe.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, value: Any, *, where: str) -> "Plan":  # noqa: ANN401
        """Return the plan that ``to_json`` wrote.

        Raises:
            InputError: A newer masksmith wrote it, or it was edited into something else.
        """
        if isinstance(value, dict) and value.get("format", 0) > FORMAT_VERSION:
            raise InputError(f"{where}: made by a newer masksmith; update masksmith, or choose another --out")
        try:
            return cls(
                asked=value["asked"],
                recipe=validate(Recipe, value["recipe"], where=where),
                choices=[Choice(**choice) for choice in value["choices"]],
                units=[Unit(**unit) for unit in value["units"]],
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"{where}: not what masksmith writes ({type(error).__name__}: {error}); remove it to plan again"
            ) from error

    def growth(self, unit: Unit, recipe: Recipe) -> float:
        """Return how many times its epochs a unit may grow to where it trains faster than planned; 1 or more.

        Only a shortened reference recipe grows, to its whole length: not one whose stages or whose mean of weights were
        changed for the shorter training, nor what was trained before this plan.

        Args:
            unit: A unit of this plan.
            recipe: That of its run.
        """
        own, whole = recipe.training, self.recipe.training
        planned = unit.reference == self.recipe.hash[:8] and unit.expected_s > 0
        if unit.kind in ("cycle", "recipe") or not planned or not unit.epochs:
            return 1.0
        if own.swa is not None or len(own.stages) != len(whole.stages):
            return 1.0
        return max(1.0, sum(stage.epochs for stage in whole.stages) / unit.epochs)

    def with_unit(self, unit: Unit, at: int | None = None) -> "Plan":
        """Return the plan with a unit at a place, or one more."""
        units = [*self.units, unit] if at is None else [*self.units[:at], unit, *self.units[at + 1 :]]
        return replace(self, units=units)

    def without_unit(self, at: int) -> "Plan":
        """Return the plan without the unit at a place."""
        return replace(self, units=[*self.units[:at], *self.units[at + 1 :]])


def facts_of(project: Project, recipe: Recipe) -> DataFacts:
    """Return what the estimates need to know of the data."""
    cache, folds, blank = project.cache, project.folds, project.blank_train

    def canvases(images: Store, names: Iterable[str]) -> dict[tuple[int, int], list[str]]:
        shapes = {name: images.shape(name) for name in names}
        return names_by_canvas(shapes, recipe.size, divisor=recipe.model.divisor)

    def padded(found: dict[tuple[int, int], list[str]]) -> int:
        return sum(height * width * len(names) for (height, width), names in found.items())

    def counted(images: Store, names: Iterable[str]) -> Sizes:
        return tuple(Counter(images.shape(name) for name in names).items())

    sizes = [cache.train_images.shape(name) for name in cache.train_images]
    inside, outside = folds.inside(0), [name for name in folds.outside(0) if name not in blank]
    held_out = canvases(cache.train_images, inside)
    test = canvases(cache.test_images, cache.test_images.ids)
    return DataFacts(
        train=max(1, len(outside)),
        held_out=len(inside),
        test=len(project.catalog.test),
        hw=(max(h for h, _ in sizes), max(w for _, w in sizes)),
        held_out_px=padded(held_out),
        test_px=padded(test),
        canvases=max(1, len(held_out.keys() | test.keys())),
        channels=project.inputs(recipe.input).channels,
        folds=recipe.folds.total,
        size=recipe.size,
        train_sizes=counted(cache.train_images, outside),
        held_out_sizes=counted(cache.train_images, inside),
        test_sizes=counted(cache.test_images, cache.test_images.ids),
    )


def _is_same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes train the same net on the same images and masks; their stages may differ."""
    return all(
        (
            one.model == other.model,
            one.seed == other.seed,
            one.input.identity == other.input.identity,
            one.size == other.size,
            one.pseudo == other.pseudo,
        )
    )


class Planner:
    """Plans on this machine and keeps ``plan.json``."""

    def __init__(
        self, project: Project, asked: Recipe, pinned: Sequence[str], tools: Tools, *, rounds: int = 0
    ) -> None:
        self.project, self.asked, self.pinned, self.tools = project, asked, pinned, tools
        self.rounds = rounds
        """Rounds of pseudo-labels that the time may be spent on, too."""
        self.rules = load_rules()
        self.facts = facts_of(project, asked)
        self.kind = ""
        """Kind of the machine that costs are asked for; "": this one."""
        self.slower_by = dict[str, float]()
        """How much slower a kind of machine was in its last training than was measured on this one."""

    @property
    def slower(self) -> float:
        """How much slower the machine was in the last training than was measured."""
        return self.slower_by.get(self.kind, 1.0)

    def load(self) -> Plan | None:
        """Return the plan on disk, None if there is none."""
        path = self.project.plan_json
        return Plan.from_json(read_json(path), where=str(path)) if path.exists() else None

    def save(self, plan: Plan) -> Plan:
        """Write the plan and return it."""
        write_json(self.project.plan_json, plan.to_json())
        return plan

    def make(self, left: Callable[[], float]) -> Plan:
        """Return the plan on disk if it is for what is asked, else choose one for the seconds left and write it.

        What was trained under an earlier plan, or without one, stays in it.

        Raises:
            InputError: The time is too short for one epoch, or what was asked for is not possible.
        """
        old = self.load()
        if old is not None and old.asked == self._identity:
            return old
        chosen = self.choose(left)
        units = [unit for unit in old.units if unit.done] if old else self._trained_before(chosen.recipe)
        self._refuse_other_metric(units)
        for choice in chosen.choices:
            logger.info("plan: %s %s (%s)", choice.key, choice.value, choice.reason)
        write_text(self.project.plan_yaml, self.text(chosen))
        return self.save(Plan(self._identity, chosen.recipe, chosen.choices, units))

    def _trained_before(self, recipe: Recipe) -> list[Unit]:
        """Return what was trained without a budget as units; those of the same net and data are folds of the plan.

        A refit is none: it is no fold, and no held-out images can score a cycle of it.
        """
        try:
            run = self.project.run()
        except InputError:
            return []
        if run.is_external:  # a stack: what it is on
            below = [name for name, _ in run.external.get("stacked_on", ())]
            own = [one for one in map(self.project.run, below) if not one.is_external]
            if not own:
                return []
            run = own[0]
        reference = recipe.hash[:8] if _is_same(run.recipe, recipe) else run.recipe.hash[:8]
        epochs = sum(stage.epochs for stage in run.recipe.training.stages)
        folds = [member for member in members_of_run(run) if member.fold != ALL]
        members = [member for member in folds if is_trained(self.project, member)]
        return [
            Unit(
                "fold", member.fold, run.recipe.seed, 0.0, "trained before, without a budget", reference,
                f"{run.recipe.model.architecture} on {run.recipe.model.encoder}", epochs, run.path.name,
                took_s=0.0, joined=True,
            )
            for member in members
        ]  # fmt: skip

    def _refuse_other_metric(self, units: Sequence[Unit]) -> None:
        for unit in units:
            metric = self.project.run(unit.run).recipe.metric
            if metric != self.asked.metric:
                raise InputError(
                    f"metric: {self.asked.metric!r} was asked for, but {unit.run} in {self.project.root} was scored by "
                    f"{metric!r}; choose another --out"
                )

    def propose(self, left: Callable[[], float]) -> str:
        """Choose a recipe for the seconds left and return its text, also as ``plan.yaml`` unless one is under way.

        Raises:
            InputError: As make.
        """
        text = self.text(self.choose(left))
        if self.project.plan_json.exists():
            logger.info("%s is under way and stays as it is", self.project.plan_yaml)
        else:
            write_text(self.project.plan_yaml, text)
        return text

    def choose(self, left: Callable[[], float]) -> Chosen:
        """Choose for the seconds left, by what the machine does now.

        Raises:
            InputError: As make.
        """
        return choose(self.asked, self.pinned, self.facts, left, self.rules, self.tools)

    @property
    def _identity(self) -> str:
        return digest(self.asked.asked_text, *sorted(self.pinned))

    @property
    def folds(self) -> int:
        """Folds that may be trained."""
        return self.asked.folds.train or self.facts.folds

    def text(self, chosen: Chosen) -> str:
        """Return the recipe of the first unit with the reasons, as ``plan.yaml`` shows it."""
        part = fit(chosen.recipe, chosen.cost, chosen.seconds, folds=self.folds)
        recipe = with_epochs(chosen.recipe, part.epochs, self.rules.length)
        recipe = recipe.model_copy(update={"folds": recipe.folds.model_copy(update={"train": part.folds})})
        return explain(recipe, chosen.choices, title=f"planned for {clock(chosen.seconds)}")

    def cost_of(self, recipe: Recipe) -> Cost:
        """Return what a fold of a resolved recipe costs on the machine as busy as it was last."""
        tools = self.tools
        cost = cost_of(recipe, self.facts, tools.measure, self.rules.time, runtime=tools.runtime)
        return cost.slower(self.slower)

    def learn(self, recipe: Recipe, pace: float) -> None:
        """Learn from a training's last pace (seconds a pixel; 0: unknown) how busy the machine is."""
        if pace:
            ratio = pace * self.slower / self.cost_of(recipe).paces[-1]
            self.slower_by[self.kind] = min(_SLOWER_BOUNDS[1], max(_SLOWER_BOUNDS[0], ratio))

    def next(self, plan: Plan, left_s: float) -> Wish | None:
        """Return what to begin with the time left, or None; units under way count as begun."""

        def second() -> Reference | None:
            recipe = second_recipe(plan.recipe, self.asked, self.pinned, self.facts, self.rules, self.tools)
            return None if recipe is None else Reference(recipe, self.cost_of(recipe), self.folds)

        quotas = quotas_for(self.project) if self.rounds else []
        labels = min(self.facts.test, sum(quota.images for quota in quotas))
        return next_unit(
            Reference(
                plan.recipe, self.cost_of(plan.recipe), self.folds, self.facts.more_images,
                self.rounds, quotas, 1 + labels / self.facts.train,
            ),
            plan.units,
            left_s,
            self.rules,
            run_recipe=lambda name: self.project.run(name).recipe,
            second=second,
        )  # fmt: skip


def propose_plan(project: Project, asked: Recipe, pinned: Sequence[str], left: Callable[[], float]) -> str:
    """Return a plan for the seconds left, as YAML; nothing is trained."""
    folds_of(project, asked)
    return Planner(project, asked, keys_of(pinned), machine_tools(project, asked)).propose(left)


def keys_of(pinned: Sequence[str]) -> list[str]:
    """Return the dotted keys of overrides of the form KEY=VALUE."""
    return [override.partition("=")[0] for override in pinned]


def machine_tools(project: Project, asked: Recipe) -> Tools:
    """Return the tools of this machine."""
    device = settle_device(asked.training.device)
    target = project.target
    kind: Any = {"classes": target.outputs, "exclusive": target.exclusive}
    timings = Timings(project.inputs(asked.input).channels, **kind)

    def batch_that_fits(recipe: Recipe, facts: DataFacts) -> int:
        model = build_model(recipe.model, in_channels=facts.channels, seed=0, load_weights=False, **kind)
        stages = recipe.training.stages
        canvases = [stage_hw(recipe.training, stage, facts, model.divisor) for stage in stages]
        largest = max(canvases, key=lambda hw: hw[0] * hw[1])
        return largest_batch(model, recipe.training, canvas_hw=largest)

    return Tools(
        measure=timings.of_model,
        weights_for=weights_for,
        resolve=partial(resolve, project),
        largest_batch=batch_that_fits,
        runtime=timings.of_runtime,
        device=device,
        measured_s=lambda: timings.spent_s,
    )


def weights_for(candidate: Candidate, asked: ModelConfig) -> str | None:
    """Return the weights that a candidate gets under what was asked, or None where there are none for it.

    A file fits the encoder whose tensors it holds; those of a package must be installed, and those of the hub within
    reach.
    """
    weights = asked.encoder_weights
    if weights == "none":
        return None if candidate.pretrained else "none"
    if weights in WEIGHTS:
        if not candidate.pretrained:
            return "none" if weights == "auto" else None
        try:
            found = settle_encoder(candidate.encoder, weights).weights
        except InputError:
            return None
        return None if found == "none" else found
    if not candidate.pretrained:
        return None
    return weights if _fits(candidate, weights) else None


def _fits(candidate: Candidate, path: str) -> bool:
    from pathlib import Path

    tensor_names(Path(path))
    try:
        build_model(candidate.model(path), in_channels=3, seed=0)
    except InputError:
        return False
    return True
