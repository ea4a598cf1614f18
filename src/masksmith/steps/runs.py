"""From a recipe or an ensemble to runs and members, under the lock of the project that the verbs hold."""

from collections.abc import Sequence
from dataclasses import replace

from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.project.folder import Project
from masksmith.project.members import Member, members_of_run
from masksmith.project.runs import Run, with_free_parts
from masksmith.recipes.ensemble import AnyRecipe, member_recipes
from masksmith.recipes.pseudo import TeacherConfig
from masksmith.recipes.recipe import Recipe, first_difference, load_teachers, table_hash
from masksmith.steps.corrections import with_corrections
from masksmith.steps.folds import folds_of
from masksmith.steps.recipes import form_of
from masksmith.steps.resolve import check_prediction, check_sizes, check_stages, resolve
from masksmith.steps.start_from import with_start
from masksmith.steps.train import scalars_of
from masksmith.training.refit import refuse_refit


def refuse_unfit(project: Project, asked: Recipe) -> None:
    """Refuse a recipe that the images, folds or tables of a project do not allow.

    Raises:
        InputError: They do not.
    """
    with form_of(asked.name):
        channels = project.inputs(asked.input).channels
    check_stages(asked.training, channels=channels, custom=project.augment)
    asked.model.check_channels(channels)
    check_sizes(project, asked)
    if asked.folds.refit:
        refuse_refit(asked.training)
    with form_of(asked.name):
        for stage in ("oof", "test"):
            scalars_of(project, asked, stage)


def open_run(project: Project, asked: Recipe) -> Run:
    """Return the run of a recipe, made and resolved now if there is none."""
    made = folds_of(project, asked)
    refuse_unfit(project, asked)
    settled = with_corrections(project, asked)
    settled = settled if asked.pseudo is None else _open_teacher(project, settled)
    with form_of(asked.name):
        run = project.run_of(asked) or project.add_run(asked, with_start(project, resolve(project, settled)))
    check_prediction(run.recipe)
    run.ledger.mark_done("folds", made.hash)
    return run


def _open_teacher(project: Project, asked: Recipe) -> Recipe:
    """Return the recipe with the run of its teacher, or the runs of its teachers, which are made now if need be.

    A run that is there predicts as it is asked to here, for that makes the labels; the folds that it trains, its refit
    and its tuning are not its student's to change.

    Raises:
        InputError: There are no test images to label; the teacher's run that the recipe names is not in this project;
            or as open_run.
    """
    assert asked.pseudo is not None, asked.name
    if asked.pseudo.teacher_run is not None:  # a resolved recipe
        _need_teacher(project, asked.pseudo.teacher_run)
        return asked
    if asked.pseudo.teacher_runs:
        _need_teachers(project, asked, asked.pseudo.teacher_runs)
        return asked
    if not project.catalog.test:
        raise InputError(
            f"{project.catalog.root}: there are no test images to make pseudo-labels of; set pseudo=null and "
            "training.stages[…].data=labelled, or add test images"
        )
    if asked.pseudo.table is not None:
        content = asked.pseudo.table_hash or table_hash(asked.pseudo.table)
        logger.warning(
            "pseudo.table: %s: what made these labels may have seen the training masks: the score out of fold is too "
            "good then",
            asked.pseudo.table,
        )
        return asked.model_copy(update={"pseudo": asked.pseudo.model_copy(update={"table_hash": content})})
    runs: dict[str, float] = {}
    for wanted, weight in load_teachers(asked):
        if (there := project.find_run(wanted)) is not None:
            fitted = with_free_parts(wanted, there.recipe)
            wanted = fitted.model_copy(update={"prediction": wanted.prediction})
        runs[open_run(project, wanted).path.name] = weight
    one = {"teacher_run": next(iter(runs))}
    several = {"teacher_runs": [TeacherConfig(run=name, weight=weight) for name, weight in runs.items()]}
    pseudo = asked.pseudo.model_copy(update=one if len(runs) == 1 else several)
    return asked.model_copy(update={"pseudo": pseudo})


def _need_teachers(project: Project, asked: Recipe, teachers: Sequence[TeacherConfig]) -> None:
    """Refuse teachers that are not there, whose labels would not be honest, or that hold out other images.

    Raises:
        InputError: One line for each.
    """
    wrong = []
    for one in teachers:
        if not (project.runs_dir / one.run / "recipe.yaml").exists():
            wrong.append(f"{one.run}: {project.root} has no such run")
            continue
        run = project.run(one.run)
        if run.is_external:
            wrong.append(
                f"{one.run}: its probabilities of the test images are one mean of all folds, so those of fold k have "
                "seen the masks of fold k"
            )
        elif found := first_difference(run.recipe.folds, asked.folds):
            wrong.append(f"{one.run}: folds.{found[0]} {found[1]!r}, but {asked.name} has {found[2]!r}")
    if wrong:
        raise InputError("\n".join(f"pseudo.teacher_runs: {line}; leave it out" for line in wrong))


def _need_teacher(project: Project, name: str) -> None:
    if not (project.runs_dir / name / "recipe.yaml").exists():
        raise InputError(
            f"pseudo.teacher_run: {project.root} has no run {name!r}; a resolved recipe names its teacher's run in the "
            "project that it comes from: to train the teacher in this one, add --set pseudo.teacher_run=null"
        )
    project.run(name)  # it can be read


def open_members(project: Project, asked: AnyRecipe) -> list[Member]:
    """Return the members that a recipe or an ensemble asks for, their runs made if there are none.

    Those of an ensemble come fold by fold, so that its first submission has something of each recipe early.

    Raises:
        InputError: As open_run.
    """
    if isinstance(asked, Recipe):
        return members_of_run(open_run(project, asked))
    members: list[Member] = []
    for entry, recipe in zip(asked.members, member_recipes(asked), strict=True):
        run = open_run(project, recipe)
        if any(run.path == member.run.path for member in members):
            raise InputError(
                f"ensemble {asked.name}: two members are the same training, {run.path.name}, on this machine; change a "
                "value that decides the weights, such as seed, in the set of one"
            )
        members += [replace(one, weight=entry.weight, ensemble=asked) for one in members_of_run(run)]
    return sorted(members, key=lambda member: member.fold)
