"""What ``compete`` returns and prints. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masksmith.submission.validate import Verdict

HIDDEN = (
    "on TGS Salt, scores out of fold were 0.018 to 0.025 higher than on hidden labels, in all runs with both; expect a "
    "lower score on new images"
)
"""What was seen between scores out of fold and hidden labels (docs/results.md)."""


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
    stopped: int | None = None
    """Exit code of the signal that stopped it, None where it came to its end."""

    def __str__(self) -> str:
        lines = []
        if self.tuning is not None:
            scores, chosen = self.tuning["scores"], ", ".join(self.tuning["chosen_on_fold"])
            lines += [
                f"{self.tuning['metric']} out of fold: {scores['chosen']:.4f} ± {self.tuning['standard_error']:.4f} "
                f"(plain {scores['plain']:.4f}, nested {scores['nested']:.4f}, nothing {scores['nothing']:.4f}, "
                f"everything {scores['everything']:.4f}; {self.tuning['covers']}"
                f"{chosen and f'; chosen on the same fold: {chosen}'})",
                HIDDEN,
                self.noise,
                f"members: {', '.join(self.members)}",
                f"rule: {self.tuning['rule_text']}",
            ]
            if "ensemble" in self.tuning:
                lines.append(self.tuning["ensemble"]["text"])
        else:
            lines.append("nothing is trained yet: the submission is the baseline")
        lines.append(f"submission: {self.submission or 'none, there are no test images'}")
        if self.report is not None:
            lines.append(f"report: {self.report}")
        if self.budget:
            lines.append(f"budget: {self.budget}")
        return "\n".join(lines)
