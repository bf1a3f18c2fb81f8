//! AdamW over all trained weights, learning-rate schedules.

use crate::error::Result;
use crate::models::param::{Grads, Param, Slots};
use crate::models::vlm::Vlm;
use crate::ops::adamw::{Group, Plan, Trained};
use crate::tensor::{Device, Tensor};

pub use crate::ops::adamw::Schedule;

/// First and second moments, by gradient slot, and the steps over them.
pub struct Optimizer {
    pub m: Vec<Tensor>,
    pub v: Vec<Tensor>,
    /// From the first step on.
    group: Option<Group>,
}

impl Optimizer {
    pub fn new(slots: &Slots) -> Self {
        Optimizer { m: slots.grads().tensors, v: slots.grads().tensors, group: None }
    }

    /// Before the first step.
    pub fn to_device(&self, device: &Device) -> Result<Optimizer> {
        let all = |list: &[Tensor]| list.iter().map(|t| t.to_device(device)).collect::<Result<_>>();
        Ok(Optimizer { m: all(&self.m)?, v: all(&self.v)?, group: None })
    }

    /// One update of every trained weight after `taken` others. A GPU is not waited for: `norm` is what says whether it was one.
    pub fn step(&mut self, vlm: &mut Vlm, grads: &mut Grads, plan: Plan, taken: u64) -> Result<()> {
        // Taken out of the model, since a visit lends them one by one.
        let mut weights: Vec<(Tensor, Option<Tensor>)> = Vec::new();
        weights.resize_with(grads.tensors.len(), || (Tensor::zeros(&[0]), None));
        let mut exchange = |_: &str, param: &mut Param, slot: usize| {
            std::mem::swap(&mut param.value, &mut weights[slot].0);
            std::mem::swap(&mut param.rounded, &mut weights[slot].1);
        };
        visit_trained(vlm, &mut exchange);
        let group = self.group.get_or_insert_with(|| Group::new(plan, taken));
        group.plan = plan;
        let moments = self.m.iter_mut().zip(&mut self.v).zip(&mut grads.tensors);
        let trained =
            |((w, rounded), ((m, v), grad))| Trained { w, m, v, grad, rounded: Option::as_mut(rounded) };
        let mut tensors: Vec<Trained> =
            weights.iter_mut().map(|(w, rounded)| (w, rounded)).zip(moments).map(trained).collect();
        let done = group.step(&mut tensors);
        visit_trained(vlm, &mut |_, param, slot| {
            std::mem::swap(&mut param.value, &mut weights[slot].0);
            std::mem::swap(&mut param.rounded, &mut weights[slot].1);
        });
        done
    }

    /// The norm of the last step's gradients before clipping; waits for a GPU. An error if it is not finite: then the step did nothing.
    pub fn norm(&self) -> Result<f64> {
        self.group.as_ref().map_or(Ok(0.0), Group::norm)
    }
}

/// Every trained weight, adapters too, with its name and slot.
pub fn visit_trained(vlm: &mut Vlm, f: &mut dyn FnMut(&str, &mut Param, usize)) {
    vlm.visit(&mut |name, param| {
        if let Some(slot) = param.slot {
            f(name, param, slot);
        }
    });
    vlm.visit_linears(&mut |name, linear| {
        if let Some(lora) = &mut linear.lora {
            for (half, param) in [("lora_A", &mut lora.a), ("lora_B", &mut lora.b)] {
                if let Some(slot) = param.slot {
                    f(&format!("{name}.{half}"), param, slot);
                }
            }
        }
    });
}
