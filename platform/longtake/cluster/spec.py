"""The file that a cluster is made from, as groups of nodes and the commands that they run, whatever form it has.

Three forms: Ray's launcher on AWS (`provider: {type: aws}`), the launcher on hosts of one's own (`type: local`), and
the manifests of KubeRay. Prices are fields of the file: `metadata.machines` of a launcher's, which Ray does not read,
and the annotation longtake/usd-per-hour of a group's pods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.errors import UserError

HOURS_A_MONTH = 730
PRICE = "longtake/usd-per-hour"
LOCAL_GROUP = "workers"
GPU_RESOURCE = "nvidia.com/gpu"


@dataclass(frozen=True)
class Group:
    """Nodes of one kind: how many there may be, what each has and costs, and what it runs to become a node."""

    name: str
    least: int
    most: int
    cpus: float | None
    """What Ray is told that a node has; None if the node finds out itself."""
    gpus: float | None
    machine: str
    market: str
    usd_per_hour: float | None
    """Of one node, its disks included; None if the file does not say."""
    commands: tuple[str, ...]
    """Everything that is run to set up a node and to start Ray on it; of a pod its image, too."""


@dataclass(frozen=True)
class ClusterFile:
    """One file: `form` is aws, local or kuberay; the head is the first group, and there is always one of it."""

    path: Path
    form: str
    document: dict[str, Any]
    """The launcher's file, or the RayCluster of the manifests."""
    others: tuple[dict[str, Any], ...]
    """What else the file holds: the RayJob of the manifests."""
    text: str
    groups: tuple[Group, ...]
    max_workers: int
    idle_minutes: float

    @property
    def head(self) -> Group:
        """The node that is always there."""
        return self.groups[0]

    @property
    def workers(self) -> tuple[Group, ...]:
        """The groups that come and go."""
        return self.groups[1:]

    def usd_per_hour(self, full: bool) -> float | None:
        """What the cluster costs when it is idle, or full; None if a node of it has no price."""
        counts = [(group, group.most if full else group.least) for group in self.groups]
        if any(number and group.usd_per_hour is None for group, number in counts):
            return None
        return sum(number * (group.usd_per_hour or 0) for group, number in counts)


def read(path: Path) -> ClusterFile:
    """The file at `path`. Raises UserError if it is no cluster's file, or too unlike one to be read as such."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        documents = [one for one in yaml.safe_load_all(text) if one is not None]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not documents or not all(isinstance(one, dict) for one in documents):
        raise UserError(f"{path}: expected the fields of a cluster, such as cluster.yaml has them")
    try:
        return _kuberay(path, text, documents) if "apiVersion" in documents[0] else _launcher(path, text, documents)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        wrong = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{path} cannot be read as a cluster's file: {wrong}; cluster.yaml is an example") from None


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text below a value of YAML, keys not counted, with its dotted path."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from strings(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from strings(below, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value


# --- Ray's launcher -----------------------------------------------------------------------------------------


def _launcher(path: Path, text: str, documents: list[dict[str, Any]]) -> ClusterFile:
    document = documents[0]
    form = document["provider"]["type"]
    if form not in ("aws", "local"):
        raise UserError(f"{path}: provider.type {form!r}: this platform has files for aws and local, and for KubeRay")
    groups = _aws_groups(document) if form == "aws" else _local_groups(document)
    return ClusterFile(
        path=path,
        form=form,
        document=document,
        others=tuple(documents[1:]),
        text=text,
        groups=groups,
        max_workers=int(document.get("max_workers", len(document["provider"].get("worker_ips", [])))),
        idle_minutes=float(document.get("idle_timeout_minutes", 5)),
    )


def _aws_groups(document: dict[str, Any]) -> tuple[Group, ...]:
    kinds = document["available_node_types"]
    head = document["head_node_type"]
    if head not in kinds:
        raise ValueError(f"head_node_type {head!r} is none of available_node_types: {', '.join(kinds)}")
    ordered = [head, *(name for name in kinds if name != head)]
    return tuple(_aws_group(document, name, name == head) for name in ordered)


def _aws_group(document: dict[str, Any], name: str, is_head: bool) -> Group:
    kind = document["available_node_types"][name]
    node = kind["node_config"]
    spot = (node.get("InstanceMarketOptions") or {}).get("MarketType") == "spot"
    machine = str(node.get("InstanceType", ""))
    resources = kind.get("resources") or {}
    return Group(
        name=name,
        least=1 if is_head else int(kind.get("min_workers", 0)),
        most=1 if is_head else int(kind.get("max_workers", document.get("max_workers", 0))),
        cpus=resources.get("CPU"),
        gpus=resources.get("GPU", 0) if resources else None,
        machine=machine,
        market="spot" if spot else "on-demand",
        usd_per_hour=_aws_price(document.get("metadata") or {}, node, machine, spot),
        commands=_launcher_commands(document, "head" if is_head else "worker", kind.get("worker_setup_commands")),
    )


def _aws_price(metadata: dict[str, Any], node: dict[str, Any], machine: str, spot: bool) -> float | None:
    """Machine and disks, in USD per hour."""
    price = ((metadata.get("machines") or {}).get(machine) or {}).get("spot_usd" if spot else "usd")
    disks = node.get("BlockDeviceMappings") or []
    stored_gb: float = sum((disk.get("Ebs") or {}).get("VolumeSize", 0) for disk in disks)
    each = metadata.get("disk_usd_per_gb_month")
    if price is None or (stored_gb and each is None):
        return None
    return float(price) + stored_gb * float(each or 0) / HOURS_A_MONTH


def _local_groups(document: dict[str, Any]) -> tuple[Group, ...]:
    provider = document["provider"]
    hosts = list(provider["worker_ips"])
    least = int(document.get("min_workers", len(hosts)))

    most = min(len(hosts), int(document.get("max_workers", len(hosts))))
    head = _launcher_commands(document, "head", None)
    worker = _launcher_commands(document, "worker", None)
    return (
        Group("head", 1, 1, None, None, str(provider["head_ip"]), "own", None, head),
        Group(LOCAL_GROUP, least, most, None, None, ", ".join(map(str, hosts)), "own", None, worker),
    )


def _launcher_commands(document: dict[str, Any], who: str, own: list[str] | None) -> tuple[str, ...]:
    """In Ray's order. A node type's own worker_setup_commands replace the common ones."""
    common = [*(document.get("setup_commands") or []), *(document.get(f"{who}_setup_commands") or [])]
    return (
        *(document.get("initialization_commands") or []),
        *(common if own is None else own),
        *(document.get(f"{who}_start_ray_commands") or []),
    )


# --- KubeRay ------------------------------------------------------------------------------------------------


def _kuberay(path: Path, text: str, documents: list[dict[str, Any]]) -> ClusterFile:
    cluster = next((one for one in documents if one.get("kind") == "RayCluster"), None)
    if cluster is None:
        raise ValueError("none of its manifests is a RayCluster")
    spec = cluster["spec"]
    groups = (
        _pods("head", spec["headGroupSpec"], 1, 1),
        *(_pods(one["groupName"], one, one["minReplicas"], one["maxReplicas"]) for one in spec["workerGroupSpecs"]),
    )
    return ClusterFile(
        path=path,
        form="kuberay",
        document=cluster,
        others=tuple(one for one in documents if one is not cluster),
        text=text,
        groups=groups,
        max_workers=sum(group.most for group in groups[1:]),
        idle_minutes=(spec.get("autoscalerOptions") or {}).get("idleTimeoutSeconds", 60) / 60,
    )


def _pods(name: str, spec: dict[str, Any], least: int, most: int) -> Group:
    template = spec["template"]
    container = template["spec"]["containers"][0]
    limits = (container.get("resources") or {}).get("limits") or {}
    parameters = spec.get("rayStartParams") or {}
    price = ((template.get("metadata") or {}).get("annotations") or {}).get(PRICE)
    cpus = parameters.get("num-cpus", limits.get("cpu"))
    return Group(
        name=name,
        least=least,
        most=most,
        cpus=None if cpus is None else float(cpus),
        gpus=float(limits.get(GPU_RESOURCE, 0)),
        machine=str((template["spec"].get("nodeSelector") or {}).get("node.kubernetes.io/instance-type", "pod")),
        market=str((spec.get("labels") or {}).get("market", "on-demand")),
        usd_per_hour=None if price is None else float(price),
        commands=(container["image"], *container.get("command", []), *container.get("args", [])),
    )
