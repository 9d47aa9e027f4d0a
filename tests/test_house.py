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
PLATFORM = ROOT / "platform" / "longtake"
ROOMS = {
    "longtake": PLATFORM,
    "longtake.models": ROOT / "models",
    "longtake.worlds": ROOT / "worlds",
    "longtake.evals": ROOT / "evals",
    "longtake.jobs": ROOT / "jobs",
}
MAY_IMPORT = {
    "longtake": {"longtake"},
    "longtake.models": {"longtake.models"},
    "longtake.worlds": {"longtake", "longtake.worlds", "longtake.models"},
    "longtake.evals": {"longtake.evals", "longtake.models"},
    "longtake.jobs": set(ROOMS),
}
LEAVES = {"longtake.errors", "longtake.motion", "longtake.registry"}  # import one another alone; all may import them
# models knows no Ray, no DeepSpeed, no storage.
NO_RAY = {"ray", "deepspeed"}
FORBIDDEN = {"longtake.models": NO_RAY | {"fsspec", "s3fs", "pyarrow"}, "longtake.worlds": NO_RAY}
HEAVY = ("ray", "torch", "pandas", "pyarrow", "numpy", "deepspeed", "matplotlib", "scipy")
# Circles of imports that stay, each by one lazy import: `Store.table`, and a protocol that knows its task's name.
CIRCLES = (
    {
        "longtake.datasets.dataset",
        "longtake.datasets.index",
        "longtake.storage.sealed_files",
        "longtake.storage.store",
        "longtake.tables.files",
        "longtake.tables.table",
    },
)
# From the bottom up: a file imports those of earlier lines, and of its own.
ORDER = {
    "longtake.models": (
        "mixers config normalisation conditions attention_mask attention_flex scan memory",
        "diffusion description exported state perceptual",
        "world_model autoencoder losses",
        "tokenizer checkpoint rollout",
        "streams analysis mamba2_import",
    ),
    "longtake.evals": (
        "metric bootstrap linear_probe recall",
        "lpips task systems",
        "metrics",
        "sprite_matching memory_horizon",
        "tasks",
        "registry",
        "protocol",
        "clip",
        "baselines controls scoring",
    ),
}
SAME_NAME = {"__init__", "command", "config", "check", "memory_maze"}
"""What every verb's folder has; and Memory Maze is both an environment and a format."""
PRIVATE_WORDS = """
few_replaced of_clips told_cost JudgedContext OF_THE_SESSION StrangersContext Watchers Mailbox Teller misfits crown
""".split()
PARTICIPLES = {"asked", "found", "made", "there", "told"}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60


def modules() -> list[tuple[str, Path]]:
    """Every module with its room. The links of the rooms in platform/longtake are not gone through: rglob does not."""
    return [(room, path) for room, folder in ROOMS.items() for path in sorted(folder.rglob("*.py"))]


def room_of(module: str) -> str:
    """The room that a module is in, or the top-level package of one that is not ours."""
    own = [room for room in ROOMS if f"{module}.".startswith(f"{room}.")]
    return max(own, key=len) if own else module.split(".")[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Everything that a module imports, at its top or inside its functions: modules, and names of modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def run_imports(tree: ast.AST) -> Iterator[str]:
    """The same without what only type checkers read: such an import never runs, so it makes no circle."""
    shown = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    hidden = {id(inside) for node in shown for line in node.body for inside in ast.walk(line)}
    kept = [node for node in ast.walk(tree) if id(node) not in hidden and isinstance(node, ast.Import | ast.ImportFrom)]
    yield from imports(ast.Module(body=kept, type_ignores=[]))


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, int(node.end_lineno or node.lineno) - node.lineno + 1


def python(code: str, cwd: Path = ROOT) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform")}
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


def test_one_namespace() -> None:
    """The rooms are subpackages of longtake, by links, and nothing imports them by any other name."""
    for room in ("models", "worlds", "evals", "jobs"):
        assert (PLATFORM / room).is_symlink() and (PLATFORM / room).resolve() == ROOT / room
    sources = [path for _, path in modules()] + sorted((ROOT / "tests").rglob("*.py"))
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources
        for name in imports(ast.parse(path.read_text()))
        if name.split(".")[0] in ("models", "worlds", "evals", "jobs")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_imported_under_two_names() -> None:
    """Of all that this process has imported so far, which with the whole suite is nearly all there is."""
    # Only ours: a .venv within the root holds other people's files, some of which have two names on purpose.
    ours = [ROOT / room for room in ("platform", "models", "worlds", "evals", "jobs", "tests")]
    names: dict[Path, set[str]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and name != "__main__" and any((path := Path(file).resolve()).is_relative_to(room) for room in ours):
            names.setdefault(path, set()).add(name)
    assert names, "none of our files is seen: the test would pass whatever was imported"
    twice = {path: found for path, found in names.items() if len(found) > 1}
    assert not twice


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for owner, path in modules()
        if owner == room and path != PLATFORM / "__init__.py"  # the face names what is in rooms too
        for name in imports(ast.parse(path.read_text()))
        if (room_of(name) in ROOMS and room_of(name) not in MAY_IMPORT[room] and not is_leaf(name))
        or room_of(name) in FORBIDDEN.get(room, set())
    ]
    assert not wrong, "\n".join(wrong)


def is_leaf(name: str) -> bool:
    """Whether a module is a leaf, or a name is of one."""
    return not {name, name.rpartition(".")[0]}.isdisjoint(LEAVES)


def test_leaves_import_nothing_else_of_ours() -> None:
    graph = arrows()
    assert not [leaf for leaf in LEAVES if not graph[leaf] <= LEAVES]


def module_name(room: str, path: Path) -> str:
    parts = path.relative_to(ROOMS[room]).with_suffix("").parts
    return ".".join([room, *(parts[:-1] if parts[-1] == "__init__" else parts)])


def arrows() -> dict[str, set[str]]:
    """Which module of ours imports which."""
    known = {module_name(room, path): path for room, path in modules()}
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        heard = set(run_imports(ast.parse(path.read_text())))
        found[name] = {one if one in known else one.rpartition(".")[0] for one in heard} & known.keys() - {name}
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules each of which reaches all others of its set."""

    def reached(start: str) -> set[str]:
        seen, ahead = set[str](), [start]
        while ahead:
            for name in graph[ahead.pop()] - seen:
                seen.add(name)
                ahead.append(name)
        return seen

    far = {name: reached(name) for name in graph}
    rings = {frozenset(other for other in far[name] if name in far[other]) for name in graph if name in far[name]}
    return [set(ring) for ring in sorted(rings, key=sorted)]


def test_circles_of_imports_are_those_named() -> None:
    wrong = [ring for ring in circles(arrows()) if not any(ring <= allowed for allowed in CIRCLES)]
    assert not wrong, "\n".join(", ".join(sorted(ring)) for ring in wrong)


@pytest.mark.parametrize("room", ORDER)
def test_no_arrow_points_upward(room: str) -> None:
    level = {name: number for number, line in enumerate(ORDER[room]) for name in line.split()}

    def part(name: str) -> str:
        return name.removeprefix(f"{room}.").split(".")[0]

    graph = {name: heard for name, heard in arrows().items() if room_of(name) == room}
    own = {name: [one for one in heard if room_of(one) == room] for name, heard in graph.items()}
    unknown = {part(name) for name in own if name != room} - level.keys()
    assert not unknown, f"ORDER does not say where these are: {sorted(unknown)}"
    wrong = [
        f"{name} imports {one}"
        for name, heard in own.items()
        for one in heard
        if name != room and one != room and level[part(one)] > level[part(name)]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ["longtake", "longtake.models", "longtake.evals"])
def test_no_name_twice_in_a_room(room: str) -> None:
    names = [path.stem for owner, path in modules() if owner == room and path.stem not in SAME_NAME]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice


def test_the_words_are_those_of_the_field() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {word}"
        for _, path in modules()
        for word in PRIVATE_WORDS
        if re.search(rf"\b{word}\b", path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_variables_are_nouns(room: str) -> None:
    """A name says what a value is: a participle that fits every value says nothing."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
        for owner, path in modules()
        if owner == room
        for node in ast.walk(ast.parse(path.read_text()))
        for name in [getattr(node, "arg", None) if isinstance(node, ast.arg) else getattr(node, "id", None)]
        if name in PARTICIPLES and not isinstance(getattr(node, "ctx", None), ast.Load)
    ]
    assert not wrong, "\n".join(wrong)


def members(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What the body of a module or class defines, by name."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
    return found


def exists(name: str) -> bool:
    """Whether a dotted name is a module of ours, or something that one defines, or a member of a class there."""
    known = {module_name(room, path): path for room, path in modules()}
    module = name
    while module not in known:
        module = module.rpartition(".")[0]
        if not module:
            return False
    body: list[ast.stmt] = ast.parse(known[module].read_text()).body
    for part in name.removeprefix(module).split(".")[1:]:
        found = members(body).get(part)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def named_in(page: str) -> set[str]:
    """The dotted names of ours that a page of docs/ sets in code."""
    return set(re.findall(r"`(longtake(?:\.\w+)+)`", (ROOT / "docs" / page).read_text()))


@pytest.mark.parametrize("page", ["architecture.md", "glossary.md"])
def test_what_the_pages_name_exists(page: str) -> None:
    names = named_in(page)
    assert len(names) > 15
    assert not sorted(name for name in names if not exists(name))
    assert not exists("longtake.evals.task.Nothing") and not exists("longtake.evals.task.Task.nothing")


def test_every_word_of_the_glossary_is_at_home_somewhere() -> None:
    rows = [line.split(" | ") for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line[:2] == "| "]
    words = [row[0].removeprefix("| ") for row in rows[1:]]
    assert len(words) > 40 and len(set(words)) == len(words)
    assert not [row[0] for row in rows[1:] if not re.fullmatch(r"`longtake(\.\w+)+` \|", row[-1])]
    assert not [row[0] for row in rows[1:] if len(" | ".join(row[1:-1])) > 220]


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


def test_files_of_tests_fit_one_sitting_too() -> None:
    sizes = {path.relative_to(ROOT): path.read_text().count("\n") for path in sorted((ROOT / "tests").rglob("*.py"))}
    assert len(sizes) > 100
    long = [
        f"{name}: {lines} lines, {LONGEST_FILE} are the limit" for name, lines in sizes.items() if lines > LONGEST_FILE
    ]
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
        "from longtake.jobs.cli import main\n"
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
