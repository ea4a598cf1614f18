"""What a recipe says of pseudo-labels: who makes them, which are taken, and how they are trained on."""

from typing import Any, Literal

from pydantic import Field

from masksmith.core.config import Config
from masksmith.recipes.sources import NAME


class QuotaConfig(Config):
    """How many images of a range of coverage get pseudo-labels."""

    above: float | None = Field(default=None, ge=0, lt=1)
    """Coverage (foreground over all pixels) above this. None: empty masks, and ``up_to`` is 0."""
    up_to: float = Field(default=0.0, ge=0, le=1)
    """Coverage of at most this."""
    images: int = Field(ge=1)
    """At most so many of them, drawn by seed and fold."""
    min_confident_frac: float = Field(default=0.9, ge=0, le=1)
    """As that of the pseudo-labels, in whose place it stands here."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse an empty range."""
        if (self.above is None) != (self.up_to == 0) or (self.above is not None and self.above >= self.up_to):
            raise ValueError(
                f"above {self.above}, up_to {self.up_to:g}: no coverage is in this range; expected above < up_to, or "
                "above null and up_to 0 for empty masks"
            )

    def holds(self, coverage: float) -> bool:
        """Whether a coverage is in the range."""
        return coverage == 0 if self.above is None else self.above < coverage <= self.up_to


class TeacherConfig(Config):
    """A run whose predictions make labels, with others or alone."""

    run: str = Field(pattern=NAME)
    """Name of the run in the project."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of its probabilities in the mean of the teachers."""
    folds: list[int] | None = Field(default=None, min_length=1)
    """Folds of it that teach, each the student of the same fold; None: all that the student trains."""
    weights: str | None = None
    """Which of its weights predict, as ``prediction.weights``; None: those that it predicts with."""


class PseudoConfig(Config):
    """Pseudo-labels: predictions of a teacher on the test images, used as masks to train a student.

    No leak: the student that is validated on fold k gets the labels of the teachers' fold k alone, which have not seen
    fold k either. A student trained on all images gets the mean of the teachers' folds.
    """

    teacher: str | None = None
    """Recipe, or ensemble of recipes, whose predictions become labels: bundled, or a YAML file. It is trained first, in
    the same project; of an ensemble the weighted mean teaches."""
    table: str | None = None
    """In place of a teacher: a CSV file of run-lengths of test images in the data's dialect (columns id, rle_mask and,
    if there are such, confidence: images below ``min_confident_frac`` are left out, and weight: by it the loss of an
    image is multiplied, then taken for each image alone). The labels of every fold are the same, so a score out of fold
    is honest only if what made them had not seen the training masks."""
    table_hash: str | None = None
    """Hash of the table; filled in when a recipe is resolved."""
    set: list[str] = Field(default_factory=list)
    """Overrides of the teacher's recipe, each KEY=VALUE; ``--set`` of folds, metric, device, devices, precision and
    threads are added to them."""
    teacher_run: str | None = Field(default=None, pattern=NAME)
    """The teacher's run in the project; set when the recipe is resolved, null before."""
    teacher_runs: list[TeacherConfig] = Field(default_factory=list)
    """The runs of a teacher that is an ensemble: set when the recipe is resolved, and by ``masksmith pseudo`` in place
    of a teacher."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Pixels above this probability are foreground."""
    unsure: tuple[float, float] = (0.2, 0.8)
    """Pixels with a probability in this range are unsure, all others confident."""
    min_confident_frac: float = Field(default=0.9, ge=0, le=1)
    """Minimum share of confident pixels for an image to be used."""
    labels: Literal["hard", "soft"] = "hard"
    """hard: the mask by ``threshold``. soft: each time an image is looked at, its mask is made by another threshold,
    drawn from 0 to 1, so that a pixel is foreground as often as its probability says. In the mean over the draws the
    gradient of cross-entropy is that of the probability as target; every other loss takes it, too."""
    ignore_unsure: bool = False
    """Whether unsure pixels are left out of the loss; False applies the threshold to them too."""
    quotas: list[QuotaConfig] | None = Field(default=None, min_length=1)
    """Ranges of coverage with how many images of each are used, so that they are balanced; an image counts in the first
    range that holds it, and in none it is not used. None: all with ``min_confident_frac`` of confident pixels."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse none or two sources of labels, and a range of unsure probabilities without the threshold."""
        taught = self.teacher is not None or bool(self.teacher_runs)
        if taught == (self.table is not None):
            raise ValueError(
                f"teacher: {self.teacher!r} and table: {self.table!r}; expected one of them: a recipe, or a CSV file"
            )
        if self.table is not None and (self.set or self.teacher_run):
            raise ValueError("set and teacher_run belong to a teacher; leave them out beside table")
        if self.teacher_run is not None and self.teacher_runs:
            raise ValueError(
                f"teacher_run: {self.teacher_run!r} and teacher_runs of {len(self.teacher_runs)}; expected one of them"
            )
        if self.labels == "soft" and (self.ignore_unsure or self.table is not None):
            other = "ignore_unsure: true" if self.ignore_unsure else f"table: {self.table!r}"
            raise ValueError(
                f"labels: 'soft' with {other}; soft labels are the probabilities of a teacher at all pixels: leave out "
                "one of the two"
            )
        low, high = self.unsure
        if not 0 <= low <= self.threshold <= high <= 1:
            raise ValueError(
                f"unsure: [{low:g}, {high:g}] with threshold {self.threshold:g}; expected 0 <= low <= threshold <= "
                "high <= 1, or a confident pixel would get the other label"
            )
