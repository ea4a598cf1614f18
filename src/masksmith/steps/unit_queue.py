"""The units of a budget that an engine trains side by side, each as long as the machine that it runs on allows.

They are begun and judged in the order of the plan, whichever ends first, so that the members do not depend on it.
"""

from collections.abc import Callable, Iterator, Sequence

from masksmith.core.progress import logger
from masksmith.engines import Done, Engine, Slot, Task
from masksmith.project.folder import Project
from masksmith.recipes.recipe import Recipe
from masksmith.steps.plan import Plan, Planner
from masksmith.steps.tasks import MEASURE_PACE, threads_of, where_of


class UnitQueue:
    """Which units of a plan are under way, and which have ended.

    Args:
        engine: Runs them.
        planner: Knows how fast each kind of machine is.
        plan: With the units so far.
        more: Returns the plan with one more unit, or None where nothing more fits.
        begin: Returns the task that trains a unit of the plan on a machine ("": any), or None where its time is too
            short.
        spent: Returns the seconds that are spent.
    """

    def __init__(
        self,
        engine: Engine,
        planner: Planner,
        plan: Plan,
        more: Callable[[Plan], Plan | None],
        begin: Callable[[Plan, int, str], Task | None],
        *,
        spent: Callable[[], float],
    ) -> None:
        self.engine, self.planner, self.plan = engine, planner, plan
        self.more, self.begin, self.spent = more, begin, spent
        self._given = dict[int, Task]()
        self._ended = dict[int, Done]()
        self._seconds = dict[int, float]()

    def tasks(self) -> Iterator[Task | None]:
        """Yield a task for each unit, as long as there is time; None where units under way are to be waited for."""
        while True:
            taken = [task.on for task in self._given.values()]
            on = choose_slot(self.engine, self.planner, self.plan.recipe, taken)
            at, began = self._next(), self.spent()
            task = None if at is None else self.begin(self.plan, at, on)
            if task is None and not self._given:
                return
            if at is not None and task is not None:
                self._given[at], self._seconds[at] = task, began
            yield task

    def _next(self) -> int | None:
        """Return the place of a unit to begin, which the plan has or gets now."""
        begun = self._given.keys() | self._ended.keys()
        for at, unit in enumerate(self.plan.units):
            if not unit.done and at not in begun:
                return at
        longer = self.more(self.plan)
        if longer is None:
            return None
        self.plan = longer
        return len(longer.units) - 1

    def take(self, done: Done) -> None:
        """Take a task that has ended."""
        at = next(at for at, task in self._given.items() if task.name == done.task.name)
        del self._given[at]
        self._ended[at], self._seconds[at] = done, self.spent() - self._seconds[at]

    def ready(self) -> Iterator[tuple[int, Done, float]]:
        """Yield place, task and seconds of each unit that can be judged: all before it in the plan are."""
        while (at := self.plan.under_way) is not None and at in self._ended:
            yield at, self._ended.pop(at), self._seconds.pop(at)
            assert self.plan.under_way != at, "it was judged"


def learn_kinds(project: Project, engine: Engine, planner: Planner, recipe: Recipe) -> None:
    """Measure the reference recipe of a plan once on each kind of worker."""
    if engine.name == "local":
        return
    firsts = dict[str, Slot]()
    for slot in engine.slots():
        firsts.setdefault(slot.kind, slot)
    arguments = {"where": where_of(project, engine), "recipe": recipe.to_yaml()}
    tasks = [
        Task(f"pace of {kind}", MEASURE_PACE, arguments, cores=threads_of(recipe), on=slot.name)
        for kind, slot in firsts.items()
        if kind not in planner.slower_by
    ]
    for done in engine.run(tasks):
        planner.kind = kind_of(engine, done.worker)
        planner.learn(recipe, done.value)
        logger.info(
            "engine %s: %s takes %.2f times as long as this machine",
            engine.name,
            planner.kind,
            planner.slower,
        )


def choose_slot(engine: Engine, planner: Planner, recipe: Recipe, taken: Sequence[str]) -> str:
    """Let the planner reckon with the machine that the next unit will run on; return its name where kinds differ.

    Args:
        engine: Has the machines.
        planner: Knows how fast each kind is.
        recipe: Whose threads a unit takes.
        taken: The machine of each unit under way.
    """
    if engine.name == "local":
        return ""
    slots = sorted(engine.slots(), key=lambda slot: planner.slower_by.get(slot.kind, 1.0))
    task = Task("", "", cores=threads_of(recipe), gpus=int(recipe.training.device == "cuda"))
    slot = next((one for one in slots if one.at_once(task) > taken.count(one.name)), slots[0])
    planner.kind = slot.kind
    return slot.name if len({one.kind for one in slots}) > 1 else ""


def kind_of(engine: Engine, worker: str) -> str:
    """Return the kind of a machine by its name, as the planner calls it; "" for this one."""
    if engine.name == "local":
        return ""
    return next((slot.kind for slot in engine.slots() if slot.name == worker), "")
