"""Hosts on one machine: each is a set of Linux namespaces with its own address, home, /tmp, processes and sshd.

All of them hang on a bridge inside a network namespace of their own, the laptop's, without a way out: nothing that is
run there reaches another machine, and nothing of this machine is seen there. Needs root, iproute2, util-linux, sshd.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NETWORK = "10.78.0"
LAPTOP = f"{NETWORK}.1"
TOOLS = ("ip", "unshare", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
CODE = {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
PLAIN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def missing() -> str | None:
    """Why there can be no hosts here, if there cannot."""
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        return "hosts of namespaces are for root"
    if lacking:
        return f"missing: {', '.join(lacking)}"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return "no network namespaces here" if done.returncode else None


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Hosts:
    """The laptop's network and the hosts in it; all of it goes with the block of `hosts()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"lt{os.getpid()}"
        self.home = folder / "laptop"
        self.key = self.home / "id"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def open(self) -> None:
        """The laptop: a bridge, an address, an ssh key, no route to anywhere else."""
        (self.home / "tmp").mkdir(parents=True)
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        run("ip", "-n", self.name, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.name, "addr", "add", f"{LAPTOP}/24", "dev", "br0")
        run("ip", "-n", self.name, "link", "set", "br0", "up")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))

    def on_laptop(self, *command: str, **more: str) -> list[str]:
        """The command that runs another one there, with a home of its own and nothing of this process's variables."""
        variables = PLAIN | {
            "PATH": f"{Path(sys.executable).parent}:{PLAIN['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "RAY_TMPDIR": str(self.home / "tmp"),
            "OMP_NUM_THREADS": "1",
            **more,
        }
        words = [f"{name}={value}" for name, value in variables.items()]
        return ["ip", "netns", "exec", self.name, "env", "-i", *words, *command]

    def boot(self, host: str, address: str, profile: str, public_key: Path | None = None) -> None:
        """A host; `profile` is what its ~/.bashrc says. It lets in who has the given key, or else the laptop's."""
        folder, space = self.folder / host, f"{self.name}-{host}"
        for part in ("home", "tmp", "etc"):
            (folder / part).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        run("ip", "netns", "add", space)
        run("ip", "-n", self.name, "link", "add", f"v{host}", "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "-n", self.name, "link", "set", f"v{host}", "master", "br0", "up")
        run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            run("ip", "-n", space, "link", "set", link, "up")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "etc" / "hostkey"))
        (folder / "home" / ".bashrc").write_text(profile)
        (folder / "home" / "venv").symlink_to(Path(sys.executable).parents[1].resolve())
        (folder / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{address} {host}\n")
        script = folder / "init.sh"
        script.write_text(_boot_script(folder, host, address, public_key or self.key.with_suffix(".pub")))
        script.chmod(0o755)
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self._running[host] = subprocess.Popen(
            ["ip", "netns", "exec", space, "unshare", *spaces, str(script)],
            env=PLAIN | {"HOME": "/root"},
            stdin=subprocess.DEVNULL,
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ssh(self, address: str, command: str) -> list[str]:
        """The command that runs another one on a host."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return self.on_laptop("ssh", "-i", str(self.key), *options, f"root@{address}", command)

    def wait(self, address: str, seconds: float = 20) -> None:
        """Until a host lets one in."""
        deadline = time.monotonic() + seconds
        while subprocess.run(self.ssh(address, "true"), capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError("\n".join(log.read_text() for log in self.folder.glob("*/log")))
            time.sleep(0.1)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is on the laptop's network for a while: what it opens there stays there."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{self.name}") as there:
            if libc.setns(there.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                libc.setns(own.fileno(), 0)

    def cable(self, host: str, *, plugged: bool) -> None:
        """Pull a host's network cable, or plug it in again."""
        run("ip", "-n", self.name, "link", "set", f"v{host}", "up" if plugged else "down")

    def power_off(self, host: str) -> None:
        """At once: the first process of a host's own PID namespace takes all others with it. Its files stay."""
        process = self._running.pop(host)
        process.kill()
        process.wait(10)
        run("ip", "netns", "del", f"{self.name}-{host}")

    def close(self) -> None:
        for host in list(self._running):
            self.power_off(host)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def _boot_script(folder: Path, host: str, address: str, public_key: Path) -> str:
    """First process of a host: mounts, then sshd; it collects orphans, as every first process does."""
    python = Path(sys.base_prefix)
    below_home = f"mkdir -p {folder}/home{{0}} && mount --bind {python} {folder}/home{{0}}"
    inside = f"/{python.relative_to('/root')}" if python.is_relative_to("/root") else ""
    options = " ".join(
        f"-o {option}"
        for option in (
            f"ListenAddress={address}",
            f"HostKey={folder}/etc/hostkey",
            f"AuthorizedKeysFile={public_key}",
            "PermitRootLogin=prohibit-password",
            "PasswordAuthentication=no",
            "StrictModes=no",
            "UsePAM=no",
            "PidFile=none",
            "UseDNS=no",
        )
    )
    return f"""#!/bin/bash
set -e
mount --make-rprivate /
hostname {host}
mount --bind {folder}/etc/hosts /etc/hosts
mount -t tmpfs -o size=256m tmpfs /dev/shm
mkdir -p /run/sshd
{below_home.format(inside) if inside else ":"}
mount --rbind {folder}/home /root
mount --rbind {folder}/tmp /tmp
cd /root
/usr/sbin/sshd -D -e -f /dev/null {options} &
sshd=$!
set +e
while kill -0 $sshd 2>/dev/null; do wait -n; done
"""


@contextlib.contextmanager
def hosts(addresses: Mapping[str, str], profile: str) -> Iterator[Hosts]:
    """Hosts by name and address, up and letting the laptop's key in; `{address}` in the profile is the host's."""
    # Not below /tmp, which every host has of its own; nor may their Python be there.
    assert not Path(sys.prefix).resolve().is_relative_to("/tmp"), f"{sys.prefix}: no host sees it; clone elsewhere"
    made = Hosts(Path(tempfile.mkdtemp(prefix="lth", dir="/var/tmp")))
    try:
        made.open()
        for host, address in addresses.items():
            made.boot(host, address, profile.format(address=address))
        for address in addresses.values():
            made.wait(address)
        yield made
    finally:
        made.close()


# --- what is run there -----------------------------------------------------------------------------------


def here(command: list[str], limit: float, code: int | None = 0) -> str:
    """What a command printed; it may take `limit` seconds."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit)
    told = done.stdout + done.stderr
    assert code is None or done.returncode == code, f"{command[-6:]}: exit code {done.returncode}\n{told[-6000:]}"
    return told


@contextlib.contextmanager
def background(command: list[str]) -> Iterator[None]:
    """A process that ends with the block, with all that it started."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def until(attempt: Any, seconds: float) -> Any:
    """What `attempt` returns once it no longer fails."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except (AssertionError, subprocess.TimeoutExpired):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def ask(laptop: Hosts, kind: str) -> list[dict[str, Any]]:
    """A table of the head's state."""
    code = f"import json; from longtake.cluster.jobs import Head; d = Head()._get('/api/v0/{kind}?detail=1&limit=1000')"
    told = here(laptop.on_laptop(sys.executable, "-c", f"{code}; print(json.dumps(d['result']['result']))", **CODE), 60)
    rows: list[dict[str, Any]] = json.loads(told.splitlines()[-1])
    return rows
