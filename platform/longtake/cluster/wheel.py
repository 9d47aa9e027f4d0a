"""The code as one wheel, for the nodes of a cluster. What Ray does with a wheel of `py_modules` shapes it:

- It installs the wheel together with everything that the wheel requires, torch included, whatever the nodes
  have. Ours therefore requires nothing: a cluster's nodes are set up with all of it (cluster.yaml).
- It knows a wheel by its file name alone: another content under the same name is never uploaded. Ours carries a
  hash of its content in its version.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

from longtake.errors import UserError


def build_wheel(folder: Path, root: Path | None = None) -> Path:
    """One wheel of the checkout at `root` (default: the one that runs), without requirements.

    The same code gives the same file name and the same bytes, so the head is sent it once.
    Raises UserError if there is no checkout, or `platform` in it has become a package.
    """
    from hatchling.builders.wheel import WheelBuilder

    root = root or Path(__file__).resolve().parents[3]
    if (root / "platform" / "__init__.py").exists():
        raise UserError(
            f"{root / 'platform' / '__init__.py'}: remove it: it hides Python's own module `platform`, "
            "and every worker would die at its start"
        )
    if not (root / "pyproject.toml").is_file():
        raise UserError(
            f"longtake is installed in {root}, without its sources; submit ships a checkout: "
            "install it from one with `pip install -e .`"
        )
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    project["dependencies"] = []
    project["optional-dependencies"] = {}

    def build() -> Path:
        builder = WheelBuilder(str(root), config=settings)
        return Path(next(iter(builder.build(directory=str(folder), versions=["standard"]))))

    plain = build()
    project["version"] += f"+c{hashlib.sha256(plain.read_bytes()).hexdigest()[:12]}"
    plain.unlink()
    return build()
