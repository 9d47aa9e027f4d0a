"""Clips through mosaicml-streaming, timed: run by a Python that has it, as `mosaic.py` says.

It imports nothing of ours but the decoder of videos, so that both sides have the same one.
Arguments: the folder or s3:// place of its shards, an empty folder to work in, frames per clip, clips per batch, codec.
Each line on stdin is answered by one on stdout, which begins with `ok`:

    write FILE        append the clips of an episode: an .npz with frames, actions and pose
    finish            no more episodes; bytes of the shards, as they are stored
    cold              forget every shard that was read, then go through all clips once; clips, seconds
    warm SKIP COUNT   go on, epoch after epoch; clips, seconds of COUNT batches after SKIP

A cold epoch counts from when its first batch is asked for, which waits for most of the shards, as shuffled clips do;
the start of two forked workers is in it, and of little weight in an epoch of seconds.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

sys.path.append(str(Path(__file__).parents[3]))
from longtake.datasets import video

WORKERS = 2


class Videos(StreamingDataset):  # type: ignore[misc]
    """Samples whose frames are a video of that many frames."""

    def __init__(self, shape: tuple[int, ...], **settings: Any) -> None:
        super().__init__(**settings)
        self.shape = shape

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        frames = np.empty(self.shape, np.uint8)
        video.decode(sample["frames"], len(frames), 0, frames)
        return {**sample, "frames": frames}


class Side:
    """One dataset: written, and then read again and again."""

    def __init__(self, place: str, scratch: str, clip: str, clips: str, codec: str) -> None:
        self.place, self.scratch, self.clip, self.clips = place, scratch, int(clip), int(clips)
        self.video = codec == "video"
        self.shape: tuple[int, ...] = ()
        self.writer: Any = None
        self.batches: Iterator[Any] = iter(())

    def write(self, file: str) -> tuple[()]:
        """Cut an episode at every multiple of the clip's length: a sample is a clip, and can begin nowhere else."""
        with np.load(file) as arrays:
            episode = {name: arrays[name] for name in ("frames", "actions", "pose")}
        if self.writer is None:
            shapes = {name: (self.clip, *array.shape[1:]) for name, array in episode.items()}
            columns = {n: f"ndarray:{episode[n].dtype}:{','.join(map(str, s))}" for n, s in shapes.items()}
            self.shape = shapes["frames"]
            if self.video:
                columns["frames"] = "bytes"
            self.writer = MDSWriter(out=self.place, columns=columns, compression=None if self.video else "zstd")
        for start in range(0, len(episode["frames"]) - self.clip + 1, self.clip):
            sample: dict[str, Any] = {name: array[start : start + self.clip] for name, array in episode.items()}
            if self.video:
                sample["frames"] = video.encode(sample["frames"])
            self.writer.write(sample)
        return ()

    def finish(self) -> tuple[int]:
        """Close the last shard."""
        self.writer.finish()
        return (sum((shard["zip_data"] or shard["raw_data"])["bytes"] for shard in self.writer.shards),)

    def cold(self) -> tuple[int, float]:
        """All clips once, by a reader that has nothing yet."""
        self.batches = iter(())  # ends the workers of the one before
        dataset = self.fresh()
        for stream in dataset.streams:
            # Forked with the connection that fetched the index, both workers would talk to S3 through it: each gets
            # the other's shards, or waits for ever.
            stream._downloader.clean_up()
        loader = StreamingDataLoader(
            dataset, batch_size=self.clips, num_workers=WORKERS, persistent_workers=True, drop_last=False
        )
        timing = timed(loader)
        self.batches = itertools.chain.from_iterable(itertools.repeat(loader))
        return timing

    def fresh(self) -> Any:
        """The dataset, nothing of it unpacked: from a folder in place, from S3 through an empty cache."""
        if self.place.startswith("s3://"):
            for old in Path(self.scratch).iterdir():
                shutil.rmtree(old)
            empty = tempfile.mkdtemp(dir=self.scratch)
            return self.opened(remote=self.place, local=empty)
        if not self.video:
            for unpacked in Path(self.place).glob("*.mds"):
                unpacked.unlink()
        return self.opened(local=self.place)

    def opened(self, **where: str) -> Any:
        """Its clips, shuffled."""
        settings = {"shuffle": True, "batch_size": self.clips, **where}
        return Videos(self.shape, **settings) if self.video else StreamingDataset(**settings)

    def warm(self, skip: str, count: str) -> tuple[int, float]:
        """What was made ready before is taken first, and not counted."""
        for batch in itertools.islice(self.batches, int(skip)):
            looked_at(batch)
        return timed(itertools.islice(self.batches, int(count)))


def timed(batches: Iterable[Any]) -> tuple[int, float]:
    """Clips and seconds of these batches, every frame looked at."""
    began = time.perf_counter()
    clips = sum(looked_at(batch) for batch in batches)
    return clips, time.perf_counter() - began


def looked_at(batch: Any) -> int:
    """Clips in a batch."""
    batch["frames"].numpy().max()
    return len(batch["frames"])


def main() -> None:
    """Answer lines until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    side = Side(*sys.argv[1:])
    print("ok", file=answers, flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        print("ok", *getattr(side, command)(*arguments), file=answers, flush=True)


if __name__ == "__main__":
    main()
