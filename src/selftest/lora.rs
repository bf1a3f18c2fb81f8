//! Groups of adapters that share x.

use super::check::Tolerance;
use super::linear::small;
use super::{Case, Output, Size};
use crate::error::Result;
use crate::ops::linear;
use crate::ops::lora::{self, Backward, Forward};
use crate::selftest::on::On;
use crate::tensor::{DType, Tensor};

const SCALE: f32 = 2.0;
/// Adapters of a group at most.
const MOST: usize = 3;

#[derive(Clone, Copy)]
struct Group {
    m: usize,
    k: usize,
    /// N and R of each adapter; none beyond the first with N = 0.
    of: [[usize; 2]; MOST],
}

const QUICK: &[Group] = &[
    Group { m: 3, k: 7, of: [[5, 1], [0, 0], [0, 0]] },
    Group { m: 33, k: 40, of: [[65, 8], [20, 3], [9, 8]] },
];
/// q, k, v and gate, up of SmolVLM-500M; the same of Qwen2-VL-2B; one adapter in decoding, one of a high rank.
const FULL: &[Group] = &[
    Group { m: 1000, k: 960, of: [[960, 16], [320, 16], [320, 16]] },
    Group { m: 1024, k: 960, of: [[2560, 16], [2560, 16], [0, 0]] },
    Group { m: 500, k: 1536, of: [[1536, 8], [256, 32], [256, 8]] },
    Group { m: 512, k: 1536, of: [[8960, 16], [8960, 16], [0, 0]] },
    Group { m: 4, k: 2560, of: [[960, 64], [0, 0], [0, 0]] },
    Group { m: 600, k: 1536, of: [[1536, 128], [0, 0], [0, 0]] },
];

impl Group {
    fn adapters(self) -> impl Iterator<Item = [usize; 2]> {
        self.of.into_iter().take_while(|[n, _]| *n > 0)
    }
}

pub(super) fn cases(size: Size) -> Vec<Case> {
    let full = if size.quick() { &[] } else { FULL };
    let case = |&group: &Group| {
        let adapters: Vec<String> = group.adapters().map(|[n, r]| format!("{n} rank {r}")).collect();
        let shape = format!("{} x {} to {}", group.m, group.k, adapters.join(", "));
        [
            Case::new("lora", shape.clone(), move |on| updates(on, group)),
            Case::new("lora_backward", shape, move |on| gradients(on, group)),
        ]
    };
    QUICK.iter().chain(full).flat_map(case).collect()
}

/// Stored as bf16 a number may be a unit off here and there, where it lies between two; in f32 it has the error of its own sum.
fn edge(on: &On, bf16: f64, f32: f64) -> f64 {
    if on.dtype == DType::Bf16 { bf16 } else { f32 }
}

fn updates(on: &mut On, group: Group) -> Result<Vec<Output>> {
    let (m, k) = (group.m, group.k);
    let x = on.random(&[m, k], 1.0)?;
    let mut tensors = Vec::new();
    for [n, r] in group.adapters() {
        let (a, b) = (on.random(&[r, k], small(k))?, on.random(&[n, r], small(r))?);
        tensors.push((on.random(&[m, n], 1.0)?, on.output(&[m, r])?, a, b));
    }
    if on.is_reference() {
        for (y, xa, a, b) in &mut tensors {
            // From x A^T as the device stores it.
            linear::forward(xa, &x, a, None)?;
            let mut change = Tensor::zeros(y.shape());
            linear::forward(&mut change, &on.as_stored(xa)?, b, None)?;
            add(y, SCALE, &change)?;
        }
    } else {
        let mut adapters = Vec::new();
        for (out, xa, a, b) in &mut tensors {
            adapters.push(Forward { out, xa, a, b, scale: SCALE });
        }
        lora::forward_group(&mut adapters, &x)?;
    }
    let mut outputs = Vec::new();
    for (y, xa, a, _) in tensors {
        let own = Tolerance::product(on.dtype, k, f64::from(small(k))).store(on.dtype);
        let sum = Tolerance::product(on.dtype, a.rows(), 1.0).store(on.dtype);
        outputs.push(Output::new("(x A^T)", xa, own));
        outputs.push(Output::new("", y, sum.plus(edge(on, 1.0 / 64.0, 1e-6), "x A^T on an edge")));
    }
    Ok(outputs)
}

struct Adapter {
    a: Tensor,
    b: Tensor,
    dy: Tensor,
    xa: Tensor,
    da: Tensor,
    db: Tensor,
}

fn gradients(on: &mut On, group: Group) -> Result<Vec<Output>> {
    let (m, k) = (group.m, group.k);
    let (x, mut dx) = (on.random(&[m, k], 1.0)?, on.random(&[m, k], 1.0)?);
    let mut adapters = Vec::new();
    for [n, r] in group.adapters() {
        adapters.push(Adapter {
            a: on.random(&[r, k], small(r))?,
            b: on.random(&[n, r], small(n))?,
            dy: on.random(&[m, n], 1.0)?,
            xa: on.random(&[m, r], 1.0)?,
            da: on.random_f32(&[r, k], 1.0)?,
            db: on.random_f32(&[n, r], 1.0)?,
        });
    }
    if on.is_reference() {
        for s in &mut adapters {
            reference(on, &mut dx, s, &x)?;
        }
    } else {
        let mut all = Vec::new();
        for Adapter { a, b, dy, xa, da, db } in &mut adapters {
            all.push(Backward { grads: Some((da, db)), dy, xa, a, b, scale: SCALE });
        }
        lora::backward_group(Some(&mut dx), &mut all, &x)?;
    }
    let rank: usize = group.adapters().map(|[_, r]| r).sum();
    let sum = Tolerance::product(on.dtype, rank + 1, 1.0).store(on.dtype);
    let mut outputs = vec![Output::new("dx", dx, sum.plus(edge(on, 1.0 / 32.0, 1e-4), "s dy B on an edge"))];
    for Adapter { da, db, .. } in adapters {
        let sum = || Tolerance::product(on.dtype, m + 1, 2.0);
        outputs.push(Output::new("da", da, sum().plus(edge(on, 1.0 / 16.0, 1e-3), "s dy B on an edge")));
        outputs.push(Output::new("db", db, sum()));
    }
    Ok(outputs)
}

/// From s dy B as the device stores it.
fn reference(on: &On, dx: &mut Tensor, s: &mut Adapter, x: &Tensor) -> Result<()> {
    let mut db = Tensor::zeros(s.db.shape());
    linear::backward_weight(&mut db, &s.dy, &s.xa)?;
    add(&mut s.db, SCALE, &db)?;
    let mut dxa = Tensor::zeros(s.xa.shape());
    linear::backward_input(&mut dxa, &s.dy, &s.b, false)?;
    dxa.f32s_mut()?.iter_mut().for_each(|d| *d *= SCALE);
    let dxa = on.as_stored(&dxa)?;
    linear::backward_weight(&mut s.da, &dxa, x)?;
    linear::backward_input(dx, &dxa, &s.a, true)
}

/// to += scale * from
fn add(to: &mut Tensor, scale: f32, from: &Tensor) -> Result<()> {
    for (to, from) in to.f32s_mut()?.iter_mut().zip(from.f32s()?) {
        *to += scale * from;
    }
    Ok(())
}
