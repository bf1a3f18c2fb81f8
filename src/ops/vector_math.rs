//! Arithmetic that the compiler can turn into vector instructions: `exp`, the sigmoid, sums in a fixed number of lanes,
//! and `vectorised!`, which compiles a loop for the machine it runs on.

/// Defines a function whose body is compiled twice: for any machine, and for AVX2, which is chosen at run time.
/// Rust never contracts a multiplication and an addition into one rounding, so both give the same bits.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: `wide` is safe code; the processor has the one feature that it is compiled for.
                    return unsafe { wide($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(super) use vectorised;

/// Lanes of a sum: two AVX2 registers, which hides the latency of an addition.
const LANES: usize = 16;

/// e^x, at most 1.5 units in the last place off, subnormal results included; 0 and infinity beyond the range of f32; NaN stays NaN.
///
/// x = n ln 2 + r, |r| <= ln 2 / 2. ln 2 is split in two, the first part short enough that n times it is exact. e^r is its Taylor
/// polynomial of degree 7 (the first term left out is 5e-9). 2^n is applied in two factors, as n reaches beyond the exponents of f32.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;

    // Comparisons that a NaN passes through unchanged, unlike f32::clamp's partners min and max.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        p = p * r + c;
    }
    let p = (p * r) * r + r + 1.0;
    let n = (shifted.to_bits() as i32) - (ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// 2^n for the exponents of normal numbers.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// 1 / (1 + e^-z) and its derivative, both without cancellation or overflow for any z.
#[inline(always)]
pub(super) fn sigmoid(z: f32) -> (f32, f32) {
    let e = exp(-z.abs());
    let d = 1.0 / (1.0 + e);
    (if z < 0.0 { e * d } else { d }, e * d * d)
}

/// Sum of f(x).
#[inline(always)]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    sum2(x, x, |x, _| f(x))
}

/// Sum of f(x, y) over pairs.
#[inline(always)]
pub(super) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (x_rest, y_rest) = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(x, y);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane += f(x, y);
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

#[cfg(test)]
mod tests {
    use super::{exp, sigmoid, sum};

    /// Distance from `want` in units in the last place of f32 at `want`.
    fn ulps(got: f32, want: f64) -> f64 {
        let exponent = want.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor() as i32;
        (f64::from(got) - want).abs() / 2f64.powi(exponent - 23)
    }

    /// Every 97th float from 0 to `limit` and its negative: all exponents, all over the mantissa.
    fn floats(limit: f32) -> impl Iterator<Item = f32> {
        (0..limit.to_bits()).step_by(97).map(f32::from_bits).flat_map(|x| [x, -x])
    }

    #[test]
    fn exp_is_accurate_over_the_whole_range() {
        let mut worst = (0.0, 0.0);
        for x in floats(104.0) {
            let want = f64::from(x).exp();
            if want <= f64::from(f32::MAX) {
                let off = ulps(exp(x), want);
                if off > worst.0 {
                    worst = (off, x);
                }
            }
        }
        assert!(worst.0 <= 1.5, "{} units in the last place at {}", worst.0, worst.1);
    }

    #[test]
    fn exp_at_the_extremes() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        for x in [88.73, 1e4, f32::MAX, f32::INFINITY] {
            assert_eq!(exp(x), f32::INFINITY, "{x}");
            assert_eq!(exp(-x - 16.0), 0.0, "{x}");
        }
        assert!(exp(88.72).is_finite());
        assert!(exp(-103.0) > 0.0);
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

    #[test]
    fn sums_have_every_term_once() {
        for n in 0..70 {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum(&x, |x| x + 1.0), (n * (n + 1) / 2) as f32);
        }
    }
}
