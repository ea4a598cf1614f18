"""What ``compete`` returns and prints. Imports no torch."""

from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from masksmith.core.progress import error_text, is_interval
from masksmith.submission.validate import Verdict

_QUANTILE = 1.2816
"""Of the normal distribution: 80% lie within so many standard errors."""
_SEEN = (
    "on five draws of TGS Salt all hidden scores were inside such a range, 0.013 below its middle in the mean"
)
"""docs/results.md."""


def expected_on_new(tuning: dict[str, Any], images: int) -> str:
    """Return the range in which the score of new images is expected: both sets of images are draws of the same kind.

    Args:
        tuning: What tuning.json holds.
        images: Number of new images; 0: as many as were held out.
    """
    score, new = tuning["scores"]["chosen"], images or tuning["images"]
    off = _QUANTILE * tuning["standard_error"] * sqrt(1 + tuning["images"] / new)
    if not is_interval(-off, off):
        return f"what {new} new images would score cannot be said: those held out are one group, or all alike"
    return f"on {new} new images like these expect {score - off:.4f} to {score + off:.4f} (80%; {_SEEN})"


@dataclass(frozen=True)
class Result:
    """What ``compete`` ends with; ``tuning`` and ``report`` are None where a stop came before anything was trained."""

    project: Path
    run: str
    tuning: dict[str, Any] | None
    submission: Verdict | None
    report: Path | None
    members: list[str] = field(default_factory=list)
    noise: str = ""
    budget: str = ""
    oof_masks: Path | None = None
    """Where the held-out images' masks lie, if there are no test images."""
    stopped: int | None = None
    """Exit code of the signal that stopped it, None where it came to its end."""

    def __str__(self) -> str:
        lines = []
        if self.tuning is not None:
            scores, chosen = self.tuning["scores"], ", ".join(self.tuning["chosen_on_fold"])
            error = error_text(self.tuning["standard_error"])
            trivial = ", ".join(f"{name} {scores[name]:.4f}" for name in self.tuning["baselines"])
            lines += [
                f"{self.tuning['metric']} out of fold: {scores['chosen']:.4f} {error} (plain {scores['plain']:.4f}, "
                f"nested {scores['nested']:.4f}, {trivial}; {self.tuning['covers']}"
                f"{chosen and f'; chosen on the same fold: {chosen}'})",
                expected_on_new(self.tuning, self.submission.ids if self.submission else 0),
                self.noise,
                f"members: {', '.join(self.members)}",
                f"rule: {self.tuning['rule_text']}",
            ]
            if "ensemble" in self.tuning:
                lines.append(self.tuning["ensemble"]["text"])
        else:
            lines.append("nothing is trained yet: the submission is the baseline")
        lines.append(f"submission: {self.submission or 'none, there are no test images'}")
        if self.oof_masks is not None:
            lines.append(f"masks: {self.oof_masks} (out of fold)")
        if self.report is not None:
            lines.append(f"report: {self.report}")
        if self.budget:
            lines.append(f"budget: {self.budget}")
        return "\n".join(lines)
