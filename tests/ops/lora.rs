//! The low-rank update against float64, its gradients against finite differences.
use mpa::ops::lora;
use mpa::tensor::Tensor;

use crate::common::*;

/// s (x A^T) B^T in float64.
fn reference(x: &[f64], a: &[f64], b: &[f64], scale: f64, [m, n, k, r]: [usize; 4]) -> Vec<f64> {
    let mut y = vec![0.0; m * n];
    for i in 0..m {
        let xa: Vec<f64> = (0..r).map(|q| (0..k).map(|p| x[i * k + p] * a[q * k + p]).sum()).collect();
        for j in 0..n {
            y[i * n + j] = scale * dot(&xa, &b[j * r..][..r]);
        }
    }
    y
}

struct Case {
    sizes: [usize; 4],
    x: Tensor,
    a: Tensor,
    b: Tensor,
    y: Tensor,
}

fn case(sizes: [usize; 4]) -> Case {
    let mut rng = Rng(31);
    let [m, n, k, r] = sizes;
    Case {
        sizes,
        x: rng.tensor(&[m, k], 1.0),
        a: rng.tensor(&[r, k], 1.0),
        b: rng.tensor(&[n, r], 1.0),
        y: rng.tensor(&[m, n], 1.0),
    }
}

const SIZES: [[usize; 4]; 6] =
    [[1, 1, 1, 1], [5, 4, 7, 3], [1, 70, 65, 8], [70, 33, 300, 8], [2100, 20, 64, 16], [3, 9, 5, 12]];

#[test]
fn forward_adds() {
    for sizes in SIZES {
        let Case { x, a, b, y, .. } = case(sizes);
        let (mut out, mut xa) = (y.clone(), poisoned(&[sizes[0], sizes[3]]));
        lora::forward(&mut out, &mut xa, &x, &a, &b, 0.25).unwrap();
        let want: Vec<f64> = reference(&to_f64(&x), &to_f64(&a), &to_f64(&b), 0.25, sizes)
            .iter()
            .zip(to_f64(&y))
            .map(|(update, y)| y + update)
            .collect();
        // The error of x A^T goes through a second sum, over R, with factors of about 1/2.
        let tolerance = running_sum(sizes[2]);
        let second = (sizes[3] as f64).sqrt();
        assert_close("y", values(&out), &want, Tolerance { abs: tolerance.abs * second, rel: tolerance.rel });
    }
}

#[test]
fn gradients() {
    let Case { sizes, x, a, b, y: dy } = case([5, 4, 7, 3]);
    let [m, n, k, r] = sizes;
    let (mut out, mut xa) = (Tensor::zeros(&[m, n]), poisoned(&[m, r]));
    lora::forward(&mut out, &mut xa, &x, &a, &b, 0.5).unwrap();
    let (xd, ad, bd, dyd) = (to_f64(&x), to_f64(&a), to_f64(&b), to_f64(&dy));
    let loss = |x: &[f64], a: &[f64], b: &[f64]| dot(&reference(x, a, b, 0.5, sizes), &dyd);
    // All three are added to: start from 1 and take it off the result.
    let ones = |shape: &[usize]| Tensor::from_vec(shape, vec![1.0; shape.iter().product()]).unwrap();
    let plus_one = |gradient: Vec<f64>| gradient.iter().map(|g| g + 1.0).collect::<Vec<f64>>();
    let (mut da, mut db, mut dx) = (ones(&[r, k]), ones(&[n, r]), ones(&[m, k]));
    lora::backward(&mut da, &mut db, Some(&mut dx), &dy, &x, &xa, &a, &b, 0.5).unwrap();
    assert_close("da", values(&da), &plus_one(finite_differences(&ad, |a| loss(&xd, a, &bd))), F32);
    assert_close("db", values(&db), &plus_one(finite_differences(&bd, |b| loss(&xd, &ad, b))), F32);
    assert_close("dx", values(&dx), &plus_one(finite_differences(&xd, |x| loss(x, &ad, &bd))), F32);
    let (mut da2, mut db2) = (ones(&[r, k]), ones(&[n, r]));
    lora::backward(&mut da2, &mut db2, None, &dy, &x, &xa, &a, &b, 0.5).unwrap();
    assert_eq!((values(&da2), values(&db2)), (values(&da), values(&db)));
}

#[test]
fn a_row_has_the_same_bits_among_any_number_of_rows() {
    for [_, n, k, r] in SIZES.into_iter().filter(|s| s[1] > 1 && s[3] > 2) {
        let Case { x, a, b, y, .. } = case([300, n, k, r]);
        let rows = |m: usize| {
            let head =
                |t: &Tensor| Tensor::from_vec(&[m, t.cols()], values(t)[..m * t.cols()].to_vec()).unwrap();
            let (mut out, mut xa) = (head(&y), poisoned(&[m, r]));
            lora::forward(&mut out, &mut xa, &head(&x), &a, &b, 0.3).unwrap();
            values(&out).to_vec()
        };
        let all = rows(300);
        for m in [1, 2, 3, 7, 64, 253] {
            assert_eq!(rows(m), all[..m * n], "{m} rows of {n} x {k}, rank {r}");
        }
    }
}

#[test]
fn a_group_has_the_bits_of_its_adapters_one_by_one() {
    let of = [[20, 5, 7, 3], [20, 9, 7, 2]].map(case);
    let x = &of[0].x;
    let mut one_by_one = Vec::new();
    let mut dx = x.clone();
    for Case { sizes: [m, _, _, r], a, b, y, .. } in &of {
        let (mut out, mut xa, mut da, mut db) = (y.clone(), poisoned(&[*m, *r]), a.clone(), b.clone());
        lora::forward(&mut out, &mut xa, x, a, b, 0.5).unwrap();
        lora::backward(&mut da, &mut db, Some(&mut dx), y, x, &xa, a, b, 0.5).unwrap();
        one_by_one.push([out, xa, da, db]);
    }
    let start = |Case { sizes: [m, _, _, r], a, b, y, .. }: &Case| {
        [y.clone(), poisoned(&[*m, *r]), a.clone(), b.clone()]
    };
    let mut together: Vec<[Tensor; 4]> = of.iter().map(start).collect();
    let mut adapters = Vec::new();
    for (Case { a, b, .. }, [out, xa, ..]) in of.iter().zip(&mut together) {
        adapters.push(lora::Forward { out, xa, a, b, scale: 0.5 });
    }
    lora::forward_group(&mut adapters, x).unwrap();
    // Once all are trained, and once none is: dx does not change.
    for trained in [true, false] {
        let mut dx_together = x.clone();
        let mut adapters = Vec::new();
        for (Case { a, b, y: dy, .. }, [_, xa, da, db]) in of.iter().zip(&mut together) {
            adapters.push(lora::Backward { grads: trained.then_some((da, db)), dy, xa, a, b, scale: 0.5 });
        }
        lora::backward_group(Some(&mut dx_together), &mut adapters, x).unwrap();
        assert_eq!(values(&dx_together), values(&dx));
        for (one, group) in one_by_one.iter().flatten().zip(together.iter().flatten()) {
            assert_eq!(values(one), values(group));
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let Case { x, a, b, y, .. } = case([2100, 200, 300, 16]);
    assert_same_on_any_pool("lora", || {
        let (mut out, mut xa) = (y.clone(), poisoned(&[2100, 16]));
        lora::forward(&mut out, &mut xa, &x, &a, &b, 0.3).unwrap();
        let (mut da, mut db, mut dx) = (a.clone(), b.clone(), x.clone());
        lora::backward(&mut da, &mut db, Some(&mut dx), &out, &x, &xa, &a, &b, 0.3).unwrap();
        [out, xa, da, db, dx].iter().flat_map(values).copied().collect()
    });
}

#[test]
fn empty_and_wrong_shapes() {
    let t = Tensor::zeros;
    lora::forward(&mut t(&[0, 4]), &mut t(&[0, 2]), &t(&[0, 3]), &t(&[2, 3]), &t(&[4, 2]), 1.0).unwrap();
    for (out, xa, x, a, b, part) in [
        ([5, 4], [5, 2], [5, 3], [2, 4], [4, 2], "a [2, 3]"),
        ([5, 4], [5, 2], [5, 3], [2, 3], [2, 4], "b [4, 2]"),
        ([6, 4], [5, 2], [5, 3], [2, 3], [4, 2], "y [5, 4]"),
        ([5, 4], [6, 2], [5, 3], [2, 3], [4, 2], "xa [5, 2]"),
    ] {
        let result = lora::forward(&mut t(&out), &mut t(&xa), &t(&x), &t(&a), &t(&b), 1.0);
        assert_op_error(result, "lora forward", part);
    }
}
