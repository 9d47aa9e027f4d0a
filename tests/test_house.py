"""The house rules that no single room can check: where things are, and who may import whom."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "longtake": ROOT / "platform" / "longtake",
    "models": ROOT / "models",
    "evals": ROOT / "evals",
    "jobs": ROOT / "jobs",
}
MAY_IMPORT = {
    "longtake": {"longtake"},
    "models": {"models"},
    "evals": {"evals", "models"},
    "jobs": {"longtake", "models", "evals", "jobs"},
}
# models knows no Ray, no DeepSpeed, no storage.
FORBIDDEN = {"models": {"ray", "deepspeed", "fsspec", "s3fs", "pyarrow"}}
HEAVY = ("ray", "torch", "pandas", "pyarrow", "numpy", "deepspeed", "matplotlib", "scipy")
LONGEST_FILE = 400
LONGEST_FUNCTION = 60


def modules() -> list[tuple[str, Path]]:
    return [(room, path) for room, folder in ROOMS.items() for path in sorted(folder.rglob("*.py"))]


def imports(tree: ast.AST) -> Iterator[str]:
    """Top-level names of everything that a module imports, at its top or inside its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield str(node.module).split(".")[0]


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, int(node.end_lineno or node.lineno) - node.lineno + 1


def python(code: str, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_platform_is_a_folder_and_not_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert python("import platform; print(platform.system())")


def test_each_room_is_there() -> None:
    for room, folder in ROOMS.items():
        assert (folder / "__init__.py").is_file(), room


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for owner, path in modules()
        if owner == room
        for name in imports(ast.parse(path.read_text()))
        if (name in ROOMS and name not in MAY_IMPORT[room]) or name in FORBIDDEN.get(room, set())
    ]
    assert not wrong, "\n".join(wrong)


def test_no_module_is_called_utils() -> None:
    assert not [path for _, path in modules() if re.fullmatch(r"(utils?|helpers?|misc|common)\.py", path.name)]


def test_files_and_functions_fit_one_sitting() -> None:
    long = []
    for _, path in modules():
        text = path.read_text()
        name = path.relative_to(ROOT)
        if (lines := text.count("\n")) > LONGEST_FILE:
            long.append(f"{name}: {lines} lines, {LONGEST_FILE} are the limit")
        for function, size in functions(ast.parse(text)):
            if size > LONGEST_FUNCTION:
                long.append(f"{name}: {function} has {size} lines, {LONGEST_FUNCTION} are the limit")
    assert not long, "\n".join(long)


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT)) for _, path in modules() if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, "\n".join(silent)


def test_no_notes_to_self() -> None:
    mark = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b")
    left = [
        f"{path.relative_to(ROOT)}:{number}"
        for _, path in modules()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark.search(line)
    ]
    assert not left, "\n".join(left)


def test_help_loads_nothing_heavy() -> None:
    """The measure of a quick `longtake --help` that a busy machine cannot upset."""
    code = (
        "import sys\n"
        "from jobs.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "loaded: []"


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"import sys, longtake; print([name for name in {(*HEAVY, 'pydantic')!r} if name in sys.modules])"
    assert python(code, cwd=tmp_path) == "[]"


def test_requirements_are_pinned_and_torch_is_first() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines[0].startswith("torch==")
    pin = r'[A-Za-z0-9._-]+==[A-Za-z0-9.]+( ; "linux" in sys_platform)?'
    assert not [line for line in lines if not re.fullmatch(pin, line)]
    names = [line.split("==")[0].lower() for line in lines]
    assert len(set(names)) == len(names)


def test_what_is_installed_without_its_requirements_has_one_version() -> None:
    """In the Makefile and in an extra: what pip must be told to take alone."""
    pinned = [
        pin
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line.startswith(("WEIGHTS :=", "MAMBA :="))
        for pin in line.split(":=")[1].split()
    ]
    extras = (ROOT / "pyproject.toml").read_text()
    assert len(pinned) == 3
    assert not [pin for pin in pinned if f'"{pin}"' not in extras]
