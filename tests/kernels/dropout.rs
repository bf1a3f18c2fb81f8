//! The mask is the CPU's, bit for bit.
use mpa::ops::dropout::forward;
use mpa::tensor::Launch;

use crate::common::{Rng, assert_op_error};
use crate::device::{DTYPES, on_each_device, output, random, values, what};

/// Lengths: one, around a pack of either type, around a block's share of either type, several blocks with a tail.
const LENGTHS: [usize; 10] = [1, 3, 4, 7, 8, 9, 1024, 1027, 2049, 6145];

#[test]
fn forward_is_that_of_the_cpu() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for n in LENGTHS {
            for dtype in DTYPES {
                for (p, seed) in [(0.0, 1), (0.05, 7), (0.5, u64::MAX), (0.99, 1 << 40)] {
                    let x = random(&mut rng, device, dtype, &[n], 1e4);
                    let mut out = output(&x, &[n]);
                    forward(&mut out, &x, p, seed).unwrap();
                    let here = x.to_f32().unwrap();
                    let mut want = here.clone();
                    forward(&mut want, &here, p, seed).unwrap();
                    let want = values(&want.to_dtype(dtype).unwrap());
                    assert_eq!(values(&out), want, "{}", what(&[&"dropout", &n, &dtype, &p, &seed]));
                }
            }
        }
    });
}

/// As src/ops/dropout.rs has it, for any index.
fn hash(index: u64, seed: u64) -> u64 {
    let mix = |seed: u64| {
        let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let key = mix(seed ^ mix(index >> 32));
    let mut h = index as u32 ^ key as u32;
    h = (h ^ (h >> 16)).wrapping_mul(0x21F0_AAAD);
    h = (h ^ (h >> 15)).wrapping_add((key >> 32) as u32).wrapping_mul(0x735A_2D97);
    u64::from(h ^ (h >> 15))
}

/// No test has a tensor of 2^32 elements: the kernel is told that its first one is there.
#[test]
fn indices_beyond_32_bits_have_another_key() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let x = random(&mut Rng(2), device, dtype, &[40], 1.0);
            let gpu = x.gpu().unwrap();
            for first in [0u64, (1 << 32) - 16, 3 << 32, (1 << 40) - 32] {
                // The hash of one of them: that one is kept.
                let (mut out, seed, threshold) = (output(&x, &[40]), 5u64, hash(first + 21, 5));
                let at = Launch { grid: [1, 1, 1], block: 256, shared: 0 };
                let args = [
                    out.ptr_mut(gpu).unwrap().into(),
                    x.ptr(gpu).unwrap().into(),
                    40u64.into(),
                    first.into(),
                    seed.into(),
                    threshold.into(),
                    1.0f32.into(),
                ];
                gpu.launch(&format!("dropout_forward_{dtype}"), at, &args).unwrap();
                for (i, (got, x)) in values(&out).into_iter().zip(values(&x)).enumerate() {
                    let drop = hash(first + i as u64, seed) < threshold;
                    assert_eq!(got, if drop { 0.0 } else { x }, "{first} + {i} {dtype}");
                }
            }
        }
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let [wide, narrow] = DTYPES.map(|dtype| random(&mut rng, device, dtype, &[4], 1.0));
        assert_op_error(forward(&mut output(&wide, &[4]), &narrow, 0.5, 1), "dropout", "all f32 or all bf16");
        assert_op_error(forward(&mut rng.tensor(&[4], 1.0), &wide, 0.5, 1), "tensor", "host-executed");
    });
}
