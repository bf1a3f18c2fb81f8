//! The kernels that attention takes on Hopper, against the same reference as the others (attention.rs).

use mpa::ops::attention::Span;
use mpa::tensor::{Card, DType, Device, Gpu, Tensor};

use crate::attention::{Batch, batch, check, check_against, config, rows, run};
use crate::device::{on_each_device, values};

#[test]
fn forward_matches_f64_for_every_head_size() {
    // Two tiles of queries and of keys with tails; a span that is not there.
    const LENS: [(usize, usize); 3] = [(3, 5), (0, 0), (131, 197)];
    on_each_device(|device| {
        for head_size in [8, 56, 64, 72, 80, 88, 96, 104, 128] {
            check(device, DType::Bf16, &LENS, config(1, 1, head_size, head_size % 16 == 0), 4.0);
        }
        check(device, DType::Bf16, &LENS, config(1, 1, 128, false), 4.0);
    });
}

#[test]
fn forward_goes_round_the_ring() {
    // Up to six tiles of keys in two stages. With a causal mask the first 64 queries of 130 see a tile less than the others.
    on_each_device(|device| {
        check(device, DType::Bf16, &[(66, 700), (40, 40)], config(1, 1, 64, false), 4.0);
        check(device, DType::Bf16, &[(130, 578)], config(1, 1, 128, true), 4.0);
        check(device, DType::Bf16, &[(2, 640)], config(1, 1, 80, true), 4.0);
    });
}

#[test]
fn forward_matches_f64_at_the_edges_of_tiles() {
    on_each_device(|device| {
        let near: Vec<(usize, usize)> = [63, 64, 65, 127, 128, 129].map(|n| (n, n)).into();
        let more: Vec<(usize, usize)> = near.iter().map(|&(n, _)| (2, n + 1)).chain([(2, 2)]).collect();
        check(device, DType::Bf16, &near, config(1, 1, 64, true), 4.0);
        check(device, DType::Bf16, &near, config(1, 1, 16, false), 4.0);
        check(device, DType::Bf16, &more, config(1, 1, 64, true), 4.0);
    });
}

#[test]
fn heads_in_groups_share_keys() {
    on_each_device(|device| {
        for (heads, kv_heads) in [(3, 3), (4, 2), (5, 1)] {
            check(device, DType::Bf16, &[(5, 5), (34, 140)], config(heads, kv_heads, 72, true), 4.0);
        }
    });
}

#[test]
fn queries_without_keys_get_zeros() {
    on_each_device(|device| {
        check(device, DType::Bf16, &[(3, 0), (0, 3), (2, 7)], config(2, 1, 64, false), 1.0);
        check(device, DType::Bf16, &[(130, 0), (0, 0)], config(2, 1, 64, false), 1.0);
        check(device, DType::Bf16, &[], config(2, 1, 64, true), 1.0);
    });
}

#[test]
fn fewer_keys_than_queries_if_not_causal() {
    on_each_device(|device| check(device, DType::Bf16, &[(140, 9), (33, 2)], config(2, 1, 24, false), 4.0));
}

#[test]
fn huge_scores_stay_finite() {
    on_each_device(|device| {
        for size in [1e2, 1e4] {
            // So many queries that for some the largest score is among any eight keys.
            let b = batch(device, DType::Bf16, &[(128, 130)], config(1, 1, 8, false), size);
            check_against("huge scores", &b, &run(&b), 2);
        }
    });
}

#[test]
fn a_span_has_the_same_bits_alone_and_in_a_batch() {
    on_each_device(|device| {
        let lens = [(9, 9), (1, 270), (150, 170)];
        let all = batch(device, DType::Bf16, &lens, config(2, 1, 16, true), 4.0);
        let together = run(&all);
        for (s, (q_len, k_len)) in all.spans.iter().zip(lens) {
            let alone = run(&Batch {
                q: rows(&all.q, s.q_start, q_len),
                k: rows(&all.k, s.k_start, k_len),
                v: rows(&all.v, s.k_start, k_len),
                spans: vec![Span { q_start: 0, q_len, k_start: 0, k_len }],
                config: all.config,
            });
            assert_eq!(alone.0, together.0[s.q_start * 32..(s.q_start + q_len) * 32]);
            assert_eq!(alone.1, together.1[s.q_start * 2..(s.q_start + q_len) * 2]);
        }
    });
}

#[test]
fn neighbours_may_hold_anything() {
    on_each_device(|device| {
        // Two spans without a gap; all that is not the first one's becomes NaN, then infinite.
        let b = batch(device, DType::Bf16, &[(70, 150)], config(1, 1, 64, false), 4.0);
        let (first, want) = (b.spans[0], run(&b));
        for poison in [f32::NAN, f32::INFINITY] {
            let with = |t: &Tensor, start: usize, len: usize| {
                let mut data = vec![poison; (start + len + 200) * t.cols()];
                data[start * t.cols()..][..len * t.cols()].copy_from_slice(&values(&rows(t, start, len)));
                let t = Tensor::from_vec(&[start + len + 200, t.cols()], data).unwrap();
                t.to_dtype(DType::Bf16).unwrap().to_device(device).unwrap()
            };
            let got = run(&Batch {
                q: with(&b.q, first.q_start, first.q_len),
                k: with(&b.k, first.k_start, first.k_len),
                v: with(&b.v, first.k_start, first.k_len),
                ..b.clone()
            });
            let of = |all: &[f32], width| all[width..71 * width].to_vec();
            assert_eq!(of(&got.0, 64), of(&want.0, 64));
            assert_eq!(of(&got.1, 1), of(&want.1, 1));
        }
    });
}

#[test]
fn hopper_has_kernels_of_its_own() {
    let attend = |gpu| {
        let b = batch(&Device::Cuda(gpu), DType::Bf16, &[(40, 300)], config(1, 1, 64, true), 4.0);
        let got = run(&b);
        check_against("either", &b, &got, 2);
        got.1.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let (hopper, other) = (Gpu::host(1).unwrap(), Gpu::host_of(Card::OTHER, 1).unwrap());
    assert_eq!((hopper.hopper(), other.hopper()), (true, false));
    assert_ne!(attend(hopper), attend(other));
}
