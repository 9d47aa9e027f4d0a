"""Nodes that come and go while a job runs on a cluster: one line each, with what is left and what the job does now."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longtake.cluster.demand import in_words

if TYPE_CHECKING:
    from longtake.cluster.demand import Demand

POLL_S = 1.0
GROUP, HOSTS = "ray.io/node-group", "local.cluster.node"
"""The label in which a launcher of nodes says of which type one is; this type are hosts of one's own."""
TAKEN, IDLE = 3, 4
"""Why Ray says a node is gone (NodeDeathInfo): a spot interruption that was announced, and an autoscaler's tidying."""


@dataclass(frozen=True)
class Node:
    """A node as Ray knows it; `reason` and `told` are why it is gone."""

    id: str
    address: str
    alive: bool
    cpus: float
    gpus: float
    reason: int = 0
    message: str = ""

    @property
    def has(self) -> str:
        """Its CPUs and GPUs in words."""
        return in_words(self.cpus, self.gpus)


class Watch:
    """What has changed since the last look, in lines for the user."""

    def __init__(self, need: Demand | None, nodes: Mapping[str, Node]) -> None:
        self._need = need.least if need else None
        self._known = dict(nodes)

    def begin(self) -> list[str]:
        """A line if what is there is too little."""
        missing = self._missing([node for node in self._known.values() if node.alive])
        return [f"the job waits for nodes: {'; '.join(missing)}"] if missing else []

    def look(self, nodes: Mapping[str, Node]) -> list[str]:
        """A line per node that came or went."""
        before, self._known = self._known, dict(nodes)
        alive = [node for node in nodes.values() if node.alive]
        new = [node for node in alive if node.id not in before]
        gone = [node for node in nodes.values() if not node.alive and node.id in before and before[node.id].alive]
        # A node that is gone tells no more what it had.
        lines = [f"node {node.address} ({before[node.id].has}) {_why(node)}" for node in gone]
        lines += [f"node {node.address} ({node.has}) has come" for node in new]
        return [f"{line}; {self._now(alive)}" for line in lines]

    def _now(self, alive: list[Node]) -> str:
        if missing := self._missing(alive):
            return f"the job waits for more: {'; '.join(missing)}"
        working = [node for node in alive if node.cpus or node.gpus]
        count = f"{len(working)} {'node' if len(working) == 1 else 'nodes'}"
        return f"the job goes on with {count} with {in_words(*_sums(working))}"

    def _missing(self, alive: list[Node]) -> list[str]:
        cpus, gpus = _sums(alive)
        if not cpus and not gpus:
            return ["there is none to work"]
        return self._need.problems(cpus, gpus, "the cluster") if self._need else []


def _sums(nodes: Iterable[Node]) -> tuple[float, float]:
    present = list(nodes)
    return sum(node.cpus for node in present), sum(node.gpus for node in present)


def _why(node: Node) -> str:
    if node.reason == IDLE:
        return "had nothing to do and has ended"
    gone = "was taken away as announced (spot)" if node.reason == TAKEN else "is lost"
    return f"{gone} ({node.message})" if node.message else gone


@contextlib.contextmanager
def watch_nodes(need: Demand | None, say: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, say which nodes of the open Ray come and go. `need` is what the job cannot do without."""
    watch, ended = Watch(need, _nodes()), threading.Event()

    def work() -> None:
        while not ended.wait(POLL_S):
            with contextlib.suppress(Exception):  # a head that does not answer has its own errors elsewhere
                for line in watch.look(_nodes()):
                    say(line)

    for line in watch.begin():
        say(line)
    thread = threading.Thread(target=work, name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)


def autoscales(labels: Iterable[Mapping[str, str]]) -> bool:
    """Whether nodes of these labels are of a cluster whose autoscaler may add others."""
    return any(node_labels.get(GROUP, HOSTS) != HOSTS for node_labels in labels)


def _nodes() -> dict[str, Node]:
    import ray

    return {row["NodeID"]: _node(row) for row in ray.nodes()}  # type: ignore[no-untyped-call]


def _node(row: dict[str, Any]) -> Node:
    has = row["Resources"]
    why = row["DeathReason"], row["DeathReasonMessage"]
    return Node(row["NodeID"], row["NodeManagerAddress"], row["Alive"], has.get("CPU", 0), has.get("GPU", 0), *why)
