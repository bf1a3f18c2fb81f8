//! The kernels that the gradient of attention takes on Hopper, against the same reference as the others (attention_backward.rs).

use mpa::ops::attention::Config;
use mpa::tensor::{Card, DType, Device, Gpu, Tensor};

use crate::attention::{Batch, batch, config};
use crate::attention_backward::{Case, NAMES, alone, bits, case, check, check_case, opposed, reference, run};
use crate::device::{on_each_device, values};

const BF16: DType = DType::Bf16;

#[test]
fn gradients_match_f64_for_every_head_size() {
    // Two tiles of keys or queries that a block owns where it is 131, else the two halves of one, with tails; two or three tiles of queries
    // that come by; a span that is not there.
    let lens = |n| [(3, 5), (0, 0), (n, n + 8)];
    on_each_device(|device| {
        for head_size in [8, 56, 64, 72, 80, 88, 96, 104, 128] {
            let n = if head_size % 64 == 0 { 131 } else { 67 };
            check(device, BF16, &lens(n), config(1, 1, head_size, head_size % 16 == 0), 4.0);
        }
        check(device, BF16, &lens(131), config(1, 1, 128, false), 4.0);
    });
}

#[test]
fn gradients_go_round_the_rings() {
    // Up to five tiles of queries in three stages, up to four of keys in two. The last blocks have two rows, their other halves none. With a
    // causal mask one half of a block sees a tile less.
    on_each_device(|device| {
        check(device, BF16, &[(260, 130), (40, 40)], config(1, 1, 64, false), 4.0);
        check(device, BF16, &[(130, 390)], config(1, 1, 64, false), 4.0);
        check(device, BF16, &[(260, 260)], config(1, 1, 80, true), 4.0);
        check(device, BF16, &[(130, 390)], config(1, 1, 128, true), 4.0);
    });
}

#[test]
fn gradients_match_f64_at_the_edges_of_tiles() {
    on_each_device(|device| {
        let near: Vec<(usize, usize)> = [1, 63, 64, 65, 127, 128, 129].map(|n| (n, n)).into();
        // Few queries, late in their span.
        let late: Vec<(usize, usize)> = near.iter().map(|&(n, _)| (n.div_ceil(9), n + 1)).collect();
        check(device, BF16, &near, config(1, 1, 64, true), 4.0);
        check(device, BF16, &near, config(1, 1, 16, false), 4.0);
        check(device, BF16, &late, config(1, 1, 64, true), 4.0);
    });
}

#[test]
fn heads_in_groups_add_up() {
    on_each_device(|device| {
        for (heads, kv_heads) in [(3, 3), (4, 2), (5, 1)] {
            for causal in [false, true] {
                check(device, BF16, &[(5, 5), (0, 2), (34, 140)], config(heads, kv_heads, 72, causal), 4.0);
            }
        }
    });
}

#[test]
fn no_keys_and_no_queries_give_zeros() {
    on_each_device(|device| {
        for heads in [1, 2] {
            let none = config(heads, 1, 64, false);
            check(device, BF16, &[(3, 0), (0, 3), (2, 7), (140, 0)], none, 1.0);
            check(device, BF16, &[(0, 140), (2, 7)], config(heads, 1, 64, true), 1.0);
            check(device, BF16, &[(0, 3), (0, 0)], none, 1.0);
            check(device, BF16, &[(3, 0)], none, 1.0);
            check(device, BF16, &[], none, 1.0);
        }
    });
}

#[test]
fn fewer_keys_than_queries_if_not_causal() {
    on_each_device(|device| check(device, BF16, &[(140, 9), (33, 1)], config(2, 1, 24, false), 4.0));
}

#[test]
fn huge_scores_stay_finite() {
    on_each_device(|device| {
        for size in [1e2, 1e4] {
            let b = batch(device, BF16, &[(40, 45), (3, 3)], config(2, 1, 8, true), size);
            check_case("scores far below 0", &case(opposed(&b)));
            check_case("huge scores", &case(b.clone()));
            // Scores up to 1e10, rounded by up to 1000: weights mean nothing, but are at most 1.
            let config = Config { scale: 1e10 / 8.0 / size, ..b.config };
            for b in [opposed(&b), b] {
                let c = case(Batch { config, ..b });
                for (got, want) in run(&c).iter().zip(reference(&c).0) {
                    assert!(got.iter().zip(want).all(|(g, w)| g.is_finite() == w.is_some()));
                }
            }
        }
    });
}

#[test]
fn nan_is_not_swallowed() {
    on_each_device(|device| {
        let c = case(batch(device, BF16, &[(2, 2)], config(1, 1, 8, true), 1.0));
        let mut lse = values(&c.lse);
        lse[c.b.spans[0].q_start + 1] = f32::NAN;
        let lse = Tensor::from_vec(c.lse.shape(), lse).unwrap().to_device(device).unwrap();
        let [dq, dk, dv] = run(&Case { lse, ..c });
        assert!(dq[8..16].iter().all(|x| x.is_finite()) && dq[16..24].iter().all(|x| x.is_nan()));
        assert!(dk[8..].iter().chain(&dv[8..]).all(|x| x.is_nan()), "the second query sees both keys");
    });
}

#[test]
fn the_same_bits_twice_and_alone_as_in_a_batch() {
    on_each_device(|device| {
        let lens = [(9, 9), (1, 70), (130, 135)];
        let all = case(batch(device, BF16, &lens, config(4, 2, 16, true), 4.0));
        let together = run(&all);
        assert_eq!(bits(&together), bits(&run(&all)));
        for &s in &all.b.spans {
            for (i, alone) in run(&alone(&all, s)).iter().enumerate() {
                let (start, len, width) =
                    if i == 0 { (s.q_start, s.q_len, 64) } else { (s.k_start, s.k_len, 32) };
                assert_eq!(alone, &together[i][start * width..(start + len) * width], "{}", NAMES[i]);
            }
        }
    });
}

#[test]
fn neighbours_may_hold_anything() {
    on_each_device(|device| {
        // Two spans without a gap; all that is not the first one's becomes NaN, then infinite.
        let c = case(batch(device, BF16, &[(70, 150)], config(1, 1, 64, false), 4.0));
        let (first, want) = (c.b.spans[0], run(&c));
        for poison in [f32::NAN, f32::INFINITY] {
            let with = |t: &Tensor, start: usize, len: usize| {
                let width = t.cols();
                let mut data = vec![poison; (start + len + 200) * width];
                data[start * width..][..len * width]
                    .copy_from_slice(&values(t)[start * width..][..len * width]);
                let t = Tensor::from_vec(&[start + len + 200, width], data).unwrap();
                t.to_dtype(BF16).unwrap().to_device(device).unwrap()
            };
            let of_queries = |t: &Tensor| with(t, first.q_start, first.q_len);
            let of_keys = |t: &Tensor| with(t, first.k_start, first.k_len);
            let lse = of_queries(&c.lse).to_f32().unwrap();
            let mut exact = values(&lse);
            exact[first.q_start..][..first.q_len]
                .copy_from_slice(&values(&c.lse)[first.q_start..][..first.q_len]);
            let got = run(&Case {
                out: of_queries(&c.out),
                dout: of_queries(&c.dout),
                lse: Tensor::from_vec(lse.shape(), exact).unwrap().to_device(device).unwrap(),
                b: Batch { q: of_queries(&c.b.q), k: of_keys(&c.b.k), v: of_keys(&c.b.v), ..c.b.clone() },
            });
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let (start, len) =
                    if i == 0 { (first.q_start, first.q_len) } else { (first.k_start, first.k_len) };
                let of = |all: &[f32]| all[start * 64..(start + len) * 64].to_vec();
                assert_eq!(of(got), of(want), "{}", NAMES[i]);
            }
        }
    });
}

#[test]
fn hopper_has_kernels_of_its_own() {
    let launched = |hopper| {
        let gpu = Gpu::dry_with_our_kernels(Card { hopper, ..Card::H100 });
        for (heads, dtype) in [(1, BF16), (2, BF16), (1, DType::F32)] {
            let b = batch(&Device::Cuda(gpu.clone()), dtype, &[(40, 300)], config(heads, 1, 72, true), 4.0);
            run(&case(b));
        }
        gpu.launched().into_keys().filter(|name| name.contains("backward")).collect::<Vec<_>>()
    };
    let shared = ["delta_backward_bf16", "delta_backward_f32", "group_backward_bf16"];
    let f32 = ["keys_backward_f32_hs128", "queries_backward_f32_hs128"];
    let own = |bf16: [&str; 2]| {
        let mut all: Vec<String> =
            shared.iter().chain(&f32).chain(&bf16).map(|name| format!("attention_{name}")).collect();
        all.sort();
        all
    };
    assert_eq!(launched(true), own(["hopper_keys_backward_bf16_hs80", "hopper_queries_backward_bf16_hs80"]));
    assert_eq!(launched(false), own(["keys_backward_bf16_hs72", "queries_backward_bf16_hs72"]));
}
