//! Times ops on named shapes of real models, against the copy bandwidth and the matrix ceiling that the device reaches in the same run.
//!
//! ```text
//! shapes.rs, work.rs, cut.rs: what is run, its bytes and FLOPs --> cases.rs, backward.rs, int8.rs: tensors and a call --> timing.rs: median --> Row
//! checkpoint.rs: whole models with random weights --> model.rs: answers and training steps
//! perplexity.rs: what a model makes of a text
//! ```

mod backward;
mod cases;
pub mod checkpoint;
mod cut;
mod int8;
mod kv_cache;
pub mod model;
pub mod perplexity;
mod shapes;
mod timing;
mod work;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::tensor::{DType, Device};

use cases::Maker;
pub use shapes::shapes;
use timing::Clock;
pub use work::{Shape, Work};

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub op: &'static str,
    pub shape: String,
    pub dtype: String,
    pub median_us: f64,
    /// What must be read and written at least, and computed.
    pub bytes: usize,
    pub flops: usize,
    #[serde(rename = "GB/s")]
    pub gb_s: f64,
    #[serde(rename = "TFLOP/s")]
    pub tflop_s: f64,
    /// The least time that the bytes and FLOPs take at the ceilings, as a share of the median.
    pub percent_of_ceiling: Option<f64>,
}

/// What a device reached, in bytes and FLOPs a second; 0 as long as it is not known.
#[derive(Default)]
struct Ceilings {
    bandwidth: f64,
    flops: f64,
}

impl Ceilings {
    fn percent(&self, row: &Row) -> Option<f64> {
        let seconds = |amount: usize, rate: f64| if rate > 0.0 { amount as f64 / rate } else { 0.0 };
        let least = seconds(row.bytes, self.bandwidth).max(seconds(row.flops, self.flops));
        (least > 0.0).then(|| least * 1e8 / row.median_us)
    }
}

/// Measures on one device.
pub struct Bench {
    maker: Maker,
    clock: Clock,
    ceilings: Ceilings,
    small: bool,
    quick: bool,
}

impl Bench {
    /// `quick`: shapes are cut down and run once.
    pub fn new(device: &Device, dtype: DType, quick: bool) -> Result<Bench> {
        let small = timing::is_small(device)?;
        if small && !quick && *device != Device::Cpu {
            return Err(Error::Usage(format!(
                "bench: {device} take minutes for each shape, expected --quick"
            )));
        }
        let dtype = if *device == Device::Cpu { DType::F32 } else { dtype };
        let maker = Maker::new(device, dtype)?;
        let clock = Clock::new(device, &maker, small, quick)?;
        Ok(Bench { maker, clock, ceilings: Ceilings::default(), small, quick })
    }

    /// The shapes that are run here: the two ceilings, and those whose op or name contains `filter`.
    pub fn shapes(&self, filter: &str) -> Vec<Shape> {
        let wanted = |s: &Shape| s.ceiling || s.name.contains(filter) || s.work.op().contains(filter);
        let fit = |s: Shape| match (self.quick, self.small && s.ceiling) {
            (true, _) => s.cut(),
            (false, true) => s.for_a_cpu(),
            (false, false) => s,
        };
        shapes().into_iter().filter(wanted).map(fit).collect()
    }

    pub fn row(&mut self, shape: &Shape) -> Result<Row> {
        let mut run = self.maker.make(&shape.work)?;
        let median_us = self.clock.median_us(&mut *run)?;
        // Logits are f32 whatever the model is stored as.
        // And so is all that an optimizer changes.
        let exact = matches!(shape.work, Work::Sample { .. } | Work::Adamw { .. });
        let dtype = if exact { DType::F32 } else { self.maker.dtype() };
        let (bytes, flops) = (shape.work.bytes(dtype.size()), shape.work.flops());
        let mut row = Row {
            op: shape.work.op(),
            shape: shape.name.clone(),
            dtype: dtype.to_string(),
            median_us,
            bytes,
            flops,
            gb_s: bytes as f64 / median_us / 1e3,
            tflop_s: flops as f64 / median_us / 1e6,
            percent_of_ceiling: None,
        };
        if shape.ceiling {
            match shape.work {
                Work::Copy { .. } => self.ceilings.bandwidth = row.gb_s * 1e9,
                _ => self.ceilings.flops = row.tflop_s * 1e12,
            }
        }
        row.percent_of_ceiling = self.ceilings.percent(&row);
        Ok(row)
    }
}
