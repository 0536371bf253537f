"""Rules that the source tree keeps as a whole."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("catalog", "storage", "scheduler", "bookkeeping", "archive")
LOCK_FILES = {"uv.lock", "poetry.lock", "Pipfile.lock", "package-lock.json", "pnpm-lock.yaml", "yarn.lock"}
# A class of one letter keeps these expressions from matching their own text.
MACHINE_PATH = re.compile(re.escape(f"{ROOT}/") + r"|/[r]oot/|/[h]ome/[a-z]")
REGISTRY = re.compile(r"pypi[.]org|pythonhosted[.]org|npmjs[.]org|--(?:extra-)?[i]ndex-url|--[f]ind-links")
THIN = {"grpc", "google", *sys.stdlib_module_names}
MIB = 1024 * 1024
LONGEST_MODULE = 400
# Tests and conformance suites are read one test at a time.
LONGEST_SUITE = 500
# Single files by design: each is copied alone to a node and runs with whatever python3 stands there.
WRAPPER = ROOT / "services/scheduler/src/khomas/scheduler/wrapper"


def in_git(pattern: str = "*") -> list[Path]:
    """Return the files that are committed or would be, not those that .gitignore names."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def written_by_hand(path: Path) -> bool:
    return not path.is_relative_to(ROOT / "proto/python/src")


def longest(path: Path) -> int:
    suite = "tests" in path.parts or path.name == "conformance.py" or "conformance" in path.parts
    return LONGEST_SUITE if suite else LONGEST_MODULE


def relative(paths: list[Path]) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def matching(pattern: re.Pattern[str]) -> list[str]:
    texts = ((path, path.read_text(errors="replace")) for path in in_git())
    return relative([path for path, text in texts if pattern.search(text)])


def imports(source: Path) -> Iterator[tuple[Path, str]]:
    """Yield every absolute module name that the Python files under `source` import, wherever it stands."""
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from ((path, f"{node.module}.{alias.name}") for alias in node.names)


def foreign(source: Path, allowed: set[str]) -> list[str]:
    """Name the imports of khomas packages other than the allowed ones."""
    ours = ((path, name) for path, name in imports(source) if name.startswith("khomas."))
    return [f"{path.relative_to(ROOT)}: {name}" for path, name in ours if name.split(".")[1] not in allowed]


def test_namespace_packages_have_no_init_file() -> None:
    inits = [*in_git("*/khomas/__init__.py"), *in_git("*/khomas/api/__init__.py"), *in_git("*/buf/__init__.py")]

    assert relative(inits) == []


def test_test_folders_are_no_packages() -> None:
    assert relative(in_git("*tests/__init__.py")) == []


def test_lock_files_that_record_addresses_stay_out() -> None:
    assert relative([path for path in in_git() if path.name in LOCK_FILES]) == []


def test_no_file_is_larger_than_a_mebibyte() -> None:
    assert relative([path for path in in_git() if path.stat().st_size > MIB]) == []


def test_no_file_names_a_path_of_one_machine() -> None:
    assert matching(MACHINE_PATH) == []


def test_no_file_names_a_package_registry() -> None:
    assert matching(REGISTRY) == []


def test_modules_written_by_hand_stay_short() -> None:
    modules = [path for path in in_git("*.py") if written_by_hand(path) and path.parent != WRAPPER]

    assert relative([path for path in modules if len(path.read_text().splitlines()) >= longest(path)]) == []


@pytest.mark.parametrize("service", SERVICES)
def test_services_do_not_import_each_other(service: str) -> None:
    assert foreign(ROOT / "services" / service / "src", allowed={"api", "kit", service}) == []


def test_kit_imports_no_service() -> None:
    assert foreign(ROOT / "services/kit/src", allowed={"api", "kit"}) == []


def test_command_line_finds_services_by_entry_point_only() -> None:
    assert foreign(ROOT / "clients/python/src", allowed={"api", "kit", "client", "cli"}) == []


def test_client_library_needs_grpc_and_protobuf_only() -> None:
    source = ROOT / "clients/python/src/khomas/client"
    outside = [name for _, name in imports(source) if name.split(".")[0] not in THIN | {"khomas"}]

    assert outside == []
    assert foreign(source, allowed={"api", "client"}) == []
