"""Multi-head attention whose memory grows linearly with the number of tokens, forwards and backwards.

The logits of all pairs of tokens never exist at once: on CPUs one head (and one chunk of queries) at a
time, on NVIDIA GPUs in cuDNN's flash kernel, on TPUs in JAX's, both for bfloat16 and many tokens, elsewhere
one chunk of queries at a time. All of them take the softmax in float32. The gradient computes a chunk's
logits again instead of keeping them.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ultrapixel_jax.models.layers import dot, dot_of_rows
from ultrapixel_jax.sharding import by_examples_and_heads, by_rows, examples_and_heads, rows_mesh
from ultrapixel_jax.target import platform

QUERY_CHUNK = 1152
"""Queries at a time, at most, where one head is computed after the other."""
FEW_PAIRS = 1 << 17
"""Query-key pairs up to which all heads are computed together everywhere, without a kernel or a loop."""
LOGITS_AT_ONCE = 1 << 26
"""Logits at a time, at most, where all heads are computed together: 256 MiB of float32."""
FLASH_BLOCK = 512
"""Queries and keys at a time, at most, in the TPU's kernel; 128 or a multiple."""


def attention(
    q: Float[Array, "b n k d"], k: Float[Array, "b m k d"], v: Float[Array, "b m k d"]
) -> Float[Array, "b n k d"]:
    """`softmax(q·kᵀ/√d)·v` for every head, in the dtype of `q`.

    Where devices divide the rows of the map, each computes its own queries.
    """
    if (mesh := rows_mesh(q.shape[1])) is not None:
        beside = examples_and_heads(mesh, q)
        return by_rows(_attention, mesh, takes=("rows", "whole", "whole"), beside=beside)(q, k, v)
    return _attention(q, k, v)


def _attention(q: Array, k: Array, v: Array) -> Array:
    pairs = q.shape[1] * k.shape[1]
    small = isinstance(pairs, int) and pairs <= FEW_PAIRS
    if q.dtype == jnp.bfloat16 and platform() == "gpu" and not small:
        # Tracing this kernel already asks for cuDNN, so that it cannot be one of the branches below.
        try:
            return _flash_gpu(q, k, v)
        except RuntimeError:  # no cuDNN, in a process that lowers for a GPU which it does not have
            if jax.default_backend() == "gpu":
                raise
    if q.dtype == jnp.bfloat16 and platform() == "tpu" and isinstance(pairs, int) and not small:
        return by_examples_and_heads(_flash_tpu, kernel=True)(q, k, v)  # importing Pallas takes CPUs too long

    def here(q: Array, k: Array, v: Array) -> Array:
        cpu = _by_queries if small else _by_heads
        return jax.lax.platform_dependent(q, k, v, cpu=cpu, default=_by_queries)

    return by_examples_and_heads(here)(q, k, v)


def _by_heads(q: Array, k: Array, v: Array) -> Array:
    """One head after the other, with plain matrix products: XLA's batched ones are slow on CPUs."""
    b, n, heads, d = q.shape

    def flat(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(b * heads, x.shape[1], d)

    out = jax.lax.map(lambda qkv: _in_chunks(_one_head, *qkv, size=QUERY_CHUNK), (flat(q), flat(k), flat(v)))
    return out.reshape(b, heads, n, d).transpose(0, 2, 1, 3)


def _by_queries(q: Array, k: Array, v: Array) -> Array:
    """All heads at once, one chunk of queries after the other."""
    b, n, heads, d = q.shape
    size = QUERY_CHUNK
    if all(isinstance(i, int) for i in (b, heads, k.shape[1])):
        size = max(128, LOGITS_AT_ONCE // (b * heads * k.shape[1]) // 128 * 128)
    q, k, v = (x.transpose(0, 2, 1, 3).reshape(b * heads, x.shape[1], d) for x in (q, k, v))
    out = _in_chunks(jax.vmap(_one_head), q, k, v, axis=1, size=size)
    return out.reshape(b, heads, n, d).transpose(0, 2, 1, 3)


@jax.custom_vjp
def _one_head(q: Array, k: Array, v: Array) -> Array:
    """(n, d), (m, d), (m, d) -> (n, d); dividing by the row sums last saves a pass over the logits.

    The gradient computes the logits again, from what the softmax added up to (Dao et al., "FlashAttention",
    2022, algorithm 4).
    """
    return _one_head_forward(q, k, v)[0]


def _one_head_forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    logits = dot(q, k, 1, 1) * (1.0 / math.sqrt(q.shape[-1]))
    top = logits.max(-1, keepdims=True)
    # Behind the barrier, the sum reads the rounded weights; in front of it, it would take all exponentials
    # a second time.
    weights = jax.lax.optimization_barrier(jnp.exp(logits - top).astype(v.dtype))
    total = weights.sum(-1, keepdims=True, dtype=jnp.float32)
    out = (dot(weights, v, 1, 0) / total).astype(q.dtype)
    return out, (q, k, v, out, (top + jnp.log(total))[:, 0])


def _one_head_backward(saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, Array]:
    """Of the weights and their cotangents, the transposes: CPUs sum over columns quickly, not over rows."""
    q, k, v, out, logsumexp = saved
    scale = 1.0 / math.sqrt(q.shape[-1])
    weights = jnp.exp(dot(k, q, 1, 1) * scale - logsumexp[None])
    weights = jax.lax.optimization_barrier(weights.astype(q.dtype))
    mean = (cotangent.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    change = weights.astype(jnp.float32) * (dot(v, cotangent, 1, 1) - mean[None])
    change = jax.lax.optimization_barrier((change * scale).astype(q.dtype))
    in_q, in_k, in_v = dot_of_rows(change, k), dot(change, q, 1, 0), dot(weights, cotangent, 1, 0)
    return in_q.astype(q.dtype), in_k.astype(k.dtype), in_v.astype(v.dtype)


_one_head.defvjp(_one_head_forward, _one_head_backward)


def _in_chunks(attend, q: Array, k: Array, v: Array, *, size: int, axis: int = 0) -> Array:
    """Apply `attend` to chunks of queries along `axis`; sizes unknown until run time stay whole."""
    n = q.shape[axis]
    if not isinstance(n, int) or n <= 2 * size:
        return attend(q, k, v)
    count = -(-n // size)
    size = -(-n // count)
    pad = [(0, count * size - n if i == axis else 0) for i in range(q.ndim)]
    chunks = jnp.stack(jnp.split(jnp.pad(q, pad), count, axis=axis))
    out = jax.lax.map(lambda chunk: attend(chunk, k, v), chunks)
    joined = jnp.concatenate([out[i] for i in range(count)], axis=axis)
    return jax.lax.slice_in_dim(joined, 0, n, axis=axis)


def _flash_gpu(q: Array, k: Array, v: Array) -> Array:
    """cuDNN's kernel, with an even number of queries and of keys: for an odd one it has no gradient."""
    n, m = q.shape[1], k.shape[1]
    if not (isinstance(n, int) and isinstance(m, int)) or n % 2 == m % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")

    def even(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)])

    out = jax.nn.dot_product_attention(
        even(q), even(k), even(v), implementation="cudnn",
        query_seq_lengths=jnp.full(len(q), n, jnp.int32),
        key_value_seq_lengths=jnp.full(len(k), m, jnp.int32),
    )  # fmt: skip
    return out[:, :n]


def _flash_tpu(q: Array, k: Array, v: Array) -> Array:
    """JAX's Pallas kernel for TPUs: the softmax is gathered block by block, in the chip's own memory.

    Blocks are multiples of 128, so that queries and keys are padded; a padded key is of another segment
    than any query.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    n, m = q.shape[1], k.shape[1]
    (block_q, n_padded), (block_k, m_padded) = _blocks(n), _blocks(m)

    def padded(x: Array, size: int) -> Array:
        return jnp.pad(x.transpose(0, 2, 1, 3), [(0, 0), (0, 0), (0, size - x.shape[1]), (0, 0)])

    keys = jnp.broadcast_to(jnp.arange(m_padded) >= m, (len(q), m_padded)).astype(jnp.int32)
    segments = kernel.SegmentIds(jnp.zeros((len(q), n_padded), jnp.int32), keys)
    blocks = kernel.BlockSizes(
        block_b=1, block_q=block_q, block_k_major=block_k, block_k=block_k,
        block_q_major_dkv=block_q, block_q_dkv=block_q, block_k_major_dkv=block_k, block_k_dkv=block_k,
        block_q_dq=block_q, block_k_major_dq=block_k, block_k_dq=block_k,
    )  # fmt: skip
    out = kernel.flash_attention(
        padded(q, n_padded), padded(k, m_padded), padded(v, m_padded), segment_ids=segments,
        sm_scale=1.0 / math.sqrt(q.shape[-1]), block_sizes=blocks,
    )  # fmt: skip
    return out[:, :, :n].transpose(0, 2, 1, 3)


def _blocks(tokens: int) -> tuple[int, int]:
    """(size of a block, tokens of all blocks): as few blocks as possible, with little padding."""
    count = -(-tokens // FLASH_BLOCK)
    size = 128 * -(-tokens // (128 * count))
    return size, size * count
