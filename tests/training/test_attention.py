"""Causal attention inside documents: what it computes, what it keeps apart, what it refuses."""

from inspect import signature
from typing import Any

import pytest
import torch

from onward.errors import UserError
from onward.training import attention
from onward.training.attention import attend_within_documents

LENGTHS = [1, 9, 2, 30, 6]
N, HEADS, KV_HEADS, WIDTH = sum(LENGTHS), 4, 2, 8
STARTS = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
BOUNDS = torch.cat([STARTS, torch.full((64 - len(STARTS),), N, dtype=torch.int32)])


def inputs(dtype: torch.dtype = torch.float32, kv_heads: int = KV_HEADS) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(1, heads, N, WIDTH) for heads in (HEADS, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]


def attend(qkv: list[torch.Tensor], scaling: float | None = None, window: int | None = None) -> torch.Tensor:
    out, weights = attend_within_documents(
        torch.nn.Module(), *qkv, None, scaling, sliding_window=window, document_bounds=BOUNDS, longest_document=30
    )
    assert weights is None
    return out


def by_definition(qkv: list[torch.Tensor], scaling: float | None = None, window: int | None = None) -> torch.Tensor:
    """softmax(QK' scale) V under a dense mask, in float64: [1, N, H, D]."""
    query, key, value = (x.double() for x in qkv)
    key, value = (x.repeat_interleave(HEADS // x.shape[1], dim=1) for x in (key, value))
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    distance = torch.arange(N)[:, None] - torch.arange(N)[None, :]
    seen = (document[:, None] == document[None, :]) & (distance >= 0) & (distance < (window or N))
    scores = query @ key.transpose(2, 3) * (WIDTH**-0.5 if scaling is None else scaling)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("scaling", "window"), [(None, None), (0.7, None), (None, 1), (0.3, 6), (None, 30), (None, 99)]
)
def test_it_is_causal_attention_under_a_block_mask_and_so_are_its_gradients(
    kv_heads: int, scaling: float | None, window: int | None
) -> None:
    found, expected = inputs(kv_heads=kv_heads), inputs(kv_heads=kv_heads)
    weights = torch.randn(1, N, HEADS, WIDTH, generator=torch.Generator().manual_seed(1))
    outs = [attend(found, scaling, window), by_definition(expected, scaling, window)]
    torch.testing.assert_close(outs[0].double(), outs[1], rtol=1e-5, atol=1e-6)
    for out in outs:
        (out * weights).sum().backward()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=5e-6)


def test_a_document_sends_nothing_to_another_not_even_a_gradient() -> None:
    qkv = inputs()
    document = slice(10, 12)
    attend(qkv)[0, document].square().sum().backward()
    for tensor in qkv:
        assert tensor.grad is not None
        outside = tensor.grad.clone()
        outside[:, :, document] = 0
        assert not outside.any()
        assert tensor.grad.any()


def test_a_document_alone_gives_the_same_bits() -> None:
    qkv = inputs()
    alone = [x[:, :, 12:42] for x in qkv]
    bounds = torch.tensor([0, 30, 30, 30], dtype=torch.int32)
    out, _ = attend_within_documents(torch.nn.Module(), *alone, None, document_bounds=bounds, longest_document=30)
    assert torch.equal(out[0], attend(qkv)[0, 12:42])


def test_bf16_stays_bf16_and_near_the_exact_values() -> None:
    qkv = inputs(torch.bfloat16)
    out = attend(qkv)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), by_definition(qkv), rtol=0.02, atol=0.02)


def stand_in(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The variable-length kernel by its documentation: [N, H, D], one document after the other, in float64."""
    assert query.shape == (N, HEADS, WIDTH)
    assert key.shape == value.shape
    assert enable_gqa or key.shape == query.shape
    key, value = (x.repeat_interleave(HEADS // x.shape[1], dim=1) for x in (key, value))
    assert all(x.is_contiguous() for x in (query, key, value))
    assert cu_seq_q.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == 30
    assert window_size[1] == 0, "a causal window ends at the query itself"
    out = torch.empty(N, HEADS, WIDTH, dtype=torch.float64)
    for first, end in zip(cu_seq_q.tolist(), cu_seq_q[1:].tolist(), strict=False):
        q, k, v = (x[first:end].double().transpose(0, 1) for x in (query, key, value))
        distance = torch.arange(end - first)[:, None] - torch.arange(end - first)[None, :]
        seen = (distance >= 0) & (distance <= (window_size[0] if window_size[0] >= 0 else N))
        scores = q @ k.transpose(1, 2) * (WIDTH**-0.5 if scale is None else scale)
        out[first:end] = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1)
    return out


def without_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, *, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    """The kernel of an older torch."""
    assert key.shape == query.shape
    return stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.mark.parametrize("is_old", [False, True], ids=["installed", "older"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("scaling", "window"), [(None, None), (0.7, None), (None, 1), (0.3, 6)])
def test_the_gpu_kernel_is_called_with_what_gives_the_same(
    kv_heads: int, scaling: float | None, window: int | None, is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention import varlen

    qkv = [x.detach() for x in inputs(kv_heads=kv_heads)]
    real, seen = signature(varlen.varlen_attn), []

    def watched(*arguments: Any, **named: Any) -> torch.Tensor:
        real.bind(*arguments, **named)
        seen.append(arguments[1].shape[1])
        return stand_in(*arguments, **named)

    if is_old:
        monkeypatch.setattr(varlen, "varlen_attn", without_groups)
        monkeypatch.setattr(attention, "_TAKES_GROUPS", attention._kernel_takes_groups())
        assert not attention._TAKES_GROUPS
    else:
        monkeypatch.setattr(varlen, "varlen_attn", watched)
    out = attention._in_one_kernel(*qkv, BOUNDS, 30, scaling, window)
    torch.testing.assert_close(out, by_definition(qkv, scaling, window), rtol=1e-6, atol=1e-6)
    if not is_old and "enable_gqa" in real.parameters:
        assert seen == [kv_heads], "keys and values are not repeated"


CHANGES: dict[str, dict[str, Any]] = {
    "no-bounds": {"document_bounds": None},
    "no-length": {"longest_document": None},
    "own-mask": {"attention_mask": torch.zeros(1, 1, N, N)},
    "soft-cap": {"softcap": 50.0},
    "sinks": {"s_aux": torch.zeros(HEADS)},
    "position-bias": {"position_bias": torch.zeros(1)},
    "chosen-positions": {"indices": torch.zeros(1)},
    "both-directions": {"is_causal": False},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_attention_that_is_not_plainly_causal_is_refused(changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"attention_mask": None, "document_bounds": BOUNDS, "longest_document": 30}
    with pytest.raises(UserError, match="cannot be kept inside documents"):
        attend_within_documents(torch.nn.Module(), *inputs(), **(settings | changes))


def test_a_module_that_attends_in_both_directions_is_refused() -> None:
    module = torch.nn.Module()
    module.is_causal = False
    with pytest.raises(UserError, match="cannot be kept inside documents"):
        attend_within_documents(module, *inputs(), None, document_bounds=BOUNDS, longest_document=30)
