"""The ensemble that a project submits, chosen out of fold from all that it has: runs, seeds, weights, others'.

Every way to choose (see postprocess/blends) is repeated on the other folds and judged on this one. What the present
ensemble is replaced by is kept only if the lower 80% bound of its nested gain is above zero.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.core.progress import gain_text, logger
from masksmith.core.randomness import stream
from masksmith.folds.config import ALL
from masksmith.metrics.protocol import Groups, Metric
from masksmith.postprocess.blends import PRESENT, Mix, MixRows, MixSweep, Moments, best_mix, ways_to_mix
from masksmith.postprocess.bootstrap import BOUND_QUANTILE, paired_bootstrap
from masksmith.postprocess.rules import plain_of
from masksmith.postprocess.scoring import one_layer
from masksmith.postprocess.search import search_rule
from masksmith.prediction.means import KINDS, ranks_of
from masksmith.prediction.store import MAX_CODE, MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import (
    Member,
    members_of_run,
    remember_members,
    use_members_before,
    with_weights,
    write_members,
)
from masksmith.project.runs import Run
from masksmith.steps.out_of_fold import truth_planes
from masksmith.steps.predict import oof_of, predict_member, weights_of
from masksmith.steps.train import is_trained
from masksmith.steps.tune import parts_of

_STACK = "stack"
"""The run of steps/stack."""
_REFERENCES = ("equal, mean", "best single", "best pair")


@dataclass(frozen=True)
class Candidate:
    """A run, or a run with a kind of its weights."""

    name: str
    members: list[Member]
    oof: Mapping[str, MeanCodes]
    nets: int
    """Trained nets that a test image passes through."""
    seconds: float | None
    """For a test image; None: not known, as for other programs'."""


@dataclass(frozen=True)
class Blended:
    """What the search found."""

    metric: str
    images: int
    members: list[dict[str, Any]]
    """A row each candidate: member, nets, seconds an image, score alone."""
    left_out: dict[str, str]
    correlation: list[list[float]]
    """Of the candidates' errors."""
    table: list[dict[str, Any]]
    """A row each way to choose: way, nested score, gain over the present ensemble with its 80% bounds, and what it
    takes on all images: members, kind, weights, nets, seconds."""
    chosen: dict[str, Any]
    """Kind, and the weight of each member that is taken."""
    present: float
    """Score of what the project predicted with before."""
    nested: float
    optimism: float
    gain: float
    gain_low: float
    gain_high: float
    compared: dict[str, dict[str, float]]
    """Nested gain over equal weights, the best single and the best pair, with its 80% bounds."""
    kept: bool
    took: float
    """Seconds of the search."""
    before: dict[str, Any]
    """Members that were used before, for `blend --off`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dict(vars(self))

    def __str__(self) -> str:
        lines = [
            f"{self.metric} of {self.images} held-out images (plain rule); the present ensemble {self.present:.4f}"
        ]
        for row in self.members:
            cost = "" if row["seconds"] is None else f", {row['seconds']:.3f} s an image"
            lines.append(f"  {row['member']}: {row['score']:.4f}, {row['nets']} nets{cost}")
        lines += [f"  {name}: left out, {why}" for name, why in self.left_out.items()]
        lines.append("errors go together: " + _correlated(self.correlation))
        lines += [
            f"{row['way']:<18} {row['nested']:.4f}  {gain_text(row['gain'], row['low'], row['high'])}  "
            f"{row['members']} members"
            for row in self.table
        ]
        lines += [
            f"over {name}: {gain_text(row['gain'], row['low'], row['high'])}"
            for name, row in self.compared.items()
        ]
        found = ", ".join(f"{weight:g} {name}" for name, weight in self.chosen["weights"].items())
        text = f"{self.chosen['kind']} of {found}" if found else "the present ensemble"
        verdict = "taken: predict, tune and submit again" if self.kept else "not taken: no certain gain"
        return "\n".join(
            [
                *lines,
                f"found: {text}; nested {self.nested:.4f}, gain {self.gain:+.4f} ({self.gain_low:+.4f} … "
                f"{self.gain_high:+.4f}), the best promises {self.optimism:+.4f} beyond it; {verdict}",
            ]
        )


def _correlated(table: Sequence[Sequence[float]]) -> str:
    above = [table[i][j] for i in range(len(table)) for j in range(i)]
    return f"{min(above):.2f} … {max(above):.2f}"


def blend_members(
    project: Project,
    present: Sequence[Member],
    *,
    runs: Sequence[str] = (),
    max_models: int | None = None,
    max_seconds: float | None = None,
) -> Blended:
    """Search the ensemble and make it what the next verbs use, if that is certain; ``blend.json`` keeps the numbers.

    Args:
        project: With folds.
        present: Its members now.
        runs: Names that candidates are of; none: all runs and members.
        max_models: Most members that take part.
        max_seconds: Most seconds for a test image, as they were measured on this machine.

    Raises:
        InputError: Fewer than two candidates; a named one that cannot be used, with the reason; limits that nothing
            meets.
        StoppedError: Stopped; nothing has changed then.
    """
    if max_models is not None and max_models < 1:
        raise InputError(f"--max-models {max_models}: expected 1 or more")
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"--max-seconds {max_seconds:g}: expected a number above 0")
    recipe, begun = present[0].scored_by, time.perf_counter()
    metric, base = project.metric(recipe), oof_of(project, present)
    names = judged_images(project, present, base)
    found, left_out = find_candidates(project, metric.name, names, runs)
    fits = _limit(found, max_models, max_seconds)
    source, moments = _look(project, metric, plain_of(project.target, recipe.tuning), names, found, base)
    sweep = MixSweep(source, np.arange(len(names)))
    groups, labels = project.folds.groups(names).tolist(), project.metric_groups(recipe, names).tolist()
    inside, parts = np.unique(labels, return_inverse=True)[1], parts_of(project, names, seed=recipe.seed)
    parts_found = {member.part for one in found for member in one.members}
    unjudged = [one for one in present if one.fold == ALL and one.part not in parts_found]
    never = {"vote"} if project.target.task == "instances" else set[str]()
    never |= {"rank"} if unjudged else set()  # there is no table of the ranks of its held-out pixels
    kinds = [kind for kind in KINDS if kind not in never]

    def ways(part: MixSweep, own: Groups) -> Mapping[str, Mix]:
        return ways_to_mix(part, metric, own, moments=moments, kinds=kinds, fits=fits)

    def choose(part: MixSweep, rules: Sequence[Mix], one: Metric, own: Groups) -> tuple[Mix, float]:
        return best_mix(part, [*rules, *ways(part, own).values()], one, own)

    tuning = search_rule(
        sweep, metric, [PRESENT], parts=parts, groups=groups, labels=labels, resamples=recipe.tuning.resamples,
        seed=recipe.seed, choose=choose,
    )  # fmt: skip

    def gain(rows: Float[np.ndarray, "n k"], other: Float[np.ndarray, "n k"]) -> dict[str, float]:
        gains, _, _ = paired_bootstrap(
            metric,
            rows,
            other,
            groups,
            labels=labels,
            resamples=recipe.tuning.resamples,
            rng=stream(recipe.seed),
        )
        low, high = np.quantile(gains, [BOUND_QUANTILE, 1 - BOUND_QUANTILE])
        point = metric.utility(metric.score(rows, inside)) - metric.utility(metric.score(other, inside))
        return {"gain": point, "low": float(low), "high": float(high)}

    whole = ways(sweep, inside)
    each = [ways(sweep.part(parts != part), inside[parts != part]) for part in np.unique(parts)]
    single = len(each) < 2

    def nested(pick: Callable[[Mapping[str, Mix], MixSweep, Groups], Mix]) -> Float[np.ndarray, "n k"]:
        rows = sweep.rows_of(PRESENT).copy()
        for part, own in zip(np.unique(parts), [whole] if single else each, strict=True):
            seen = parts != part
            rows[~seen] = sweep.part(~seen).rows_of(pick(own, sweep.part(seen), inside[seen]))
        return rows

    def of_way(way: str) -> Float[np.ndarray, "n k"]:
        return nested(lambda own, _part, _groups: own.get(way, PRESENT))

    chosen_rows = nested(
        lambda own, part, some: (
            PRESENT if single else best_mix(part, [PRESENT, *own.values()], metric, some)[0]
        )
    )
    costs = [one.seconds for one in found]
    table = [
        {"way": way, "nested": metric.score(of_way(way), inside)}
        | gain(of_way(way), sweep.rows_of(PRESENT))
        | {"members": len(mix.members), "kind": mix.kind, "weights": _weights(mix, found)}
        | {"nets": sum(found[at].nets for at in mix.members), "seconds": _seconds(mix, costs)}
        for way, mix in whole.items()
    ]
    done = Blended(
        metric=metric.name,
        images=len(names),
        members=[
            {"member": one.name, "nets": one.nets, "seconds": one.seconds, "score": score}
            for one, score in zip(found, _alone(sweep, metric, inside, len(found)), strict=True)
        ],
        left_out=left_out,
        correlation=moments.error_correlation().round(4).tolist(),
        table=table,
        chosen={"kind": tuning.found.kind, "weights": _weights(tuning.found, found)},
        present=tuning.plain,
        nested=tuning.nested,
        optimism=metric.utility(tuning.tuned) - metric.utility(tuning.nested),
        gain=metric.utility(tuning.nested) - metric.utility(tuning.plain),
        gain_low=tuning.gain_low,
        gain_high=tuning.gain_high,
        compared={way: gain(chosen_rows, of_way(way)) for way in _REFERENCES if way in whole},
        kept=tuning.kept,
        took=round(time.perf_counter() - begun, 2),
        before=_before(project),
    )
    write_json(project.blend_json, done.to_json())
    if done.kept:
        blend = source.blend(tuning.found, [one.name for one in found])
        taken = [
            replace(member, weight=tuning.found.weights[at], blend=blend, ensemble=present[0].ensemble)
            for at in tuning.found.members
            for member in found[at].members
        ]
        share = 1 / len(tuning.found.members)  # their weights sum to 1
        taken += [replace(one, weight=share, blend=blend, ensemble=present[0].ensemble) for one in unjudged]
        write_members(project, sorted(taken, key=lambda one: one.run.is_external))
    return done


def stop_blend(project: Project) -> str:
    """Go back to the members that were used before the blend; return a line that says so.

    Raises:
        InputError: No blend is used.
    """
    facts = read_json(project.members_json) if project.members_json.exists() else {}
    if not _is_blended(facts) or not project.blend_json.exists():
        raise InputError(f"{project.root}: no blend is used; there is nothing to go back from")
    use_members_before(project, read_json(project.blend_json)["before"])
    return "the members from before the blend are used again: predict, tune and submit"


def _is_blended(facts: Mapping[str, Any]) -> bool:
    """Whether members.json holds a blend; a stack, which is one member, has the mark of one."""
    return "blend" in facts and all(entry["run"] != _STACK for entry in facts.get("members", ()))


def _before(project: Project) -> dict[str, Any]:
    """Return what stop_blend needs: the members in use, or those from before the blend in use."""
    facts = read_json(project.members_json) if project.members_json.exists() else None
    if facts is not None and _is_blended(facts) and project.blend_json.exists():
        kept: dict[str, Any] = read_json(project.blend_json)["before"]
        return kept
    return remember_members(project)


# --- candidates ---


def judged_images(project: Project, present: Sequence[Member], base: Mapping[str, MeanCodes]) -> list[str]:
    """Return the images with content that the search is judged on: those that the present members hold out.

    Of an ensemble, and beside other programs' members, those that all of its parts hold out, if there are any: a part
    of one fold beside one of five would else be no candidate.
    """
    names = [row.id for row in project.folds.rows if row.id in base and row.id not in project.blank_train]
    of_parts = present[0].ensemble or present[0].blend or any(one.run.is_external for one in present)
    if not of_parts:
        return names
    inside: dict[str, set[str]] = {}
    for member in present:
        if member.fold != ALL:
            inside.setdefault(member.part, set()).update(project.folds.inside(member.fold))
    shared = set.intersection(*inside.values()) if inside else set()
    return [name for name in names if name in shared] or names


def find_candidates(
    project: Project, metric: str, names: Sequence[str], asked: Sequence[str] = ()
) -> tuple[list[Candidate], dict[str, str]]:
    """Return the candidates, and those that are left out with the reason.

    Args:
        project: With folds.
        metric: That they must have been made for.
        names: Images that all must have predicted.
        asked: Names of runs that are insisted on; none: all.

    Raises:
        InputError: One that was asked for cannot be used, or there are fewer than two.
    """
    found, left_out = list[Candidate](), dict[str, str]()
    there = sorted(path.parent.name for path in project.runs_dir.glob("*/recipe.yaml"))
    left_out |= {name: "no such run or member" for name in asked if name not in there}
    for name in [one for one in there if not asked or one in asked]:
        run = project.run(name)
        if run.recipe.metric != metric:
            left_out[name] = f"its metric is {run.recipe.metric}, not {metric}"
            continue
        for what, members in _variants(project, run).items():
            try:
                candidate = _candidate(project, what, members)
            except InputError as error:
                left_out[what] = str(error)
                continue
            missing = [image for image in names if image not in candidate.oof]
            if missing:
                left_out[what] = (
                    f"{len(missing)} of {len(names)} held-out images are not predicted, such as {missing[0]}"
                )
            else:
                found.append(candidate)
    wrong = [f"{name}: {left_out[name]}" for name in asked if name in left_out]
    if wrong:
        raise InputError("\n".join(f"--run {line}; leave it out, or train or add it again" for line in wrong))
    if len(found) < 2:
        said = "; ".join(f"{name} is left out, {why}" for name, why in left_out.items())
        raise InputError(
            f"{project.root}: {len(found)} candidate{'s' * (len(found) != 1)} "
            f"({', '.join(one.name for one in found) or 'none'}), expected two or more{f' ({said})' if said else ''}; "
            "train another recipe or seed, or `masksmith member add` probabilities"
        )
    for name, why in left_out.items():
        logger.info("%s is left out: %s", name, why)
    return found, left_out


def _variants(project: Project, run: Run) -> dict[str, list[Member]]:
    """Return a run's trained folds, and the same with each kind of weights that `masksmith weights` predicted with."""
    if run.is_external:
        return {run.path.name: members_of_run(run)}
    folds = sorted({fold for row in project.folds.rows for fold in row.folds})
    members = [one for fold in [*folds, ALL] if (one := Member(run, fold)).weights.exists()]
    members = [one for one in members if is_trained(project, one)]
    kinds = sorted(path.parent.name for path in run.path.glob("weights/*/oof"))
    kinds = [kind for kind in kinds if kind != run.recipe.prediction.weights]
    return {run.path.name: members} | {
        f"{run.path.name} by {kind}": [with_weights(one, kind) for one in members] for kind in kinds
    }


def _candidate(project: Project, name: str, members: Sequence[Member]) -> Candidate:
    held_out = [one for one in members if one.fold != ALL]
    if not held_out:
        raise InputError("no fold of it is trained")
    for member in held_out:
        predict_member(project, member, stages=("oof",))
    nets = 0 if held_out[0].run.is_external else sum(len(weights_of(one)) for one in members)
    return Candidate(name, list(members), oof_of(project, held_out), nets, _measured(project, held_out))


def _measured(project: Project, members: Sequence[Member]) -> float | None:
    """Return the seconds that a test image takes, by what the folds' held-out images took."""
    run, total = members[0].run, 0.0
    times = {} if run.is_external else run.read_times()
    for member in members:
        took = times.get(member.timed("oof"))
        if took is None:
            return None
        total += took / max(1, len(project.folds.inside(member.fold)))
    return round(total, 5)


def _limit(
    found: Sequence[Candidate], max_models: int | None, max_seconds: float | None
) -> Callable[[Mix], bool]:
    """Return whether a mix keeps within the limits.

    Raises:
        InputError: No candidate does.
    """
    costs = [one.seconds for one in found]

    def fits(mix: Mix) -> bool:
        seconds = _seconds(mix, costs)
        cheap = max_seconds is None or (seconds is not None and seconds <= max_seconds)
        return cheap and (max_models is None or len(mix.members) <= max_models)

    if not any(fits(Mix.of(np.eye(len(found))[at].tolist())) for at in range(len(found))):
        known = ", ".join(f"{one.name} {'unknown' if one.seconds is None else one.seconds}" for one in found)
        raise InputError(f"--max-seconds {max_seconds:g}: no member takes so little ({known}); give more")
    return fits


def _seconds(mix: Mix, costs: Sequence[float | None]) -> float | None:
    known = [cost for at in mix.members if (cost := costs[at]) is not None]
    return round(sum(known), 5) if len(known) == len(mix.members) else None


def _weights(mix: Mix, found: Sequence[Candidate]) -> dict[str, float]:
    return {found[at].name: mix.weights[at] for at in mix.members}


def _alone(sweep: MixSweep, metric: Metric, groups: Groups, num: int) -> list[float]:
    return [metric.score(sweep.rows_of(Mix.of(np.eye(num)[at].tolist())), groups) for at in range(num)]


# --- one look at the probabilities ---


def _look(
    project: Project,
    metric: Metric,
    rule: Any,  # noqa: ANN401
    names: Sequence[str],
    found: Sequence[Candidate],
    base: Mapping[str, MeanCodes],
) -> tuple[MixRows, Moments]:
    masks = project.cache.train_masks

    def codes(name: str) -> list[Any]:
        outputs = project.target.outputs
        return [one[name].first(outputs)[name] for one in (*(one.oof for one in found), base)]

    def pixels(name: str) -> tuple[Float[np.ndarray, "m px"], Float[np.ndarray, " px"]]:
        truth = truth_planes(project.target, masks[name])
        each = [one.oof[name][name][..., : truth.shape[2]] for one in found]
        judged = truth >= 0
        probs = np.stack([one[judged] for one in each]).astype(np.float64) / MAX_CODE
        return probs, truth[judged].astype(np.float64)

    moments = Moments.of(pixels(name) for name in names)
    ranks = [ranks_of(one.oof[name].first(project.target.outputs)[name] for name in names) for one in found]
    source = MixRows(
        names, codes, lambda name: one_layer(masks[name]), metric, rule, project.target.exclusive, ranks
    )
    return source, moments
