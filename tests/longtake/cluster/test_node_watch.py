"""What is said when nodes come and go."""

from __future__ import annotations

from dataclasses import replace

from longtake.cluster.demand import Demand
from longtake.cluster.node_watch import IDLE, TAKEN, Node, Watch
from longtake.tuning.sweep_demand import SweepDemand

HEAD = Node("h", "10.0.0.1", True, 0, 0)
ONE, TWO = Node("a", "10.0.0.2", True, 2, 0), Node("b", "10.0.0.3", True, 2, 0)
GONE = replace(TWO, alive=False, cpus=0, reason=2, message="health check failed")
TRAINING = Demand(2)


def nodes(*there: Node) -> dict[str, Node]:
    return {node.id: node for node in there}


def watch(need: Demand | None = TRAINING) -> Watch:
    return Watch(need, nodes(HEAD, ONE, TWO))


def test_nothing_is_said_of_nodes_that_stay() -> None:
    assert watch().look(nodes(HEAD, ONE, TWO)) == []


def test_what_is_left_is_enough() -> None:
    (line,) = watch().look(nodes(HEAD, ONE, GONE))
    assert line == ("node 10.0.0.3 (2 CPUs) is lost (health check failed); the job goes on with 1 node with 2 CPUs")


def test_what_is_left_is_too_little_until_another_comes() -> None:
    seen = watch(Demand(3))
    (line,) = seen.look(nodes(HEAD, ONE, GONE))
    assert "the job waits for more: 3 workers x" in line and "= 3 CPUs, the cluster has 2" in line
    assert seen.look(nodes(HEAD, ONE, GONE)) == []
    (line,) = seen.look(nodes(HEAD, ONE, GONE, Node("c", "10.0.0.3", True, 2, 1)))
    assert line == "node 10.0.0.3 (2 CPUs, 1 GPU) has come; the job goes on with 2 nodes with 4 CPUs, 1 GPU"


def test_a_sweep_goes_on_with_one_trial() -> None:
    for workers, words in ((2, "the job goes on with 1 node"), (3, "the job waits for more: 1 trials at once x 3")):
        assert words in watch(SweepDemand(workers, at_once=4)).look(nodes(HEAD, ONE, GONE))[0]


def test_no_node_is_left() -> None:
    lines = watch(None).look(nodes(HEAD, replace(ONE, alive=False), replace(TWO, alive=False)))
    assert all(line.endswith("the job waits for more: there is none to work") for line in lines) and len(lines) == 2


def test_a_job_that_begins_with_too_little_says_so() -> None:
    assert watch().begin() == []
    (line,) = Watch(TRAINING, nodes(HEAD)).begin()
    assert line == "the job waits for nodes: there is none to work"
    (line,) = Watch(Demand(3), nodes(HEAD, ONE)).begin()
    assert line.startswith("the job waits for nodes: 3 workers x")


def test_why_a_node_is_gone() -> None:
    for reason, words in ((IDLE, "had nothing to do and has ended"), (TAKEN, "was taken away as announced (spot)")):
        (line,) = watch().look(nodes(HEAD, ONE, replace(GONE, reason=reason)))
        assert words in line


def test_rays_numbers_of_reasons() -> None:
    from ray.core.generated.common_pb2 import NodeDeathInfo

    assert NodeDeathInfo.Reason.Value("AUTOSCALER_DRAIN_IDLE") == IDLE
    assert NodeDeathInfo.Reason.Value("AUTOSCALER_DRAIN_PREEMPTED") == TAKEN
