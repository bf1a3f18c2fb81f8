"""The best backward of torch's scaled_dot_product_attention, in all the ways that attention.py knows: gradients of q, k and v, the forward not counted."""

import contextlib

import torch

from attention import BACKENDS, CPU_BACKENDS, shapes_of, ways_of
from common import Bench, arguments


class Leaves(Bench):
    """Random tensors are what gradients are asked for."""

    leaves = []

    def random(self, *shape, dtype=torch.bfloat16):
        self.leaves.append(super().random(*shape, dtype=dtype).requires_grad_())
        return self.leaves[-1]


def backward(bench, make):
    """The way's forward, run once; then its backward, as often as one likes."""
    out = make()()
    outs = [o[0] if isinstance(o, tuple) else o for o in (out if isinstance(out, list) else [out])]
    # As random as any, and laid out as a gradient would be, nested ones too.
    grads = [o.detach().clone() for o in outs]
    return lambda: torch.autograd.grad(outs, bench.leaves, grads, retain_graph=True, allow_unused=True)


def backwards(bench, shape, backends):
    bench.leaves.clear()
    ways = ways_of(bench, shape, backends)
    return {name: (lambda m=make: backward(bench, m)) for name, make in ways.items()}


def main():
    args = arguments(__doc__)
    bench = Leaves(args)
    backends = BACKENDS if bench.cuda else CPU_BACKENDS
    # Autograd joins the stream of the forward to the one that captures, which the default stream does not bear (pytorch #164302).
    with torch.cuda.stream(torch.cuda.Stream()) if bench.cuda else contextlib.nullcontext():
        for shape in shapes_of(bench, "attention_backward"):
            bench.measure(shape, lambda: backwards(bench, shape, backends))
            if bench.cuda:
                torch.cuda.empty_cache()
    bench.finish()


if __name__ == "__main__":
    main()
