//! How far an output may be from the reference, and how far it is.

use std::fmt;

use crate::tensor::DType;

const EPS: f64 = f32::EPSILON as f64;
/// Half a unit in the last of bf16's 8 bits.
const BF16: f64 = 1.0 / 256.0;

/// Allowed error of one element: abs + rel * |wanted| + row * the largest |wanted| among the `width` elements of its row.
pub(super) struct Tolerance {
    abs: f64,
    rel: f64,
    row: f64,
    width: usize,
    pub reason: String,
}

impl Tolerance {
    fn new(abs: f64, rel: f64, reason: impl Into<String>) -> Tolerance {
        Tolerance { abs, rel, row: 0.0, width: 1, reason: reason.into() }
    }

    /// The same bits.
    pub fn exact(reason: &str) -> Tolerance {
        Tolerance::new(0.0, 0.0, reason)
    }

    /// A few f32 operations on numbers of about `size`, stored as `dtype`.
    pub fn stored(dtype: DType, size: f64) -> Tolerance {
        Tolerance::new(16.0 * EPS * size, 16.0 * EPS, "a few f32 operations").store(dtype)
    }

    /// A norm: the mean is of positive terms and their order matters little; the rest is as for `stored`.
    pub fn norm(dtype: DType, size: f64) -> Tolerance {
        Tolerance::new(16.0 * EPS * size, 16.0 * EPS, "f32 means of a row").store(dtype)
    }

    /// A product's f32 sum of `n` terms, added up one after the other (or, in bf16, 16 at a time by tensor cores, which may cut instead of
    /// rounding): it wanders to sqrt(n) times a term, and each step is off by up to eps of that.
    pub fn product(dtype: DType, n: usize, term: f64) -> Tolerance {
        let steps = if dtype == DType::F32 { n as f64 / 4.0 } else { n as f64 / 16.0 };
        let abs = (steps.max(4.0) + (n as f64).sqrt()) * EPS * (n as f64).sqrt() * term;
        Tolerance::new(abs, 16.0 * EPS, format!("running f32 sums of {n}"))
    }

    /// Rounded to `dtype` at the end.
    pub fn store(mut self, dtype: DType) -> Tolerance {
        if dtype == DType::Bf16 {
            self.rel += BF16;
            self.reason += ", rounded to bf16";
        }
        self
    }

    /// Attention: scores of `dtype`'s exact products in f32. In bf16 the weights are rounded before they meet the values: each up to half a unit
    /// off, which an average over many keys keeps below twice that of the row's largest element.
    pub fn attention(dtype: DType, head_size: usize) -> Tolerance {
        let (row, reason) = match dtype {
            DType::Bf16 => (2.0 * BF16, "weights rounded to bf16"),
            _ => (64.0 * EPS, "f32 scores and weights"),
        };
        Tolerance { row, width: head_size, ..Tolerance::new(1e-6, 16.0 * EPS, reason) }.store(dtype)
    }

    /// A level of int8, for what the reason says.
    pub fn level(reason: &str) -> Tolerance {
        Tolerance::new(1.0, 0.0, reason)
    }

    /// `more` for what the reason says.
    pub fn plus(mut self, more: f64, reason: &str) -> Tolerance {
        self.abs += more;
        self.reason = format!("{}, {reason}", self.reason);
        self
    }

    fn allowed(&self, wanted: f32, row: f64) -> f64 {
        self.abs + self.rel * f64::from(wanted).abs() + self.row * row
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.abs, ""), (self.rel, "|y|"), (self.row, "max|row|")];
        let parts: Vec<String> =
            parts.iter().filter(|(x, _)| *x > 0.0).map(|(x, of)| format!("{x:.1e}{of}")).collect();
        f.write_str(if parts.is_empty() { "0" } else { "" })?;
        f.write_str(&parts.join(" + "))
    }
}

pub(super) struct Found {
    pub error: Option<f64>,
    pub used: Option<f64>,
    pub why: Option<String>,
}

/// Elements that are equal are right, also infinities; NaN never is.
pub(super) fn compare(got: &[f32], wanted: &[f32], tolerance: &Tolerance) -> Found {
    let bad = |why: String| Found { error: None, used: None, why: Some(why) };
    if got.len() != wanted.len() {
        return bad(format!("{} elements, wanted {}", got.len(), wanted.len()));
    }
    let (mut error, mut used, mut at) = (0.0, 0.0, 0);
    let width = tolerance.width.max(1);
    for (row, (got, wanted)) in got.chunks(width).zip(wanted.chunks(width)).enumerate() {
        let largest = f64::from(wanted.iter().fold(0.0f32, |m, w| m.max(w.abs())));
        for (i, (&g, &w)) in got.iter().zip(wanted).enumerate() {
            let off = if g == w { 0.0 } else { (f64::from(g) - f64::from(w)).abs() };
            if !off.is_finite() {
                return bad(format!("{g} at {}, wanted {w}", row * width + i));
            }
            // 0 of 0 allowed is right, anything else of 0 is not.
            let share = if off == 0.0 { 0.0 } else { off / tolerance.allowed(w, largest) };
            error = f64::max(error, off);
            if share > used {
                (used, at) = (share, row * width + i);
            }
        }
    }
    let why = (used > 1.0).then(|| format!("{} at {at}, wanted {}", got[at], wanted[at]));
    Found { error: Some(error), used: Some(used), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(got: &[f32], wanted: &[f32], tolerance: &Tolerance) -> bool {
        compare(got, wanted, tolerance).why.is_none()
    }

    #[test]
    fn what_is_no_number_or_missing_never_passes() {
        let wide = Tolerance::new(f64::INFINITY, 0.0, "");
        assert!(passes(&[1.0, 2.0], &[1.0, 9.0], &wide));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!passes(&[1.0, bad], &[1.0, 9.0], &wide), "{bad}");
        }
        assert!(!passes(&[1.0, 2.0], &[1.0, f32::NAN], &wide));
        assert!(!passes(&[f32::NAN], &[f32::NAN], &wide));
        assert!(!passes(&[1.0], &[1.0, 2.0], &wide));
        // A query without keys.
        assert!(passes(&[f32::NEG_INFINITY], &[f32::NEG_INFINITY], &wide));
    }

    #[test]
    fn errors_count_by_what_is_allowed_for_their_element() {
        assert!(passes(&[0.0, -1.0], &[0.0, -1.0], &Tolerance::exact("")));
        assert!(!passes(&[0.0, 1e-30], &[0.0, 0.0], &Tolerance::exact("")));
        let relative = Tolerance::new(0.0, 0.01, "");
        assert!(passes(&[100.9, 1.0], &[100.0, 1.0], &relative));
        assert!(!passes(&[100.0, 1.02], &[100.0, 1.0], &relative));
        let by_row = Tolerance { row: 0.01, width: 2, ..Tolerance::new(0.0, 0.0, "") };
        assert!(passes(&[100.0, 1.9], &[100.0, 1.0], &by_row));
        assert!(!passes(&[100.0, 1.0, 2.0, 1.9], &[100.0, 1.0, 2.0, 1.0], &by_row));
        let found = compare(&[1.0, 3.0], &[1.5, 3.0], &Tolerance::new(1.0, 0.0, ""));
        assert_eq!((found.error, found.used), (Some(0.5), Some(0.5)));
    }
}
