//! AdamW over all trained weights, learning-rate schedules.

use crate::error::Result;
use crate::models::param::{Grads, Param, Slots};
use crate::models::vlm::Vlm;
use crate::ops::adamw::{self, Hyper};
use crate::tensor::{Device, Tensor};

pub use crate::ops::adamw::Schedule;

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
