//! AdamW over all trained weights, learning-rate schedules.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::models::param::{Grads, Param, Slots};
use crate::models::vlm::Vlm;
use crate::ops::adamw::{self, Hyper};
use crate::tensor::{Device, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    Constant,
    Linear,
    Cosine,
}

impl Schedule {
    /// Factor of the peak rate in step `step` (from 1) of `steps`: linear warm-up over the first `warmup` fraction, then flat, or down to 0.
    pub fn factor(self, step: usize, steps: usize, warmup: f64) -> f64 {
        let warm = (warmup * steps as f64).ceil() as usize;
        if step <= warm {
            return step as f64 / warm as f64;
        }
        let progress = (step - warm) as f64 / (steps - warm + 1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        }
    }
}

/// First and second moments, by gradient slot.
pub struct Moments {
    pub m: Vec<Tensor>,
    pub v: Vec<Tensor>,
}

impl Moments {
    pub fn new(slots: &Slots) -> Self {
        Moments { m: slots.grads().tensors, v: slots.grads().tensors }
    }

    pub fn to_device(&self, device: &Device) -> Result<Moments> {
        let all = |list: &[Tensor]| list.iter().map(|t| t.to_device(device)).collect::<Result<_>>();
        Ok(Moments { m: all(&self.m)?, v: all(&self.v)? })
    }

    /// One update of every trained weight; `step` counts from 1.
    pub fn update(&mut self, vlm: &mut Vlm, grads: &Grads, hyper: Hyper, step: u64) -> Result<()> {
        let mut result = Ok(());
        visit_trained(vlm, &mut |_, param, slot| {
            if result.is_ok() {
                let (m, v) = (&mut self.m[slot], &mut self.v[slot]);
                result = adamw::step(&mut param.value, m, v, &grads.tensors[slot], hyper, step);
            }
        });
        result
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
