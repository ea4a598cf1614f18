"""Where a training starts from outside its project: a bundle, a file of weights, or another project. No torch."""

from functools import lru_cache
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.core.files import digest, file_digest, read_json

BUNDLE = ".msk"


def origin_files(origin: str) -> list[Path]:
    """Return the files that ``training.start_from`` names: one, or the weights of each trained fold of a run.

    Args:
        origin: A bundle (.msk), a .safetensors file, a project (its last run), or a run's folder.

    Raises:
        InputError: There is no such thing, or nothing in it is trained.
    """
    path, where = Path(origin), f"training.start_from: {origin!r}"
    expected = "expected a bundle (.msk), a .safetensors file, a project, or a run's folder in one"
    if path.is_file() and path.suffix in (BUNDLE, ".safetensors"):
        return [path]
    if path.is_file():
        raise InputError(
            f"{where}: the file ends in {path.suffix!r}; {expected} (`masksmith convert` makes safetensors of .pth)"
        )
    if not path.is_dir():
        raise InputError(f"{where}: no such file or folder; {expected}")
    current = path / "runs" / "current.json"
    if current.is_file():
        path = path / "runs" / str(read_json(current))
    found = sorted(path.glob("checkpoints/fold_*/final.safetensors"))
    if not found:
        raise InputError(f"{where}: {path} has no trained fold; {expected}")
    return found


def origin_hash(origin: str) -> str:
    """Return a hash of the content of what ``training.start_from`` names.

    Raises:
        InputError: As origin_files.
    """
    return digest(*(_hash_of(path, path.stat().st_mtime_ns) for path in origin_files(origin)))


@lru_cache(maxsize=64)
def _hash_of(path: Path, _mtime_ns: int) -> str:
    return file_digest(path)
