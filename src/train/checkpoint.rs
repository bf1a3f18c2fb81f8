//! State of a run on disk: trained weights and moments. Dropout masks and the order of the data are functions of (seed, step),
//! so the step, which is in the file's name, is all that they need.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::models::weights::{self, Weights};
use crate::tensor::{Device, Tensor};
use crate::train::optim::visit_trained;
use crate::train::trainer::Trainer;

const PREFIX: &str = "step-";
const SUFFIX: &str = ".safetensors";

/// Writes `folder/step-N.safetensors` (atomic) and removes older ones.
pub fn save(trainer: &mut Trainer, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let mut owned: Vec<(String, Tensor)> = Vec::new();
    let mut outcome = Ok(());
    let moments = &trainer.optimizer;
    visit_trained(&mut trainer.vlm, &mut |name, param, slot| {
        for (kind, tensor) in [("w", &param.value), ("m", &moments.m[slot]), ("v", &moments.v[slot])] {
            match tensor.to_device(&Device::Cpu) {
                Ok(here) => owned.push((format!("{kind}.{name}"), here)),
                Err(error) => outcome = Err(error),
            }
        }
    });
    outcome?;
    let tensors: Vec<(String, &Tensor)> = owned.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    weights::save(&folder.join(format!("{PREFIX}{}{SUFFIX}", trainer.steps)), &tensors)?;
    for (step, path) in list(folder)? {
        if step < trainer.steps {
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

/// Puts the newest state of `folder` into a trainer in main memory; false if there is none.
pub fn load(trainer: &mut Trainer, folder: &Path) -> Result<bool> {
    let Some((step, path)) = list(folder)?.into_iter().max_by_key(|(step, _)| *step) else {
        return Ok(false);
    };
    let mut file = Weights::open_file(&path)?;
    let moments = &mut trainer.optimizer;
    let mut outcome = Ok(());
    visit_trained(&mut trainer.vlm, &mut |name, param, slot| {
        let shape = param.value.shape().to_vec();
        for (kind, to) in [("w", &mut param.value), ("m", &mut moments.m[slot]), ("v", &mut moments.v[slot])]
        {
            match file.take(&format!("{kind}.{name}"), &shape).to_f32() {
                Ok(value) => *to = value,
                Err(error) => outcome = Err(error),
            }
        }
    });
    outcome?;
    file.finish()?;
    trainer.steps = step;
    Ok(true)
}

fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if let Some(step) = name.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(SUFFIX)?.parse().ok()) {
            found.push((step, path));
        }
    }
    Ok(found)
}
