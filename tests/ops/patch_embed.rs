use mpa::ops::patch_embed::{backward, forward};
use mpa::tensor::{DType, Tensor};

use crate::common::{
    Rng, assert_close, assert_op_error, assert_same_on_any_pool, dot, f32_sum, finite_differences, poisoned,
    to_f64, values,
};

#[derive(Clone, Copy, Debug)]
struct Shape {
    n: usize,
    h: usize,
    w: usize,
    side: usize,
    cols: usize,
}

impl Shape {
    fn patches(self) -> usize {
        (self.h / self.side) * (self.w / self.side)
    }

    fn patch_len(self) -> usize {
        3 * self.side * self.side
    }
}

/// The convolution, term by term.
fn reference(s: Shape, pixels: &[f64], weight: &[f64], bias: &[f64], position: &[f64]) -> Vec<f64> {
    let across = s.w / s.side;
    let mut out = Vec::new();
    for n in 0..s.n {
        for p in 0..s.patches() {
            for c in 0..s.cols {
                let mut sum = bias[c] + position[p * s.cols + c];
                for channel in 0..3 {
                    for dy in 0..s.side {
                        for dx in 0..s.side {
                            let (y, x) = (p / across * s.side + dy, p % across * s.side + dx);
                            sum += pixels[((n * 3 + channel) * s.h + y) * s.w + x]
                                * weight[((c * 3 + channel) * s.side + dy) * s.side + dx];
                        }
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

/// pixels, weight, bias, position
fn inputs(s: Shape, rng: &mut Rng) -> [Tensor; 4] {
    [
        rng.tensor(&[s.n, 3, s.h, s.w], 1.0),
        rng.tensor(&[s.cols, 3, s.side, s.side], 1.0),
        rng.tensor(&[s.cols], 1.0),
        rng.tensor(&[s.patches(), s.cols], 1.0),
    ]
}

const SHAPES: [Shape; 6] = [
    Shape { n: 0, h: 4, w: 4, side: 2, cols: 3 },
    Shape { n: 1, h: 1, w: 1, side: 1, cols: 1 },
    Shape { n: 1, h: 6, w: 9, side: 3, cols: 5 },
    Shape { n: 3, h: 8, w: 8, side: 4, cols: 7 },
    Shape { n: 2, h: 7, w: 5, side: 2, cols: 3 },
    Shape { n: 2, h: 64, w: 64, side: 8, cols: 33 },
];

#[test]
fn forward_matches_the_convolution_in_f64() {
    let mut rng = Rng(1);
    for s in SHAPES {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let [pixels, weight, bias, position] = inputs(s, &mut rng);
            let [weight, bias, position] = [weight, bias, position].map(|x| x.to_dtype(dtype).unwrap());
            let mut out = poisoned(&[s.n, s.patches(), s.cols]);
            let mut patches = poisoned(&[s.n * s.patches(), s.patch_len()]);
            forward(&mut out, &mut patches, &pixels, &weight, &bias, &position).unwrap();
            let [x, w, b, p] = [&pixels, &weight, &bias, &position].map(to_f64);
            let what = format!("{s:?} {dtype}");
            assert_close(&what, values(&out), &reference(s, &x, &w, &b, &p), f32_sum(s.patch_len()));
        }
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut rng = Rng(2);
    for s in &SHAPES[..5] {
        let s = *s;
        let [pixels, weight, bias, position] = inputs(s, &mut rng);
        let mut out = poisoned(&[s.n, s.patches(), s.cols]);
        let mut patches = poisoned(&[s.n * s.patches(), s.patch_len()]);
        forward(&mut out, &mut patches, &pixels, &weight, &bias, &position).unwrap();
        let dy = rng.tensor(out.shape(), 1.0);
        let before = [&weight, &bias, &position].map(|x| rng.tensor(x.shape(), 1.0));
        let [mut dweight, mut dbias, mut dposition] = before.clone();
        backward(&mut dweight, &mut dbias, &mut dposition, &dy, &patches).unwrap();

        let [x, w, b, p, dy] = [&pixels, &weight, &bias, &position, &dy].map(to_f64);
        let slopes = [
            finite_differences(&w, |w| dot(&reference(s, &x, w, &b, &p), &dy)),
            finite_differences(&b, |b| dot(&reference(s, &x, &w, b, &p), &dy)),
            finite_differences(&p, |p| dot(&reference(s, &x, &w, &b, p), &dy)),
        ];
        for ((got, before), slopes) in [dweight, dbias, dposition].iter().zip(&before).zip(slopes) {
            let want: Vec<f64> = to_f64(before).iter().zip(slopes).map(|(b, s)| b + s).collect();
            assert_close(&format!("{s:?}"), values(got), &want, f32_sum(s.n * s.patches()));
        }
    }
}

#[test]
fn other_shapes_are_refused() {
    let s = SHAPES[3];
    let [pixels, weight, bias, position] = inputs(s, &mut Rng(3));
    let (out, patches) = (poisoned(&[s.n, 4, s.cols]), poisoned(&[s.n * 4, s.patch_len()]));
    let run = |out: &Tensor, patches: &Tensor, pixels, weight, bias, position| {
        forward(&mut out.clone(), &mut patches.clone(), pixels, weight, bias, position)
    };
    let fails = |result, part| assert_op_error(result, "patch_embed", part);
    fails(run(&bias, &patches, &pixels, &weight, &bias, &position), "out [3, 4, 7]");
    fails(run(&out, &bias, &pixels, &weight, &bias, &position), "patches [12, 48]");
    fails(run(&out, &patches, &bias, &weight, &bias, &position), "pixels [N, 3, H, W]");
    fails(run(&out, &patches, &pixels, &bias, &bias, &position), "weight [C, 3, S, S]");
    fails(run(&out, &patches, &pixels, &weight, &position, &position), "bias [7]");
    fails(run(&out, &patches, &pixels, &weight, &bias, &bias), "position [4, 7]");
    let gray = Tensor::zeros(&[s.cols, 1, s.side, s.side]);
    fails(run(&out, &patches, &pixels, &gray, &bias, &position), "weight [7, 3, 4, 4]");
    let none = Tensor::zeros(&[s.cols, 3, 0, 0]);
    fails(run(&out, &patches, &pixels, &none, &bias, &position), "at least one pixel");
    let result = backward(&mut gray.clone(), &mut bias.clone(), &mut position.clone(), &out, &patches);
    fails(result, "dweight");
}

#[test]
fn same_bits_on_any_pool() {
    let s = Shape { n: 5, h: 64, w: 64, side: 8, cols: 65 };
    let mut rng = Rng(4);
    let [pixels, weight, bias, position] = inputs(s, &mut rng);
    let dy = rng.tensor(&[s.n, s.patches(), s.cols], 1.0);
    assert_same_on_any_pool("patch_embed", || {
        let mut out = poisoned(dy.shape());
        let mut patches = poisoned(&[s.n * s.patches(), s.patch_len()]);
        forward(&mut out, &mut patches, &pixels, &weight, &bias, &position).unwrap();
        let [mut dweight, mut dbias, mut dposition] = [&weight, &bias, &position].map(Tensor::clone);
        backward(&mut dweight, &mut dbias, &mut dposition, &dy, &patches).unwrap();
        [&out, &dweight, &dbias, &dposition].map(values).concat()
    });
}
