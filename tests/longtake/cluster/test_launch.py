"""The arithmetic of workers against the machine."""

from __future__ import annotations

import os

import pytest

from longtake.cluster.demand import Demand
from longtake.cluster.launch import _own_path, launch, machine_cpus
from longtake.errors import UserError


def test_shows_its_arithmetic() -> None:
    assert Demand(4).problems(cpus=2, gpus=0) == [
        "4 workers x (0.5 CPU for the rank + 0.5 CPU for its data tasks) = 4 CPUs, this machine has 2: "
        "lower workers to 2"
    ]
    assert Demand(2).problems(cpus=2, gpus=0) == []


def test_names_every_resource_that_is_missing() -> None:
    need = Demand(4, cpus_per_worker=1, data_cpus_per_worker=0, gpus_per_worker=1)
    assert need.problems(2, 0, "the cluster") == [
        "4 workers x 1 CPU = 4 CPUs, the cluster has 2: lower workers to 2",
        "4 workers x 1 GPU = 4 GPUs, the cluster has 0: one worker needs 1 GPU",
    ]


def test_refuses_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    before = dict(os.environ)
    with pytest.raises(UserError, match="lower workers to"), launch(Demand(machine_cpus() + 1)):
        pass
    assert dict(os.environ) == before


def test_what_workers_import_is_told_as_ray_reads_it() -> None:
    """Bytes of the message, with a namespace and without the driver's path: as text a head that reads it dies."""
    from ray.core.generated.common_pb2 import JobConfig

    config = _own_path()
    config._py_driver_sys_path.append("here")
    read = JobConfig.FromString(config._serialize())
    assert read.ray_namespace and not read.py_driver_sys_path
