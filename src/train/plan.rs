//! What a run would take, without doing it: its largest step is run on a device that computes nothing and counts memory.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

use crate::error::Result;
use crate::tensor::{DType, Device, Gpu, MATMUL_WORKSPACE};
use crate::train::batch::{Fitting, Kept};
use crate::train::fit::{self, Picture, Sample, TrainOptions, Trainable, batch_indices};

/// Bytes are of GPU memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    pub samples: usize,
    /// Others, that the model does not take.
    pub skipped: usize,
    pub steps: usize,
    /// Of all samples once.
    pub tokens: usize,
    /// Of the largest part of a batch that is computed at once, and the step it is in.
    pub most_tokens: usize,
    pub largest_step: usize,
    pub trained_weights: usize,
    /// Weights, gradients and moments: what lies there between two steps.
    pub resident_bytes: usize,
    /// The most that is in use at a time in the largest step.
    pub step_bytes: usize,
    /// What the program asks the driver for. The driver's own (about half a GiB on an H100) is not in it.
    pub takes_bytes: usize,
}

/// For `fit::level` with the same arguments on a GPU, with activations of type `dtype`. Pictures are opened for their size; those of the largest
/// step are read.
pub fn plan(
    model: &Path,
    samples: &[Sample],
    trainable: &Trainable,
    options: &TrainOptions,
    dtype: DType,
) -> Result<Plan> {
    let (trainer, Fitting { samples, tokens: lengths, skipped }) =
        fit::begin(model, samples, trainable, options)?;
    let steps = options.step_count(samples.len());
    let tokens = |part: &[usize]| part.iter().map(|&i| lengths[i].0).sum();
    // A vision side that is trained has to see each picture of a part again.
    let pictures = |part: &[usize]| {
        let mut seen = HashSet::new();
        let new = part
            .iter()
            .filter(|&&i| seen.insert(samples[i].images.iter().map(Picture::key).collect::<Vec<_>>()));
        new.map(|&i| lengths[i].1).sum()
    };
    let mut largest_step = largest(samples.len(), options, steps, &tokens);
    let candidates = match trainer.vision_is_frozen() {
        true => vec![largest_step],
        false => vec![largest_step, largest(samples.len(), options, steps, &pictures)],
    };

    let gpu = Gpu::dry();
    let mut trainer = trainer.to_device(&Device::Cuda(Arc::clone(&gpu)), dtype)?;
    let resident = gpu.memory_use().in_use;
    let mut usage = gpu.memory_use();
    for step in candidates {
        let batch: Vec<&Sample> =
            batch_indices(samples.len(), options, step).iter().map(|&i| samples[i]).collect();
        let batch: Vec<Arc<_>> =
            trainer.prepare(&batch, &mut Kept::default())?.into_iter().map(Arc::new).collect();
        trainer.step_prepared(&batch, options.lr)?;
        let peak = usage.peak;
        usage = gpu.memory_use();
        if usage.peak > peak {
            largest_step = step;
        }
    }
    Ok(Plan {
        samples: samples.len(),
        skipped: skipped.len(),
        steps,
        tokens: lengths.iter().map(|(tokens, _)| tokens).sum(),
        most_tokens: in_step(samples.len(), options, largest_step, &tokens),
        largest_step,
        trained_weights: trainer.trained(),
        resident_bytes: resident,
        step_bytes: usage.peak,
        takes_bytes: usage.most_reserved + MATMUL_WORKSPACE,
    })
}

/// The step (from 1) with the part of a batch of which `of` is the most.
fn largest(
    samples: usize,
    options: &TrainOptions,
    steps: usize,
    of: &(impl Fn(&[usize]) -> usize + Sync),
) -> usize {
    let step = |step| (in_step(samples, options, step, of), step);
    // The first of equals, whatever thread found it.
    let most = (1..=steps.max(1)).into_par_iter().map(step).max_by_key(|&(n, step)| (n, usize::MAX - step));
    most.map_or(1, |(_, step)| step)
}

/// The most of `of` that a part of this step's batch has, which is computed at once.
fn in_step(samples: usize, options: &TrainOptions, step: usize, of: &impl Fn(&[usize]) -> usize) -> usize {
    let micro = options.batch.div_ceil(options.accumulate);
    batch_indices(samples, options, step).chunks(micro).map(of).max().unwrap_or(0)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
        writeln!(f, "{} samples of {} tokens, {} steps", self.samples, self.tokens, self.steps)?;
        if self.skipped > 0 {
            writeln!(f, "others            {} that the model does not take", self.skipped)?;
        }
        writeln!(f, "trained weights   {}", self.trained_weights)?;
        writeln!(f, "largest part      {} tokens, in step {}", self.most_tokens, self.largest_step)?;
        writeln!(f, "between steps     {:.2} GiB", gib(self.resident_bytes))?;
        writeln!(f, "in that step      {:.2} GiB", gib(self.step_bytes))?;
        write!(f, "GPU memory taken  {:.2} GiB, and what the driver needs", gib(self.takes_bytes))
    }
}
