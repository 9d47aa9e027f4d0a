"""The forms of attention between frames: what a CPU computes, and the masks that a GPU is given."""

import pytest
import torch
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import create_block_mask

from longtake.models import attention_flex
from longtake.models.attention_flex import BLOCK, frame_mask
from longtake.models.attention_mask import Reach
from longtake.models.mixers.attention import attend

REACHES = [
    Reach("window", 1),
    Reach("window", 3),
    Reach("window", 3, future=2),
    Reach("chunk", 3),
    Reach("full"),
    Reach("full", future=1),
]


def by_mask(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first_frame: int, reach: Reach) -> torch.Tensor:
    """The definition: one masked softmax over everything."""
    frames, tokens = q.shape[1:3]
    first_key = first_frame - (k.shape[1] - frames)
    low, high = reach.spans(torch.arange(frames) + first_frame)
    key = torch.arange(k.shape[1]) + first_key
    mask = (key >= low[:, None]) & (key <= high[:, None])
    mask = mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).unflatten(1, (frames, tokens))


def draw(frames: int, kept: int, tokens: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, count, tokens, 2, 16) for count in (frames, frames + kept, frames + kept)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize("frames", [1, 3, 8])
def test_every_form_is_masked_attention(reach: Reach, frames: int) -> None:
    first = 0 if reach.future else 6
    kept = reach.kept(first)
    q, k, v = draw(frames, kept)
    expected = by_mask(q, k, v, first, reach)
    assert (attend(q, k, v, first, reach) - expected).abs().max() < 1e-6
    with pytest.MonkeyPatch.context() as patch:  # as on a GPU, but for the compiler
        patch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        patch.setattr(attention_flex, "_compiled", flex_attention.flex_attention)
        assert (attention_flex.flex_attend(q, k, v, first, reach) - expected).abs().max() < 1e-6


def test_one_frame_and_one_chunk_need_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout keeps more frames with every one it makes: each was a shape to compile for, until there were eight."""
    monkeypatch.setattr(attention_flex, "_compiled", lambda *_, **__: pytest.fail("a mask was compiled"))
    for reach, frames, firsts in (
        (Reach("window", 11), 1, range(14)),
        (Reach("full"), 1, range(14)),
        (Reach("chunk", 3), 3, (0, 3, 6)),
        (Reach("chunk", 3), 2, (0, 3)),
        (Reach("full", future=1), 8, (0,)),
    ):
        for first in firsts:
            q, k, v = draw(frames, reach.kept(first))
            made = attention_flex.flex_attend(q, k, v, first, reach)
            assert (made - by_mask(q, k, v, first, reach)).abs().max() < 1e-6


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_everything_is_seen_where_the_mask_says_so(reach: Reach) -> None:
    for frames, kept, at in ((f, k, p) for f in (1, 2, 3, 7) for k in (0, 2, 3) for p in (0, 1)):
        phase = at if reach.form == "chunk" else 0
        if kept <= reach.kept(10**6):
            low, high = reach.spans(torch.arange(frames) + phase)
            all_seen = bool((low <= phase - kept).all() and (high >= phase + frames - 1).all())
            assert attention_flex.sees_everything(frames, frames + kept, phase, reach) == all_seen


@pytest.mark.slow
def test_more_shapes_than_the_limit_fail_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were computed densely without a word: a stage of longer clips ran out of memory."""
    assert torch._dynamo.config.recompile_limit >= attention_flex.SHAPES > 8
    compiled = torch.compile(flex_attention.flex_attention, dynamic=False, fullgraph=True, backend="eager")
    monkeypatch.setattr(attention_flex, "_compiled", compiled)
    reach = Reach("window", 3)
    torch._dynamo.reset()
    attend_all = attention_flex.flex_attend
    message = r"compiled for 1 shapes in this process, and .*\(2, 2, 18, 16\) on 18 keys"
    with torch._dynamo.config.patch(recompile_limit=1):  # monkeypatch would delete the setting when it is done
        assert attend_all(*draw(8, 0), 0, reach).shape == (2, 8, 2, 2, 16)
        with pytest.raises(RuntimeError, match=message):
            attend_all(*draw(9, 0), 0, reach)
    torch._dynamo.reset()


@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize(("frames", "kept", "tokens"), [(16, 0, 64), (9, 0, 50), (5, 2, 128), (3, 2, 300), (40, 2, 7)])
def test_the_mask_by_arithmetic_is_the_mask_by_evaluation(reach: Reach, frames: int, kept: int, tokens: int) -> None:
    phase = 0 if reach.form == "chunk" else kept
    kept = 3 if reach.form == "chunk" and kept else kept
    mine = frame_mask(frames, frames + kept, tokens, phase, reach, "cpu")
    first_key = phase - kept

    def sees(_b: int, _h: int, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        low, high = reach.spans(query // tokens + phase)
        frame = key // tokens + first_key
        return (frame >= low) & (frame <= high)

    sizes = (frames * tokens, (frames + kept) * tokens)
    theirs = create_block_mask(sees, None, None, *sizes, device="cpu", BLOCK_SIZE=BLOCK)
    assert torch.equal(mine.to_dense(), theirs.to_dense())
    assert mine.full_kv_num_blocks is not None and theirs.full_kv_num_blocks is not None
    if not any(size % BLOCK for size in sizes):  # at ragged ends theirs and mine may call a tile full or not
        assert torch.equal(mine.full_kv_num_blocks, theirs.full_kv_num_blocks)


def test_a_mask_at_262_thousand_tokens_takes_no_time() -> None:
    mask = frame_mask(4096, 4096, 64, 0, Reach("window", 8), "cpu")
    assert mask.sparsity() > 99
