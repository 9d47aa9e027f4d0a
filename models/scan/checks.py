"""What a scan refuses before it runs: a kernel given wrong shapes reads foreign memory.

Letters: b batch, l length, h heads, p head width, g groups of heads that share keys, n state width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

SCANNED, KEYS = "b l h p", "b l g n"


def require_call(
    scan: str,
    given: Mapping[str, Tensor | None],
    shapes: Mapping[str, str],
    chunk: int | None,
    backend: str,
    backends: Sequence[str],
) -> None:
    """Raise one ValueError that names everything wrong with a call of a scan.

    given: its tensors by name. shapes: the letters of each; what is scanned and the first keys say how large each is.
    """
    what = next(name for name, letters in shapes.items() if letters == SCANNED)
    keys = [name for name, letters in shapes.items() if letters == KEYS]
    sizes: dict[str, int] = {}
    for name in (keys[0], what):
        shape = getattr(given[name], "shape", ())
        if len(shape) != 4:
            got = " and ".join(str(tuple(getattr(given[one], "shape", ()))) for one in (what, keys[0]))
            raise ValueError(f"{what} is (b, l, h, p) and {keys[0]} (b, l, g, n); got {got}")
        sizes |= dict(zip(shapes[name].split(), shape, strict=True))
    expected = {name: tuple(sizes[letter] for letter in letters.split()) for name, letters in shapes.items()}
    problems = [
        f"{name} has shape {tuple(value.shape)}, expected {expected[name]}"
        for name, value in given.items()
        if value is not None and tuple(value.shape) != expected[name]
    ]
    if sizes["l"] == 0:
        problems.append(f"{what} has no tokens (length 0)")
    if sizes["g"] == 0 or sizes["h"] % sizes["g"]:
        problems.append(f"{sizes['h']} heads cannot share {sizes['g']} groups of {' and '.join(keys)} equally")
    if chunk is not None and chunk < 1:
        problems.append(f"chunk {chunk}: expected at least 1")
    if backend not in backends:
        problems.append(f"unknown backend {backend!r}; there are: {', '.join(backends)}")
    if problems:
        raise ValueError(f"{scan}: " + "; ".join(problems))
