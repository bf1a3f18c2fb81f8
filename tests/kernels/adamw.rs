//! Steps of many tensors at once, against float64 and against the steps of the CPU.
use mpa::ops::adamw::{Group, Hyper, Plan, Schedule, Trained};
use mpa::tensor::{DType, Device, Tensor};

use crate::common::{Rng, Tolerance, assert_close, assert_op_error, to_f64};
use crate::device::{on_each_device, values, what};

const HYPER: Hyper = Hyper { lr: f32::NAN, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
const PLAN: Plan = Plan {
    schedule: Schedule::Constant,
    peak: 1e-2,
    steps: 6,
    warmup: 0.0,
    max_norm: f32::INFINITY,
    hyper: HYPER,
};

/// One element, parts of four, of a thread's round, of a chunk and of several; none.
const LENGTHS: [usize; 9] = [1, 3, 4, 0, 1025, 4096, 4097, 9001, 2];

/// Weights with all that belongs to them.
#[derive(Clone)]
struct Weights {
    w: Vec<Tensor>,
    m: Vec<Tensor>,
    v: Vec<Tensor>,
    grad: Vec<Tensor>,
    /// Of every second one, on a GPU.
    rounded: Vec<Option<Tensor>>,
}

impl Weights {
    fn new(rng: &mut Rng, device: &Device, lengths: &[usize]) -> Weights {
        let w: Vec<Tensor> = lengths.iter().map(|&n| rng.tensor(&[n], 1.0)).collect();
        let zeros = || lengths.iter().map(|&n| Tensor::zeros_on(device, &[n]).unwrap()).collect();
        let rounded = |(i, w): (usize, &Tensor)| {
            let stale = Tensor::from_vec(w.shape(), vec![7.0; w.len()]).unwrap();
            let stale = stale.to_dtype(DType::Bf16).unwrap().to_device(device).unwrap();
            (i % 2 == 0 && *device != Device::Cpu).then_some(stale)
        };
        Weights {
            rounded: w.iter().enumerate().map(rounded).collect(),
            w: w.iter().map(|w| w.to_device(device).unwrap()).collect(),
            m: zeros(),
            v: zeros(),
            grad: zeros(),
        }
    }

    fn step(&mut self, group: &mut Group, grads: &[Tensor]) -> mpa::error::Result<f64> {
        let device = self.w[0].device();
        self.grad = grads.iter().map(|g| g.to_device(&device).unwrap()).collect();
        let parts = self.w.iter_mut().zip(&mut self.m).zip(&mut self.v).zip(&mut self.grad);
        let mut all: Vec<Trained> = parts
            .zip(&mut self.rounded)
            .map(|((((w, m), v), grad), rounded)| Trained { w, m, v, grad, rounded: rounded.as_mut() })
            .collect();
        group.step(&mut all)?;
        group.norm()
    }

    /// All bits that a step changes.
    fn bits(&self) -> Vec<u32> {
        let rounded = self.rounded.iter().flatten();
        self.w
            .iter()
            .chain(&self.m)
            .chain(&self.v)
            .chain(rounded)
            .flat_map(values)
            .map(f32::to_bits)
            .collect()
    }
}

/// In f64; w, m and v of all elements one after the other.
struct Reference {
    w: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
}

impl Reference {
    fn step(&mut self, grads: &[Tensor], plan: Plan, lr: f64, t: i32) -> f64 {
        let Hyper { beta1, beta2, eps, weight_decay, .. } = plan.hyper;
        let [b1, b2, eps, decay] = [beta1, beta2, eps, weight_decay].map(f64::from);
        let grads: Vec<f64> = grads.iter().flat_map(to_f64).collect();
        let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
        let clip = (f64::from(plan.max_norm) / (norm + 1e-6)).min(1.0);
        for (i, g) in grads.iter().map(|g| g * clip).enumerate() {
            let (m, v) = (&mut self.m[i], &mut self.v[i]);
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            self.w[i] -= lr * decay * self.w[i];
            self.w[i] -= lr / (1.0 - b1.powi(t)) * *m / (v.sqrt() / (1.0 - b2.powi(t)).sqrt() + eps);
        }
        norm
    }
}

/// The rate of step t of 6, written out: two steps of warm-up where there is one.
fn rate(plan: &Plan, t: usize) -> f64 {
    let warm = if plan.warmup > 0.0 { 2 } else { 0 };
    let progress = (t as f64 - warm as f64) / (6.0 - warm as f64 + 1.0);
    let factor = match plan.schedule {
        _ if t <= warm => t as f64 / 2.0,
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - progress,
        Schedule::Cosine => (1.0 + (std::f64::consts::PI * progress).cos()) / 2.0,
    };
    plan.peak * factor
}

/// Six steps on the device, in f64 and on the CPU.
fn check(name: &str, device: &Device, plan: Plan, lengths: &[usize], grad_scale: f32) {
    let mut rng = Rng(1);
    let mut weights = Weights::new(&mut rng, device, lengths);
    let mut here = Weights::new(&mut Rng(1), &Device::Cpu, lengths);
    let w: Vec<f64> = weights.w.iter().flat_map(to_f64).collect();
    let zeros = vec![0.0; w.len()];
    let mut reference = Reference { w, m: zeros.clone(), v: zeros };
    let (mut group, mut group_here) = (Group::new(plan, 0), Group::new(plan, 0));
    for t in 1..=6 {
        let grads: Vec<Tensor> = lengths.iter().map(|&n| rng.tensor(&[n], grad_scale)).collect();
        let want = reference.step(&grads, plan, rate(&plan, t), t as i32);
        let norm = weights.step(&mut group, &grads).unwrap();
        assert!((norm - want).abs() <= 1e-12 * want, "{name}: norm {norm}, expected {want}");
        here.step(&mut group_here, &grads).unwrap();
    }
    let flat = |list: &[Tensor]| list.iter().flat_map(values).collect::<Vec<f32>>();
    // Each step rounds m and v three times and w twice; m cancels, so its error is one of the gradients' size. The weight is off by the rounding of lr and of
    // its factors (2^-24 each) times the step of up to 10 lr, where m / sqrt(v) is largest.
    let (eps, scale) = (f64::from(f32::EPSILON), f64::from(grad_scale));
    let least = f64::from(f32::MIN_POSITIVE);
    let w = Tolerance { abs: 20.0 * eps, rel: 20.0 * eps };
    let m = Tolerance { abs: (20.0 * eps * scale).max(least), rel: 20.0 * eps };
    let v = Tolerance { abs: least, rel: 30.0 * eps };
    for (what, got, want, cpu, tolerance) in [
        ("w", &weights.w, &reference.w, &here.w, w),
        ("m", &weights.m, &reference.m, &here.m, m),
        ("v", &weights.v, &reference.v, &here.v, v),
    ] {
        assert_close(&format!("{name} {what}"), &flat(got), want, tolerance);
        let cpu: Vec<f64> = cpu.iter().flat_map(to_f64).collect();
        assert_close(&format!("{name} {what} against the CPU"), &flat(got), &cpu, tolerance);
    }
    for (rounded, w) in weights.rounded.iter().zip(&weights.w) {
        if let Some(rounded) = rounded {
            assert_eq!(values(rounded), values(&w.to_dtype(DType::Bf16).unwrap()), "{name} rounded");
        }
    }
}

#[test]
fn every_schedule_matches_f64_and_the_cpu() {
    on_each_device(|device| {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine] {
            for warmup in [0.0, 0.3] {
                let plan = Plan { schedule, warmup, ..PLAN };
                check(&what(&[&format!("{schedule:?}"), &warmup]), device, plan, &[5, 130], 1.0);
            }
        }
    });
}

#[test]
fn lengths_and_clipping_match_f64_and_the_cpu() {
    on_each_device(|device| {
        for max_norm in [f32::INFINITY, 0.5] {
            let plan = Plan { max_norm, ..PLAN };
            check(&what(&[&"max_norm", &max_norm]), device, plan, &LENGTHS, 1.0);
        }
        check("no need to clip", device, Plan { max_norm: 1e4, ..PLAN }, &[5, 130], 1.0);
        check("many tensors", device, Plan { max_norm: 1.0, ..PLAN }, &[3; 20], 1.0);
    });
}

#[test]
fn other_factors_and_extreme_gradients_match_f64_and_the_cpu() {
    on_each_device(|device| {
        let hyper = Hyper { weight_decay: 0.0, beta1: 0.5, beta2: 0.95, eps: 1e-3, ..HYPER };
        check("other factors", device, Plan { hyper, ..PLAN }, &[101], 1.0);
        for scale in [1e-12, 1e-6, 1e4, 1e15] {
            check(&what(&[&"gradients", &scale]), device, PLAN, &[101], scale);
        }
    });
}

#[test]
fn steps_twice_give_the_same_bytes() {
    on_each_device(|device| {
        let run = || {
            let mut rng = Rng(2);
            let mut weights = Weights::new(&mut rng, device, &LENGTHS);
            let mut group = Group::new(Plan { max_norm: 1.0, schedule: Schedule::Cosine, ..PLAN }, 0);
            for _ in 0..3 {
                let grads: Vec<Tensor> = LENGTHS.iter().map(|&n| rng.tensor(&[n], 1.0)).collect();
                weights.step(&mut group, &grads).unwrap();
            }
            weights.bits()
        };
        assert_eq!(run(), run());
    });
}

/// Going on after two steps is the same as never having stopped; so is going on with tensors that have moved.
#[test]
fn steps_are_counted_on_the_device_and_tensors_may_move() {
    on_each_device(|device| {
        let mut rng = Rng(3);
        let plan = Plan { schedule: Schedule::Linear, warmup: 0.3, ..PLAN };
        let grads: Vec<Vec<Tensor>> =
            (0..4).map(|_| LENGTHS.iter().map(|&n| rng.tensor(&[n], 1.0)).collect()).collect();
        let mut straight = Weights::new(&mut rng, device, &LENGTHS);
        let mut resumed = straight.clone();
        let before = straight.clone();
        let bits_before = before.bits();
        let mut group = Group::new(plan, 0);
        for grads in &grads {
            straight.step(&mut group, grads).unwrap();
        }
        for (start, grads) in [(0, &grads[..2]), (2, &grads[2..])] {
            let mut group = Group::new(plan, start);
            for grads in grads {
                // A handle to the same memory: the step must not write there.
                let kept = resumed.clone();
                let bits = kept.bits();
                resumed.step(&mut group, grads).unwrap();
                assert_eq!(kept.bits(), bits);
            }
        }
        assert_eq!(resumed.bits(), straight.bits());
        assert_eq!(before.bits(), bits_before);
    });
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing() {
    on_each_device(|device| {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut rng = Rng(4);
            let grads: Vec<Tensor> = LENGTHS.iter().map(|&n| rng.tensor(&[n], 1.0)).collect();
            let mut weights = Weights::new(&mut rng, device, &LENGTHS);
            let mut other = weights.clone();
            let (mut group, mut other_group) = (Group::new(PLAN, 0), Group::new(PLAN, 0));
            weights.step(&mut group, &grads).unwrap();
            other.step(&mut other_group, &grads).unwrap();
            let bits = weights.bits();
            let mut spoilt = grads.clone();
            spoilt[7] = Tensor::from_vec(&[9001], vec![bad; 9001]).unwrap();
            assert_op_error(weights.step(&mut group, &spoilt), "clip_grad_norm", "norm");
            assert_eq!(weights.bits(), bits, "{bad}");
            // Nor was it counted.
            weights.step(&mut group, &grads).unwrap();
            other.step(&mut other_group, &grads).unwrap();
            assert_eq!(weights.bits(), other.bits());
        }
    });
}

#[test]
fn gradients_whose_square_overflows_move_nothing() {
    on_each_device(|device| {
        let mut weights = Weights::new(&mut Rng(5), device, &[5]);
        let before = values(&weights.w[0]);
        let plan = Plan { hyper: Hyper { weight_decay: 0.0, ..HYPER }, ..PLAN };
        let grad = Tensor::from_vec(&[5], vec![1e30; 5]).unwrap();
        weights.step(&mut Group::new(plan, 0), &[grad]).unwrap();
        assert_eq!(values(&weights.w[0]), before);
    });
}

#[test]
fn wrong_tensors_are_refused() {
    on_each_device(|device| {
        let run = |plan: Plan, spoil: &dyn Fn(&mut Weights)| {
            let mut weights = Weights::new(&mut Rng(6), device, &[4, 4]);
            spoil(&mut weights);
            weights.step(&mut Group::new(plan, 0), &[Tensor::zeros(&[4]), Tensor::zeros(&[4])])
        };
        let narrow = || Tensor::zeros(&[4]).to_dtype(DType::Bf16).unwrap().to_device(device).unwrap();
        let wide = || Tensor::zeros_on(device, &[4]).unwrap();
        assert_op_error(run(PLAN, &|w| w.w[1] = narrow()), "adamw", "in f32");
        assert_op_error(run(PLAN, &|w| w.m[1] = narrow()), "adamw", "in f32");
        assert_op_error(run(PLAN, &|w| w.v[0] = narrow()), "adamw", "in f32");
        assert_op_error(run(PLAN, &|w| w.rounded[0] = Some(wide())), "adamw", "rounded in bf16");
        assert_op_error(run(PLAN, &|w| w.m[0] = Tensor::zeros(&[4])), "tensor", "host-executed");
        assert_op_error(run(PLAN, &|w| w.m[0] = Tensor::zeros(&[3])), "adamw", "m [4]");
        assert_op_error(run(PLAN, &|w| w.v[0] = Tensor::zeros(&[3])), "adamw", "v [4]");
        for max_norm in [f32::NAN, -1.0] {
            assert_op_error(run(Plan { max_norm, ..PLAN }, &|_| ()), "adamw", "max_norm");
        }
    });
}
