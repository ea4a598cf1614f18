"""The end of a fold's training: ``final.safetensors``, and the other weights that are kept."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from masksmith.models.segmentation import SegmentationModel
from masksmith.training.checkpoint import save_tensors
from masksmith.training.keep import Keeper
from masksmith.training.trainer import Trainer


def write_final(
    trainer: Trainer, keeper: Keeper, evaluate: Callable[[SegmentationModel], float] | None
) -> None:
    """Publish what is kept, and write the chosen weights as ``final.safetensors`` with the facts beside them.

    Args:
        trainer: Its plan is done.
        keeper: Of the fold's folder.
        evaluate: Scores the equal mean where there is one (SWA); None: nothing is held out.
    """
    best, select = trainer.progress.best, trainer.config.select
    swa = trainer.finished_swa()
    kept = keeper.publish(best, trainer.progress.snapshots, last=trainer.kept, swa=swa)
    chosen = {"best": best.epoch, "best_val_loss": best.val_loss_epoch}.get(select)
    epoch = trainer.progress.epoch if chosen is None else chosen
    facts: dict[str, Any] = {
        "epoch": epoch,
        "select": select,
        "best_epoch": best.epoch,
        "best_score": best.score,
        "lengths": trainer.lengths(epoch),
        "swa_count": 0 if trainer.swa is None else trainer.swa.count,
        "swa_score": None if swa is None or evaluate is None else evaluate(swa),
        "rescued": trainer.progress.lr_scale < 1,
        "divisor": trainer.raw.divisor,
        "key": trainer.data.key,
        **kept,
    }
    model = swa if select == "swa" and swa is not None else trainer.kept
    tensors: dict[str, Tensor] = model.state_dict() if chosen is None else keeper.load(chosen)
    save_tensors(keeper.folder / "final.safetensors", tensors, facts)
