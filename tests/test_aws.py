"""`make cluster`, on AWS: cluster.yaml makes a cluster of a simulated EC2, which grows, loses a spot node, and goes."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import re
import shlex
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests import hosts as fleet
from tests.ec2 import OF_THE_ROLE, REACH, Ec2, ec2
from tests.hosts import CODE, LAPTOP, ROOT, ask, background, here, until

pytestmark = [pytest.mark.hosts, pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

FILE = ROOT / "cluster.yaml"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
DASHBOARD = "http://127.0.0.1:8265"
STORE = "s3://bucket/longtake"
KEYS = {"aws_access_key_id": "planted-id-of-a-key", "aws_secret_access_key": "planted-secret-of-a-key"}
HEAD_PROFILE, WORKER_PROFILE = "mine-longtake-head", "mine-longtake-worker"
NO_WAY_OUT = "an address of moto's would be a stranger's; ssh goes to the private ones"
FASTER = "nodes are idle for 20 s, not for 5 minutes, before they end"
IS_THERE = "the image has git, Python and the environment"
SIMULATED = {
    "provider.use_internal_ips": NO_WAY_OUT,
    "auth.ssh_user": "a host of namespaces has only root",
    "idle_timeout_minutes": FASTER,
    "initialization_commands": IS_THERE,
    "setup_commands": IS_THERE,
    "available_node_types.gpu_spot.worker_setup_commands": IS_THERE,
    "available_node_types.gpu_on_demand.worker_setup_commands": IS_THERE,
}
"""All that the simulated cluster has otherwise than the file that a user fills in, and why."""
HOLD = """
import sys, time, boto3, ray
from botocore.exceptions import ClientError
ray.init(address="auto", log_to_driver=False)
@ray.remote(num_gpus=1, max_retries=3)
def hold():
    bucket = boto3.client("s3")
    while True:
        try:
            bucket.head_object(Bucket="bucket", Key="enough")
            return ray.util.get_node_ip_address()
        except ClientError:
            time.sleep(1)
print(sorted(ray.get([hold.remote() for _ in range(int(sys.argv[1]))])))
"""
"""Tasks that need a card each, until there is an object in the bucket, which their nodes' profile lets them see."""


# --- the file -------------------------------------------------------------------------------------------------


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Dotted path → value; a list is one value."""
    if not isinstance(tree, dict):
        return {path: tree}
    below = [leaves(value, f"{path}.{key}" if path else str(key)) for key, value in tree.items()]
    return {name: value for one in below for name, value in one.items()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """The paths at which two files differ."""
    old, new = leaves(before), leaves(after)
    return {path for path in old.keys() | new.keys() if path not in old or path not in new or old[path] != new[path]}


def filled_in(text: str, group: str) -> str:
    """cluster.yaml as its user fills it in."""
    for before, after in (
        ("ami-CHANGE-ME", "ami-0123456789abcdef0"),
        ("sg-CHANGE-ME", group),
        ("CHANGE-ME-longtake-head", HEAD_PROFILE),
        ("CHANGE-ME-longtake-worker", WORKER_PROFILE),
        ("https://CHANGE-ME/longtake.git LONGTAKE_REVISION=CHANGE-ME", "https://git.test/l.git LONGTAKE_REVISION=main"),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


def simulated(cluster: dict[str, Any]) -> dict[str, Any]:
    """A filled-in file for instances that are hosts of namespaces: SIMULATED is all that is changed."""
    made = copy.deepcopy(cluster)
    made["provider"]["use_internal_ips"] = True
    made["auth"]["ssh_user"] = "root"
    made["idle_timeout_minutes"] = 1 / 3
    made["initialization_commands"] = []
    made["setup_commands"] = without_installing(cluster["setup_commands"])
    for name in ("gpu_spot", "gpu_on_demand"):
        kind = made["available_node_types"][name]
        kind["worker_setup_commands"] = without_installing(kind["worker_setup_commands"])
    return made


def without_installing(commands: list[str]) -> list[str]:
    """The same lines; those that fetch, install and need a card are read by `cluster check`, and do nothing."""
    return [
        f": {shlex.quote(line)}" if re.search("git clone|pip install|nvidia-smi|bench step", line) else line
        for line in commands
    ]


def make_group(cloud: Ec2, text: str) -> str:
    """The security group, by the very commands that cluster.yaml tells; returns its id."""
    told = re.findall(r"^ *# +aws ec2 (\S+)(.*?)(?: # .*)?$", text, re.MULTILINE)
    made = ""
    for operation, line in told:
        options = dict(re.findall(r"--([\w-]+)[ =](\S+)", line))
        if operation == "create-security-group":
            name, about = options.pop("group-name"), options.pop("description")
            answer = cloud.ask("ec2", "create_security_group", GroupName=name, Description=about, VpcId=cloud.network)
            made = answer["GroupId"]
        elif operation == "authorize-security-group-ingress":
            assert options.pop("group-id") == "ID"
            rule: dict[str, Any] = {"IpProtocol": options.pop("protocol")}
            if "port" in options:
                rule["FromPort"] = rule["ToPort"] = int(options.pop("port"))
            if "cidr" in options:
                rule["IpRanges"] = [{"CidrIp": options.pop("cidr").replace("CHANGE-ME", LAPTOP)}]
            if options.pop("source-group", None) == "ID":
                rule["UserIdGroupPairs"] = [{"GroupId": made}]
            cloud.ask("ec2", "authorize_security_group_ingress", GroupId=made, IpPermissions=[rule])
        else:
            continue
        assert not options, options
    return made


# --- the account and the laptop -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud() -> Iterator[Ec2]:
    """An account with a bucket and two instance profiles, and a laptop that has the account's keys in a file."""
    if reason := fleet.missing() or (None if shutil.which("nft") else "missing: nft"):
        pytest.fail(reason) if os.environ.get("LONGTAKE_MUST_RUN") else pytest.skip(reason)
    profile = "export RAY_START_EXTRA='--node-ip-address={address} --object-store-memory=100000000'\n"
    with fleet.hosts({}, "") as laptop, ec2(laptop, profile) as made:
        keys = laptop.home / ".aws" / "credentials"
        keys.parent.mkdir()
        keys.write_text("[default]\n" + "".join(f"{name} = {value}\n" for name, value in KEYS.items()))
        keys.chmod(0o600)
        made.ask("s3", "create_bucket", Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        for name in (HEAD_PROFILE, WORKER_PROFILE):
            made.ask("iam", "create_role", RoleName=name, AssumeRolePolicyDocument='{"Version": "2012-10-17"}')
            made.ask("iam", "create_instance_profile", InstanceProfileName=name)
            made.ask("iam", "add_role_to_instance_profile", InstanceProfileName=name, RoleName=name)
        yield made


def longtake(cloud: Ec2, *arguments: str, limit: float = 600) -> str:
    return here(cloud.laptop.on_laptop(sys.executable, "-m", "longtake.jobs", *arguments, **(CODE | REACH)), limit)


def ray(cloud: Ec2, *arguments: str, limit: float = 300) -> str:
    token = {"RAY_AUTH_MODE": "token"}
    return here(cloud.laptop.on_laptop(*RAY, *arguments, **(REACH | token)), limit)


def alive(cloud: Ec2, *machines: str) -> dict[str, str]:
    """Instance id → address, of the workers; they are of these types, and Ray has them as nodes, and no others."""
    workers = {id_: one for id_, one in cloud.instances().items() if one["InstanceType"] != "m7i.2xlarge"}
    assert sorted(one["InstanceType"] for one in workers.values()) == sorted(machines)
    addresses = {id_: str(one["PrivateIpAddress"]) for id_, one in workers.items()}
    nodes = [node for node in ask(cloud.laptop, "nodes") if node["state"] == "ALIVE"]
    assert sorted(node["node_ip"] for node in nodes if not node["is_head_node"]) == sorted(addresses.values())
    return addresses


# --- the test -------------------------------------------------------------------------------------------------


def test_up_from_none_to_two_a_spot_node_lost_and_down(cloud: Ec2) -> None:
    laptop = cloud.laptop
    longtake(cloud, "cluster", "token")
    group = make_group(cloud, FILE.read_text())
    shipped, filled = yaml.safe_load(FILE.read_text()), yaml.safe_load(filled_in(FILE.read_text(), group))
    assert changed(shipped, filled) == {path for path, value in leaves(shipped).items() if "CHANGE-ME" in str(value)}
    cluster = simulated(filled)
    assert changed(filled, cluster) == set(SIMULATED)
    path = laptop.home / "cluster.yaml"
    path.write_text(yaml.dump(cluster, sort_keys=False))
    assert "USD per hour: 0.43 idle, 16.22 full" in longtake(cloud, "cluster", "check", str(path))
    began = time.monotonic()
    ray(cloud, "up", "-y", "--no-config-cache", str(path))
    print(f"ray up: {time.monotonic() - began:.0f} s")
    try:
        assert [one["InstanceType"] for one in cloud.instances().values()] == ["m7i.2xlarge"]
        with background(laptop.on_laptop(*RAY, "dashboard", "-p", "8265", str(path), **REACH)):
            until(lambda: alive(cloud), 120)
            a_verb_brings_a_data_node(cloud)
            two_cards_and_a_spot_node_lost(cloud)
            only_ssh_is_open(cloud)
            hold(cloud, "waits", tasks=3)
    finally:
        began = time.monotonic()
        told = ray(cloud, "down", "-y", str(path))
        print(f"ray down: {time.monotonic() - began:.0f} s")
    assert "Exception" not in told, "or the head could start nodes while they are ended"
    until(lambda: without_power(cloud), 20)
    assert cloud.instances() == {}
    as_stated(cloud, filled, group)
    no_key_lies_about(laptop)


def a_verb_brings_a_data_node(cloud: Ec2) -> None:
    """Collecting needs no card: a node of the data group comes, writes to the bucket by its profile, and goes."""
    began = time.monotonic()
    printed = longtake(cloud, "submit", "collect", "doom-maze-tiny", "--store", STORE)
    assert "(16 CPUs) has come" in printed and "succeeded" in printed
    alive(cloud, "m7i.4xlarge")
    print(f"collect, 0 -> 1 workers: {time.monotonic() - began:.0f} s")
    assert "manifest" in str(cloud.ask("s3", "list_objects_v2", Bucket="bucket", Prefix="longtake/datasets"))
    until(lambda: alive(cloud), 300)


def two_cards_and_a_spot_node_lost(cloud: Ec2) -> None:
    """Two tasks wait, two spot nodes come; one is taken away, another comes, and both tasks end."""
    began = time.monotonic()
    hold(cloud, "hold", tasks=2)
    before = until(lambda: working(cloud), 400)
    print(f"0 -> 2 workers: {time.monotonic() - began:.0f} s")
    lost = min(before)
    began = time.monotonic()
    cloud.ask("ec2", "terminate_instances", InstanceIds=[lost])  # as EC2 does, to a spot node
    after = until(lambda: working(cloud, without=lost), 400)
    print(f"one of 2 lost -> 2 workers: {time.monotonic() - began:.0f} s")
    (kept,) = before.keys() & after.keys()
    (new,) = after.keys() - before.keys()
    assert kept != lost
    cloud.ask("s3", "put_object", Bucket="bucket", Key="enough", Body=b"")
    until(lambda: ended(cloud, "hold"), 60)
    assert str(sorted([after[kept], after[new]])) in ray(cloud, "job", "logs", "--address", DASHBOARD, "hold")
    cloud.ask("s3", "delete_object", Bucket="bucket", Key="enough")


def hold(cloud: Ec2, job: str, tasks: int) -> None:
    """Submit HOLD, by Ray's own command."""
    words = ("--address", DASHBOARD, "--submission-id", job, "--no-wait", "--", "python", "-c", HOLD, str(tasks))
    ray(cloud, "job", "submit", *words)


def working(cloud: Ec2, without: str | None = None) -> dict[str, str]:
    """Instance id → address of two spot nodes with a card, each with a task that runs there; one id is not of them."""
    found = alive(cloud, "g6e.2xlarge", "g6e.2xlarge")
    assert without not in found
    assert {cloud.instances()[id_]["InstanceLifecycle"] for id_ in found} == {"spot"}
    nodes = {node["node_id"]: node["node_ip"] for node in ask(cloud.laptop, "nodes")}
    tasks = [task for task in ask(cloud.laptop, "tasks") if task["state"] == "RUNNING"]
    assert sorted(str(nodes.get(task["node_id"])) for task in tasks) == sorted(found.values())
    return found


def ended(cloud: Ec2, job: str) -> None:
    (told,) = [one for one in ask(cloud.laptop, "jobs") if one["submission_id"] == job]
    assert told["status"] == "SUCCEEDED", told


def only_ssh_is_open(cloud: Ec2) -> None:
    """Of all that listens on the nodes nothing but sshd answers the laptop; the dashboard listens to its own host."""
    dashboards = 0
    for id_, instance in cloud.instances().items():
        space = f"{cloud.laptop.name}-{cloud.hosts[id_]}"
        told = here(["ip", "netns", "exec", space, "cat", "/proc/net/tcp", "/proc/net/tcp6"], 10)
        listening = {tuple(words[1].split(":")) for line in told.splitlines() if (words := line.split())[3] == "0A"}
        ports = sorted({int(port, 16) for _, port in listening})
        assert len(ports) > 5 and answering(cloud, instance["PrivateIpAddress"], ports) == [22]
        dashboards += 8265 in ports
        assert {host for host, port in listening if int(port, 16) == 8265} <= {"0100007F"}
    assert dashboards == 1


def answering(cloud: Ec2, address: str, ports: list[int]) -> list[int]:
    """The ports that the laptop can connect to within two seconds."""
    with contextlib.ExitStack() as stack, cloud.laptop.inside():
        tried = {port: stack.enter_context(socket.socket()) for port in ports}
        for port, one in tried.items():
            one.setblocking(False)
            one.connect_ex((address, port))
        time.sleep(2)
        return [port for port, one in tried.items() if one.connect_ex((address, port)) in (0, errno.EISCONN)]


def without_power(cloud: Ec2) -> None:
    assert not cloud.hosts


def as_stated(cloud: Ec2, filled: dict[str, Any], group: str) -> None:
    """What EC2 was asked for is what the file says, by the laptop's key for the head, by the head's role for others."""
    calls = cloud.calls()
    changing = {call["Action"] for call in calls if not call["Action"].startswith(("Describe", "Get", "List"))}
    assert changing == {"CreateKeyPair", "CreateTags", "RunInstances", "TerminateInstances"}
    kinds = {
        (kind["node_config"]["InstanceType"], kind["labels"]["market"] if "labels" in kind else "on-demand"): name
        for name, kind in filled["available_node_types"].items()
    }
    asked = [call for call in calls if call["Action"] == "RunInstances"]
    names = [kinds[call["InstanceType"], call.get("InstanceMarketOptions.MarketType", "on-demand")] for call in asked]
    assert names[:2] == ["head", "data"] and set(names[2:]) == {"gpu_spot"}
    for name, call in zip(names, asked, strict=True):
        assert call["key"] == (KEYS["aws_access_key_id"] if name == "head" else OF_THE_ROLE)
        assert call["IamInstanceProfile.Name"] == (HEAD_PROFILE if name == "head" else WORKER_PROFILE)
        assert [value for field, value in call.items() if field.startswith("SecurityGroupId.")] == [group]
        assert call["ImageId"] == "ami-0123456789abcdef0"
        assert call["MetadataOptions.HttpTokens"] == "required"
        assert call["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
        assert call["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    (open_to,) = cloud.ask("ec2", "describe_security_groups", GroupIds=[group])["SecurityGroups"]
    ssh, inner = sorted(open_to["IpPermissions"], key=lambda rule: str(rule["IpProtocol"]), reverse=True)
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22)
    assert [one["CidrIp"] for one in ssh["IpRanges"]] == [f"{LAPTOP}/32"] and not ssh["UserIdGroupPairs"]
    assert inner["IpProtocol"] == "-1" and not inner["IpRanges"]
    assert [one["GroupId"] for one in inner["UserIdGroupPairs"]] == [group]


def no_key_lies_about(laptop: fleet.Hosts) -> None:
    """Neither the account's keys nor, but in its own file, the token is in any file that a node ever had."""
    token = (laptop.home / ".ray" / "auth_token").read_bytes()
    secrets = [value.encode() for value in KEYS.values()]
    nodes = [folder for folder in laptop.folder.iterdir() if (folder / "home").is_dir()]
    read = 0
    for folder in nodes:
        for path in (path for part in ("home", "tmp") for path in (folder / part).rglob("*")):
            if not path.is_file() or path.is_symlink() or "venv" in path.parts:
                continue
            text, read = path.read_bytes(), read + 1
            assert not [secret for secret in secrets if secret in text], path
            if token in text or b"PRIVATE KEY-----\n" in text:
                assert path.name in ("auth_token", "ray_bootstrap_key.pem"), path
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert len(nodes) == 5 and read > 100
    assert [stat.S_IMODE(path.stat().st_mode) for path in (laptop.home / ".ssh").glob("*.pem")] == [0o600]
