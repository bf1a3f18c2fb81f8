//! SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): what is hard to quantise in a layer's input moves into its weight. Channel j of the input is
//! divided by s_j = sqrt(max|x_j| / max|w_j|) (their alpha = 0.5), column j of the weight multiplied by it. The division is folded into what makes
//! the channel (a norm's weight, the rows of the layer before), so nothing divides at run time.
//! Here s_j is rounded to a power of two: folding then changes no bit of what the model computes in floating point, in any type it is stored in.
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Tensor};

/// Largest exponent of a scale: no weight comes near the end of its type's range.
const MOST: f32 = 8.0;

/// What is multiplied into a tensor. A vector has a row for each element, and no columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    pub rows: Option<Vec<f32>>,
    pub columns: Option<Vec<f32>>,
}

/// By the tensors' names in the checkpoint.
pub type Folds = BTreeMap<String, Fold>;

/// Largest |x| of each input channel, by the layers' names.
pub type Maxima = BTreeMap<String, Vec<f32>>;

/// Layers that read one input, and what makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Tensors whose row c, or element c, makes channel c.
    pub makers: Vec<String>,
    /// Layers.
    pub readers: Vec<String>,
    /// Heads of the input that read one head of the makers, and the size of a head: the keys and values of grouped heads.
    pub shared: (usize, usize),
}

impl Group {
    /// The maker's channel behind channel c of the input.
    fn maker(&self, c: usize) -> usize {
        let (heads, size) = self.shared;
        c / size / heads * size + c % size
    }
}

impl Fold {
    /// Multiplies rows `first`, `first` + 1, ... of a matrix of `cols` columns.
    pub fn multiply(&self, data: &mut [f32], first: usize, cols: usize) {
        for (i, row) in data.chunks_exact_mut(cols.max(1)).enumerate() {
            if let Some(factor) = self.rows.as_ref().and_then(|rows| rows.get(first + i)) {
                row.iter_mut().for_each(|w| *w *= factor);
            }
            if let Some(columns) = &self.columns {
                row.iter_mut().zip(columns).for_each(|(w, factor)| *w *= factor);
            }
        }
    }

    /// The type of `of` after `apply`. f16 has few exponents: there powers of two may cost bits.
    pub fn dtype(of: DType) -> DType {
        if of == DType::F16 { DType::F32 } else { of }
    }

    /// A copy of `tensor` with the factors in it: exact.
    pub fn apply(&self, tensor: &Tensor) -> Result<Tensor> {
        let cols = if tensor.shape().len() > 1 { tensor.cols() } else { 1 };
        let fits = |factors: &Option<Vec<f32>>, len| factors.as_ref().is_none_or(|f| f.len() == len);
        if !fits(&self.rows, tensor.len() / cols.max(1)) || !fits(&self.columns, cols) {
            return Err(Error::op(
                "fold",
                "a factor for each row and column",
                format!("{:?}", tensor.shape()),
            ));
        }
        let mut wide = tensor.to_f32()?;
        self.multiply(wide.f32s_mut()?, 0, cols);
        wide.to_dtype(Fold::dtype(tensor.dtype()))
    }
}

/// Raises the maxima in `seen` to those of the rows of x [M, K].
pub fn see(seen: &Mutex<Vec<f32>>, x: &Tensor) -> Result<()> {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let x = x.to_f32()?;
    raise(&mut seen, x.f32s()?);
    Ok(())
}

/// The largest |w| of each column of [N, K].
pub fn column_maxima(weight: &Tensor) -> Result<Vec<f32>> {
    let weight = weight.to_device(&Device::Cpu)?;
    let elements = weight.elements()?;
    let (mut maxima, mut row) = (vec![0.0; weight.cols()], vec![0.0; weight.cols()]);
    for i in 0..weight.rows() {
        elements.widen(i * row.len(), &mut row);
        raise(&mut maxima, &row);
    }
    Ok(maxima)
}

fn raise(maxima: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(maxima.len().max(1)) {
        for (most, x) in maxima.iter_mut().zip(row) {
            *most = most.max(x.abs());
        }
    }
}

/// The factors of all groups; `inputs` are a calibration's maxima, `weights` those of the weights' columns. A channel that was never seen, or has no
/// weight, stays as it is.
pub fn folds(groups: &[Group], inputs: &Maxima, weights: &Maxima) -> Result<Folds> {
    let mut folds = Folds::new();
    for group in groups {
        let (x, w) = (most(group, inputs)?, most(group, weights)?);
        let scale = |(&x, &w): (&f32, &f32)| {
            let exponent = (0.5 * (x.log2() - w.log2())).round_ties_even();
            if exponent.is_finite() { exponent.clamp(-MOST, MOST).exp2() } else { 1.0 }
        };
        let scales: Vec<f32> = x.iter().zip(&w).map(scale).collect();
        for maker in &group.makers {
            folds.entry(maker.clone()).or_default().rows = Some(scales.iter().map(|s| 1.0 / s).collect());
        }
        let channels = scales.len() * group.shared.0;
        let columns: Vec<f32> = (0..channels).map(|c| scales[group.maker(c)]).collect();
        for reader in &group.readers {
            folds.entry(format!("{reader}.weight")).or_default().columns = Some(columns.clone());
        }
    }
    Ok(folds)
}

/// The maxima of a group's makers' channels over all that reads them.
fn most(group: &Group, maxima: &Maxima) -> Result<Vec<f32>> {
    let mut most = Vec::new();
    for reader in &group.readers {
        let of_reader = maxima.get(reader);
        let of_reader = of_reader.ok_or_else(|| Error::Failure(format!("no maxima of {reader}")))?;
        if most.is_empty() {
            most = vec![0.0_f32; of_reader.len() / group.shared.0];
        }
        for (c, &x) in of_reader.iter().enumerate() {
            let channel = group.maker(c);
            most[channel] = most[channel].max(x);
        }
    }
    Ok(most)
}
