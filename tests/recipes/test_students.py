import numpy as np
import pytest

from masksmith.recipes.pseudo import PseudoConfig, TeacherConfig
from masksmith.recipes.recipe import load_recipe
from masksmith.recipes.students import quotas_of, student_of

TEACHERS = [TeacherConfig(run="auto-12345678", folds=[0])]


def test_a_student_is_its_recipe_on_both_kinds_of_images():
    base = load_recipe("auto")
    first = student_of(base, TEACHERS, number=1, quotas=quotas_of(np.array([0.0, 0.3]), 10))
    assert first.name == "auto-round-1"
    assert [stage.data for stage in first.training.stages] == ["both"] * 3
    assert first.pseudo.teacher_runs == TEACHERS
    assert (
        load_recipe("auto").model_copy(
            update={"name": first.name, "pseudo": first.pseudo, "training": first.training}
        )
        == first
    )
    second = student_of(first, [TeacherConfig(run="auto-round-1-12345678")], number=2, quotas=[])
    assert (second.name, second.pseudo.quotas) == ("auto-round-2", first.pseudo.quotas)
    assert len({base.hash, first.hash, second.hash}) == 3


def test_a_recipe_that_says_how_keeps_it():
    base = load_recipe("tgs-pseudo", ("pseudo.min_confident_frac=0.97", "training.stages.2.data=labelled"))
    student = student_of(base, TEACHERS, number=1, quotas=[])
    assert [stage.data for stage in student.training.stages][2] == "labelled"
    assert (student.pseudo.min_confident_frac, student.pseudo.teacher, student.pseudo.quotas) == (
        0.97,
        None,
        None,
    )


def test_quotas_are_shared_as_masks_are():
    coverage = np.array([0.0] * 4 + [0.1] * 3 + [0.2] + [0.55, 1.0])
    found = quotas_of(coverage, 100)
    assert [(one.above, one.up_to, one.images) for one in found] == [
        (None, 0.0, 40),
        (0.0, 0.2, 40),
        (0.4, 0.6, 10),
        (0.8, 1.0, 10),
    ]
    for value in coverage.tolist():
        assert sum(one.holds(value) for one in found) == 1


def test_few_images_are_shared_without_a_rest():
    coverage = np.array([0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
    for images in (1, 3, 7):
        assert sum(one.images for one in quotas_of(coverage, images)) == images


def test_several_runs_are_in_the_hash():
    base = load_recipe("tgs-pseudo")
    heavy = [TEACHERS[0].model_copy(update={"weight": 2.0})]
    hashes = {
        base.model_copy(update={"pseudo": PseudoConfig(teacher_runs=teachers, labels=labels)}).hash
        for teachers in (TEACHERS, heavy)
        for labels in ("hard", "soft")
    }
    assert len(hashes) == 4
    with pytest.raises(ValueError, match="greater than 0"):
        TeacherConfig(run="a-1", weight=0)
