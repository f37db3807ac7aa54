"""The one rule of what a token may see, as a dense mask and as a block mask.

A query sees a key of the same document that is clean and earlier in causal time, or that shares
its order and its stream. That is causal text, bidirectional labels, block-causal clean images,
the noisy streams of causal diffusion (the paper's generalised causal mask, section 3) and packed
documents that never see each other.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:  # it takes a second to load and is of use on a GPU alone
    from torch.nn.attention.flex_attention import BlockMask


def visible(
    doc_q: Any, order_q: Any, stream_q: Any, doc_k: Any, order_k: Any, stream_k: Any
) -> Any:
    """The rule itself, element by element over integer tensors or arrays that broadcast."""
    earlier = (stream_k == 0) & (order_k < order_q)
    together = (order_k == order_q) & (stream_k == stream_q)
    return (doc_q == doc_k) & (earlier | together)


def dense_mask(doc: Tensor, order: Tensor, stream: Tensor) -> Tensor:
    """(..., L, L) booleans, true where the query (last axis but one) sees the key (last axis).

    Args:
        doc, order, stream: (..., L) integers.
    """
    parts = doc, order, stream
    return visible(*(part[..., None] for part in parts), *(part[..., None, :] for part in parts))


def block_mask(doc: Tensor, order: Tensor, stream: Tensor, block: int = 128) -> "BlockMask":
    """The same rule as a FlexAttention block mask, made once a step and shared by all layers.

    Args:
        doc, order, stream: (B, L) integers.
        block: side of the blocks that are skipped whole where nothing is visible.
    """
    rows, length = doc.shape

    def rule(b: Any, h: Any, q: Any, k: Any) -> Tensor:
        return visible(doc[b, q], order[b, q], stream[b, q], doc[b, k], order[b, k], stream[b, k])

    return _create(doc.is_cuda)(
        rule, B=rows, H=None, Q_LEN=length, KV_LEN=length, device=doc.device, BLOCK_SIZE=block
    )


@lru_cache(maxsize=2)
def _create(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=False) if compiled else create_block_mask


def flex_attention(query: Tensor, key: Tensor, value: Tensor, mask: "BlockMask") -> Tensor:
    """FlexAttention of (B, Q, H, d) over (B, K, G, d), G dividing H: (B, Q, H, d)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    grouped = q.shape[1] != k.shape[1]
    return _flex(q.is_cuda)(q, k, v, block_mask=mask, enable_gqa=grouped).transpose(1, 2)


def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    if not compiled or torch.compiler.is_compiling():  # then it is a part of a larger graph
        return flex_attention
    return _alone(flex_attention)


@lru_cache(maxsize=1)
def _alone(flex_attention: Any) -> Any:
    # A shape too many would otherwise fall back to full score matrices without a word.
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = max(64, dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
