"""`longtake up` and `longtake down`: a Ray of this machine that stays warm between verbs, which find it themselves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from longtake.cluster import private_ray, warm
from longtake.cluster.address import given
from longtake.cluster.launch import ENVIRONMENT, environment, machine_cpus
from longtake.errors import UserError


def up() -> None:
    """The command: start one, or say that it is up."""
    if (address := given()) is not None:
        raise UserError(f"RAY_ADDRESS={address}: verbs go to that cluster; unset it to keep a Ray of this machine")
    from longtake.cluster import warm_head

    with _one_at_a_time():
        for _, kept in warm.found():
            if kept is not None:
                print(f"up already: {described(kept)}")
                return
        private_ray.clear()
        began = time.monotonic()
        kept = warm_head.start()
        print(f"up after {time.monotonic() - began:.0f} s: {described(kept)}\nlongtake down ends it")


def down(force: bool = False) -> None:
    """The command: end what `up` has started, and remove its files.

    Raises:
        UserError: a verb works on it, and it is not to be ended all the same.
    """
    from longtake.cluster import warm_head

    with _one_at_a_time():
        kept_ones = list(warm.found())
        for _, kept in kept_ones:
            if kept is None:
                print("it was killed; what it left is removed")
                continue
            if kept.user and not force:
                raise UserError(f"process {kept.user} works on it; end that first, or give --force")
            warm_head.stop(kept)
            print(f"down: process {kept.pid} and all that it had started have ended")
        private_ray.clear()
        if not kept_ones:
            print("nothing is up")


def described(kept: warm.Warm) -> str:
    """Where it is, whose it is now, and why verbs here would pass over it, if they would."""
    user = f", at work for process {kept.user}" if kept.user else ""
    why = why_passed_over(kept)
    advice = f"; verbs here pass over it: {why}. longtake down, then longtake up" if why else ""
    return f"a Ray of {kept.identity.cpus} CPUs at {kept.address}, process {kept.pid}{user}{advice}"


def why_passed_over(kept: warm.Warm) -> str:
    """Why verbs started here would not take it; empty: they would."""
    with environment(ENVIRONMENT):
        return warm.Identity.of(os.environ, kept.token, machine_cpus()).unlike(kept.identity)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Two that start or end one at the same time wait for each other."""
    with (private_ray.user_folder() / "up.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
