use mpa::ops::patch_embed::{Pixels, Projection, backward, forward};
use mpa::tensor::{DType, Tensor};

use crate::common::patches::{Inputs, Shape};
use crate::common::{
    Rng, assert_close, assert_op_error, assert_same_on_any_pool, dot, f32_sum, finite_differences, poisoned,
    to_f64, values,
};

const SHAPES: [Shape; 6] = [
    Shape::new(0, (4, 4), 2, 3),
    Shape::new(1, (1, 1), 1, 1),
    Shape::new(1, (6, 9), 3, 5),
    Shape::new(3, (8, 8), 4, 7),
    Shape::new(2, (7, 5), 2, 3),
    Shape::new(2, (64, 64), 8, 33),
];

#[test]
fn forward_matches_the_convolution_in_f64() {
    let mut rng = Rng(1);
    let merged = [Shape::qwen(1, (4, 8), 2, 5), Shape::qwen(2, (12, 6), 1, 3)];
    for s in SHAPES.into_iter().chain(merged) {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let inputs = Inputs::new(s, &mut rng).rounded(dtype);
            let mut out = poisoned(&[s.n, s.patches(), s.cols]);
            let mut patches = poisoned(&[s.n * s.patches(), s.patch_len()]);
            let (want, tolerance) = (inputs.reference(), f32_sum(s.patch_len()));
            forward(&mut out, Some(&mut patches), &inputs.pixels, inputs.projection()).unwrap();
            assert_close(&format!("{s:?} {dtype}"), values(&out), &want, tolerance);
            // Patches that nobody wants change nothing, nor do a bias and a position of zeros.
            let mut again = poisoned(out.shape());
            forward(&mut again, None, &inputs.pixels, inputs.projection()).unwrap();
            assert_eq!(values(&again), values(&out), "{s:?} {dtype}");
            let bare = Projection { bias: None, position: None, ..inputs.projection() };
            forward(&mut again, None, &inputs.pixels, bare).unwrap();
            let want = inputs.reference_without(true, true);
            assert_close(&format!("{s:?} {dtype} bare"), values(&again), &want, tolerance);
        }
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut rng = Rng(2);
    for s in &SHAPES[..5] {
        let s = *s;
        let i = Inputs::new(s, &mut rng);
        let mut out = poisoned(&[s.n, s.patches(), s.cols]);
        let mut patches = poisoned(&[s.n * s.patches(), s.patch_len()]);
        forward(&mut out, Some(&mut patches), &i.pixels, i.projection()).unwrap();
        let dy = rng.tensor(out.shape(), 1.0);
        let before = [&i.weight, &i.bias, &i.position].map(|x| rng.tensor(x.shape(), 1.0));
        let [mut dweight, mut dbias, mut dposition] = before.clone();
        backward(&mut dweight, Some((&mut dbias, &mut dposition)), &dy, &patches).unwrap();

        let x = i.levels_of_pixels();
        let [w, b, p, dy] = [&i.weight, &i.bias, &i.position, &dy].map(to_f64);
        let slopes = [
            finite_differences(&w, |w| dot(&s.reference(&x, w, &b, &p), &dy)),
            finite_differences(&b, |b| dot(&s.reference(&x, &w, b, &p), &dy)),
            finite_differences(&p, |p| dot(&s.reference(&x, &w, &b, p), &dy)),
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
    let i = Inputs::new(s, &mut Rng(3));
    let (out, patches) = (poisoned(&[s.n, 4, s.cols]), poisoned(&[s.n * 4, s.patch_len()]));
    let right = i.projection();
    let run = |out: &Tensor, patches: &Tensor, pixels: &Pixels, projection: Projection| {
        forward(&mut out.clone(), Some(&mut patches.clone()), pixels, projection)
    };
    let fails = |result, part| assert_op_error(result, "patch_embed", part);
    fails(run(&i.bias, &patches, &i.pixels, right), "out [3, 4, 7]");
    fails(run(&out, &i.bias, &i.pixels, right), "patches [12, 48]");
    for values in
        [&i.bias, &Tensor::zeros(&[3, 8, 8, 3]), &Tensor::from_u8(&[1, 3, 2, 2], vec![0; 12]).unwrap()]
    {
        let pixels = Pixels { values: values.clone(), levels: i.pixels.levels.clone() };
        fails(run(&out, &patches, &pixels, right), "pixels u8 [N, H, W, 3]");
    }
    let pixels = Pixels { values: i.pixels.values.clone(), levels: i.bias.clone() };
    fails(run(&out, &patches, &pixels, right), "levels [3, 256]");
    fails(run(&out, &patches, &i.pixels, Projection { weight: &i.bias, ..right }), "weight [C, 3, S, S]");
    fails(run(&out, &patches, &i.pixels, Projection { bias: Some(&i.position), ..right }), "bias [7]");
    fails(run(&out, &patches, &i.pixels, Projection { position: Some(&i.bias), ..right }), "position [4, 7]");
    fails(run(&out, &patches, &i.pixels, Projection { merge: 0, ..right }), "whole squares");
    fails(run(&out, &patches, &i.pixels, Projection { merge: 3, ..right }), "whole squares of 3 x 3");
    for shape in [&[7, 1, 4, 4][..], &[7, 3, 4, 2], &[7, 1, 2, 4, 4]] {
        let weight = &Tensor::zeros(shape);
        fails(run(&out, &patches, &i.pixels, Projection { weight, ..right }), "weight [C, 3, S, S]");
    }
    for shape in [&[7, 3, 0, 0][..], &[7, 3, 0, 4, 4]] {
        let weight = &Tensor::zeros(shape);
        fails(run(&out, &patches, &i.pixels, Projection { weight, ..right }), "at least one pixel");
    }
    let mut gray = Tensor::zeros(&[s.cols, 1, s.side, s.side]);
    let result = backward(&mut gray, Some((&mut i.bias.clone(), &mut i.position.clone())), &out, &patches);
    fails(result, "dweight");
}

#[test]
fn same_bits_on_any_pool() {
    let s = Shape::new(5, (64, 64), 8, 65);
    let mut rng = Rng(4);
    let i = Inputs::new(s, &mut rng);
    let dy = rng.tensor(&[s.n, s.patches(), s.cols], 1.0);
    assert_same_on_any_pool("patch_embed", || {
        let mut out = poisoned(dy.shape());
        let mut patches = poisoned(&[s.n * s.patches(), s.patch_len()]);
        forward(&mut out, Some(&mut patches), &i.pixels, i.projection()).unwrap();
        let [mut dweight, mut dbias, mut dposition] = [&i.weight, &i.bias, &i.position].map(Tensor::clone);
        backward(&mut dweight, Some((&mut dbias, &mut dposition)), &dy, &patches).unwrap();
        [&out, &dweight, &dbias, &dposition].map(values).concat()
    });
}
