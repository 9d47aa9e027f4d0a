"""cluster.yaml: accepted by Ray's own check, and safe and whole where that check does not look."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from longtake.cluster.check import problems
from longtake.cluster.spec import ClusterFile, read

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "cluster.yaml").read_text()


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


@pytest.fixture
def nodes(cluster: dict[str, Any]) -> dict[str, Any]:
    return {name: kind["node_config"] for name, kind in cluster["available_node_types"].items()}


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with a token as it should be."""
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".ray" / "auth_token"
    place.parent.mkdir()
    place.write_text("0" * 64)
    place.chmod(0o600)


def commands(cluster: dict[str, Any]) -> str:
    lists = [cluster[f"{who}_start_ray_commands"] for who in ("head", "worker")] + [cluster["setup_commands"]]
    lists += [kind.get("worker_setup_commands", []) for kind in cluster["available_node_types"].values()]
    return "\n".join(line for one in lists for line in one)


def gpu_setup(cluster: dict[str, Any]) -> list[str]:
    found: list[str] = cluster["available_node_types"]["gpu_spot"]["worker_setup_commands"]
    return found


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    # Nothing of Ray's defaults gets in, which install a nightly build and open the dashboard.
    assert prepared["worker_setup_commands"] == cluster["setup_commands"]
    assert prepared["head_setup_commands"] == cluster["setup_commands"] + cluster["head_setup_commands"]
    for name in ("head_start_ray_commands", "worker_start_ray_commands", "initialization_commands"):
        assert prepared[name] == cluster[name]


def test_every_node_type_is_explicit_about_what_ray_would_guess(nodes: dict[str, Any]) -> None:
    for name, node in nodes.items():
        assert node["ImageId"].startswith("ami-"), name
        assert node["IamInstanceProfile"]["Name"], name
        assert node["SecurityGroupIds"], name
        assert node["MetadataOptions"]["HttpTokens"] == "required", name
        assert [disk["Ebs"]["VolumeType"] for disk in node["BlockDeviceMappings"]] == ["gp3"], name
    assert len({node["ImageId"] for node in nodes.values()}) == 1, "one image, or Python versions differ"


def test_head_and_workers_have_profiles_of_their_own(cluster: dict[str, Any], nodes: dict[str, Any]) -> None:
    head = cluster["head_node_type"]
    profiles = {name: node["IamInstanceProfile"]["Name"] for name, node in nodes.items()}
    assert len({name for kind, name in profiles.items() if kind != head}) == 1
    assert profiles[head] not in [name for kind, name in profiles.items() if kind != head]


def test_groups(cluster: dict[str, Any], nodes: dict[str, Any]) -> None:
    kinds = cluster["available_node_types"]
    assert kinds[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    workers = {name: kind for name, kind in kinds.items() if name != cluster["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"]
    markets = {kind["labels"]["market"] for kind in workers.values() if kind["resources"].get("GPU")}
    assert markets == {"spot", "on-demand"}
    assert [name for name, kind in workers.items() if not kind["resources"].get("GPU")] == ["data"]
    for name, kind in workers.items():
        spot = nodes[name].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot == (kind["labels"]["market"] == "spot"), name
    assert workers["gpu_spot"]["priority"] > workers["gpu_on_demand"].get("priority", 0)
    assert cluster["idle_timeout_minutes"] > 0
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_access_is_by_ssh_and_token(cluster: dict[str, Any]) -> None:
    assert "security_group" not in cluster["provider"], "Ray would open its ssh to the world"
    head = "\n".join(cluster["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "0.0.0.0" not in TEXT
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    setup = commands(cluster)
    assert "RAY_AUTH_MODE=token" in setup and "chmod 600 ~/.ray/auth_token" in setup
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert all(line.startswith(". ~/.longtake && ") for line in starts), "where the token mode is set"


def test_no_keys_and_few_placeholders(cluster: dict[str, Any]) -> None:
    assert not re.search(r"AKIA|SECRET|ACCESS_KEY|PRIVATE KEY|password", TEXT, re.IGNORECASE)
    used = {key: value for key, value in cluster.items() if key != "metadata"}
    in_metadata = str(cluster["metadata"])
    for found in re.findall(r"[\w./:-]*CHANGE-ME[\w./:-]*", str(used)):
        assert found in in_metadata, f"{found} is not at the top"
    assert in_metadata.count("CHANGE-ME") <= 6


def test_versions_are_those_of_requirements(cluster: dict[str, Any]) -> None:
    pinned = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line)
    setup = commands(cluster)
    assert set(re.findall(r"ray\[[\w,]+\]==([\w.]+)", setup)) == {pinned["ray"]}
    assert re.search(r"--no-build-isolation --no-deps (mamba-ssm==\S+)", setup)[1] in (ROOT / "Makefile").read_text()
    assert "--constraint ~/longtake/requirements.txt" in setup
    assert "hatchling" in pinned, "installed without build isolation"
    for name in ("gpu_spot", "gpu_on_demand"):
        own = cluster["available_node_types"][name]["worker_setup_commands"]
        assert own[: len(cluster["setup_commands"])] == cluster["setup_commands"], "it replaces the common ones"


@pytest.mark.parametrize("name", ["cluster.yaml", "platform/clusters/onprem.yaml", "platform/clusters/Dockerfile"])
def test_deepspeed_is_built_where_a_card_is_seen_and_no_compiler(name: str) -> None:
    """Its setup asks for nvcc where PyTorch sees a card, and stops without it, unless it is told not to look."""
    line = " ".join((ROOT / name).read_text().replace("\\\n", " ").split())
    assert "DS_IGNORE_CUDA_DETECTION=1 pip install --quiet --constraint ~/longtake/requirements.txt --no-build" in line


def test_a_node_that_cannot_train_on_its_card_is_no_node(cluster: dict[str, Any]) -> None:
    """Its driver is looked at, and a step is made, before Ray starts there."""
    setup = flat(gpu_setup(cluster))
    driver = next(line for line in setup if "nvidia-smi" in line)
    for version, code in (("570.86.15", 1), ("580.65.06", 0), ("595.58.03", 0), ("", 1)):
        fake = f"nvidia-smi() {{ printf '{version}'; }}; "
        done = subprocess.run(["bash", "-c", fake + driver], capture_output=True, text=True)
        assert done.returncode == code, version
        assert ("missing or older than 580" in done.stderr) == bool(code)
    assert "bench step" in setup[-1] and "step.device=cuda" in setup[-1]
    environment = next(line for line in setup if "TRITON_CACHE_DIR" in line)
    for told in (
        "PYTORCH_ALLOC_CONF=expandable_segments:True",
        "TORCHINDUCTOR_CACHE_DIR=",
        "LONGTAKE_CACHE=/opt/dlami",
    ):
        assert told in environment


def test_nodes_are_installed_what_ray_starts_instances_with(cluster: dict[str, Any]) -> None:
    """Tests' own requirements bring it, too, and nodes do not get those."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert '"$HOME/longtake[doom,atari]"' in cluster["setup_commands"][-1]
    assert [line for line in project["dependencies"] if line.startswith("boto3>=")]


@pytest.mark.parametrize("name", ["cluster.yaml", "platform/clusters/onprem.yaml", "platform/clusters/kuberay.yaml"])
def test_nothing_is_wrong_but_what_is_unset(name: str, token: None) -> None:
    found = problems(read(ROOT / name))
    assert found and not [line for line in found if "is not set yet" not in line]


def flat(commands: Iterable[str]) -> list[str]:
    """One line each; a Dockerfile breaks them with backslashes."""
    return [" ".join(command.replace("\\\n", " ").split()) for command in commands]


def test_hosts_of_ones_own_are_set_up_alike(cluster: dict[str, Any]) -> None:
    own = yaml.safe_load((ROOT / "platform/clusters/onprem.yaml").read_text())
    shared = flat(cluster["setup_commands"])
    assert [line for line in flat(own["setup_commands"]) if line in shared] == shared
    assert set(flat(cluster["head_setup_commands"])) <= set(flat(own["setup_commands"])), "`ray down` finds ray"
    (kernels,) = (line for line in flat(gpu_setup(cluster)) if "mamba-ssm" in line)
    assert kernels in flat(own["worker_setup_commands"])[0], "for hosts with a card"
    assert own["worker_start_ray_commands"] == cluster["worker_start_ray_commands"]
    told = flat(own["head_start_ray_commands"])
    for more in ("export RAY_enable_autoscaler_v2=0; ", "--num-cpus=0 --num-gpus=0 "):
        told = [line.replace(more, "") for line in told]
    assert told == flat(cluster["head_start_ray_commands"])
    assert {"~/.ray/auth_token"} == set(cluster["file_mounts"]) < set(own["file_mounts"])


def test_pods_are_the_same_groups() -> None:
    aws, pods = read(ROOT / "cluster.yaml"), read(ROOT / "platform/clusters/kuberay.yaml")
    machines = aws.document["metadata"]["machines"]

    def shape(file: ClusterFile) -> dict[str, Any]:
        return {
            group.name.replace("_", "-"): (group.least, group.most, group.cpus, group.gpus, group.market)
            for group in file.groups
        }

    assert shape(pods) == shape(aws) and pods.idle_minutes == aws.idle_minutes
    assert [group.machine for group in pods.workers] == [group.machine for group in aws.workers]
    for group in pods.workers:
        assert group.usd_per_hour == machines[group.machine]["spot_usd" if group.market == "spot" else "usd"]
    priorities = [group.get("priority") for group in pods.document["spec"]["workerGroupSpecs"]]
    assert priorities == [aws.document["available_node_types"][group.name].get("priority") for group in aws.workers]


def test_the_image_is_set_up_by_the_same_commands(cluster: dict[str, Any]) -> None:
    told = (ROOT / "platform/clusters/Dockerfile").read_text()
    runs = flat(re.findall(r"(?m)^RUN ((?:.*\\\n)*.*)$", told))
    wanted = [line for line in flat(gpu_setup(cluster))[2:] if "pip install" in line or "git clone" in line]
    assert [line for line in runs if line in wanted] == wanted
    apt = [set(line.partition("install -y ")[2].split()) for line in runs if "apt-get" in line]
    assert set(cluster["initialization_commands"][-1].partition("install -y ")[2].split()) <= apt[0]
    assert read(ROOT / "platform/clusters/kuberay.yaml").document["spec"]["rayVersion"] in told


@pytest.mark.slow
def test_ray_leaves_the_security_group_alone(
    cluster: dict[str, Any], nodes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a simulated EC2 (calls only, no instance): no group is made, none is opened."""
    monkeypatch.setenv("HOME", str(tmp_path))  # a key pair is written there
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    with moto.mock_aws():
        ec2 = boto3.client("ec2", cluster["provider"]["region"])
        network = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="own", Description="own", VpcId=network)["GroupId"]
        before = ec2.describe_security_groups()["SecurityGroups"]
        for node in nodes.values():
            node["SecurityGroupIds"] = [group]
        ready = bootstrap_aws(prepare_config(cluster))
        assert ec2.describe_security_groups()["SecurityGroups"] == before
    for kind in ready["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == [group]
