//! Vision patching term by term, for the tests of the op and of its kernel.

use mpa::ops::patch_embed::{Pixels, Projection};
use mpa::tensor::{DType, Device, Tensor};

use super::{Rng, to_f64};

/// N pictures of h x w, patches of `frames` times `side` x `side` in squares of `merge` x `merge`, rows of `cols`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub frames: usize,
    pub side: usize,
    pub merge: usize,
    pub cols: usize,
}

impl Shape {
    pub const fn new(n: usize, (h, w): (usize, usize), side: usize, cols: usize) -> Self {
        Shape { n, h, w, frames: 1, side, merge: 1, cols }
    }

    /// Two frames, squares of 2 x 2.
    pub const fn qwen(n: usize, (h, w): (usize, usize), side: usize, cols: usize) -> Self {
        Shape { n, h, w, frames: 2, side, merge: 2, cols }
    }

    pub fn patches(self) -> usize {
        (self.h / self.side) * (self.w / self.side)
    }

    pub fn patch_len(self) -> usize {
        3 * self.frames * self.side * self.side
    }

    /// Row and column of each patch, in the order in which patches come.
    fn places(self) -> Vec<(usize, usize)> {
        let (down, across, m) = (self.h / self.side, self.w / self.side, self.merge);
        let mut places = Vec::new();
        for top in (0..down).step_by(m) {
            for left in (0..across).step_by(m) {
                for y in top..top + m {
                    places.extend((left..left + m).map(|x| (y, x)));
                }
            }
        }
        places
    }

    /// The convolution, term by term; pixels [n, h, w, 3].
    pub fn reference(self, pixels: &[f64], weight: &[f64], bias: &[f64], position: &[f64]) -> Vec<f64> {
        let side = self.side;
        let mut out = Vec::new();
        for n in 0..self.n {
            for (p, (row, col)) in self.places().into_iter().enumerate() {
                for c in 0..self.cols {
                    let mut sum = bias[c] + position[p * self.cols + c];
                    for k in 0..self.patch_len() {
                        let (channel, y, x) = (k / (self.frames * side * side), k / side % side, k % side);
                        let (y, x) = (row * side + y, col * side + x);
                        sum += pixels[((n * self.h + y) * self.w + x) * 3 + channel]
                            * weight[c * self.patch_len() + k];
                    }
                    out.push(sum);
                }
            }
        }
        out
    }
}

pub struct Inputs {
    pub shape: Shape,
    pub pixels: Pixels,
    pub weight: Tensor,
    pub bias: Tensor,
    pub position: Tensor,
}

impl Inputs {
    /// Levels differ from value to value and from channel to channel, in no order.
    pub fn new(s: Shape, rng: &mut Rng) -> Self {
        let bytes = (0..s.n * s.h * s.w * 3).map(|_| rng.below(256) as u8).collect();
        let kernel = [s.cols, 3, s.frames, s.side, s.side];
        let weight = rng.tensor(&kernel, 1.0);
        let weight =
            if s.frames == 1 { weight.reshape(&[s.cols, 3, s.side, s.side]).unwrap() } else { weight };
        let values = Tensor::from_u8(&[s.n, s.h, s.w, 3], bytes).unwrap();
        Inputs {
            shape: s,
            pixels: Pixels { values, levels: rng.tensor(&[3, 256], 1.0) },
            weight,
            bias: rng.tensor(&[s.cols], 1.0),
            position: rng.tensor(&[s.patches(), s.cols], 1.0),
        }
    }

    fn with(self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        let (weight, bias, position) = (f(&self.weight), f(&self.bias), f(&self.position));
        Inputs { weight, bias, position, ..self }
    }

    /// The parameters rounded.
    pub fn rounded(self, dtype: DType) -> Self {
        self.with(|x| x.to_dtype(dtype).unwrap())
    }

    pub fn on(self, device: &Device) -> Self {
        let pixels = self.pixels.on(device).unwrap().into_owned();
        Inputs { pixels, ..self.with(|x| x.to_device(device).unwrap()) }
    }

    pub fn projection(&self) -> Projection<'_> {
        Projection {
            weight: &self.weight,
            bias: Some(&self.bias),
            position: Some(&self.position),
            merge: self.shape.merge,
        }
    }

    /// [n, h, w, 3]
    pub fn levels_of_pixels(&self) -> Vec<f64> {
        let levels = to_f64(&self.pixels.levels);
        let values = self.pixels.values.to_device(&Device::Cpu).unwrap();
        let values = values.u8s().unwrap().iter().enumerate();
        values.map(|(i, &v)| levels[i % 3 * 256 + usize::from(v)]).collect()
    }

    pub fn reference(&self) -> Vec<f64> {
        self.reference_without(false, false)
    }

    pub fn reference_without(&self, bias: bool, position: bool) -> Vec<f64> {
        let some = |x: &Tensor, without: bool| if without { vec![0.0; x.len()] } else { to_f64(x) };
        let (bias, position) = (some(&self.bias, bias), some(&self.position, position));
        self.shape.reference(&self.levels_of_pixels(), &to_f64(&self.weight), &bias, &position)
    }
}
