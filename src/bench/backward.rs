//! Tensors and the call of what only training runs.

use super::cases::{Call, EPS, Maker};
use super::work::Work;
use crate::error::Result;
use crate::ops::adamw::{Group, Hyper, Plan, Schedule, Trained};
use crate::ops::{cross_entropy, embedding, gelu, layer_norm, rms_norm, swiglu};
use crate::tensor::Indices;

impl Maker {
    pub(super) fn learning(&self, work: &Work) -> Result<Call> {
        Ok(match *work {
            Work::RmsNormBackward { rows, cols } => {
                let ([mut dx, dy, x, residual], weight) =
                    (self.randoms(&[rows, cols])?, self.random(&[cols])?);
                Box::new(move || rms_norm::backward_residual(&mut dx, None, &dy, &x, &weight, &residual, EPS))
            }
            Work::LayerNormBackward { rows, cols } => {
                let ([mut dx, dy, x], weight) = (self.randoms(&[rows, cols])?, self.random(&[cols])?);
                let (mut dweight, mut dbias) = (self.random_f32(&[cols])?, self.random_f32(&[cols])?);
                Box::new(move || {
                    let sums = Some((&mut dweight, &mut dbias));
                    layer_norm::backward(&mut dx, sums, &dy, &x, &weight, EPS)
                })
            }
            Work::SwigluBackward { rows, cols } => {
                let [mut dgate, mut dup, dout, gate, up] = self.randoms(&[rows, cols])?;
                Box::new(move || swiglu::backward(&mut dgate, &mut dup, &dout, &gate, &up))
            }
            Work::GeluBackward { rows, cols } => {
                let [mut dx, dy, x] = self.randoms(&[rows, cols])?;
                Box::new(move || gelu::backward(&mut dx, &dy, &x, gelu::Kind::Tanh))
            }
            Work::EmbeddingBackward { tokens, width, vocabulary } => {
                let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocabulary) as u32).collect();
                let (mut dtable, dy) =
                    (self.random_f32(&[vocabulary, width])?, self.random(&[tokens, width])?);
                Box::new(move || embedding::backward(&mut dtable, &ids, &dy))
            }
            Work::CrossEntropy { rows, vocabulary } => {
                let targets: Indices = (0..rows).map(|i| (i * 7919 % vocabulary) as u32).collect();
                let (mut losses, logits) = (self.random_f32(&[rows])?, self.random_f32(&[rows, vocabulary])?);
                let mut dlogits = self.random(&[rows, vocabulary])?;
                Box::new(move || {
                    cross_entropy::forward(&mut losses, Some(&mut dlogits), &logits, &targets, 1e-3)
                })
            }
            Work::Adamw { tensors, len } => self.adamw(tensors, len)?,
            _ => self.plain(work)?,
        })
    }

    fn adamw(&self, tensors: usize, len: usize) -> Result<Call> {
        let hyper = Hyper { lr: 0.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let schedule = Schedule::Cosine;
        let plan = Plan { schedule, peak: 1e-6, steps: 1 << 20, warmup: 0.03, max_norm: 1.0, hyper };
        let mut group = Group::new(plan, 0);
        let one = || -> Result<_> {
            let mut parts = [(); 4].map(|()| self.random_f32(&[len]));
            // Second moments are not negative.
            if let Ok(v) = &mut parts[3] {
                v.clear()?;
            }
            let [w, m, grad, v] = parts;
            Ok((w?, m?, grad?, v?))
        };
        let mut all = (0..tensors).map(|_| one()).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(move || {
            let trained = all.iter_mut().map(|(w, m, grad, v)| Trained { w, m, v, grad, rounded: None });
            group.step(&mut trained.collect::<Vec<_>>())
        }))
    }
}
