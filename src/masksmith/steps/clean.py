"""What takes room in a project and may go."""

from collections.abc import Sequence
from pathlib import Path

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, remove, remove_tree, write_json
from masksmith.project.folder import Project
from masksmith.project.members import read_members

KINDS = ("cache", "runs", "submissions")


def clean_project(project: Project, kinds: Sequence[str]) -> dict[str, int]:
    """Return kind -> bytes that could be freed, and free those that are named; see pipeline.clean.

    Raises:
        InputError: An unknown kind.
    """
    for kind in kinds:
        look_up(dict.fromkeys(KINDS), kind, where="--remove")
    runs = _idle_runs(project)
    found = {
        "cache": sum(project.cache_files(clear="cache" in kinds).values()),
        "runs": sum(map(_bytes_of, runs)),
        "submissions": sum(path.stat().st_size for path in project.submissions_dir.glob("*.csv")),
    }
    if "runs" in kinds:
        for run in runs:
            remove_tree(run)
        requests = project.runs_dir / "requests.json"
        if requests.exists():
            left = {
                key: name for key, name in read_json(requests).items() if (project.runs_dir / name).exists()
            }
            write_json(requests, left)
    if "submissions" in kinds:
        for path in project.submissions_dir.glob("*.csv"):
            remove(path)
    return found


def _idle_runs(project: Project) -> list[Path]:
    """Return the folders of runs that no present member comes from, also not by its teacher or its start."""
    try:
        members = read_members(project, None)
    except InputError:  # nothing is trained yet
        return []
    kept: set[Path] = set()
    waiting = [member.run for member in members]
    waiting += [project.run(name) for name in _from_before(project) if (project.runs_dir / name).exists()]
    while waiting:
        run = waiting.pop()
        if run.path in kept:
            continue
        kept.add(run.path)
        if run.is_external:
            waiting += [project.run(name) for name, _ in run.external.get("stacked_on", ())]
            continue
        pseudo = run.recipe.pseudo
        names = [run.recipe.training.start_run, pseudo.teacher_run if pseudo else None]
        names += [one.run for one in pseudo.teacher_runs] if pseudo else []
        waiting += [project.run(name) for name in names if name is not None]
    return [path.parent for path in sorted(project.runs_dir.glob("*/recipe.yaml")) if path.parent not in kept]


def _from_before(project: Project) -> set[str]:
    """Return the runs that `blend --off` and `stack --off` go back to."""
    found = set[str]()
    for path in (project.blend_json, project.stack_json):
        before = read_json(path).get("before", {}) if path.exists() else {}
        found |= {str(entry["run"]) for entry in (before.get("members_json") or {}).get("members", ())}
        found |= {str(before["run"])} if before.get("run") else set()
    return found


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
