"""From the words of a call to a recipe or an ensemble; recipes shown and verified."""

import json
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any

from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.data.coarseness import KEPT_LEAST, STRIDES, coarsest_stride
from masksmith.project.folder import Project
from masksmith.recipes.ensemble import AnyRecipe, is_ensemble, load_any, load_ensemble
from masksmith.recipes.recipe import Recipe, load_recipe, parse_recipe
from masksmith.recipes.sources import AUTO_OF, SMOKE_OF

Overrides = Sequence[str] | dict[str, Any]
"""Changes of a recipe: texts of the form KEY=VALUE, or dotted keys with their values."""


def dotted(overrides: Overrides, device: str | None = None, metric: str | None = None) -> tuple[str, ...]:
    """Return overrides as texts of the form KEY=VALUE, with ``training.device`` and ``metric`` where asked for."""
    if isinstance(overrides, dict):
        texts = tuple(f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items())
    else:
        texts = (overrides,) if isinstance(overrides, str) else tuple(overrides)
    extra = {"training.device": device, "metric": metric}
    return (*texts, *(f"{key}={value}" for key, value in extra.items() if value is not None))


def load_single(name: str, overrides: tuple[str, ...], *, what: str) -> Recipe:
    """Load a recipe; an ensemble is refused, and the message says what is done with one recipe alone."""
    if is_ensemble(name):
        members = dict.fromkeys(member.recipe for member in load_ensemble(name).members)
        without = [member for member in members if load_recipe(member).pseudo is None]
        named = ", ".join(without or members)
        raise InputError(f"recipe {name}: it is an ensemble, and {what} one recipe; take one of {named}")
    return load_recipe(name, overrides)


def load_asked(name: str, overrides: tuple[str, ...], *, scale: str | None) -> AnyRecipe:
    """Load a recipe or an ensemble, at a scale where one is asked for.

    Raises:
        InputError: An unknown recipe, override or scale, or a scale of ``auto``.
    """
    if scale is None:
        return load_any(name, overrides)
    if name == "auto":
        raise InputError(
            f"--scale {scale}: auto chooses its recipe by the data; name one (`masksmith recipes` lists them), or take "
            "the recipe smoke, which is small as it is"
        )
    from masksmith.recipes.trial import load_trial

    return load_trial(name, overrides, scale)


def for_data(project: Project, asked: AnyRecipe, name: str, overrides: tuple[str, ...]) -> AnyRecipe:
    """Return the recipe that ``auto`` or ``smoke`` means for a project's data: that of its task.

    ``auto`` also takes a metric of the data. Any other recipe is returned as it is, if it goes with the task.

    Args:
        project: Checked.
        asked: What ``name`` and ``overrides`` were loaded as.
        name: As the user gave it.
        overrides: Of the user; they win.

    Raises:
        InputError: A metric that cannot drive the task, or pseudo-labels for other masks than binary ones.
    """
    target = project.target
    if name in ("auto", "smoke"):
        asked = _fitted(project, asked, name, overrides)
    with form_of(asked.name):
        project.metric(asked)
    if isinstance(asked, Recipe):
        project.metrics_beside(asked)
    if isinstance(asked, Recipe) and asked.pseudo is not None and target.task != "binary":
        raise InputError(
            f"pseudo: {asked.name} learns from pseudo-labels, which are made of binary masks, and the masks are "
            f"{target.task}; take a recipe without pseudo, such as {asked.pseudo.teacher or 'auto'}"
        )
    return asked


def _fitted(project: Project, asked: AnyRecipe, name: str, overrides: tuple[str, ...]) -> AnyRecipe:
    """Return what ``auto`` or ``smoke`` is for the data; the choices and their reasons are said."""
    keys = {override.partition("=")[0] for override in overrides}
    chosen, why = _choices_of_auto(project, keys) if name == "auto" else _choices_of_smoke(project)
    own_split = any(one.held_out for one in project.catalog.train)
    if own_split and not keys & {"folds", "folds.count", "folds.train", "folds.repeats"}:
        chosen += ["folds.count=2", "folds.train=1"]
        why.append("one fold: the data have a validation set of their own")
    for line in why:
        logger.info("%s: %s", name, line)
    if not why:
        return asked
    if name == "smoke":  # as it was loaded, at its scale
        return parse_recipe(asked.to_yaml(), where="recipe smoke", overrides=(*chosen, *overrides))
    return load_recipe(AUTO_OF[project.target.task], (*chosen, *overrides))


def _choices_of_smoke(project: Project) -> tuple[list[str], list[str]]:
    """Return what ``smoke`` sets for the data, as overrides, and the reasons."""
    task = project.target.task
    chosen = list(SMOKE_OF.get(task, ()))
    return chosen, [f"{', '.join(chosen)}: the masks are {task}"] if chosen else []


def _choices_of_auto(project: Project, keys: Set[str]) -> tuple[list[str], list[str]]:
    """Return what ``auto`` sets for the data, as overrides, and the reasons.

    Args:
        project: Checked.
        keys: Dotted keys that the user set.
    """
    target, base = project.target, load_recipe(AUTO_OF[project.target.task])
    chosen, why = list[str](), list[str]()
    if base.name != "auto":
        why.append(f"recipe {base.name}: the masks are {target.task}")
    if "metric" not in keys and target.task == "binary":
        metric, reason = _metric_of(project)
        if metric != base.metric:
            chosen.append(f"metric={metric}")
            why.append(f"metric {metric}: {reason}")
    if not any(key.partition(".")[0] == "model" and key not in _FREE_OF_MODEL for key in keys):
        stride, kept = coarsest_stride(project.cache.train_masks, target)
        if stride > 1:
            levels = base.model.decoder_channels[: 1 - stride.bit_length()]
            chosen.append(f"model.decoder_channels={levels}")
            why.append(
                f"logits at 1/{stride} of the size: masks that are reduced so far keep an IoU of {kept:.3f} with "
                f"themselves ({KEPT_LEAST} is asked)"
            )
        last = len(base.training.stages) - 1
        free = not any(key.startswith(("training.stages", "prediction.tta_scales", "size")) for key in keys)
        images = project.cache.train_images
        largest = max(height * width for height, width in map(images.shape, images))
        if stride == max(STRIDES) and target.task == "binary" and free and largest <= _SMALL_PX:
            chosen += [
                f"training.stages.{last}.scale={_COARSE_SCALE}",
                f"prediction.tta_scales=[{_COARSE_SCALE}]",
                *(f"training.stages.{at}.epochs={epochs}" for at, epochs in enumerate(_COARSE_EPOCHS)),
            ]
            why.append(
                f"images at {_COARSE_SCALE} of their size in the last stage and in prediction, as they are small, and "
                f"stages of {', '.join(map(str, _COARSE_EPOCHS))} epochs: Lovász comes early"
            )
    return chosen, why


_SMALL_PX = 256 * 256
_COARSE_SCALE = 0.86
"""101 pixels on a canvas of 96: of the sizes tried, the best (docs/studies/0001-training-in-minutes.md)."""
_COARSE_EPOCHS = (8, 16, 14)
"""BCE + Dice for 15% of the time instead of 40%: +0.007 in two seeds (the same study)."""


_FREE_OF_MODEL = frozenset({"model.encoder", "model.encoder_weights", "model.encoder_weights_hash"})


@contextmanager
def form_of(name: str) -> Iterator[None]:
    """Let a refusal of the data also say for which contest's form a bundled recipe is made, and how to get one.

    Args:
        name: Of the recipe.

    Raises:
        InputError: What is refused within, with that sentence where the recipe is a contest's.
    """
    try:
        yield
    except InputError as error:
        contest = name.partition("-")[0]
        if contest not in FORMS_OF or FORMS_OF[contest] in str(error):
            raise
        raise InputError(f"{error}. {name} is made for {FORMS_OF[contest]}") from error


FORMS_OF = {
    "tgs": "TGS Salt's form, images and masks with depths.csv (`masksmith example OUT --layout tgs` makes one)",
    "siim": "SIIM-ACR's form, a mask or rows of run-lengths an image (`masksmith example OUT --layout siim` makes "
    "one); for other targets take the recipe auto",
    "cloud": "On Cloud N's form, a TIFF a band and a table with the location of each chip (`masksmith example OUT "
    "--layout oncloud` makes one); without such a table add --set 'folds.group_by=similar(count=10)'",
    "carvana": "Carvana's form, a mask an image (`masksmith example OUT --layout carvana` makes one); for other "
    "targets take the recipe auto",
    "dsb2018": "the Data Science Bowl's form, a file or row an object (`masksmith example OUT --layout dsb2018` makes "
    "one); for a mask an image add --task instances, or take the recipe auto",
}
"""Beginning of a recipe's name -> the form of its contest, and what helps where the data have another."""


def single_for_data(project: Project, asked: Recipe, name: str, overrides: tuple[str, ...]) -> Recipe:
    """Return for_data of a single recipe."""
    found = for_data(project, asked, name, overrides)
    assert isinstance(found, Recipe), found.name
    return found


def _metric_of(project: Project) -> tuple[str, str]:
    """Return the metric of a binary data set: that of the contest whose form its submission has, else Dice."""
    form = project.catalog.submission
    if form.is_assumed:
        return "dice_per_image", "the data name none; --metric sets another"
    metric = CONTEST_METRICS.get(form.dialect, "dice_per_image")
    if metric == "tgs_map" and (form.id_column, form.rle_column) != ("id", "rle_mask"):
        return "dice_per_image", f"the submission is not that of TGS Salt: {form.id_column},{form.rle_column}"
    return metric, f"that of the contest with run-lengths as {form.dialect}"


CONTEST_METRICS = {
    "tgs": "tgs_map",
    "siim": "dice_per_image",
    "airbus": "f_beta_objects",
    "severstal": "dice_per_image",
    "dsb": "dsb_map",
}
"""Dialect of the run-lengths -> metric of the contest that it is named after."""


def load_to_compete_in_budget(name: str, pinned: tuple[str, ...]) -> Recipe:
    """Load a recipe that is trained within a budget.

    Raises:
        InputError: It is an ensemble, or asks for a refit or pseudo-labels, whose trainings a budget does not plan.
    """
    asked = load_single(name, pinned, what="a budget plans")
    if asked.folds.refit:
        raise InputError(
            "folds.refit: true, with a budget that itself decides what is trained; leave it false, or train without "
            "--budget"
        )
    if asked.training.start_from is not None:
        raise InputError(
            f"training.start_from: {asked.training.start_from!r}, with a budget that itself chooses the net; train "
            "without --budget, or give the budget to `masksmith compete DATA --from MODEL`"
        )
    refuse_pseudo_labels(asked)
    return asked


def refuse_pseudo_labels(asked: Recipe) -> None:
    """Refuse a recipe with pseudo-labels, whose two trainings a budget does not plan."""
    if asked.pseudo is not None:
        raise InputError(
            f"pseudo: {asked.name} learns from {asked.pseudo.teacher or asked.pseudo.table}, and a budget does not "
            "plan that training; train without --budget, or give the budget to the recipe "
            f"{asked.pseudo.teacher or 'auto'}"
        )


def last_recipe(project: Project) -> str:
    """Return the file of the recipe that was worked on last, or the default's name."""
    try:
        return str(project.run().path / "recipe.yaml")
    except InputError:
        return "auto"
