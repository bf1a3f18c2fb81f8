//! Arithmetic that the compiler can turn into vector instructions: `exp`, the sigmoid, sums in a fixed number of lanes,
//! and `vectorised!`, which compiles a loop for the machine it runs on.

/// Defines a function whose body is compiled three times: for any machine, for AVX2 with FMA, and for AVX-512, which are chosen at run time.
/// Rust fuses a multiplication and an addition where `mul_add` says so and nowhere else (without the instruction: in software,
/// slowly), so all give the same bits.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn wider($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if $crate::ops::vector_math::avx512() {
                    // SAFETY: `wider` is safe code; the processor has the features that it is compiled for.
                    return unsafe { wider($($arg),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                {
                    // SAFETY: `wide` is safe code; the processor has the two features that it is compiled for.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(super) use vectorised;

/// Whether the processor has what `vectorised!` compiles the widest of its functions for: asked once, since some of them are short.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn avx512() -> bool {
    use std::arch::is_x86_feature_detected as has;
    static FOUND: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        has!("avx512f")
            && has!("avx512bw")
            && has!("avx512dq")
            && has!("avx512vl")
            && has!("avx2")
            && has!("fma")
    });
    *FOUND
}

/// Lanes of a sum: two AVX2 registers, which hides the latency of an addition.
const LANES: usize = 16;

/// e^x, less than one unit in the last place off. Below ln of the least normal number (-87.3) it is 0, from 88.37 on infinity
/// (the last binade but a half is given up for speed). NaN stays NaN.
///
/// x = n ln 2 + r, |r| <= ln 2 / 2; e^r = 1 + r + r^2 q(r), q of degree 4 fitted for the least relative error (3e-9).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits, here with the bias of exponents.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    const LN2: f32 = std::f32::consts::LN_2;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - std::f32::consts::LN_2 as f64) as f32;
    const Q: [f32; 5] = [0.001_381_459_9, 0.008_368_717, 0.041_668_39, 0.166_665_2, 0.499_999_93];

    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2, x));
    let q = Q[0].mul_add(r, Q[1]).mul_add(r, Q[2]).mul_add(r, Q[3]).mul_add(r, Q[4]);
    let power = f32::from_bits(shifted.to_bits() << 23);
    let e = ((r * r).mul_add(q, r) + 1.0) * power;
    let e = if x < -87.33 { 0.0 } else { e };
    if x > 88.37 { f32::INFINITY } else { e }
}

/// 1 / (1 + e^-z) and its derivative, both without cancellation or overflow for any z.
#[inline(always)]
pub(super) fn sigmoid(z: f32) -> (f32, f32) {
    let e = exp(-z.abs());
    let d = 1.0 / (1.0 + e);
    let ed = e * d;
    (if z < 0.0 { ed } else { d }, ed * d)
}

/// Sum of f(x).
#[inline(always)]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    sum3(x, x, x, |x, _, _| f(x))
}

/// Sum of f(x, y) over pairs.
#[inline(always)]
pub(super) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    sum3(x, y, y, |x, y, _| f(x, y))
}

/// Sum of f(x, y, z) over triples.
#[inline(always)]
pub(super) fn sum3(x: &[f32], y: &[f32], z: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys, zs) = (x.chunks_exact(LANES), y.chunks_exact(LANES), z.chunks_exact(LANES));
    let rest = xs.remainder().iter().zip(ys.remainder()).zip(zs.remainder());
    for ((x, y), z) in xs.zip(ys).zip(zs) {
        for (((lane, &x), &y), &z) in lanes.iter_mut().zip(x).zip(y).zip(z) {
            *lane += f(x, y, z);
        }
    }
    for (lane, ((&x, &y), &z)) in lanes.iter_mut().zip(rest) {
        *lane += f(x, y, z);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest element; -inf if there is none. NaN is passed over.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = larger(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::{exp, max, sigmoid, sum};

    /// Distance from `want` in units in the last place of f32 at `want`.
    fn ulps(got: f32, want: f64) -> f64 {
        let exponent = want.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor() as i32;
        (f64::from(got) - want).abs() / 2f64.powi(exponent - 23)
    }

    /// Every 499th float from 0 to `limit` and its negative: all exponents, all over the mantissa.
    fn floats(limit: f32) -> impl Iterator<Item = f32> {
        (0..limit.to_bits()).step_by(499).map(f32::from_bits).flat_map(|x| [x, -x])
    }

    #[test]
    fn exp_is_accurate_over_the_whole_range() {
        let mut worst = (0.0, 0.0);
        for x in floats(88.37).filter(|&x| x >= -87.33) {
            let off = ulps(exp(x), f64::from(x).exp());
            if off > worst.0 {
                worst = (off, x);
            }
        }
        assert!(worst.0 < 1.0, "{} units in the last place at {}", worst.0, worst.1);
    }

    #[test]
    fn exp_at_the_extremes() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for x in [88.38, 89.0, 104.0, 1e4, 1e9, 3e38, f32::MAX, f32::INFINITY] {
            assert_eq!(exp(x), f32::INFINITY, "{x}");
            assert_eq!(exp(-x), 0.0, "-{x}");
        }
        assert!(exp(88.37).is_finite());
        assert!(exp(-87.33) > 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_and_its_derivative_are_accurate() {
        for x in floats(80.0) {
            let e = (-f64::from(x)).exp();
            let (s, d) = sigmoid(x);
            assert!(ulps(s, 1.0 / (1.0 + e)) <= 4.0, "{s} at {x}");
            assert!(ulps(d, e / ((1.0 + e) * (1.0 + e))) <= 6.0, "{d} at {x}");
        }
        assert_eq!(sigmoid(f32::MAX), (1.0, 0.0));
        assert_eq!(sigmoid(f32::MIN), (0.0, 0.0));
        assert!(sigmoid(f32::NAN).0.is_nan());
    }

    vectorised! {
        fn exps(out: &mut [f32]) {
            for x in out {
                *x = exp(*x);
            }
        }
    }

    #[test]
    fn every_compilation_gives_the_same_bits() {
        let plain: Vec<f32> = floats(90.0).step_by(11).map(exp).collect();
        let mut wide: Vec<f32> = floats(90.0).step_by(11).collect();
        exps(&mut wide);
        assert!(plain.iter().zip(&wide).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn sums_have_every_term_once() {
        for n in 0..70 {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum(&x, |x| x + 1.0), (n * (n + 1) / 2) as f32);
        }
    }

    #[test]
    fn max_looks_at_every_element() {
        assert_eq!(max(&[]), f32::NEG_INFINITY);
        for n in 1..70 {
            let x: Vec<f32> = (0..n).map(|i| (i * 37 % n) as f32 - 100.0).collect();
            for i in 0..n {
                let mut x = x.clone();
                x[i] = 5.0;
                assert_eq!(max(&x), 5.0);
            }
        }
        assert_eq!(max(&[1.0, f32::NAN, 2.0]), 2.0);
    }
}
