"""The best that torch's scaled_dot_product_attention does: flash, cuDNN, efficient; ragged batches in every way that torch has for them."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import Bench, arguments

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CPU_BACKENDS = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}


def sdpa(backend, q, k, v, causal, gqa):
    """[B, H, T, D]; the context is entered within the call, as a graph captures it."""

    def run():
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

    return run


def equal_lengths(bench, shape, spans, backends):
    """One call over a batch. Heads lie within tokens, as linear layers leave them."""
    (queries, keys), count = spans[0], len(spans)
    heads, kv_heads, size = shape["heads"], shape["kv_heads"], shape["head_size"]
    q = bench.random(count, queries, heads, size).transpose(1, 2)
    k, v = (bench.random(count, keys, kv_heads, size).transpose(1, 2) for _ in range(2))
    # A single query sees all keys.
    causal, gqa = shape["causal"] and queries > 1, heads != kv_heads
    ways = {name: (lambda b=backend: sdpa(b, q, k, v, causal, gqa)) for name, backend in backends.items()}
    if gqa:
        # For a backend without grouped heads: the keys are there for each head, which costs it bandwidth but no time before.
        def repeated(backend):
            full = [x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v)]
            return sdpa(backend, q, *full, causal, False)

        ways |= {f"{name}, keys repeated": (lambda b=backend: repeated(b)) for name, backend in backends.items()}
    return ways


def ragged(bench, shape, spans, backends):
    """A call for each sequence; one over a padded batch; flash over the packed tokens."""
    heads, kv_heads, size, causal = shape["heads"], shape["kv_heads"], shape["head_size"], shape["causal"]
    lengths = [q for q, _ in spans]
    longest, count, total, gqa = max(lengths), len(lengths), sum(lengths), heads != kv_heads
    q, k, v = (bench.random(total, h, size) for h in (heads, kv_heads, kv_heads))

    def each(backend):
        parts = [[x.transpose(0, 1)[None] for x in xs] for xs in zip(*(x.split(lengths) for x in (q, k, v)))]
        calls = [sdpa(backend, *part, causal, gqa) for part in parts]
        return lambda: [call() for call in calls]

    def padded(backend):
        # Behind its end a sequence has rows that nobody reads: causal queries do not see them.
        if not causal:
            raise RuntimeError("padding needs a mask")
        full = [bench.random(count, longest, h, size).transpose(1, 2) for h in (heads, kv_heads, kv_heads)]
        return sdpa(backend, *full, causal, gqa)

    starts = torch.tensor([0] + lengths).cumsum(0).to(device=bench.device, dtype=torch.int32)

    def packed(k, v):
        return lambda: torch.ops.aten._flash_attention_forward(
            q, k, v, starts, starts, longest, longest, 0.0, causal, False
        )

    def repeated():
        return packed(*(x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v)))

    # One tensor for all three: that they have the same lengths is known by it.
    offsets = starts.long()

    def nested(backend):
        parts = [torch.nested.nested_tensor_from_jagged(x, offsets).transpose(1, 2) for x in (q, k, v)]
        return sdpa(backend, *parts, causal, gqa)

    ways = {"flash, packed": lambda: packed(k, v), "flash, packed, keys repeated": repeated}
    for name, backend in backends.items():
        ways[f"{name}, one by one"] = lambda b=backend: each(b)
        ways[f"{name}, padded"] = lambda b=backend: padded(b)
        ways[f"{name}, nested"] = lambda b=backend: nested(b)
    return ways


def spans_of(shape):
    return [tuple(span) for span in shape["spans"]]


def shapes_of(bench, op):
    """Ragged ones last: cuDNN makes a plan for each length, which takes it half a second, and a limit may come before the end."""
    return sorted(bench.shapes(op), key=lambda shape: len(set(spans_of(shape))) > 1)


def ways_of(bench, shape, backends):
    """All ways to compute the shape, which --quick cuts down."""
    spans = spans_of(shape)
    if bench.args.quick:
        spans = [(min(q, 1 + 16 // (i + 1)), min(k, 1 + 16 // (i + 1))) for i, (q, k) in enumerate(spans[:2])]
        shape = {**shape, "heads": shape["heads"] // shape["kv_heads"], "kv_heads": 1}
        if shape["spans"][0] == shape["spans"][-1]:
            spans = spans[:1]
    return (equal_lengths if len(set(spans)) == 1 else ragged)(bench, shape, spans, backends)


def main():
    args = arguments(__doc__)
    bench = Bench(args)
    backends = BACKENDS if bench.cuda else CPU_BACKENDS
    for shape in shapes_of(bench, "attention"):
        bench.measure(shape, lambda: ways_of(bench, shape, backends))
        if bench.cuda:
            torch.cuda.empty_cache()
    bench.finish()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
