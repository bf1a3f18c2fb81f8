"""torch's products of int8 (torch._int_mm: cuBLASLt), the sums of int32 as they are and with scales applied, beside bf16's of the same sizes.

It refuses 16 rows and fewer: those are padded to 32, as a caller would have to do. The row of a shape is that of the fastest, which may be one that
does less than mpa (no scales) or does it in bf16; the note says which, and what is printed has them all.
"""

import torch
import torch.nn.functional as F

from common import Bench, arguments

LEAST = 32  # rows that torch._int_mm takes


def main():
    args = arguments(__doc__)
    bench = Bench(args)
    for shape in bench.shapes("gemm_int8"):
        m, n, k = (min(shape[size], 32) if args.quick else shape[size] for size in "mnk")
        rows = max(m, LEAST)
        x, weight = (torch.randint(-127, 128, size, dtype=torch.int8, device=bench.device) for size in ((rows, k), (n, k)))
        scale_x, scale_w = (torch.rand(size, device=bench.device) / 127 for size in ((rows, 1), (1, n)))
        wide_x, wide_weight = bench.random(m, k), bench.random(n, k)
        transposed = weight.t()

        def dequantised():
            return (torch._int_mm(x, transposed).float() * (scale_x * scale_w)).to(torch.bfloat16)

        ways = {
            "_int_mm": lambda: lambda: torch._int_mm(x, transposed),
            "_int_mm and scales": lambda: dequantised,
            "F.linear bf16": lambda: lambda: F.linear(wide_x, wide_weight),
        }
        bench.measure(shape, ways, dtype="int8")
    bench.finish()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
