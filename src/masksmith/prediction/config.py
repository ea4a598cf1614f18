"""The configuration of prediction. Imports no torch."""

from typing import Annotated, Any, Literal

from pydantic import Field

from masksmith.core.config import Config
from masksmith.core.errors import InputError


class PredictionConfig(Config):
    """How a trained model predicts."""

    batch_size: int = Field(default=32, ge=1)
    """Images per forward pass."""
    tta: list[str] = Field(default=["identity", "hflip"], min_length=1)
    """Keys of TTA; the probabilities are averaged."""
    tta_scales: list[Annotated[float, Field(ge=0.25, le=4)]] = Field(default=[1.0], min_length=1)
    """Multi-scale: each view is made at each of these factors of the image's size, and averaged."""
    tta_shifts: list[tuple[Annotated[int, Field(ge=0, le=256)], Annotated[int, Field(ge=0, le=256)]]] = Field(
        default=[(0, 0)], min_length=1
    )
    """Each view is made with each of these numbers of rows and columns of mirrored border before the image, which
    move it on the model's grid of strides, and averaged."""
    weights: str = "final"
    """Predict with the final weights; average the probabilities of the snapshots or of the best checkpoints (top_k); or
    take weights that ``training.keep`` names (best_val_loss, best_dice_pooled, last, raw, …). A refit has no scores:
    where they would choose, it uses its final weights. `masksmith weights` compares them."""
    snapshot_weights: list[Annotated[float, Field(gt=0)]] | None = None
    """With ``weights: snapshots``: what each weighs in the mean of probabilities, the oldest first. None: the same."""
    image_head: Literal["ignore", "multiply", "gate", "plane"] = "ignore"
    """Ignore the image head; multiply every pixel's probability by that of the image; empty the mask of an image whose
    probability is at or below ``image_threshold``; or keep it as a further plane of the probabilities, so that the
    operator ``gate`` of ``tuning.operators`` finds the threshold (binary and multilabel, twice the room)."""
    image_threshold: float = Field(default=0.5, gt=0, lt=1)
    """With ``image_head: gate``: an image at or below this probability gets an empty mask."""
    runtime: Literal["torch", "openvino"] = "torch"
    """A key of RUNTIMES. OpenVINO needs a CPU and `pip install masksmith[openvino]`; a fold uses it only if it agrees
    with torch on the held-out images (see gate)."""

    tile_hw: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Predict larger images on overlapping tiles of this height and width, counted after ``size.resize_hw``; an image
    that is no larger is predicted whole. None: all images whole."""
    overlap: float = Field(default=0.25, ge=0, le=0.9)
    """The least share of a tile's side that it has in common with the next."""
    tile_weights: Literal["constant", "gaussian", "pyramid"] = "gaussian"
    """A key of TILE_WEIGHTS: what the pixels of a tile weigh in the mean, the middle the most."""
    edge_cover: int = Field(default=1, ge=1, le=9)
    """How many tiles at least cover each pixel of the edges of an image that is cut into tiles; above 1 further tiles
    reach beyond the edges, where they see ``size.border``."""

    def planes(self, outputs: int) -> int:
        """Return the planes of the probabilities of a model with so many outputs."""
        return 2 * outputs if self.image_head == "plane" else outputs

    @property
    def passes(self) -> float:
        """How much computation the views are, one view of the image as it is being 1."""
        return len(self.tta) * len(self.tta_shifts) * sum(scale**2 for scale in self.tta_scales)

    def shares(self, models: int) -> list[float] | None:
        """Return what each of a fold's models weighs in the mean of their probabilities; None: the same."""
        return self.snapshot_weights if models > 1 else None

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse values that have no effect, and edges that tiles are too small to cover."""
        if self.snapshot_weights is not None and self.weights != "snapshots":
            raise ValueError(
                f"snapshot_weights: {self.snapshot_weights} have no effect with weights {self.weights!r}; set weights "
                "to snapshots, or leave them at null"
            )
        if self.tile_hw is not None and min(self.tile_hw) < self.edge_cover:
            raise ValueError(
                f"edge_cover: {self.edge_cover} with tile_hw {list(self.tile_hw)}: tiles of "
                f"{min(self.tile_hw)} pixels cannot cover an edge so often; expected at most {min(self.tile_hw)}, or "
                "larger tiles"
            )
        if self.image_threshold != 0.5 and self.image_head != "gate":
            raise ValueError(
                f"image_threshold: {self.image_threshold} has no effect with image_head {self.image_head!r}; "
                "set image_head to gate, or leave it at 0.5"
            )


def check_tiles(
    config: PredictionConfig, *, pad_hw: tuple[int, int] | None, derived_channels: str, where: str
) -> None:
    """Refuse tiles where another setting needs whole images. Called before training.

    Args:
        config: The configuration of prediction.
        pad_hw: ``SizeConfig.pad_hw``.
        derived_channels: ``ModelConfig.derived_channels``.
        where: The file, for messages.

    Raises:
        InputError: Images are padded to a size of their own, or the model is told how deep a row of the image lies.
    """
    if config.tile_hw is None:
        return
    tile = "x".join(map(str, config.tile_hw))
    if pad_hw is not None:
        raise InputError(
            f"{where}: prediction.tile_hw: tiles of {tile} are padded to the model's divisor, and size.pad_hw asks for "
            f"whole images on {pad_hw[0]}x{pad_hw[1]}; set one of the two to null"
        )
    if derived_channels != "none":
        raise InputError(
            f"{where}: prediction.tile_hw: in tiles of {tile} a row lies elsewhere than in the image, and "
            f"model.derived_channels {derived_channels!r} tells the model how deep it lies; expected null, or "
            "derived_channels 'none'"
        )


def check_whole(config: PredictionConfig) -> None:
    """Refuse settings of tiles where images are predicted whole. Called when nothing can set ``tile_hw`` any more.

    Raises:
        InputError: There are no tiles, and one of their settings is not its default.
    """
    if config.tile_hw is not None:
        return
    for name in ("overlap", "tile_weights", "edge_cover"):
        value, default = getattr(config, name), PredictionConfig.model_fields[name].default
        if value != default:
            raise InputError(
                f"prediction.{name}: {value!r} has no effect without prediction.tile_hw; set that, or leave it at "
                f"{default!r}"
            )


def check_plane(config: PredictionConfig, *, task: str) -> None:
    """Refuse to keep the plane of an image head where planes are classes or objects. Called before training.

    Raises:
        InputError: The task is another than binary and multilabel.
    """
    if config.image_head == "plane" and task not in ("binary", "multilabel"):
        raise InputError(
            f"prediction.image_head: 'plane' with masks of {task}; expected masks that are there or not (binary, "
            "multilabel), or ignore"
        )


def check_combine(config: PredictionConfig, *, image_head: str) -> None:
    """Refuse to use the image head of a model that has none. Called before training.

    Args:
        config: The configuration of prediction.
        image_head: ``ModelConfig.image_head``.

    Raises:
        InputError: The configuration uses an image head and the model has none.
    """
    if config.image_head != "ignore" and image_head == "none":
        raise InputError(
            f"prediction.image_head: {config.image_head!r} needs a head that the model does not have; "
            "set model.image_head to avg, max or gem, or prediction.image_head to ignore"
        )
