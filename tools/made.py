"""Remove what a command has made, and nothing else. Needs no package.

    python tools/made.py record LIST FOLDER ...    # write into LIST the name and hash of every file in new folders
    python tools/made.py remove LIST               # remove the files that are still as they were written, and LIST

``make demo`` records what it made; ``make clean`` and the next ``make demo`` remove that. A file that was added or
changed since stays, and so does the folder that holds it.
"""

import hashlib
import json
import sys
from pathlib import Path


def digest(path: Path) -> str:
    """Return a hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def record(made: Path, folders: list[str]) -> None:
    """Write the names and hashes of all files in the folders, which the command has made from nothing."""
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*"))]
    files = {str(path): digest(path) for path in paths if path.is_file() and not path.is_symlink()}
    made.write_text(json.dumps({"folders": folders, "files": files}, indent=1) + "\n")


def remove(made: Path) -> None:
    """Remove the recorded files that have not changed, the folders that are empty then, and the record."""
    if not made.exists():
        return
    value = json.loads(made.read_text())
    for name, expected in value["files"].items():
        path = Path(name)
        if path.is_file() and not path.is_symlink() and digest(path) == expected:
            path.unlink()
    for folder in map(Path, value["folders"]):
        for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()
        if folder.exists():
            print(f"{folder}: kept, it holds files that were added or changed")
    made.unlink()


if __name__ == "__main__":
    verb, made, *folders = sys.argv[1:]
    record(Path(made), folders) if verb == "record" else remove(Path(made))
