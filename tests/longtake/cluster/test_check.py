"""`longtake cluster check`: every rule is broken once, in a file that is right otherwise, and says so in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from longtake.cluster import check as cluster_rules
from longtake.cluster.check import notes, problems
from longtake.cluster.spec import read
from longtake.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
FILES = {"aws": "cluster.yaml", "local": "platform/clusters/onprem.yaml", "kuberay": "platform/clusters/kuberay.yaml"}
Documents = list[dict[str, Any]]
Change = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    place = tmp_path / ".ray" / "auth_token"
    place.parent.mkdir()
    place.write_text("0" * 64)
    place.chmod(0o600)
    return place


def filled(form: str) -> Documents:
    """A shipped file in which everything is set."""
    text = (ROOT / FILES[form]).read_text().replace("CHANGE-ME", "set")
    # Without the anchors: a change of one place is then a change of that place.
    return [copy.deepcopy(one) for one in yaml.safe_load_all(text)]


def found(tmp_path: Path, documents: Documents) -> list[str]:
    path = tmp_path / "cluster.yaml"
    dumper = yaml.SafeDumper
    path.write_text("---\n".join(yaml.dump(one, Dumper=dumper, sort_keys=False) for one in documents))
    return problems(read(path))


def node(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A node type's own node_config, no longer shared with the others."""

    def of(cluster: dict[str, Any]) -> dict[str, Any]:
        own = cluster["available_node_types"][kind]
        own["node_config"] = copy.deepcopy(own["node_config"])
        config: dict[str, Any] = own["node_config"]
        return config

    return of


def edited(cluster: dict[str, Any], before: str, after: str) -> None:
    """Another text, everywhere."""
    text = yaml.dump(cluster, width=10_000)
    assert before in text
    cluster.clear()
    cluster.update(yaml.safe_load(text.replace(before, after)))


@pytest.mark.parametrize("form", FILES)
def test_a_file_in_which_everything_is_set_is_right(form: str, tmp_path: Path) -> None:
    assert found(tmp_path, filled(form)) == []


AWS: list[tuple[Change, str]] = [
    (lambda c: c.update(idle_timeout=5), "unknown field 'idle_timeout' (did you mean idle_timeout_minutes?)"),
    (lambda c: c.update(max_workers="14"), "'14' is not of type 'integer'"),
    (lambda c: c.update(max_workers=10), "8 gpu_spot + 2 gpu_on_demand + 4 data = 14: raise it"),
    (lambda c: c["available_node_types"]["data"].update(min_workers=5), "at least 5 and at most 4 nodes"),
    (lambda c: c["available_node_types"]["head"].update(resources={"CPU": 8}), "8 CPUs and 0 GPUs on the head"),
    (lambda c: c["available_node_types"]["gpu_spot"].update(resources={"CPU": 8, "GPU": 4}), "GPU is 4, a g6e.2xlarge"),
    (lambda c: c.update(idle_timeout_minutes=0), "idle time-out is 0 minutes"),
    (lambda c: c["provider"].update(security_group={"GroupName": "x"}), "opens its ssh to the world"),
    (lambda c: c["provider"].pop("cache_stopped_nodes"), "a spot node cannot be stopped"),
    (lambda c: node("data")(c).update(ImageId="ami-other"), "one image for all nodes"),
    (lambda c: node("data")(c).pop("IamInstanceProfile"), "data.node_config.IamInstanceProfile is missing"),
    (
        lambda c: node("data")(c).update(IamInstanceProfile={"Name": "set-longtake-head"}),
        "set-longtake-head is the head's",
    ),
    (lambda c: node("gpu_spot")(c).pop("SecurityGroupIds"), "gpu_spot.node_config.SecurityGroupIds is missing"),
    (lambda c: node("gpu_spot")(c).update(InstanceTyp="x"), "unknown field 'InstanceTyp' (did you mean InstanceType?)"),
    (lambda c: node("gpu_spot")(c)["MetadataOptions"].update(HttpTokens="optional"), "HttpTokens: required"),
    (lambda c: node("gpu_spot")(c)["BlockDeviceMappings"][0]["Ebs"].update(Encrypted=False), "Encrypted: true"),
    (lambda c: node("gpu_spot")(c)["BlockDeviceMappings"][0]["Ebs"].pop("DeleteOnTermination"), "go on costing money"),
    (lambda c: c["metadata"]["machines"].pop("m7i.4xlarge"), "metadata.machines has no 'm7i.4xlarge'"),
    (lambda c: c["metadata"]["machines"]["g6e.2xlarge"].pop("spot_usd"), "machines.g6e.2xlarge.spot_usd is missing"),
    (lambda c: edited(c, "==2.60.0", "==2.59.0"), "ray==2.59.0 on the cluster, here it is 2.60.0"),
    (lambda c: edited(c, "ray[data,default,train,tune]==2.60.0", ""), "data: nothing installs a pinned ray"),
    (lambda c: c["setup_commands"].append("pip install ray==2.59.0"), "ray has several versions: 2.60.0 in"),
    (lambda c: edited(c, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"), "dashboard on 0.0.0.0 is open"),
    (lambda c: edited(c, "RAY_AUTH_MODE=token", ""), "head: no command sets RAY_AUTH_MODE=token"),
    (lambda c: edited(c, "chmod 600 ~/.ray/auth_token", "true"), "data: no command says chmod 600"),
    (lambda c: c.pop("file_mounts"), "the nodes would not know the cluster's token"),
    (lambda c: c["setup_commands"].append("export K=AKIA" + "Q" * 16), "what looks like a key"),
    (lambda c: c["setup_commands"].append("export AWS_SECRET_ACCESS_KEY=" + "q" * 20), "what looks like a key"),
    (lambda c: c["available_node_types"]["head"].pop("resources"), "head: all CPUs of the machine on the head"),
    (lambda c: edited(c, "https://set/", "https://me:token@set/"), "what looks like a key"),
]
LOCAL: list[tuple[Change, str]] = [
    (lambda c: c["provider"]["worker_ips"].append("set-head"), "host set-head is named 2 times"),
    (lambda c: edited(c, "export RAY_enable_autoscaler_v2=0;", ""), "leaves the last host unused"),
    (lambda c: c.update(max_workers=1, head_node_typ="x"), "unknown field 'head_node_typ'"),
]
PODS: list[tuple[Change, str]] = [
    (lambda c: c["spec"].pop("authOptions"), "authOptions.mode must be token"),
    (lambda c: c["spec"]["headGroupSpec"].update(serviceType="LoadBalancer"), "opens the dashboard to others"),
    (lambda c: c["spec"]["headGroupSpec"].update(enableIngress=True), "enableIngress opens the dashboard"),
    (lambda c: c["spec"].pop("enableInTreeAutoscaling"), "no worker would ever start"),
    (lambda c: c["spec"].update(rayVersion="2.59.0"), "ray==2.59.0 on the cluster"),
    (lambda c: c["spec"]["workerGroupSpecs"][0].update(groupName="gpu_spot"), "cannot be part of a pod's name"),
    (lambda c: c["metadata"].update(name="other"), "the cluster is 'other'"),
    (lambda c: c["spec"]["workerGroupSpecs"][2].update(rayStartParams={"num-cpus": "many"}), "cannot be read"),
]


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [(form, *rule) for form, rules in (("aws", AWS), ("local", LOCAL), ("kuberay", PODS)) for rule in rules],
)
def test_each_rule(form: str, change: Change, words: str, tmp_path: Path) -> None:
    documents = filled(form)
    change(documents[0])
    try:
        lines = found(tmp_path, documents)
    except UserError as error:
        lines = list(error.lines)
    assert any(words in line for line in lines), lines
    assert not any("\n" in line for line in lines)


def test_everything_at_once(tmp_path: Path) -> None:
    documents = filled("aws")
    for change, _ in AWS[2:9]:
        change(documents[0])
    lines = found(tmp_path, documents)
    assert not [words for _, words in AWS[2:9] if not any(words in line for line in lines)]


def test_the_token_is_looked_at(token: Path, tmp_path: Path) -> None:
    token.chmod(0o644)
    assert [line for line in found(tmp_path, filled("aws")) if "can be read by other users" in line]
    token.chmod(0o600)
    token.write_text("short")
    assert [line for line in found(tmp_path, filled("aws")) if "less than 32" in line]
    token.unlink()
    assert found(tmp_path, filled("aws")) == [f"{token} is missing: make it with: longtake cluster token"]


def test_an_environment_that_is_not_the_pinned_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = cluster_rules._version_here
    monkeypatch.setattr(cluster_rules, "_version_here", lambda name: "1.0.0" if name == "torch" else version(name))
    assert [line for line in found(tmp_path, filled("aws")) if "here it is 1.0.0: run make setup" in line]


def test_prices_are_added_up(tmp_path: Path) -> None:
    cluster = filled("aws")[0]
    path = tmp_path / "c.yaml"
    path.write_text(yaml.dump(cluster))
    file = read(path)
    disk = 200 * 0.08 / 730
    idle, full = 0.4032 + disk, 0.4032 + 8 * 1.20 + 2 * 2.2421 + 4 * 0.35 + 15 * disk
    assert file.usd_per_hour(full=False) == pytest.approx(idle)
    assert file.usd_per_hour(full=True) == pytest.approx(full)
    cluster["available_node_types"]["data"]["min_workers"] = 2
    del cluster["metadata"]["machines"]["m7i.4xlarge"]["spot_usd"]
    path.write_text(yaml.dump(cluster))
    assert read(path).usd_per_hour(full=False) is None
    assert notes(read(path)) == ["data: 2 stay on when nothing runs"]


def test_small_cards_are_noted(tmp_path: Path) -> None:
    cluster = filled("aws")[0]
    cluster["metadata"]["machines"]["g6e.2xlarge"]["gpu_gb"] = 24
    path = tmp_path / "c.yaml"
    path.write_text(yaml.dump(cluster))
    assert [line.partition(":")[0] for line in notes(read(path))] == ["gpu_on_demand", "gpu_spot"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("", "expected the fields of a cluster"),
        ("cluster_name: x", "'provider' is missing"),
        ("provider: {type: gcp}", "provider.type 'gcp'"),
        ("apiVersion: v1\nkind: Pod", "none of its manifests is a RayCluster"),
    ],
)
def test_what_is_no_clusters_file(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read(path)
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "none.yaml")
