use mpa::ops::gemm_int8::forward;
use mpa::tensor::{Card, Device, Gpu};

use crate::common::Rng;
use crate::device::{DTYPES, TINY, first_device, on_each, on_each_device};
use crate::gemm_int8::{
    MODEST, Matrix, check, check_long_sums, check_signs_of_zero, check_swiglu, check_whole, swiglu, view,
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

/// A card for whose two multiprocessors these are one wave of 128 x 256 and two of 128 x 128: the last has one column, or all but two; of each half of
/// the rows and of the columns there is none, one, some or all.
const PAIR: Card = Card { multiprocessors: 2, ..Card::H100 };
const LARGE: [(usize, usize, usize); 6] =
    [(70, 257, 144), (33, 510, 16), (128, 320, 768), (65, 385, 2000), (129, 400, 64), (193, 192, 896)];

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

/// The kernels that a card takes for the product, without running one.
fn kernels(card: Card, (m, n, k): (usize, usize, usize)) -> Vec<String> {
    let (gpu, mut rng) = (Gpu::dry_with_our_kernels(card), Rng(16));
    let device = Device::Cuda(gpu.clone());
    let [x, w] = [m, n].map(|rows| Matrix::random(&mut rng, rows, k).on(&device));
    let mut out = x.0.like_f32(&[m, n]).unwrap();
    forward(&mut out, view(&x), view(&w), None, None).unwrap();
    gpu.launched().into_keys().collect()
}

#[test]
fn tiles_go_by_the_sizes_and_the_card() {
    for shape in SMALL {
        assert_eq!(kernels(Card::H100, shape), ["gemm_int8_hopper_forward_f32_n128"]);
        assert_eq!(kernels(Card::OTHER, shape), ["gemm_int8_forward_f32_t64"]);
        assert_eq!(kernels(TINY, shape), ["gemm_int8_forward_f32"]);
    }
    for shape in LARGE {
        assert_eq!(kernels(PAIR, shape), ["gemm_int8_hopper_forward_f32"], "{shape:?}");
    }
    // A wave of an H100, and a row of tiles less, which leaves five of its 132 multiprocessors idle.
    for (m, other) in [(128 * 128, "gemm_int8_forward_f32"), (128 * 127, "gemm_int8_forward_f32_t64")] {
        assert_eq!(kernels(Card::OTHER, (m, 128, 16)), [other]);
    }
}

#[test]
fn large_tiles_are_right() {
    on_each(PAIR, |device| {
        for (shape, dtype) in LARGE.into_iter().zip(DTYPES.into_iter().cycle()) {
            check_whole(device, dtype, shape);
        }
    });
}

#[test]
fn long_sums_are_exact() {
    // As large as they need be for f32 to round them.
    check_long_sums(&first_device(Card::H100), 65, 4000);
}

#[test]
fn zeros_keep_their_sign() {
    check_signs_of_zero(&first_device(Card::H100), 65);
}

#[test]
fn swiglu_matches_f64() {
    on_each(Card { hopper: true, ..MODEST }, |device| {
        let mut rng = Rng(13);
        for shape in SMALL {
            check_swiglu(&mut rng, device, shape);
        }
    });
}

#[test]
fn swiglu_in_large_tiles_matches_f64() {
    on_each(PAIR, |device| {
        let mut rng = Rng(14);
        for shape in [(70, 129, 144), (128, 255, 32), (130, 200, 272), (200, 96, 16)] {
            check_swiglu(&mut rng, device, shape);
        }
    });
}

#[test]
fn other_cards_give_the_same_bits() {
    let mut rng = Rng(15);
    let (x, gate) = (Matrix::random(&mut rng, 70, 208), Matrix::random(&mut rng, 77, 208));
    let up = Matrix::random(&mut rng, 77, 208);
    let [hopper, other] =
        [Card::H100, Card::OTHER].map(first_device).map(|device| swiglu(&device, &x, [&gate, &up], 1));
    assert_eq!(hopper, other);
}
