"""Two ranks save, seal and resume as one, in a folder and on S3, without Ray."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from longtake.storage.store import Store, open_store
from longtake.training import checkpoints
from longtake.training.context import LocalContext
from longtake.training.engine_config import EngineConfig
from tests.longtake.training import toy_loop
from tests.longtake.training.test_engine import spawn
from tests.longtake.training.toy_loop import STEPS, Toy

RUN = "toy"


class RankContext(LocalContext):
    """One rank of a group that the test has made."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        super().__init__(store, RUN, device="cpu")
        self.rank, self.world = rank, world

    def require_lease(self) -> None:
        """One process holds it for all, as a driver does."""
        if self.rank == 0:
            super().require_lease()


def train(rank: int, meet: str, uri: str, world: int, fail_step: int = -1) -> None:
    """The toy run, up to where it fails."""
    logging.disable()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    try:
        toy_loop.loop(RankContext(open_store(uri), rank, world), Toy(EngineConfig(zero=1), fail_step=fail_step))
    except ValueError:
        assert fail_step >= 0
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("where", ["folder", "s3"])
def test_ranks_pass_over_rot_together_and_end_alike(tmp_path: Path, bucket: str, where: str) -> None:
    roots = [str(tmp_path / name) if where == "folder" else f"{bucket}/{name}" for name in ("straight", "broken")]
    straight, broken = (open_store(root) for root in roots)
    spawn(train, 2, str(tmp_path / "meet0"), straight.uri, 2)
    spawn(train, 2, str(tmp_path / "meet1"), broken.uri, 2, 10)
    told = checkpoints.manifest(broken, RUN, 8)
    assert told["world"] == 2 and {"rng-00000.json", "rng-00001.json", "model.safetensors"} <= told["files"].keys()
    rotten = f"{checkpoints.folder(RUN, 8)}/ds/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    data = broken.read_bytes(rotten)
    broken.write_bytes(rotten, data[: len(data) // 2] + b"?" + data[len(data) // 2 + 1 :])
    spawn(train, 2, str(tmp_path / "meet2"), broken.uri, 2)
    last = f"{checkpoints.folder(RUN, STEPS)}/model.safetensors"
    assert broken.read_bytes(last) == straight.read_bytes(last)
    for step in (8, STEPS):
        checkpoints.require_whole(broken, RUN, step)
