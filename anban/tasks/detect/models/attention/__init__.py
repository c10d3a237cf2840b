"""Self-attention by name.

reduced      keys and values from a map that a strided convolution reduces (PVT); reduction 1 is full attention
pooled       keys and values from a map of 7x7 pooled pixels (PVT v2, "linear")
full         every token sees every token
strided      a window and every stride-th token (Sparse Transformers); in blocks: VideoGPT's sparse attention
fixed        the own stretch and the last tokens of all (Sparse Transformers); in blocks: torch-blocksparse
axial        the own row plus the own column (VideoGPT)
atrous       tokens at multiples of a rate in the sequence (Keras attention)
atrous-grid  the same along rows and along columns
lsh          tokens that a hash puts together (Reformer)
log-sparse   near tokens all, far ones ever fewer, looking back (the AtrousLSHTransformer's release)
"""

from __future__ import annotations

from collections.abc import Callable

from anban.tasks.detect.models.attention.layers import (
    LSH,
    Axial,
    LogSparseAttention,
    Patterned,
    Pooled,
    Reduced,
    SelfAttention,
)
from anban.tasks.detect.models.attention.patterns import Atrous, Fixed, Strided
from anban.tasks.detect.models.settings import Attention, Kind

AnyAttention = SelfAttention | Axial

ATTENTION: dict[Kind, Callable[..., AnyAttention]] = {
    "reduced": lambda s, stage, eps, **frame: Reduced(reduction=s.reductions[stage], eps=eps, **frame),
    "pooled": lambda s, stage, eps, **frame: Pooled(pool=s.pool, eps=eps, **frame),
    "full": lambda s, stage, eps, **frame: SelfAttention(**frame),
    "strided": lambda s, stage, eps, **frame: Patterned(
        pattern=Strided(s.stride, s.window, s.block), **frame
    ),
    "fixed": lambda s, stage, eps, **frame: Patterned(pattern=Fixed(s.stride, s.summary, s.block), **frame),
    "axial": lambda s, stage, eps, **frame: Axial(**frame),
    "atrous": lambda s, stage, eps, **frame: Patterned(pattern=Atrous(s.rate), **frame),
    "atrous-grid": lambda s, stage, eps, **frame: Patterned(pattern=Atrous(s.rate, axes=2), **frame),
    "lsh": lambda s, stage, eps, **frame: LSH(buckets=s.buckets, hashes=s.hashes, **frame),
    "log-sparse": lambda s, stage, eps, **frame: LogSparseAttention(
        stretch=s.stretch, taps=s.taps, mask=s.mask, **frame
    ),
}
"""Name -> a function that makes the layer: of the settings, the stage, the eps of its norm and `SelfAttention`'s arguments."""


def make_attention(
    settings: Attention,
    stage: int,
    stages: int,
    *,
    width: int,
    heads: int,
    bias: bool = True,
    scale: float | None = None,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    eps: float = 1e-5,
) -> AnyAttention:
    """The attention layer of a stage, of the kind that the settings name; arguments as of `SelfAttention`.

    Args:
        stage: its number, from 0.
        stages: how many there are.
        eps: of the norm of a reduced map.
    """
    make = ATTENTION[settings.kinds(stages)[stage]]
    return make(
        settings,
        stage,
        eps,
        width=width,
        heads=heads,
        bias=bias,
        scale=scale,
        dropout=dropout,
        attention_dropout=attention_dropout,
    )
