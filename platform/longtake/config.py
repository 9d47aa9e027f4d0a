"""A run is one frozen typed config: YAML, `base:`, `--set a.b=c`; all problems at once, before it starts."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from longtake import yaml_text
from longtake.errors import UserError, nearest, unknown


class Config(BaseModel):
    """Base of every config: frozen, no unknown keys, no silent conversion ("3" is not 3, true is not 1)."""

    synonyms: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Of a field: what others call a value, and what it is called here. Told in the error, never taken."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @classmethod
    def kind_of(cls, settings: dict[str, Any]) -> type[Config]:
        """The class that the settings are checked against; a config of several kinds returns one of its subclasses."""
        return cls


Schema = TypeVar("Schema", bound=BaseModel)
SHIPPED = "longtake:"
"""How a `base:` begins that is shipped, and lies in a folder of these:"""
SHIPPED_FOLDER = Path(__file__).with_name("jobs") / "configs"


def load(
    schema: type[Schema], name_or_path: str | Path, overrides: Sequence[str] = (), search: str | Path = "."
) -> Schema:
    """The config at a YAML path, or the shipped one of that name (search/NAME.yaml), with `a.b=c` overrides.

    Raises one UserError that holds every problem of all files, overrides and values.
    """
    problems: list[str] = []
    settings = _read(_locate(name_or_path, Path(search)), problems, ())
    return _overridden(schema, settings, overrides, problems, unread=bool(problems))


def load_stored(schema: type[Schema], data: bytes, where: str) -> Schema:
    """The config that a file of a store holds, as `dump` wrote it; problems as in `load`, under that name."""
    try:
        return build(schema, settings(data, where))
    except UserError as error:
        named = (line if line.startswith(where) else f"{where}: {line}" for line in error.lines)
        raise UserError(*named) from None


def settings(data: bytes, where: str) -> dict[str, Any]:
    """What a config's file says, which is checked against no schema. Raises UserError."""
    try:
        parsed = yaml_text.parse(data.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: cannot be read: {error}") from None
    if parsed is not None and not isinstance(parsed, dict):
        raise UserError(f"{where}:1: a config is a list of `key: value` lines, not {_show(parsed)}")
    return parsed or {}


def build(schema: type[Schema], settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> Schema:
    """The config of settings that a command line gave, with `a.b=c` overrides; problems as in `load`."""
    return _overridden(schema, copy.deepcopy(dict(settings)), overrides, [])


def loads(schema: type[Schema], text: str, overrides: Sequence[str] = ()) -> Schema:
    """The config that `dump` wrote as a text, with `a.b=c` overrides; problems as in `load`."""
    return _overridden(schema, yaml_text.parse(text, "config"), overrides, [])


def _overridden(
    schema: type[Schema], settings: dict[str, Any], overrides: Sequence[str], problems: list[str], unread: bool = False
) -> Schema:
    for override in overrides:
        _override(settings, override, problems)
    return _validated(schema, settings, problems, unread)


def revise(config: Schema, changes: Mapping[str, Any]) -> Schema:
    """The config with other values at dotted fields; a section given as a whole is replaced.

    Raises one UserError that holds every problem.
    """
    problems: list[str] = []
    settings = config.model_dump(mode="json")
    for field, value in changes.items():
        _assign(settings, field.split("."), value, field, problems)
    return _validated(type(config), settings, problems)


def _validated(schema: type[Schema], settings: dict[str, Any], problems: list[str], unread: bool = False) -> Schema:
    """The settings as a config, or all problems; `unread`: a file could not be read."""
    # JSON mode: strict about scalars, yet a YAML list may fill a tuple and a text a Path or an Enum.
    try:
        schema = cast(type[Schema], schema.kind_of(settings)) if issubclass(schema, Config) else schema
        config = schema.model_validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        # What a file that cannot be read would have set is not missing.
        problems += _explain(schema, (e for e in error.errors() if not (unread and e["type"] == "missing")))
    except UserError as error:  # no such kind
        problems += error.lines
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return config


def shipped(search: Path) -> list[str]:
    """Names of the configs in a folder, sorted."""
    return sorted(path.stem for path in search.glob("*.yaml"))


def shipped_settings(search: Path) -> dict[str, dict[str, Any]]:
    """What the configs in a folder say themselves, by name: without their bases."""
    problems: list[str] = []
    return {name: _parse_file(search / f"{name}.yaml", problems) for name in shipped(search)}


def dump(config: BaseModel, changes: bool = False) -> str:
    """The config as YAML that `load` reads back to the same value; with `changes` only what is not the default."""
    return yaml_text.dump(config.model_dump(mode="json", exclude_defaults=changes))


def config_hash(config: BaseModel) -> str:
    """12 hexadecimal characters that change when any setting does."""
    canonical = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


# --- files ------------------------------------------------------------------------------------------------


def _locate(name_or_path: str | Path, search: Path) -> Path:
    text = str(name_or_path)
    is_path = isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml"))
    path = Path(text) if is_path else search / f"{text}.yaml"
    if path.is_file():
        return path
    if is_path:
        known = ", ".join(shipped(search)) or "none"
        raise UserError(f"no config file {text}; give a YAML path or the name of a shipped config: {known}")
    raise UserError(unknown("config", text, shipped(search)) + " (or give a path that ends in .yaml)")


def _read(path: Path, problems: list[str], children: tuple[Path, ...]) -> dict[str, Any]:
    """Settings of one file on top of those of its bases; what is wrong is added to `problems`."""
    path = path.resolve()
    if path in children:
        chain = " -> ".join(p.name for p in (*children, path))
        problems.append(f"{path.name}: base: a circle of files: {chain}")
        return {}
    own = _parse_file(path, problems)
    bases = own.pop("base", None) or []
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        target = _base_path(path, base)
        if target is None:
            problems.append(f"{path}: base: {_no_base(base)}")
        else:
            _merge(merged, _read(target, problems, (*children, path)))
    return _merge(merged, own)


def _base_path(path: Path, base: object) -> Path | None:
    """The file that a `base:` names: beside `path`, or a shipped one wherever `path` lies."""
    if not isinstance(base, str):
        return None
    folder, name = path.parent, base
    if base.startswith(SHIPPED):
        folder, name = SHIPPED_FOLDER, base.removeprefix(SHIPPED)
    candidates = (folder / name, folder / f"{name}.yaml")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _no_base(base: object) -> str:
    names = [f"{SHIPPED}{path.parent.name}/{path.stem}" for path in sorted(SHIPPED_FOLDER.glob("*/*.yaml"))]
    if isinstance(base, str) and base.startswith(SHIPPED):
        return f"no shipped config {base!r}{nearest(base, names)}; `longtake configs` lists them"
    # A shipped one's own name, or its path from here as if this file lay in the checkout.
    meant = [name for name in names if name.rpartition("/")[2] == Path(str(base)).stem]
    return f"no file {base!r} beside it" + (f"; of those shipped there is {' and '.join(meant)}" if meant else "")


def _parse_file(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return settings(path.read_bytes(), str(path))
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error}")
    except UserError as error:
        problems += error.lines
    return {}


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`, in place: sections are merged, everything else (lists too) is replaced."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(under.get(key), dict):
            _merge(under[key], value)
        else:
            under[key] = value
    return under


# --- overrides --------------------------------------------------------------------------------------------


def _override(settings: dict[str, Any], override: str, problems: list[str]) -> None:
    """Apply one `a.b=c` (or `a.0.b=c` into a list) in place."""
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        problems.append(f"--set {override}: expected key=value, such as model.window=6")
        return
    try:
        value = yaml_text.parse(text, f"--set {override}")
    except UserError as error:
        problems += (line.replace(":1:", ":", 1) for line in error.lines)
        return
    _assign(settings, path, value, f"--set {override}", problems)


def _assign(settings: dict[str, Any], path: list[str], value: Any, what: str, problems: list[str]) -> None:
    """Put a value at a path, in place; sections on the way that are not there are made."""
    at: Any = settings
    for depth, part in enumerate(path):
        slot = _slot(at, part)
        if slot is None:
            where = ".".join(path[:depth])
            held = f"a list of {len(at)}" if isinstance(at, list) else _show(at)
            problems.append(f"{what}: {where} is {held}, it has no {part!r}")
            return
        if depth == len(path) - 1:
            at[slot] = value
        else:
            if isinstance(at, dict) and at.get(slot) is None:
                at[slot] = {}
            at = at[slot]


def _slot(container: Any, part: str) -> str | int | None:
    """The key or index that `part` means in a section or a list; None if it cannot mean one."""
    if isinstance(container, dict):
        return part
    if isinstance(container, list) and part.isdigit() and int(part) < len(container):
        return int(part)
    return None


# --- what is wrong, in words ------------------------------------------------------------------------------

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    **dict.fromkeys(("list", "tuple", "set"), "a list"),
    **dict.fromkeys(("dict", "model", "model_attributes"), "a section of `key: value`"),
    "none_required": "nothing",
}


def _explain(schema: type[BaseModel], errors: Iterable[ErrorDetails]) -> Iterator[str]:
    """One line per wrong field. The members of a union each report: they are joined to `a or b`."""
    wrong_types: dict[str, tuple[Any, list[str]]] = {}
    for error in errors:
        path, holders = _follow(schema, error["loc"])
        field = ".".join(path) or "config"
        kind = error["type"]
        expected = _EXPECTED.get(kind.removesuffix("_type"))
        if kind == "extra_forbidden":
            yield _unknown_key(field, path[-1], holders)
        elif kind == "missing":
            yield _missing(field, path[-1], holders)
        elif kind in ("literal_error", "enum"):
            yield _not_allowed(field, error, holders)
        elif kind == "value_error":
            # A validator may raise ValueError(line, line, ...): one line per problem.
            prefix = f"{field}: " if path else ""
            yield from (f"{prefix}{line}" for line in error["ctx"]["error"].args)
        elif expected is not None:
            wrong_types.setdefault(field, (error["input"], []))[1].append(expected)
        else:
            message = error["msg"].replace("Input should be", "must be")
            yield f"{field}: got {_show(error['input'])}, {message[0].lower()}{message[1:]}"
    for field, (value, words) in wrong_types.items():
        yield f"{field}: got {_show(value)}, expected {' or '.join(dict.fromkeys(words))}"


def _missing(field: str, key: str, holders: list[Any]) -> str:
    """What is missing, with its choices and its meaning where the field says them."""
    info = next(fields[key] for holder in holders if key in (fields := _fields(holder)))
    choices, meaning = " or ".join(map(str, choices_of(info.annotation))), info.description
    return f"{field}: is required, give it a value{choices and f' ({choices})'}{f': {meaning}' if meaning else ''}"


def choices_of(kind: Any) -> list[Any]:
    """The values that an annotation lists."""
    return [value for member in members(kind) if get_origin(member) is Literal for value in get_args(member)]


def _unknown_key(field: str, key: str, holders: list[Any]) -> str:
    valid = [name for holder in holders for name in _fields(holder) if name != key]
    return f"{field}: unknown key{nearest(key, valid)}; valid here: {', '.join(valid)}"


def _not_allowed(field: str, error: ErrorDetails, holders: list[Any]) -> str:
    allowed = [word.strip("'") for word in re.split(r", | or ", str(error.get("ctx", {}).get("expected", "")))]
    near = ""
    if isinstance(given := error["input"], str):
        called = [getattr(holder, "synonyms", {}).get(field.rpartition(".")[2], {}) for holder in holders]
        meant = next((names[given.lower()] for names in called if given.lower() in names), None)
        near = f" (did you mean {meant}?)" if meant else nearest(given.lower(), allowed)
    return f"{field}: got {_show(error['input'])}, allowed: {', '.join(allowed)}{near}"


def _show(value: object) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _follow(schema: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], list[Any]]:
    """Field path without pydantic's union tags, and the types that the last key was looked up in."""
    path: list[str] = []
    here: list[Any] = [schema]
    holders = here
    for part in location:
        kinds = [member for kind in here for member in members(kind)]
        inner = [child for member in kinds if (child := _child(member, part)) is not None]
        if not inner and len(kinds) > 1 and part is not location[-1]:
            here = [member for member in kinds if _is_tagged(member, part)] or kinds
            continue
        if not inner and len(kinds) > 1 and not any(_fields(member) for member in kinds):
            continue
        path.append(str(part))
        holders, here = kinds, inner
    return path, holders


def _is_tagged(member: Any, part: str | int) -> bool:
    """Whether pydantic means this member of a union: by its name, or by the Literal that tells it from the others."""
    literals = [field.default for field in _fields(member).values() if get_origin(field.annotation) is Literal]
    return part in (getattr(member, "__name__", None), *literals)


def members(kind: Any) -> list[Any]:
    """The types an annotation allows, None left out."""
    if get_origin(kind) is Annotated:
        return members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [m for arm in get_args(kind) if arm is not type(None) for m in members(arm)]
    return [kind]


def _child(kind: Any, part: str | int) -> Any:
    """The type of one key or index of a type; None if it has no such thing."""
    if fields := _fields(kind):
        return fields[part].annotation if part in fields else None
    args = get_args(kind)
    if get_origin(kind) is dict and args:
        return args[1]
    if isinstance(part, int) and get_origin(kind) in (list, tuple, set, frozenset) and args:
        return args[min(part, len(args) - 1)] if args[-1] is not Ellipsis else args[0]
    return None


def _fields(kind: Any) -> dict[Any, Any]:
    return dict(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else {}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """One line per setting that differs between two dumped configs: `a.b: 1 then, 2 now`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: {old} then, {new} now"]
