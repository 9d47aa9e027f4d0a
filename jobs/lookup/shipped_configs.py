"""`longtake configs [NAME]`: the configs that are shipped, a line each, or one as it is written.

In a config of one's own, wherever it lies, each is a base: `base: longtake:train/demo-block-ssm`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from longtake.config import SHIPPED, SHIPPED_FOLDER
from longtake.errors import UserError, unknown

SHORTEST = 25
"""Letters that a line has at least: "The contrast." says nothing."""
ABOUT = {
    "sizes": "of a model, a base of one's own",
    "families": "of a model's layers, a base on top of a size",
}
"""What those are for that no verb takes."""


def main(name: str | None) -> None:
    """The command."""
    known = names()
    if name is None:
        print("\n".join(listing(known)))
        return
    files = [path for full, path in known.items() if name.removeprefix(SHIPPED) in (full, path.stem)]
    if not files:
        raise UserError(unknown("config", name, known))
    print("\n".join(_whole(path) for path in files), end="")


def names() -> dict[str, Path]:
    """The file of every shipped config by folder/name."""
    return {f"{path.parent.name}/{path.stem}": path for path in sorted(SHIPPED_FOLDER.glob("*/*.yaml"))}


def listing(known: dict[str, Path]) -> Iterator[str]:
    """A line for each, under the verbs that take them."""
    width = max(len(path.stem) for path in known.values())
    folder = ""
    for path in known.values():
        if path.parent.name != folder:
            folder = path.parent.name
            yield f"{folder}: {ABOUT.get(folder, f'`longtake {folder} NAME`')}; base: {SHIPPED}{folder}/NAME"
        yield f"  {path.stem:<{width}}  {sentence(path)}"


def sentence(path: Path) -> str:
    """What the first comment of a config says, up to a full stop or colon."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: _comments(lines)]]
    text = " ".join(comment)
    ends = [at for mark in (". ", ": ") if (at := text.find(mark, SHORTEST)) > 0]
    return text[: min(ends)] + "." if ends else text


def _comments(lines: list[str]) -> int:
    return next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))


def _whole(path: Path) -> str:
    return f"# {path}\n{path.read_text(encoding='utf-8')}"
