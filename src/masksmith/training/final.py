"""The end of a fold's training: ``final.safetensors``, the other weights that are kept, and what is removed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from masksmith.models.segmentation import SegmentationModel
from masksmith.training.averaging import batch_norms, measure_norms
from masksmith.training.checkpoint import Checkpoints, save_tensors
from masksmith.training.data import EpochBatches, StepBatches
from masksmith.training.freeze import encoder_norms
from masksmith.training.keep import Keeper, remove_unnamed
from masksmith.training.state import TrainingState
from masksmith.training.step import forward, to_device


def write_final(
    state: TrainingState,
    keeper: Keeper,
    evaluate: Callable[[SegmentationModel], Mapping[str, float]] | None,
) -> None:
    """Publish what is kept, and write the chosen weights as ``final.safetensors`` with the facts beside them.

    Args:
        state: All its epochs are done.
        keeper: Of the fold's folder.
        evaluate: Scores the equal mean where there is one (SWA); None: nothing is held out.
    """
    best, select, done = state.progress.best, state.config.select, state.progress.epoch
    swa = finish_swa(state)
    kept = keeper.publish(best, state.progress.snapshots, last=state.kept, swa=swa, raw=state.raw)
    chosen = {"best": best.epoch, "best_val_loss": best.val_loss_epoch}.get(select)
    epoch = done if chosen is None else chosen
    stages = [one.stage for one in state.epochs[:epoch]]
    facts: dict[str, Any] = {
        "epoch": epoch,
        "select": select,
        "best_epoch": best.epoch,
        "best_score": best.score,
        "lengths": [stages.count(stage) for stage in range(len(state.config.stages))],
        "swa_count": 0 if state.swa is None else state.swa.count,
        "swa_score": None if swa is None or evaluate is None else evaluate(swa)["score"],
        "rescued": state.progress.lr_scale < 1,
        "divisor": state.raw.divisor,
        "key": state.data.key,
        **kept,
    }
    model = swa if select == "swa" and swa is not None else state.kept
    tensors: dict[str, Tensor] = model.state_dict() if chosen is None else keeper.load(chosen)
    save_tensors(keeper.folder / "final.safetensors", tensors, facts)


def finish_swa(state: TrainingState) -> SegmentationModel | None:
    """Return the equal mean with batch norm's statistics measured again; None where none was asked for."""
    if state.swa is None or state.config.swa is None:
        return None
    if not state.swa.count:  # the training was shortened, and what was to be averaged never came
        state.swa.add(state.raw)
    model, frozen = state.swa.model, state.config.stages[state.epochs[-1].stage].freeze
    fixed = encoder_norms(model) if "encoder_norm" in frozen else []
    norms = [norm for norm in batch_norms(model) if not any(norm is one for one in fixed)]
    measure_norms(
        model,
        norms,
        norm_batches(state, state.config.swa.norm_batches),
        lambda one: forward(state.fabric, model, to_device(one.batches[0], state.fabric.device)),
    )
    return model


def norm_batches(state: TrainingState, count: int) -> Iterator[StepBatches]:
    """Yield ``count`` training batches as in the last stage, of its sampler, drawn for epochs after the last."""
    last = state.epochs[-1]
    used = state.data.of(state.config.stages[last.stage])
    rounds = -(-count * last.batch_size // len(used.ids))
    after = [replace(last, number=last.number + 1 + i, accumulate=1) for i in range(rounds)]
    order = np.concatenate([state.sampling.order(epoch) for epoch in after])
    batches = EpochBatches(state.tasks[last.stage], used, after[0], order)
    return batches.new(range(count), device=state.fabric.device.type)


def remove_temporary(folder: Path) -> None:
    """Remove what only an unfinished training needs; the best weights go last, the last checkpoint needs them."""
    Checkpoints(folder).clear()
    remove_unnamed(folder)
