//! A weight, and the place of its gradient if it is trained.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::models::weights::Weights;
use crate::tensor::{DType, Device, Gpu, Tensor};

/// A weight of a model. `slot` is its index in `Grads` while it is trained; `None` is frozen.
#[derive(Clone)]
pub struct Param {
    /// f32 while it is trained: what the optimizer changes.
    pub value: Tensor,
    /// `value` rounded to the type of the activations, where that is another: what ops read.
    pub rounded: Option<Tensor>,
    pub slot: Option<usize>,
    /// Never rounded, whatever the type of the activations: int8 and its scales.
    exact: bool,
}

impl Param {
    pub fn new(value: Tensor) -> Self {
        Param { value, rounded: None, slot: None, exact: false }
    }

    /// Part of a quantised matrix.
    pub fn exact(value: Tensor) -> Self {
        Param { exact: true, ..Param::new(value) }
    }

    /// What ops read.
    pub fn get(&self) -> &Tensor {
        self.rounded.as_ref().unwrap_or(&self.value)
    }

    /// Moves it to a GPU, for activations of type `dtype`; a trained one stays f32 beside its rounded copy.
    pub fn place(&mut self, device: &Device, dtype: DType) -> Result<()> {
        if self.exact {
            self.value = self.value.to_device(device)?;
            return Ok(());
        }
        let rounded = self.value.to_dtype(dtype)?.to_device(device)?;
        if self.slot.is_some() && dtype != DType::F32 {
            self.value = self.value.to_device(device)?;
            self.rounded = Some(rounded);
        } else {
            self.value = rounded;
        }
        Ok(())
    }

    /// Puts memory of the same size on `gpu`, holding anything, in the place of what it has.
    pub fn make_blank(&mut self, gpu: &Arc<Gpu>) -> Result<()> {
        self.value = self.value.blank_on(gpu)?;
        self.rounded = self.rounded.as_ref().map(|rounded| rounded.blank_on(gpu)).transpose()?;
        Ok(())
    }

    pub fn take(weights: &mut Weights, name: &str, shape: &[usize]) -> Self {
        Param::new(weights.take(name, shape))
    }

    /// Gives it a gradient slot; the value becomes f32 in memory of our own, since it will be written.
    pub fn train(&mut self, slots: &mut Slots) -> Result<()> {
        if self.exact {
            return Err(Error::Usage(
                "int8 weights are not trained: take the model that they were made from".into(),
            ));
        }
        self.value = self.value.to_f32()?;
        self.slot = Some(slots.add(self.value.shape()));
        Ok(())
    }
}

/// Called with the name (as in the checkpoint) and the weight.
pub type VisitParam<'a> = &'a mut dyn FnMut(&str, &mut Param);

/// Gives out the slots while a model is being made trainable.
#[derive(Default)]
pub struct Slots {
    shapes: Vec<Vec<usize>>,
}

impl Slots {
    fn add(&mut self, shape: &[usize]) -> usize {
        self.shapes.push(shape.to_vec());
        self.shapes.len() - 1
    }

    pub fn grads(&self) -> Grads {
        Grads { tensors: self.shapes.iter().map(|s| Tensor::zeros(s)).collect() }
    }
}

/// Gradients of all trained weights, f32, by slot; backward passes add to them.
pub struct Grads {
    pub tensors: Vec<Tensor>,
}

impl Grads {
    pub fn of(&mut self, param: &Param) -> Option<&mut Tensor> {
        self.tensors.get_mut(param.slot?)
    }

    /// Both gradients, if both weights are trained.
    pub fn pair(&mut self, a: &Param, b: &Param) -> Option<(&mut Tensor, &mut Tensor)> {
        let [a, b] = self.tensors.get_disjoint_mut([a.slot?, b.slot?]).ok()?;
        Some((a, b))
    }

    /// The same for several pairs at once, which have no weight in common.
    pub fn pairs(&mut self, params: &[(&Param, &Param)]) -> Vec<Option<(&mut Tensor, &mut Tensor)>> {
        let mut all: Vec<_> = self.tensors.iter_mut().map(Some).collect();
        let mut of = |param: &Param| all.get_mut(param.slot?)?.take();
        params.iter().map(|(a, b)| of(a).zip(of(b))).collect()
    }

    pub fn clear(&mut self) -> Result<()> {
        self.tensors.iter_mut().try_for_each(Tensor::clear)
    }

    pub fn to_device(&self, device: &Device) -> Result<Grads> {
        Ok(Grads { tensors: self.tensors.iter().map(|t| t.to_device(device)).collect::<Result<_>>()? })
    }
}
