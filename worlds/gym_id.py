"""The id by which Gymnasium knows a learned world. Light: whoever imports Gymnasium imports this, as a plugin."""

from __future__ import annotations

ID = "longtake/World-v0"


def register() -> None:
    """Let Gymnasium know it by its id; a second call changes nothing."""
    from gymnasium.envs.registration import register, registry

    if ID not in registry:
        register(
            ID,
            entry_point="longtake.worlds.gym_env:WorldEnv",
            vector_entry_point="longtake.worlds.gym_env:WorldVectorEnv",
        )
