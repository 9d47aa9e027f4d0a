"""`longtake datasets`: what datasets a store holds; unfinished ones say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longtake.datasets.dataset import dataset_names
from longtake.errors import UserError
from longtake.jobs.display.show import show, store_to_show
from longtake.jobs.display.table_formats import size
from longtake.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("dataset", "episodes", "frames", "shape", "fps", "pose", "size", "runs", "about")


def main(store: str, format: str | None = None, out: str | None = None) -> None:
    """The command."""
    place = store_to_show(store, format, out)
    frame = overview(place)
    show(frame, format, out)
    if frame.empty:
        import sys

        print(f"no dataset in store {place.uri} yet: longtake collect, or longtake ingest", file=sys.stderr)


def overview(store: Store) -> pd.DataFrame:
    """A line per dataset; `runs` is how many were trained on it, alone or as the first of several."""
    import pandas as pd

    runs = store.table("runs")
    used = runs.dataset_name.value_counts().to_dict() if "dataset_name" in runs else {}
    whole = set(dataset_names(store))
    names = sorted(path.strip("/").rpartition("/")[2] for path in store.list("datasets"))
    lines = [_line(store, name, name in whole) | {"runs": int(used.get(name, 0))} for name in names]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _line(store: Store, name: str, whole: bool) -> dict[str, Any]:
    if not whole:
        return {"dataset": name, "size": size(sum(store.sizes(f"datasets/{name}").values())), "about": "unfinished"}
    try:
        dataset = store.dataset(name)
        manifest = dataset.manifest
    except UserError as error:
        return {"dataset": name, "about": error.lines[0]}
    about = f"latents of {manifest.latents.dataset}" if manifest.latents else str(manifest.recipe.get("source", ""))
    return {
        "dataset": name,
        "episodes": sum(manifest.splits.values()),
        "frames": manifest.frames,
        "shape": "x".join(map(str, dataset.frame_shape)),
        "fps": manifest.fps,
        "pose": "yes" if dataset.has_pose else "no",
        "size": size(manifest.bytes),
        "about": about,
    }
