use mpa::tensor::DType;

use crate::common::Rng;
use crate::device::{DTYPES, first_device, first_device_without_hopper, on_each_device};
use crate::gemm_int8::{
    Matrix, check, check_large, check_long_sums, check_signs_of_zero, check_swiglu, swiglu,
};

/// M, N, K of tiles of 128 x 128: edges of rows, of which the second warpgroup may have none, of either half of the columns, odd N; K of less than a
/// stage, with a tail, of as many as there are stages and of several rounds of them.
const SMALL: [(usize, usize, usize); 8] = [
    (33, 66, 48),
    (65, 1, 16),
    (129, 65, 144),
    (128, 128, 128),
    (193, 130, 768),
    (70, 63, 2000),
    (66, 200, 896),
    (100, 7, 64),
];

/// 128 x 256: one wave of them, where 128 x 128 would be two, of many rows or many columns.
const LARGE: [(usize, usize, usize, DType); 2] =
    [(16270, 129, 48, DType::F32), (70, 32570, 144, DType::Bf16)];

#[test]
fn every_bit_is_right() {
    on_each_device(|device| {
        let mut rng = Rng(11);
        for shape in SMALL {
            for dtype in DTYPES {
                check(&mut rng, device, dtype, shape);
            }
        }
    });
}

#[test]
fn large_tiles_are_right() {
    let device = first_device();
    LARGE.into_iter().for_each(|shape| check_large(&device, shape));
}

#[test]
fn long_sums_are_exact() {
    // As large as they need be for f32 to round them.
    check_long_sums(&first_device(), 65, 4000);
}

#[test]
fn zeros_keep_their_sign() {
    check_signs_of_zero(&first_device(), 65);
}

#[test]
fn swiglu_matches_f64() {
    on_each_device(|device| {
        let mut rng = Rng(13);
        for shape in SMALL {
            check_swiglu(&mut rng, device, shape);
        }
    });
}

#[test]
fn swiglu_in_large_tiles_matches_f64() {
    check_swiglu(&mut Rng(14), &first_device(), (130, 8150, 32));
}

#[test]
fn other_cards_give_the_same_bits() {
    let mut rng = Rng(15);
    let (x, gate) = (Matrix::random(&mut rng, 70, 208), Matrix::random(&mut rng, 77, 208));
    let up = Matrix::random(&mut rng, 77, 208);
    let [hopper, other] =
        [first_device(), first_device_without_hopper()].map(|device| swiglu(&device, &x, [&gate, &up], 1));
    assert_eq!(hopper, other);
}
