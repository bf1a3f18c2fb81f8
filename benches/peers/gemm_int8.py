"""torch's products of int8 (torch._int_mm), the sums of int32 as they are and with scales applied; bf16's of the same sizes have rows of their own.

torch._int_mm refuses 16 rows and fewer: those are padded to 32, as a caller would have to do. It asks cuBLASLt for no algorithm and gives it no
workspace, so it is what torch has and not cuBLASLt's best. The row of a shape is that of the fastest, which may do less than mpa (no scales).
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
        x, weight = (bench.integers(-127, 128, *size, dtype=torch.int8) for size in ((rows, k), (n, k)))
        scale_x, scale_w = (bench.random(*size, dtype=torch.float32).abs() / 127 for size in ((rows, 1), (1, n)))
        wide_x, wide_weight = bench.random(m, k), bench.random(n, k)
        transposed = weight.t()

        def dequantised():
            return (torch._int_mm(x, transposed).float() * (scale_x * scale_w)).to(torch.bfloat16)

        ways = {
            "_int_mm (cuBLASLt's default algorithm)": lambda: lambda: torch._int_mm(x, transposed),
            "_int_mm (cuBLASLt's default algorithm) and scales": lambda: dequantised,
        }
        bench.measure(shape, ways, dtype="int8")
        bench.measure({**shape, "op": "gemm_int8, bf16"}, {"F.linear": lambda: lambda: F.linear(wide_x, wide_weight)})
    bench.finish()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
