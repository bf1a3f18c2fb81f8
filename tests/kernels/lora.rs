use mpa::ops::lora::{self, Backward, Forward, backward_group, forward_group};
use mpa::tensor::{DType, Device, Tensor};

use crate::common::{Rng, assert_close, assert_op_error, running_sum, to_f64};
use crate::device::{DTYPES, on_each_device, output, random, rounded_sum, values, what};

/// s of the adapters of a group.
const SCALES: [f32; 4] = [0.5, 2.0, 0.25, 1.0];

/// M, K, and N and R of each adapter of a group.
type Sizes<'a> = (usize, usize, &'a [(usize, usize)]);

/// Few rows and many, several pieces of M, edges of tiles on every side, depths longer than the
/// pipeline, widths and ranks that are not aligned, ranks of several tiles alone and together, more adapters than one launch takes.
const GROUPS: [Sizes<'static>; 9] = [
    (1, 1, &[(1, 1)]),
    (16, 40, &[(18, 8), (33, 3)]),
    (17, 40, &[(65, 8), (33, 16)]),
    (300, 72, &[(70, 16), (40, 16), (24, 16)]),
    (70, 136, &[(66, 40), (9, 3)]),
    (65, 33, &[(20, 5), (64, 1), (7, 70)]),
    (130, 129, &[(31, 64)]),
    (20, 264, &[(200, 8), (264, 24)]),
    (40, 24, &[(8, 4), (3, 2), (5, 6), (16, 8)]),
];

/// A group's tensors. Small whole numbers times powers of two, `scale` for x and dy: all sums are exact in f32, and xa and dxa in bf16 as well,
/// so that each result has one value, that of the exact one rounded.
struct Group {
    x: Tensor,
    dx: Tensor,
    adapters: Vec<Adapter>,
}

struct Adapter {
    a: Tensor,
    b: Tensor,
    y: Tensor,
    dy: Tensor,
    xa: Tensor,
    da: Tensor,
    db: Tensor,
    scale: f32,
}

impl Group {
    fn exact(rng: &mut Rng, device: &Device, dtype: DType, index: usize, scale: f32) -> Group {
        let (m, k, of) = GROUPS[index];
        Group::new(device, dtype, (m, k, of), &mut |shape, most| {
            let whole = |_| rng.below(2 * most + 1) as f32 - most as f32;
            let data: Vec<f32> = (0..shape.iter().product()).map(whole).collect();
            let scale = if most == 2 { scale } else { 1.0 };
            Tensor::from_vec(shape, data.into_iter().map(|v| v * scale).collect()).unwrap()
        })
    }

    fn random(rng: &mut Rng, device: &Device, dtype: DType, of: Sizes) -> Group {
        Group::new(device, dtype, of, &mut |shape, _| rng.tensor(shape, 1.0))
    }

    fn new(
        device: &Device,
        dtype: DType,
        (m, k, of): Sizes,
        numbers: &mut dyn FnMut(&[usize], usize) -> Tensor,
    ) -> Group {
        let mut make = |dtype: DType, shape: &[usize], most| {
            numbers(shape, most).to_dtype(dtype).unwrap().to_device(device).unwrap()
        };
        let x = make(dtype, &[m, k], 2);
        let adapters = of.iter().zip(SCALES).map(|(&(n, r), scale)| Adapter {
            a: make(dtype, &[r, k], 1),
            b: make(dtype, &[n, r], 1),
            y: make(dtype, &[m, n], 2),
            dy: make(dtype, &[m, n], 2),
            xa: output(&x, &[m, r]),
            da: make(DType::F32, &[r, k], 2),
            db: make(DType::F32, &[n, r], 2),
            scale,
        });
        let adapters = adapters.collect();
        Group { dx: make(dtype, &[m, k], 2), x, adapters }
    }

    fn forward(&mut self) {
        let mut adapters: Vec<Forward> = self
            .adapters
            .iter_mut()
            .map(|s| Forward { out: &mut s.y, xa: &mut s.xa, a: &s.a, b: &s.b, scale: s.scale })
            .collect();
        forward_group(&mut adapters, &self.x).unwrap();
    }

    /// `trained` says which adapters are.
    fn backward(&mut self, with_dx: bool, trained: impl Fn(usize) -> bool) {
        let mut adapters: Vec<Backward> = self
            .adapters
            .iter_mut()
            .enumerate()
            .map(|(i, s)| Backward {
                grads: trained(i).then_some((&mut s.da, &mut s.db)),
                dy: &s.dy,
                xa: &s.xa,
                a: &s.a,
                b: &s.b,
                scale: s.scale,
            })
            .collect();
        backward_group(with_dx.then_some(&mut self.dx), &mut adapters, &self.x).unwrap();
    }

    /// All that the two passes write.
    fn results(&self) -> Vec<Vec<f32>> {
        let of = |s: &Adapter| [&s.y, &s.xa, &s.da, &s.db].map(values);
        self.adapters.iter().flat_map(of).chain([values(&self.dx)]).collect()
    }
}

/// c [M, N] += scale a b, a [M, K] and b [K, N] given by their elements.
fn add_product(
    c: &mut [f64],
    [n, k]: [usize; 2],
    scale: f64,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) {
    for (i, c) in c.iter_mut().enumerate() {
        *c += scale * (0..k).map(|p| a(i / n, p) * b(p, i % n)).sum::<f64>();
    }
}

/// What the group's `results` should be, before rounding; with xa and dxa as they are stored.
fn reference(group: &Group) -> Vec<Vec<f64>> {
    let dtype = group.x.dtype();
    let stored = |v: &[f64], dtype: DType| {
        let v = Tensor::from_vec(&[v.len()], v.iter().map(|&v| v as f32).collect()).unwrap();
        to_f64(&v.to_dtype(dtype).unwrap())
    };
    let (m, k) = (group.x.rows(), group.x.cols());
    let (x, mut dx, mut all) = (to_f64(&group.x), to_f64(&group.dx), Vec::new());
    for s in &group.adapters {
        let (n, r, scale) = (s.b.rows(), s.a.rows(), f64::from(s.scale));
        let [a, b, mut y, dy, mut da, mut db] = [&s.a, &s.b, &s.y, &s.dy, &s.da, &s.db].map(to_f64);
        let (mut xa, mut dxa) = (vec![0.0; m * r], vec![0.0; m * r]);
        add_product(&mut xa, [r, k], 1.0, |i, p| x[i * k + p], |p, j| a[j * k + p]);
        let xa = stored(&xa, dtype);
        add_product(&mut y, [n, r], scale, |i, p| xa[i * r + p], |p, j| b[j * r + p]);
        add_product(&mut db, [r, m], scale, |i, p| dy[p * n + i], |p, j| xa[p * r + j]);
        add_product(&mut dxa, [r, n], scale, |i, p| dy[i * n + p], |p, j| b[p * r + j]);
        let dxa = stored(&dxa, dtype);
        add_product(&mut da, [k, m], 1.0, |i, p| dxa[p * r + i], |p, j| x[p * k + j]);
        add_product(&mut dx, [k, r], 1.0, |i, p| dxa[i * r + p], |p, j| a[p * k + j]);
        all.extend([y, xa, da, db]);
    }
    all.push(dx);
    all
}

/// Each result is the exact one, rounded once to its type.
#[test]
fn group_is_exact_where_numbers_are() {
    on_each_device(|device| {
        let mut rng = Rng(1);
        for index in 0..GROUPS.len() {
            for dtype in DTYPES {
                let scale = [1.0, 1.0 / (1 << 20) as f32, (1 << 20) as f32][index % 3];
                let mut group = Group::exact(&mut rng, device, dtype, index, scale);
                let wanted = reference(&group);
                group.forward();
                group.backward(true, |_| true);
                for (i, (got, wanted)) in group.results().iter().zip(&wanted).enumerate() {
                    let is_dx = i == 4 * group.adapters.len();
                    let dtype = if i % 4 < 2 || is_dx { dtype } else { DType::F32 };
                    let wanted: Vec<f32> = wanted.iter().map(|&w| w as f32).collect();
                    let wanted = Tensor::from_vec(&[wanted.len()], wanted).unwrap().to_dtype(dtype).unwrap();
                    let name = if is_dx { "dx" } else { ["y", "xa", "da", "db"][i % 4] };
                    assert!(
                        *got == values(&wanted),
                        "{name} of adapter {} of {:?} in {dtype}",
                        i / 4,
                        GROUPS[index]
                    );
                }
            }
        }
    });
}

#[test]
fn random_numbers_match_f64() {
    on_each_device(|device| {
        let mut rng = Rng(2);
        let of: Sizes = (150, 100, &[(90, 12), (33, 16), (7, 5)]);
        for dtype in DTYPES {
            let mut group = Group::random(&mut rng, device, dtype, of);
            let wanted = reference(&group);
            group.forward();
            group.backward(true, |_| true);
            // A product of two sums: the longest is of 150 terms, of factors that are sums of up to 100 and of a size of 10 at most. In bf16 the
            // factors may have been rounded the other way, by 1/256 of 10, and wander in a sum of 150.
            let edge = if dtype == DType::Bf16 { 10.0 / 256.0 * 150f64.sqrt() } else { 0.0 };
            let mut tolerance = rounded_sum(dtype, 150, 10.0);
            tolerance.abs = tolerance.abs.max(10.0 * running_sum(150).abs) + edge;
            for (i, (got, wanted)) in group.results().iter().zip(&wanted).enumerate() {
                assert_close(&what(&[&"result", &i, &dtype]), got, wanted, tolerance);
            }
        }
    });
}

/// Without dx, without some gradients: what is left keeps its bits, and what is not trained its value.
#[test]
fn parts_that_are_not_wanted_change_no_others() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let of: Sizes = (140, 40, &[(70, 8), (33, 16), (20, 3)]);
            let make = || {
                let mut group = Group::random(&mut Rng(3), device, dtype, of);
                group.forward();
                group
            };
            let (before, mut all, mut again) = (make().results(), make(), make());
            all.backward(true, |_| true);
            again.backward(true, |_| true);
            let all = all.results();
            assert_eq!(all, again.results(), "again");

            let mut no_dx = make();
            no_dx.backward(false, |_| true);
            let no_dx = no_dx.results();
            assert_eq!(no_dx[..12], all[..12]);
            assert_eq!(no_dx[12], before[12]);

            for untrained in 0..3 {
                let mut some = make();
                some.backward(true, |i| i != untrained);
                let some = some.results();
                assert_eq!(some[12], all[12], "dx without {untrained}");
                assert_eq!(some[4 * untrained..][..4], before[4 * untrained..][..4]);
                for trained in (0..3).filter(|&i| i != untrained) {
                    assert_eq!(
                        some[4 * trained..][..4],
                        all[4 * trained..][..4],
                        "{trained} without {untrained}"
                    );
                }
            }

            let mut none = make();
            none.backward(true, |_| false);
            let none = none.results();
            assert_eq!(none[12], all[12], "dx alone");
            assert_eq!(none[..12], before[..12]);
            let mut nothing = make();
            nothing.backward(false, |_| false);
            assert_eq!(nothing.results(), before);
        }
    });
}

/// Rows have the same bits in a longer batch, adapters alone and in a group.
#[test]
fn rows_and_adapters_do_not_depend_on_each_other() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let of: Sizes = (150, 200, &[(100, 12), (33, 16)]);
            let mut group = Group::random(&mut Rng(4), device, dtype, of);
            let rows = |t: &Tensor| t.slice(130..150).unwrap();
            let mut last = Group {
                x: rows(&group.x),
                dx: rows(&group.dx),
                adapters: group
                    .adapters
                    .iter()
                    .map(|s| Adapter {
                        a: s.a.clone(),
                        b: s.b.clone(),
                        y: rows(&s.y),
                        dy: rows(&s.dy),
                        xa: output(&s.xa, &[20, s.xa.cols()]),
                        da: s.da.clone(),
                        db: s.db.clone(),
                        scale: s.scale,
                    })
                    .collect(),
            };
            let (mut y, mut xa) = (group.adapters[1].y.clone(), output(&group.x, &[150, 16]));
            let s = &group.adapters[1];
            lora::forward(&mut y, &mut xa, &group.x, &s.a, &s.b, s.scale).unwrap();
            for g in [&mut group, &mut last] {
                g.forward();
                g.backward(true, |_| true);
            }
            assert_eq!(values(&rows(&group.dx)), values(&last.dx), "{dtype}");
            for (all, few) in group.adapters.iter().zip(&last.adapters) {
                assert_eq!(values(&rows(&all.y)), values(&few.y), "{dtype}");
                assert_eq!(values(&rows(&all.xa)), values(&few.xa), "{dtype}");
            }
            assert_eq!(values(&y), values(&group.adapters[1].y), "{dtype}");
            assert_eq!(values(&xa), values(&group.adapters[1].xa), "{dtype}");
        }
    });
}

/// What one adapter holds spreads to no other, what lies beyond a matrix is not read.
#[test]
fn infinities_stay_in_their_adapter() {
    on_each_device(|device| {
        for dtype in DTYPES {
            let of: Sizes = (40, 24, &[(20, 8), (18, 5), (9, 8)]);
            let mut group = Group::random(&mut Rng(5), device, dtype, of);
            group.dx.clear().unwrap();
            let infinite = |t: &Tensor| {
                let data = vec![f32::INFINITY; t.len()];
                let all = Tensor::from_vec(t.shape(), data).unwrap();
                all.to_dtype(t.dtype()).unwrap().to_device(device).unwrap()
            };
            group.adapters[1].a = infinite(&group.adapters[1].a);
            group.adapters[1].b = infinite(&group.adapters[1].b);
            group.forward();
            group.backward(false, |_| true);
            for (i, result) in group.results().into_iter().enumerate() {
                let finite = result.iter().all(|v| v.is_finite());
                // The values of y, xa and da come from A or B; db has xa; dx was not asked for.
                assert_eq!(finite, !(4..8).contains(&i), "result {i} {dtype}");
            }
        }
    });
}

#[test]
fn empty_sizes_do_nothing() {
    on_each_device(|device| {
        for dtype in DTYPES {
            for of in [(0, 3, [(4, 2)]), (20, 3, [(0, 2)]), (20, 3, [(4, 0)]), (20, 0, [(4, 2)])] {
                let (m, k, adapters) = of;
                let mut group = Group::random(&mut Rng(6), device, dtype, (m, k, &adapters));
                let wanted = reference(&group);
                group.forward();
                group.backward(true, |_| true);
                for (got, wanted) in group.results().iter().zip(&wanted) {
                    assert_close(&what(&[&m, &k, &dtype]), got, wanted, rounded_sum(dtype, 20, 4.0));
                }
            }
        }
    });
}

#[test]
fn mixed_types_and_devices_are_refused() {
    on_each_device(|device| {
        let mut rng = Rng(7);
        for m in [2, 20] {
            let mut make = |dtype, shape: &[usize]| random(&mut rng, device, dtype, shape, 1.0);
            let [x, a, b, dy, xa] = [[m, 8], [4, 8], [3, 4], [m, 3], [m, 4]].map(|s| make(DType::Bf16, &s));
            let [wide_a, wide_dx] = [[4, 8], [m, 8]].map(|s| make(DType::F32, &s));
            let one_type = "all f32 or all bf16";
            let forward = |a: &Tensor| {
                lora::forward(&mut output(&x, &[m, 3]), &mut output(&x, &[m, 4]), &x, a, &b, 1.0)
            };
            assert_op_error(forward(&wide_a), "lora forward", one_type);
            assert_op_error(forward(&b), "lora forward", "a [4, 8]");
            let here = rng.tensor(&[4, 8], 1.0).to_dtype(DType::Bf16).unwrap();
            assert_op_error(forward(&here), "tensor", "host-executed");
            let backward = |dx: &Tensor, da: &Tensor, a: &Tensor| {
                let (mut da, mut db, mut dx) = (da.clone(), x.like_f32(&[3, 4]).unwrap(), dx.clone());
                lora::backward(&mut da, &mut db, Some(&mut dx), &dy, &x, &xa, a, &b, 1.0)
            };
            assert_op_error(backward(&x, &wide_a, &wide_a), "lora backward", one_type);
            assert_op_error(backward(&wide_dx, &wide_a, &a), "lora backward", one_type);
            assert_op_error(backward(&x, &a, &a), "lora backward", "da in f32");
            assert_op_error(backward(&x, &wide_dx, &a), "lora backward", "da [4, 8]");
        }
    });
}
