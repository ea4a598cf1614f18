"""Bundles of small nets with random weights, for tests of what is done with a bundle."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.torch import save

from masksmith.core.files import digest
from masksmith.data.target import Target
from masksmith.deploy.bundle import MemberFacts, ModelFacts, write_bundle
from masksmith.models.segmentation import build_model
from masksmith.postprocess.rules import plain_of
from masksmith.preprocess.inputs import Statistics
from masksmith.recipes.recipe import Recipe, load_recipe


def tiny_bundle(
    path: Path,
    target: Target,
    *overrides: str,
    members: int = 1,
    snapshots: int = 1,
    channels: int = 1,
    dtype: str = "uint8",
    rule: dict | None = None,
    limits: tuple[list[float], list[float]] | None = None,
) -> Path:
    """Write a bundle; members, and the snapshots of each, are different nets; members weigh differently."""
    scaling = "input.scaling=type_max" if dtype == "uint8" else ""
    recipe: Recipe = load_recipe("smoke", tuple(one for one in (scaling, *overrides) if one))
    files, facts = {}, []
    seen = recipe.input.channels(channels)
    scaled = not recipe.input.is_raw
    for at in range(members):
        statistics = Statistics((0.5,) * seen, (0.2,) * seen) if scaled else None
        own = {}
        for number in range(snapshots):
            model = build_model(
                recipe.model,
                in_channels=seen,
                seed=at + 100 * number,
                classes=target.outputs,
                exclusive=target.exclusive,
                load_weights=False,
                statistics=statistics,
            )
            model.head.weight.data *= 10  # probabilities far from a half
            raw = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
            name = f"weights/{at}_{number}.safetensors" if number else f"weights/{at}.safetensors"
            files[name], own[name] = raw, digest(raw)
        facts.append(
            MemberFacts(
                name=f"tiny-{at}",
                recipe=recipe.model_dump(mode="json"),
                weights=own,
                runtimes=["torch"] * snapshots,
                weight=1.0 + at,
                mean=list(statistics.mean) if statistics else None,
                std=list(statistics.std) if statistics else None,
                low=limits[0] if limits else None,
                high=limits[1] if limits else None,
                scaled=scaled,
            )
        )
    plain = plain_of(target, recipe.tuning)
    top = {"uint8": 255.0, "uint16": 3000.0, "int16": 900.0, "float32": 1.0}[dtype]
    bands = {
        f"band {at} {name}": [low, high]
        for at in range(channels)
        for name, low, high in (("dark", 0.0, top / 4), ("bright", top / 2, top))
    }
    model_facts = ModelFacts(
        name=path.stem,
        target=target.to_json(),
        channels=channels,
        dtype=dtype,
        members=facts,
        rule=rule or asdict(plain),
        rule_text=plain.describe(),
        scores={"metric": "iou_pooled", "score": 0.5, "nothing": 0.1, "interval": None},
        data={"train": 3, "layout": "made", "content_hash": "0" * 64},
        ranges={"height": [48.0, 64.0], "width": [40.0, 70.0]} | bands,
        masksmith="0",
    )
    write_bundle(path, model_facts, files)
    return path


def noise(*shape: int, dtype: str = "uint8", top: int = 255, seed: int = 0) -> np.ndarray:
    """Return an image with some structure."""
    random = np.random.default_rng(seed)
    coarse = random.random((-(-shape[0] // 8), -(-shape[1] // 8), *shape[2:])).repeat(8, 0).repeat(8, 1)
    unit = 0.8 * coarse[: shape[0], : shape[1]] + 0.2 * random.random(shape)
    return (unit * top).astype(dtype)
