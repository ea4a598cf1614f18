"""Security audit: installed versions with known holes, risky calls in the source, then pip-audit.

    python tools/audit.py            # the first two need no network and always run
    AUDIT_ONLINE=1 python tools/audit.py   # pip-audit must have reached its service, or the audit fails

Exit code 1 for every finding. pip-audit says "No known vulnerabilities found" when its service knows none of the
packages, so here the packages that it did judge are counted.
"""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300

# Modules whose purpose is to run code, a command, or what a pickle says.
IMPORTS = {
    *(
        "pickle",
        "_pickle",
        "cPickle",
        "dill",
        "cloudpickle",
        "joblib",
        "shelve",
        "marshal",
        "pty",
        "commands",
    ),
    *("subprocess", "multiprocessing.managers", "code", "codeop", "runpy"),
}
ALLOWED = {("src/masksmith/training/devices.py", "subprocess")}
"""It starts this program once more for each further device, by a list of words that no person gives."""
# Errors of a pickle may be caught without reading one.
HARMLESS = {"pickle.UnpicklingError", "pickle.PickleError"}
CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("builtins.eval", "builtins.exec", "os.system", "os.popen", "os.startfile", "tempfile.mktemp"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "torch.utils.model_zoo.load_url"),
    *("torch.hub.load_state_dict_from_url", "shutil.unpack_archive", "asyncio.create_subprocess_shell"),
    *("asyncio.create_subprocess_exec",),
}
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn")
METHODS = {"extractall"}  # of any archive
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}


def known_holes(table: Iterable[dict[str, object]], version_of: Callable[[str], str | None]) -> list[str]:
    """Return a line for each installed package below the version in which a known hole was closed.

    Args:
        table: Entries of known_bad.toml: names, fixed, id, what.
        version_of: Name of a package -> its version, or None where it is not installed.
    """
    found = []
    for entry in table:
        names = entry["names"]
        assert isinstance(names, list)
        for name in names:
            version = version_of(name)
            if version is not None and Version(version) < Version(str(entry["fixed"])):
                found.append(
                    f"{name} {version}: {entry['id']} ({entry['what']}); install {entry['fixed']} or newer"
                )
    return found


def installed_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class _Names:
    """Which full name a local name stands for: ``from os import system as s`` makes s "os.system"."""

    def __init__(self, tree: ast.Module) -> None:
        self.full: dict[str, str] = {}
        self.imported: list[tuple[ast.AST, str]] = []
        self.safe_loaders: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imported.append((node, alias.name))
                    local = alias.asname or alias.name.partition(".")[0]
                    self.full[local] = alias.name if alias.asname else local
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    self.imported.append((node, f"{node.module}.{alias.name}"))
                    self.full[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(self.of(base) in SAFE_LOADERS for base in node.bases):
                self.safe_loaders.add(node.name)

    def of(self, node: ast.AST) -> str:
        """Return the dotted name of an expression, "" where it has none."""
        if isinstance(node, ast.Name):
            return self.full.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            head = self.of(node.value)
            return f"{head}.{node.attr}" if head else ""
        return ""


def _argument(call: ast.Call, name: str, place: int | None = None) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[place] if place is not None and len(call.args) > place else None


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _call_finding(call: ast.Call, names: _Names) -> str | None:
    name = names.of(call.func)
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if name in CALLS or name.startswith(PREFIXES) or method in METHODS:
        return f"calls {name or method}"
    if name == "yaml.load":
        loader = names.of(_argument(call, "Loader", 1) or ast.Constant(None))
        return None if loader in SAFE_LOADERS | names.safe_loaders else "yaml.load without a safe Loader"
    if name == "torch.load" and not _is(_argument(call, "weights_only"), value=True):
        return "torch.load without weights_only=True"
    if name in ("numpy.load", "numpy.lib.format.read_array", "pandas.read_pickle", "numpy.memmap.load"):
        pickled = _argument(call, "allow_pickle", 2)
        return "numpy.load with allow_pickle" if pickled and not _is(pickled, value=False) else None
    if name == "jinja2.Environment" and not _is(_argument(call, "autoescape"), value=True):
        return "jinja2.Environment without autoescape=True"
    shell = _argument(call, "shell")
    return "a call with shell" if shell is not None and not _is(shell, value=False) else None


def risky_code(source: str, where: str) -> list[str]:
    """Return a line for each risky import or call of a Python module; names are followed through imports."""
    tree = ast.parse(source)
    names = _Names(tree)
    found = [
        (node.lineno, f"imports {name}")
        for node, name in names.imported
        if any(name == risky or name.startswith(f"{risky}.") for risky in IMPORTS)
        and name not in HARMLESS
        and (where, name) not in ALLOWED
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (finding := _call_finding(node, names)):
            found.append((node.lineno, finding))
    return [f"{where}:{line}: {text}" for line, text in sorted(set(found))]


def _risky_files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        yield from risky_code(path.read_text(), str(path.relative_to(folder.parent)))


def judge(output: str) -> tuple[list[str], int, int]:
    """Return (findings, packages judged, packages skipped) of pip-audit's JSON.

    Raises:
        ValueError: There is no JSON: pip-audit did not come to an end.
    """
    entries = json.loads(output)["dependencies"]
    judged = [entry for entry in entries if "skip_reason" not in entry]
    found = [
        f"{entry['name']} {entry['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or 'none yet'}"
        for entry in judged
        for hole in entry["vulns"]
    ]
    return found, len(judged), len(entries) - len(judged)


def ask_service() -> tuple[list[str], str]:
    """Run pip-audit; return its findings, and what was not judged and why ("" where all was)."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--skip-editable"]
    command += ["--progress-spinner", "off", "--timeout", "10"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        found, judged, skipped = judge(done.stdout)
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [], f"pip-audit came to no result ({last})"
    except subprocess.TimeoutExpired:
        return [], f"pip-audit did not end within {TIMEOUT_S} s"
    if judged == 0:
        return (
            found,
            f"the vulnerability service judged none of {skipped} packages: it cannot be reached from here",
        )
    if skipped > judged:
        return found, f"the vulnerability service judged only {judged} of {judged + skipped} packages"
    print(f"   {judged} packages judged, {skipped} unknown to the service")
    return found, ""


def main() -> int:
    """Run all parts; return the exit code."""
    table = tomllib.loads((ROOT / "tools" / "known_bad.toml").read_text())["package"]
    parts = [
        (f"installed versions against {len(table)} known holes", known_holes(table, installed_version)),
        ("risky calls in src", list(_risky_files(ROOT / "src"))),
    ]
    print("== pip-audit", flush=True)
    online, silent = ask_service()
    if online or not silent:
        parts.append(("pip-audit", online))
    for title, findings in parts:
        print(f"== {title}: {len(findings) or 'no'} findings")
        for finding in findings:
            print(f"   {finding}")
    if silent:
        print(f"== NOT ASKED ONLINE: {silent}")
    must = os.environ.get("AUDIT_ONLINE") == "1"
    return int(any(findings for _, findings in parts) or (must and bool(silent)))


if __name__ == "__main__":
    sys.exit(main())
