//! The size of a picture that is left whole: transformers' smart_resize (models/qwen2_vl/image_processing_qwen2_vl.py). Arithmetic in f64, in the
//! reference's order; Python rounds ties to even.

use super::{Bounds, Plan};
use crate::error::{Error, Result};

/// Beyond this ratio of the sides transformers refuses a picture.
const MAX_RATIO: usize = 200;
/// Of the bounds: 8192 x 8192.
const MAX_PIXELS: usize = 1 << 26;

impl Bounds {
    /// Or what is wrong with them.
    pub(super) fn new(unit: usize, min_pixels: usize, max_pixels: usize) -> Result<Bounds, String> {
        if unit == 0 || min_pixels > max_pixels || max_pixels < unit * unit || max_pixels > MAX_PIXELS {
            return Err(format!(
                "expected a minimum up to the maximum, and a maximum from {} ({unit} x {unit}) to {MAX_PIXELS} pixels",
                unit * unit
            ));
        }
        Ok(Bounds { unit, min_pixels, max_pixels })
    }

    /// At least what `plan` makes of any picture, and little more. The maximum; or the minimum where both sides are rounded up, a b <= m made
    /// (a + 1)(b + 1) with a + b at its largest at the largest ratio; or a side of less than a unit that is made one.
    pub(super) fn most_pixels(&self) -> usize {
        let square = self.unit * self.unit;
        let units = |pixels: usize| pixels as f64 / square as f64;
        let (min, max, ratio) = (units(self.min_pixels), units(self.max_pixels), MAX_RATIO as f64);
        let rounded_up = min + min.sqrt() * (ratio.sqrt() + ratio.sqrt().recip()) + 1.0;
        let most = max.max(rounded_up).max((max * ratio).sqrt());
        most.floor() as usize * square
    }

    pub(super) fn plan(&self, width: usize, height: usize) -> Result<Plan> {
        let (width, height) = self.resized(width, height)?;
        let (rows, cols) = (height / self.unit, width / self.unit);
        Ok(Plan { first: (width, height), second: (width, height), rows, cols })
    }

    /// Sides that are multiples of the unit, with about the picture's proportions and pixels within the bounds.
    fn resized(&self, width: usize, height: usize) -> Result<(usize, usize)> {
        if width.max(height) > MAX_RATIO.saturating_mul(width.min(height)) {
            let expected = format!("sides in a ratio of at most {MAX_RATIO}");
            return Err(Error::Picture { width, height, expected });
        }
        let unit = self.unit as f64;
        let sides = [width as f64, height as f64];
        let area = sides[0] * sides[1];
        let nearest = sides.map(|side| (side / unit).round_ties_even() * unit);
        let [w, h] = if nearest[0] * nearest[1] > self.max_pixels as f64 {
            let beta = (area / self.max_pixels as f64).sqrt();
            sides.map(|side| unit.max((side / beta / unit).floor() * unit))
        } else if nearest[0] * nearest[1] < self.min_pixels as f64 {
            let beta = (self.min_pixels as f64 / area).sqrt();
            sides.map(|side| (side * beta / unit).ceil() * unit)
        } else {
            nearest
        };
        // A side of a picture that bounds below one unit would leave nothing of.
        Ok((w.max(unit) as usize, h.max(unit) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_picture_is_larger_than_the_largest() {
        for (min, max) in [(1, 1), (1, 3), (7, 7), (4, 100), (128, 512), (500, 500), (1, 16_384)] {
            let bounds = Bounds::new(28, min * 784, max * 784).unwrap();
            let most = bounds.most_pixels();
            let mut found = 0;
            for width in (1..4000).step_by(37).chain([28, 5600]) {
                for height in (1..4000).step_by(41).chain([28, 5600]) {
                    if let Ok(plan) = bounds.plan(width, height) {
                        found = found.max(plan.first.0 * plan.first.1);
                    }
                }
            }
            assert!(found <= most, "{min} to {max}: {found} of {most}");
            // The paper's bounds and others with room between them: exactly the maximum.
            assert!(min * 2 > max || max < 200 || most == max * 784, "{min} to {max}: {most}");
        }
    }
}
