"""Lists of operators: what they need of a project, and the rows that their search reads."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from masksmith.core.arrays import Codes
from masksmith.core.errors import InputError
from masksmith.metrics import Metric
from masksmith.postprocess.config import TuningConfig, check_operators
from masksmith.postprocess.labels import LabelRules, make_label_sweep
from masksmith.postprocess.operator_rule import Seen
from masksmith.postprocess.operator_search import make_operator_sweep
from masksmith.postprocess.rules import AnyRule, plain_of
from masksmith.postprocess.scoring import one_layer
from masksmith.project.folder import Project
from masksmith.recipes.ensemble import AnyRecipe, Ensemble
from masksmith.steps.out_of_fold import beside_of, class_shares


def operator_sweep(
    project: Project,
    metric: Metric,
    config: TuningConfig,
    predictions: Callable[[], Iterable[tuple[str, Codes]]],
) -> tuple[Sequence[AnyRule], Any]:
    """Return the rules that a list of operators makes, the plain one first, and their rows.

    Args:
        project: Its masks, images and side tables.
        metric: Of its masks.
        config: With operators.
        predictions: Id and codes of each image, always the same.

    Raises:
        InputError: Optuna is needed for so many combinations, and is not installed.
        StoppedError: Stopped.
    """
    masks, outputs, target = project.cache.train_masks, project.target.outputs, project.target
    beside = beside_of(project)
    gated = any(one.op == "gate" for one in config.operators or ())
    exclusive, plain = target.exclusive, plain_of(target, config)

    def seen(name: str) -> Seen:
        needs_image = any(one.op == "crf" for one in config.operators or ())
        return Seen(project.cache.train_images[name] if needs_image else None, beside.numbers[name])

    def make(at: int | None, alone: Metric) -> tuple[list[Any], Any]:
        def pictures() -> Iterable[tuple[Codes, Any, Seen]]:
            for name, codes in predictions():
                if at is None:
                    yield codes, one_layer(masks[name]), seen(name)
                else:
                    planes = codes[..., at::outputs] if gated else codes[..., at : at + 1]
                    yield planes, np.asarray(masks[name][..., at]), seen(name)

        return make_operator_sweep(
            pictures,
            alone,
            config,
            plain=plain.rules[at or 0] if isinstance(plain, LabelRules) else plain,
            gated=gated,
            shares=class_shares(project) if exclusive else None,
        )

    if target.task == "multilabel":
        return make_label_sweep(make, target.classes, metric)
    return make(0 if target.task == "binary" else None, metric)


def check_tuning(
    project: Project, config: TuningConfig, recipe: AnyRecipe, channels: int | None = None
) -> None:
    """Refuse operators that the data, the model or its probabilities cannot have.

    Args:
        project: Its target and its side tables.
        config: What is searched.
        recipe: Whose.
        channels: Planes of the probabilities, where they are there.

    Raises:
        InputError: As check_operators; or a gate, and the probabilities are without the plane of the image head.
    """
    if config.operators is None:
        return
    samples = [*project.catalog.train, *project.catalog.test]
    columns = set.intersection(*(set(sample.values) for sample in samples))
    image_head = None if isinstance(recipe, Ensemble) else recipe.prediction.image_head
    check_operators(config, task=project.target.task, image_head=image_head, columns=sorted(columns))
    gated = any(one.op == "gate" for one in config.operators)
    if gated and channels is not None and channels != 2 * project.target.outputs:
        raise InputError(
            "tuning.operators: 'gate', but not all members have kept the plane of an image head; set "
            "prediction.image_head to plane in each recipe and predict again, or take the gate out"
        )
