"""What a node of each type has that an autoscaler may add, from the cluster's file on a head that `ray up` made.

Where there is no such file, as in Kubernetes, nobody knows. The text of this module is also run by itself, on a head
(submission.py): it needs nothing of ours.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

FILE = "~/ray_bootstrap_config.yaml"
"""Where jobs run: on the head, in the home of the user that `ray up` came as."""


def kinds_of_nodes() -> list[dict[str, float]] | None:
    """CPU and GPU of a node of each type, and `most`: how many there may be; None if nobody knows."""
    file = Path(FILE).expanduser()
    if not file.is_file():
        return None
    types = yaml.safe_load(file.read_text())["available_node_types"].values()
    kinds = [{**one["resources"], "most": one.get("max_workers", 0)} for one in types]
    return [{name: kind.get(name, 0) for name in ("CPU", "GPU", "most")} for kind in kinds if kind["most"]]


if __name__ == "__main__":
    print(json.dumps(kinds_of_nodes()))
