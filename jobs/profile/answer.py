"""A profile in words and tables: where does the model stop remembering, and what would attention cost?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from longtake.jobs.presets import in_words
from longtake.jobs.profile.costs import FULL, Findings, What

if TYPE_CHECKING:
    import pandas as pd

    from longtake.models.analysis.cost import Costs

HUGE = 256 * 10**6
"""Bytes of scan states per clip above which a person should hear of it."""
FADED = 3.32
"""Half-lives after which a tenth is left."""


def models_table(findings: Findings) -> pd.DataFrame:
    """One row per model: what it is, and what it carries after the longest of the lengths."""
    import pandas as pd

    longest = max(findings.config.frames)
    rows = []
    for name, costs in findings.costs.items():
        carried = costs.carried(longest)
        rows.append(
            {
                "model": name,
                "layers": len(costs.config.stack),
                "feed_forward": round(costs.config.feed_forward, 2),
                "parameters": f"{costs.parameters:,}",
                **{f"{part} MB": f"{size / 1e6:.3g}" for part, size in carried.items() if part != "total"},
                f"MB at {longest}": f"{carried['total'] / 1e6:.3g}",
            }
        )
    return pd.DataFrame(rows)


def lengths_table(findings: Findings) -> pd.DataFrame:
    """One row per model and length: counted, and measured where it was."""
    import pandas as pd

    rows = []
    for name, costs in findings.costs.items():
        for frames in sorted({*findings.config.frames, *(f for n, _, f in findings.measured if n == name)}):
            row = {
                "model": name,
                "frames": frames,
                "step GFLOP": f"{costs.training_flops(frames) / 1e9:.3g}",
                "frame GFLOP": f"{costs.frame_flops(frames, findings.config.sampler) / 1e9:.3g}",
                "carried MB": f"{costs.carried(frames)['total'] / 1e6:.3g}",
            }
            rows.append(row | _measured(findings, name, frames))
    return pd.DataFrame(rows).fillna("")


def _measured(findings: Findings, name: str, frames: int) -> dict[str, str]:
    """The measured columns of a row, or the reason where there is nothing."""
    columns = {}
    kinds: tuple[tuple[What, str, str], ...] = (("train", "step", "s"), ("frame", "frame", "ms"))
    for what, label, unit in kinds:
        cell = findings.measured.get((name, what, frames))
        if cell is None:
            continue
        if cell.seconds is None or cell.peak_bytes is None:
            columns[f"{label} {unit}"] = cell.reason
            continue
        columns[f"{label} {unit}"] = f"{cell.seconds * (1000 if unit == 'ms' else 1):.3g}"
        columns[f"{label} peak MB"] = f"{cell.peak_bytes / 1e6:.0f}"
    return columns


def answer(findings: Findings) -> list[str]:
    """The findings as sentences."""
    model = findings.costs[findings.own]
    return [
        f"{findings.own}: {model.parameters:,} parameters, {in_words(model.config)}",
        *_remembers(findings),
        *_attention(findings),
        *_fits(findings),
        *_warnings(findings),
        *findings.left_out,
    ]


def _remembers(findings: Findings) -> Iterator[str]:
    horizon, config = findings.horizon, findings.costs[findings.own].config
    if not horizon.forgets:
        yield "It attends to every frame, so it forgets nothing."
        return
    if horizon.longest is None:
        yield f"It stops remembering after {horizon.window} frames, where its windows end (layer upon layer)."
        return
    layer, longest = horizon.longest
    median = max(median for median, _ in horizon.half_lives.values())
    rows, columns = config.layer_block(config.stack[layer])
    yield (
        f"Fresh, its slowest state (layer {layer}, block {rows}x{columns}) halves every {longest:.0f} frames, so a "
        f"tenth is left after {FADED * longest:.0f}; the median state halves within {median:.1f} frames. Training "
        "moves both."
    )
    yield f"Its windows reach back {horizon.window} frames, layer upon layer; beyond that only states remember."


def _attention(findings: Findings) -> Iterator[str]:
    ours = next((name for name in (findings.own, "block_ssm") if name != FULL and name in findings.costs), None)
    if ours is None or FULL not in findings.costs:
        return
    longest, sampler = max(findings.config.frames), findings.config.sampler
    one, other = findings.costs[ours], findings.costs[FULL]
    flops = other.frame_flops(longest, sampler) / one.frame_flops(longest, sampler)
    carried = other.carried(longest)["total"] / max(1, one.carried(longest)["total"])
    yield (
        f"Attention to every frame ({FULL}, as many parameters) forgets nothing. After {longest} frames one more frame "
        f"costs it {flops:.3g} times the operations of {ours}{_time_ratio(findings, ours, longest)}, and it carries "
        f"{carried:.3g} times the bytes."
    )
    crossed = findings.crossings(ours, FULL)
    when = {what: "never" if frame is None else f"at frame {frame:,}" for what, frame in crossed.items()}
    yield f"Its cost per frame passes that of {ours} {when['cost']}, its bytes {when['bytes']}."


def _time_ratio(findings: Findings, ours: str, frames: int) -> str:
    one, other = (findings.series(name, "frame").get(frames) for name in (ours, FULL))
    if one is None or other is None or not one.seconds or other.seconds is None:
        return ""
    return f" ({other.seconds / one.seconds:.3g} times the time, measured)"


def _fits(findings: Findings) -> Iterator[str]:
    if not findings.memory:
        return
    ceilings = [text for name in findings.costs if (text := _ceiling(findings, name))]
    if ceilings:
        yield (
            f"With {findings.memory / 2**30:.1f} GiB, a training step on one clip (fp32, AdamW, nothing recomputed) "
            "fits up to this many frames, worked out from the lengths measured: " + ", ".join(ceilings) + "."
        )


def _ceiling(findings: Findings, name: str) -> str:
    frames = findings.ceiling(name)
    if frames is None:
        return ""
    ran = max(findings.series(name, "train"))
    failed = [
        f for (n, w, f), m in findings.measured.items() if (n, w) == (name, "train") and "does not fit" in m.reason
    ]
    seen = f"{ran:,} ran" + (f", {min(failed):,} did not" if failed else "")
    return f"{name} {frames:,} ({seen})"


def _warnings(findings: Findings) -> Iterator[str]:
    for name, costs in findings.costs.items():
        state = costs.carried(1)["state"]
        if state > HUGE:
            yield (
                f"warning: {name} carries {state / 1e6:,.0f} MB of scan states per clip or stream ({_largest(costs)}); "
                f"a batch carries as many times more. {_smaller(costs)} carries less."
            )


def _largest(costs: Costs) -> str:
    number = max(costs.states, key=costs.states.__getitem__)
    i, j = costs.config.layer_block(costs.config.stack[number])
    return f"layer {number} with blocks of {i}x{j}: {costs.states[number] / 1e6:,.0f} MB"


def _smaller(costs: Costs) -> str:
    """Which settings make the states smaller: `A smaller d_state or larger spatial_block`."""
    kinds = [kind for layer in costs.config.stack if (kind := layer.scan_class)]
    ways = dict.fromkeys(f"{way} {setting}" for kind in kinds for setting, way in kind.state_settings.items())
    return "A " + " or ".join(ways)
