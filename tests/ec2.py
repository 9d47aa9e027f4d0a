"""A simulated EC2: moto answers its calls, and every instance that it starts boots as a host of namespaces (hosts.py).

An instance has the address, the key pair and the security groups that EC2 gave it: a firewall on it lets in what the
groups' rules say and nothing else. Terminated, it loses its power. Keys to the account come to it as on EC2, from the
metadata service, as those of its instance profile. Needs nft besides what hosts need.
"""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from tests.hosts import LAPTOP, NETWORK, Hosts, background, until

URL = f"http://{LAPTOP}:5000"
REGION = "us-west-2"
OF_THE_ROLE = "test-key"
"""The id of the key that moto's metadata service hands out."""
REACH = {"AWS_ENDPOINT_URL": URL, "AWS_DEFAULT_REGION": REGION}
ON_THE_IMAGE = REACH | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": URL}
"""What leads an instance's programs to this EC2; on the real one they find it by themselves."""


class Ec2:
    """The account: a network with the hosts' addresses, and instances that live and die as its API says."""

    def __init__(self, laptop: Hosts, profile: str) -> None:
        self.laptop = laptop
        self.network = ""
        self.hosts: dict[str, str] = {}
        """Instance id → host, of those that have power."""
        self._profile = "".join(f"export {name}={value}\n" for name, value in ON_THE_IMAGE.items()) + profile
        self._calls = laptop.home / "calls"
        self._clients: dict[str, Any] = {}
        self._making = threading.Lock()
        self._over = threading.Event()
        self._failure: Exception | None = None

    # --- the account ---------------------------------------------------------------------------------------

    def ask(self, service: str, operation: str, **parameters: Any) -> Any:
        """What a call of the API answers; it is made on the laptop's network, where the API is."""
        with self.laptop.inside():
            return getattr(self._client(service), operation)(**parameters)

    def _client(self, service: str) -> Any:
        """One for all threads, but made by one at a time."""
        import boto3

        keys = {"aws_access_key_id": "of-the-test", "aws_secret_access_key": "of-the-test"}
        with self._making:
            if service not in self._clients:
                self._clients[service] = boto3.client(service, region_name=REGION, endpoint_url=URL, **keys)
            return self._clients[service]

    def instances(self) -> dict[str, dict[str, Any]]:
        """Id → what EC2 tells of it, of those that are not terminated."""
        found = self.ask("ec2", "describe_instances")["Reservations"]
        every = [instance for one in found for instance in one["Instances"]]
        return {one["InstanceId"]: one for one in every if one["State"]["Name"] in ("pending", "running")}

    def calls(self) -> list[dict[str, str]]:
        """Every call to EC2 and IAM until now that was not the test's: its parameters, and the `key` that signed it."""
        told = []
        for line in self._calls.read_text().splitlines():
            entry = json.loads(line)
            body = base64.b64decode(entry["body"]).decode(errors="replace") if entry["body_encoded"] else entry["body"]
            signed = entry["headers"].get("Authorization", "").partition("Credential=")[2].partition("/")[0]
            call = dict(parse_qsl(body or ""))
            if "Action" in call and signed != "of-the-test":
                told.append(call | {"key": signed})
        return told

    # --- its machines --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The API and the machines, until the block ends."""
        record = {"MOTO_ENABLE_RECORDING": "true", "MOTO_RECORDER_FILEPATH": str(self._calls)}
        server = [sys.executable, "-m", "moto.server", "-H", LAPTOP, "-p", "5000"]
        with background(self.laptop.on_laptop(*server, **record)):
            until(self._make_network, 60)
            watch = threading.Thread(target=self._watch)
            watch.start()
            try:
                yield
            finally:
                self._over.set()
                watch.join()
                if self._failure is not None:
                    raise self._failure

    def _make_network(self) -> None:
        from botocore.exceptions import EndpointConnectionError

        try:
            self.network = self.ask("ec2", "create_vpc", CidrBlock=f"{NETWORK}.0/24")["Vpc"]["VpcId"]
        except EndpointConnectionError as error:
            raise AssertionError("no answer yet") from error
        self.ask("ec2", "create_subnet", VpcId=self.network, CidrBlock=f"{NETWORK}.0/24")

    def _watch(self) -> None:
        try:
            while not self._over.wait(0.5):
                instances = self.instances()
                changed = instances.keys() ^ self.hosts.keys()
                for gone in self.hosts.keys() - instances.keys():
                    self.laptop.power_off(self.hosts.pop(gone))
                for new in instances.keys() - self.hosts.keys():
                    self._boot(instances[new])
                if changed:
                    self._set_firewalls(instances)
        except Exception as error:
            self._failure = error

    def _boot(self, instance: Mapping[str, Any]) -> None:
        host, address = instance["InstanceId"].replace("-", "")[-9:], instance["PrivateIpAddress"]
        pairs = self.ask("ec2", "describe_key_pairs", KeyNames=[instance["KeyName"]], IncludePublicKey=True)["KeyPairs"]
        public_key = self.laptop.folder / f"{instance['KeyName']}.pub"
        public_key.write_text(pairs[0]["PublicKey"])
        self.laptop.boot(host, address, self._profile.format(address=address), public_key)
        self.hosts[instance["InstanceId"]] = host

    def _set_firewalls(self, instances: Mapping[str, Mapping[str, Any]]) -> None:
        groups = {one["GroupId"]: one for one in self.ask("ec2", "describe_security_groups")["SecurityGroups"]}
        members: dict[str, list[str]] = {}
        for instance in instances.values():
            for group in instance["SecurityGroups"]:
                members.setdefault(group["GroupId"], []).append(instance["PrivateIpAddress"])
        for id_, host in self.hosts.items():
            rules = [
                rule for group in instances[id_]["SecurityGroups"] for rule in groups[group["GroupId"]]["IpPermissions"]
            ]
            command = ["ip", "netns", "exec", f"{self.laptop.name}-{host}", "nft", "-f", "-"]
            subprocess.run(command, input=firewall(rules, members), text=True, check=True, capture_output=True)


def firewall(rules: list[dict[str, Any]], members: Mapping[str, list[str]]) -> str:
    """What a host lets in by the rules of its groups (whose members are given), for nft."""
    accepted = []
    for rule in rules:
        which = "" if rule["IpProtocol"] == "-1" else f"{rule['IpProtocol']} dport {rule['FromPort']}-{rule['ToPort']}"
        sources = [one["CidrIp"] for one in rule["IpRanges"]]
        sources += [address for one in rule["UserIdGroupPairs"] for address in members.get(one["GroupId"], [])]
        accepted += [f"ip saddr {source} {which} accept" for source in sources]
    lines = ["iif lo accept", "ct state established,related accept", *accepted]
    chain = "type filter hook input priority 0; policy drop;"
    return "flush ruleset\ntable inet groups { chain input { " + chain + "\n" + "\n".join(lines) + "\n}\n}\n"


@contextlib.contextmanager
def ec2(laptop: Hosts, profile: str) -> Iterator[Ec2]:
    """The account, with hosts on the laptop's network; `profile` is as for hosts."""
    made = Ec2(laptop, profile)
    with made.open():
        yield made
