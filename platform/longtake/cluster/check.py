"""What is wrong with the file of a cluster, before it costs anything: all of it at once, one line per problem.

Ray's own check is one of the rules; it does not look at what the cloud is asked for, at versions, or at who may come
in. Nothing is asked over the network: node_config is held against the form of EC2's own call.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import json
import logging
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longtake.cluster.spec import ClusterFile, Group, strings
from longtake.errors import nearest, unknown

PLACEHOLDER = "CHANGE-ME"
TOKEN = "~/.ray/auth_token"
PIN = re.compile(r"(?<![\w./-])([A-Za-z][\w.-]*?)(?:\[[\w,]+\])?==([\w.]+)")
RAY_IMAGE = re.compile(r"\bray:(\d+\.\d+\.\d+)")
SECRET = re.compile(
    r"A(?:KI|SI)A[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|https?://[^/\s@]+@"
    r"|(?:secret_access_key|session_token|auth_token|password)[\"']?\s*[:=]\s*[\"']?[^\s\"'$~/{]{8,}",
    re.IGNORECASE,
)
OPEN_TO_ALL = re.compile(r"--dashboard-host[= ]\s*(?!127\.0\.0\.1|localhost)(\S+)")
MADE_WITH = ("ray", "torch")
"""What must be the same on every node and here, whoever installs it."""


def problems(file: ClusterFile) -> list[str]:
    """One line for each thing that is wrong; none if `ray up` may have the file."""
    own = {"aws": _aws, "local": _local, "kuberay": _kuberay}[file.form]
    rules = (_placeholders, _ray_schema, _groups, _versions, _access, own)
    return list(dict.fromkeys(line for rule in rules for line in rule(file)))


def notes(file: ClusterFile) -> list[str]:
    """What is allowed, and worth a second look."""
    machines = (file.document.get("metadata") or {}).get("machines") or {}
    small = [
        f"{group.name}: {machine['gpu_gb']} GB cards; the shipped configs of 64 x 64 and above want 32 or more"
        for group in file.workers
        if (machine := machines.get(group.machine) or {}).get("gpu_gb", 32) < 32
    ]
    kept = [f"{group.name}: {group.least} stay on when nothing runs" for group in file.workers if group.least]
    return small + (kept if file.form != "local" else [])


# --- for every form -----------------------------------------------------------------------------------------


def _placeholders(file: ClusterFile) -> Iterator[str]:
    """Each once, where it stands first: what is named with & is repeated wherever its name has a *."""
    seen: set[str] = set()
    for document in (file.document, *file.others):
        for path, text in strings(document):
            if PLACEHOLDER in text and text not in seen:
                seen.add(text)
                yield f"{path}: {' '.join(text.split())!r} is not set yet: replace {PLACEHOLDER}"


def _ray_schema(file: ClusterFile) -> Iterator[str]:
    """Ray's form of a file; a wrong field with the nearest right one."""
    import jsonschema
    import ray.autoscaler

    if file.form == "kuberay":
        yield from _ray_reads(file)
        return
    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text(encoding="utf-8"))
    wrong = sorted(jsonschema.Draft7Validator(schema).iter_errors(file.document), key=lambda one: str(one.path))
    for error in wrong:
        where = ".".join(str(part) for part in error.absolute_path) or "the file"
        allowed = error.schema.get("properties", {})
        if error.validator == "additionalProperties" and allowed:
            for name in sorted(set(error.instance) - set(allowed)):
                yield f"{where}: {unknown('field', str(name), allowed)}"
        else:
            yield f"{where}: {error.message}"
    if not wrong:
        yield from _ray_reads(file)


def _ray_reads(file: ClusterFile) -> Iterator[str]:
    """What Ray itself makes of the file, with its defaults filled in."""
    from ray.autoscaler._private.kuberay import autoscaling_config as kuberay
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.disable(logging.INFO)  # about the defaults that it fills in
    try:
        if file.form == "kuberay":
            manifest = copy.deepcopy(file.document)
            manifest["metadata"].setdefault("namespace", "default")
            kuberay._derive_autoscaling_config_from_ray_cr(manifest)
        else:
            validate_config(prepare_config(copy.deepcopy(file.document)))
    except Exception as error:
        yield f"Ray refuses the file: {' '.join(str(error).split()) or type(error).__name__}"
    finally:
        logging.disable(logging.NOTSET)


def _groups(file: ClusterFile) -> Iterator[str]:
    """Limits of the groups and of the whole."""
    if not file.workers:
        yield "there is no group of workers"
    for group in file.workers:
        if not 0 <= group.least <= group.most or not group.most:
            yield f"{group.name}: at least {group.least} and at most {group.most} nodes: no node could ever start"
    total = sum(group.most for group in file.workers)
    if total > file.max_workers:
        parts = " + ".join(f"{group.most} {group.name}" for group in file.workers)
        yield f"max_workers is {file.max_workers}, its groups want up to {parts} = {total}: raise it, or lower theirs"
    if file.idle_minutes <= 0:
        yield f"the idle time-out is {file.idle_minutes:g} minutes: a node would end before its first task"
    if file.form != "local" and (file.head.cpus != 0 or file.head.gpus):
        had = (
            "all CPUs of the machine"
            if file.head.cpus is None
            else f"{file.head.cpus:g} CPUs and {file.head.gpus or 0:g} GPUs"
        )
        yield f"{file.head.name}: {had} on the head: tasks there can end the whole cluster with it; set CPU: 0"


def _versions(file: ClusterFile) -> Iterator[str]:
    """Every pin once, in all groups the same, and the same as here."""
    pins: dict[str, dict[str, list[str]]] = {}
    for group in file.groups:
        for name, version in _pinned(group, file):
            pins.setdefault(name, {}).setdefault(version, []).append(group.name)
    for name, versions in sorted(pins.items()):
        if len(versions) > 1:
            listed = ", ".join(f"{version} in {' and '.join(dict.fromkeys(at))}" for version, at in versions.items())
            yield f"{name} has several versions: {listed}"
        here = _version_here(name)
        for version in versions:
            if here is not None and version != here:
                yield f"{name}=={version} on the cluster, here it is {here}: make them the same"
    for group in file.groups:
        if not any(name == "ray" for name, _ in _pinned(group, file)):
            yield f"{group.name}: nothing installs a pinned ray (ray[...]=={_version_here('ray')})"
    yield from _requirements()


def _pinned(group: Group, file: ClusterFile) -> Iterator[tuple[str, str]]:
    """(package, version) of what a group's nodes install, or of the image that its pods are."""
    for command in group.commands:
        for name, version in PIN.findall(command):
            yield name.lower().replace("_", "-"), version
        yield from (("ray", version) for version in RAY_IMAGE.findall(command))
    if file.form == "kuberay":
        yield "ray", str(file.document["spec"].get("rayVersion"))


def _version_here(name: str) -> str | None:
    """What is installed here, without the build's name (2.13.0+cpu is 2.13.0); None if it is not."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> Iterator[str]:
    """The nodes take what requirements.txt of the same commit says; this machine may have been set up by another."""
    path = Path(__file__).resolve().parents[3] / "requirements.txt"
    if not path.is_file():
        return
    pinned = dict(line.split("==") for line in path.read_text(encoding="utf-8").splitlines() if "==" in line)
    for name in MADE_WITH:
        if pinned.get(name) != _version_here(name):
            yield f"requirements.txt pins {name}=={pinned.get(name)}, here it is {_version_here(name)}: run make setup"


def _access(file: ClusterFile) -> Iterator[str]:
    """Who may come in: nobody without the token, and nobody but by ssh."""
    if SECRET.search(file.text):
        yield "the file holds what looks like a key, token or password: nodes get theirs from profiles and file_mounts"
    if file.form == "kuberay":
        return
    for group in file.groups:
        joined = "\n".join(group.commands)
        for address in OPEN_TO_ALL.findall(joined):
            yield f"{group.name}: the dashboard on {address} is open to the network: --dashboard-host=127.0.0.1"
        if "RAY_AUTH_MODE=token" not in joined:
            yield f"{group.name}: no command sets RAY_AUTH_MODE=token: whoever reaches the node runs what they like"
        if f"chmod 600 {TOKEN}" not in joined:
            yield f"{group.name}: no command says chmod 600 {TOKEN}: other users of the node could read it"
    source = (file.document.get("file_mounts") or {}).get(TOKEN)
    if source is None:
        yield f"file_mounts has no {TOKEN}: the nodes would not know the cluster's token"
    else:
        yield from _token_problems(Path(source).expanduser())


def _token_problems(path: Path) -> Iterator[str]:
    """The token's file on this machine."""
    if not path.is_file():
        yield f"{path} is missing: make it with: longtake cluster token"
    elif stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield f"{path} can be read by other users: chmod 600 {path}"
    elif len(path.read_text(encoding="utf-8").strip()) < 32:
        yield f"{path} holds less than 32 characters: remove it, and make it with: longtake cluster token"


# --- AWS ----------------------------------------------------------------------------------------------------


def _aws(file: ClusterFile) -> Iterator[str]:
    """What Ray hands on to EC2 unseen, or guesses where nothing is said."""
    provider = file.document["provider"]
    if "security_group" in provider:
        yield "provider.security_group: Ray opens its ssh to the world; name your own in SecurityGroupIds"
    if provider.get("cache_stopped_nodes", True):
        yield "provider.cache_stopped_nodes: set it to false: a spot node cannot be stopped, and disks cost money"
    kinds = file.document["available_node_types"]
    nodes = {group.name: kinds[group.name]["node_config"] for group in file.groups}
    images = {str(node.get("ImageId")) for node in nodes.values()}
    if len(images) > 1:
        yield f"ImageId: {', '.join(sorted(images))}: one image for all nodes, or their Pythons differ"
    for group in file.groups:
        node = nodes[group.name]
        yield from _ec2_form(group.name, node)
        yield from _explicit(group.name, node)
        yield from _fits_machine(group, (file.document.get("metadata") or {}).get("machines") or {})
    profiles = {group.name: (nodes[group.name].get("IamInstanceProfile") or {}).get("Name") for group in file.groups}
    for name, profile in profiles.items():
        if name != file.head.name and profile is not None and profile == profiles[file.head.name]:
            yield f"{name}: IamInstanceProfile {profile} is the head's, which may start and end instances"


def _ec2_form(name: str, node: dict[str, Any]) -> Iterator[str]:
    """The fields of node_config, as EC2's call has them; a wrong name with the nearest right one."""
    from botocore.validate import ParamValidator

    shape = _ec2_call()
    report = ParamValidator().validate({**node, "MinCount": 1, "MaxCount": 1}, shape)
    for kind, where, more in report._errors:
        at = f"{name}.node_config{where}"
        if kind == "unknown field":
            yield f"{at}: unknown field {more['unknown_param']!r}{nearest(more['unknown_param'], more['valid_names'])}"
        else:
            yield f"{at}: {report._format_error((kind, '', more))}"
    machines = shape.members["InstanceType"].enum
    if node.get("InstanceType") not in machines:
        wrong = str(node.get("InstanceType"))
        yield f"{name}.node_config.InstanceType: EC2 has no {wrong!r}{nearest(wrong, machines)}"


@functools.cache
def _ec2_call() -> Any:
    """What EC2's call to start instances takes."""
    from botocore.session import Session

    return Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _explicit(name: str, node: dict[str, Any]) -> Iterator[str]:
    """What must be said, as what Ray or EC2 would take instead is old, open, or no access to the bucket."""
    at = f"{name}.node_config"
    if not node.get("ImageId"):
        yield f"{at}.ImageId is missing: Ray would take an image of 2018"
    if not (node.get("IamInstanceProfile") or {}).get("Name"):
        yield f"{at}.IamInstanceProfile is missing: the node could not reach the bucket"
    if not node.get("SecurityGroupIds"):
        yield f"{at}.SecurityGroupIds is missing: Ray would make a group whose ssh is open to the world"
    if (node.get("MetadataOptions") or {}).get("HttpTokens") != "required":
        yield f"{at}.MetadataOptions: set HttpTokens: required, or a forged request can read the profile's keys"
    disks = [disk.get("Ebs") or {} for disk in node.get("BlockDeviceMappings") or []]
    if not disks:
        yield f"{at}.BlockDeviceMappings is missing: the image's own disk is too small for the environment"
    if any(not disk.get("Encrypted") for disk in disks):
        yield f"{at}.BlockDeviceMappings: set Encrypted: true"
    if any(not disk.get("DeleteOnTermination") for disk in disks):
        yield f"{at}.BlockDeviceMappings: set DeleteOnTermination: true, or the disks go on costing money"


def _fits_machine(group: Group, machines: dict[str, Any]) -> Iterator[str]:
    """Resources are what the machine has: with more its tasks crowd each other, with less it is paid for nothing."""
    at = f"available_node_types.{group.name}"
    machine = machines.get(group.machine)
    if machine is None:
        yield f"{at}: metadata.machines has no {group.machine!r}{nearest(group.machine, machines)}: its CPUs and price"
        return
    price = "spot_usd" if group.market == "spot" else "usd"
    if machine.get(price) is None:
        yield f"metadata.machines.{group.machine}.{price} is missing: what {group.name} costs per hour"
    if not group.cpus and not group.gpus:
        return  # the head
    for unit, amount in (("CPU", group.cpus), ("GPU", group.gpus)):
        has = machine.get(f"{unit.lower()}s", 0)
        if amount != has:
            yield f"{at}.resources.{unit} is {amount or 0:g}, a {group.machine} has {has:g}"


# --- hosts of one's own, and Kubernetes ---------------------------------------------------------------------


def _local(file: ClusterFile) -> Iterator[str]:
    """Hosts that are named once, and what Ray's launcher needs to be told of them."""
    provider = file.document["provider"]
    hosts = [provider["head_ip"], *provider["worker_ips"]]
    for host in sorted({str(one) for one in hosts if hosts.count(one) > 1 and PLACEHOLDER not in str(one)}):
        yield f"provider: host {host} is named {hosts.count(host)} times"
    starts = "\n".join(file.document.get("head_start_ray_commands") or [])
    if "RAY_enable_autoscaler_v2=0" not in starts:
        yield "head_start_ray_commands: set RAY_enable_autoscaler_v2=0: the newer one leaves the last host unused"


def _kuberay(file: ClusterFile) -> Iterator[str]:
    """Tokens, a way in that is closed, and one image."""
    spec = file.document["spec"]
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield "spec.authOptions.mode must be token: whoever reaches the head's service would run what they like"
    kind = (spec.get("headGroupSpec") or {}).get("serviceType", "ClusterIP")
    if kind != "ClusterIP":
        yield f"spec.headGroupSpec.serviceType {kind} opens the dashboard to others: leave it ClusterIP"
    if (spec.get("headGroupSpec") or {}).get("enableIngress"):
        yield "spec.headGroupSpec.enableIngress opens the dashboard to others: use kubectl port-forward"
    images = {group.commands[0] for group in file.groups}
    if len(images) > 1:
        yield f"images {', '.join(sorted(images))}: one image for all pods, or their versions differ"
    if not spec.get("enableInTreeAutoscaling"):
        yield "spec.enableInTreeAutoscaling is off: no worker would ever start"
    for group in file.workers:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", group.name):
            yield f"groupName {group.name!r} cannot be part of a pod's name: small letters, digits and - only"
    for job in file.others:
        wanted = (job.get("spec") or {}).get("clusterSelector", {}).get("ray.io/cluster")
        if job.get("kind") == "RayJob" and wanted != file.document["metadata"]["name"]:
            yield f"RayJob: clusterSelector names {wanted!r}, the cluster is {file.document['metadata']['name']!r}"
