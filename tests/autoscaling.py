"""A sweep on a cluster that has no worker yet and makes them itself, as processes here; for test_autoscaler.py.

It is run in a PID and network namespace of its own: Ray's cluster ends with `ray stop`, which ends every Ray it sees.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from ray.cluster_utils import AutoscalingCluster

WORKER = {
    "resources": {"CPU": 1, "object_store_memory": 100_000_000},
    "node_config": {},
    "min_workers": 0,
    "max_workers": 3,
}
COMMANDS = (
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
)


class Growing(AutoscalingCluster):  # type: ignore[misc]
    """Ray's own, without the example file, which the wheel lacks; so do the defaults of the newer autoscaler."""

    def _generate_config(self, head: Any, workers: Any, autoscaler_v2: bool = False, **more: Any) -> dict[str, Any]:
        provider = {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        return {
            "cluster_name": "fake",
            "max_workers": 3,
            "provider": provider,
            "head_node_type": "head",
            "auth": {},
            "upscaling_speed": 1.0,
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{name: [] for name in COMMANDS},
            "available_node_types": {**workers, "head": {"resources": head, "node_config": {}, "max_workers": 0}},
            **more,
        }


def main(*command: str) -> int:
    """Run a command there; its exit code."""
    cluster = Growing(
        head_resources={"CPU": 0, "object_store_memory": 100_000_000},
        worker_node_types={"worker": WORKER},
        idle_timeout_minutes=5,
    )
    try:
        cluster.start(override_env={"RAY_NODE_TYPE_NAME": "head"})  # as `ray up` does
        done = subprocess.run(command, env=os.environ | {"RAY_ADDRESS": "auto"}, timeout=400)
    finally:
        cluster.shutdown()
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
