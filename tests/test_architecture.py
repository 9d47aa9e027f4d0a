"""The picture in docs/architecture.md is the one of the imports; run as a program, this draws it again.

`make architecture` does so.
"""

from __future__ import annotations

import re

from tests.test_house import ROOMS, ROOT, arrows, room_of

PAGE = ROOT / "docs" / "architecture.md"
DRAWN = re.compile(r"(?<=^```mermaid\n).*?(?=^```$)", flags=re.DOTALL | re.MULTILINE)
EVERYWHERE = {"longtake", "config", "errors", "motion", "provenance", "registry", "strict_yaml", "yaml_text"}
"""Parts of the platform that nearly all import, and the package itself."""


def part(module: str) -> str:
    """Where a module is in the picture: its room, or the folder or file of the platform."""
    room = room_of(module)
    return (module.split(".")[:2][-1]) if room == "longtake" else room.removeprefix("longtake.")


def drawing() -> str:
    """The mermaid graph of the imports, in alphabetical order."""
    rooms = {room.removeprefix("longtake.") for room in ROOMS} - {"longtake"}
    pairs = {(part(name), part(one)) for name, heard in arrows().items() for one in heard}
    pairs = {(a, b) for a, b in pairs if a != b and not {a, b} & EVERYWHERE}
    between = sorted({(a, b if b in rooms else "platform") for a, b in pairs if a in rooms})
    inside = sorted((a, b) for a, b in pairs if a not in rooms)
    lines = [
        "flowchart LR",
        *(f"    {a} --> {b}" for a, b in between),
        '    subgraph platform["platform/longtake"]',
        *(f"        {a} --> {b}" for a, b in inside),
        "    end",
    ]
    return "\n".join(lines) + "\n"


def test_the_picture_is_that_of_the_imports() -> None:
    found = DRAWN.findall(PAGE.read_text())
    assert found == [drawing()], "make architecture draws it again"


def test_every_folder_of_the_platform_is_in_the_picture() -> None:
    folders = {path.parent.name for path in (ROOT / "platform" / "longtake").glob("*/__init__.py")}
    drawn = set(re.findall(r"\w+", drawing()))
    assert folders <= drawn


if __name__ == "__main__":
    PAGE.write_text(DRAWN.sub(lambda _: drawing(), PAGE.read_text()))
