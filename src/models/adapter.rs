//! LoRA adapters: where they go, PEFT's two files (adapter_config.json, which config.rs reads, and adapter_model.safetensors), merging.
//! Facts from peft: tuners/lora/config.py, tuners/tuners_utils.py (check_target_module_exists), utils/save_and_load.py.

mod config;

use std::path::Path;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result};
use crate::models::family::renamed;
use crate::models::linear::{Linear, Lora};
use crate::models::param::Param;
use crate::models::vlm::Vlm;
use crate::models::weight::Weight;
use crate::models::weights::{self, Weights};
use crate::ops::matmul::{View, matmul};
use crate::random;
use crate::tensor::{Device, Tensor};
use config::ConfigFile;

pub(super) const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What peft puts before the module names of transformers; those of older versions (before 4.52) are the published checkpoints'.
const PREFIX: &str = "base_model.model.";

/// All linear layers of the text tower's blocks, whatever the family calls it.
const TEXT_TOWER: &str = r"(.*(text|language)_model|model)\.layers\.\d+\.(self_attn|mlp)\.\w+_proj";

/// What a new adapter is like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraOptions {
    pub rank: usize,
    pub alpha: f32,
    pub dropout: f32,
    /// Scale alpha / sqrt(rank) in place of alpha / rank.
    pub rslora: bool,
    /// Module names, matched whole or after a dot (`q_proj`); or, if it is one with regex characters, a regex over the whole name (as peft).
    pub targets: Vec<String>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        LoraOptions {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            targets: vec![TEXT_TOWER.to_string()],
        }
    }
}

impl LoraOptions {
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::Usage(format!("LoRA: {what}")));
        match self {
            o if o.rank == 0 => bad("rank is 0, expected 1 or more"),
            o if !(o.alpha.is_finite() && o.alpha > 0.0) => bad("alpha is not a positive number"),
            o if !(0.0..1.0).contains(&o.dropout) => bad("dropout is not in 0 .. 1"),
            o if o.targets.is_empty() => bad("no targets"),
            _ => Targets::new(&self.targets).map(drop),
        }
    }

    fn scale(&self) -> f32 {
        scale(self.alpha, self.rank, self.rslora)
    }
}

fn scale(alpha: f32, rank: usize, rslora: bool) -> f32 {
    let rank = rank as f32;
    alpha / if rslora { rank.sqrt() } else { rank }
}

/// Which modules have adapters.
enum Targets {
    Names(Vec<String>),
    Pattern(Regex),
}

impl Targets {
    fn new(targets: &[String]) -> Result<Targets> {
        match targets {
            [one] if one.contains(['*', '\\', '(', '[', '|', '+', '^', '$', '?']) => {
                Regex::new(&format!("^(?:{one})$"))
                    .map(Targets::Pattern)
                    .map_err(|e| Error::Usage(format!("LoRA targets: {one:?} is no regex: {e}")))
            }
            names => Ok(Targets::Names(names.to_vec())),
        }
    }

    fn matches(&self, module: &str) -> bool {
        match self {
            Targets::Pattern(regex) => regex.is_match(module),
            Targets::Names(names) => names.iter().any(|name| is_called(module, name)),
        }
    }
}

fn is_called(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Attaches fresh adapters: A uniform in +-1/sqrt(K) (peft's kaiming_uniform(a=sqrt(5))), B zero, so the model is unchanged at first.
pub fn attach(vlm: &mut Vlm, options: &LoraOptions, seed: u64) -> Result<()> {
    options.check()?;
    let targets = Targets::new(&options.targets)?;
    let (mut found, mut one) = (Vec::new(), String::new());
    let mut failure = Ok(());
    vlm.visit_linears(&mut |name, linear| {
        one = name.to_string();
        if !targets.matches(name) || failure.is_err() {
            return;
        }
        found.push(name.to_string());
        let (k, n, r) = (linear.inputs(), linear.outputs(), options.rank);
        let key = random::hash(name);
        let mut rng = random::stream(seed, &[key]);
        let bound = (k as f64).powf(-0.5);
        let a = (0..r * k).map(|_| ((random::uniform(&mut rng) * 2.0 - 1.0) * bound) as f32).collect();
        match Tensor::from_vec(&[r, k], a) {
            Ok(a) => {
                linear.lora =
                    Some(new_lora(name, a, Tensor::zeros(&[n, r]), options.scale(), options.dropout))
            }
            Err(e) => failure = Err(e),
        }
    });
    failure?;
    let idle = match &targets {
        Targets::Names(names) => {
            names.iter().find(|name| !found.iter().any(|module| is_called(module, name)))
        }
        Targets::Pattern(_) => options.targets.first().filter(|_| found.is_empty()),
    };
    match idle {
        None => Ok(()),
        Some(target) => Err(Error::Usage(format!(
            "LoRA target {target:?} matches no linear layer of the model, expected names such as q_proj or one regex over names such as {one}"
        ))),
    }
}

fn new_lora(module: &str, a: Tensor, b: Tensor, scale: f32, dropout: f32) -> Lora {
    Lora { a: Param::new(a), b: Param::new(b), scale, dropout, key: random::hash(module) }
}

/// Attaches the adapter in `folder`. Every tensor of its file must belong to a linear layer and have the right shape.
pub fn load(vlm: &mut Vlm, folder: &Path) -> Result<()> {
    let config_path = folder.join(CONFIG);
    let config = ConfigFile::read(&config_path)?;
    let path = folder.join(WEIGHTS);
    let mut file = Weights::open_file(&path)?;
    let renames = vlm.config.family.renames();
    let mut found = 0;
    let mut failure = Ok(());
    vlm.visit_linears(&mut |name, linear| {
        if failure.is_err() {
            return;
        }
        match read_module(&mut file, &config, &config_path, [name, &renamed(name, renames)], linear) {
            Ok(Some(lora)) => {
                found += 1;
                linear.lora = Some(lora);
            }
            Ok(None) => {}
            Err(e) => failure = Err(e),
        }
    });
    failure?;
    file.finish()?;
    if found == 0 {
        return Err(Error::input(&path, "no adapter for any linear layer of this model"));
    }
    Ok(())
}

fn read_module(
    file: &mut Weights,
    config: &ConfigFile,
    config_path: &Path,
    [module, older]: [&str; 2],
    linear: &Linear,
) -> Result<Option<Lora>> {
    // peft's own files leave the adapter's name out; a plain state dict has it.
    let names = |half: &str| {
        [module, older]
            .map(|m| [format!("{PREFIX}{m}.{half}.weight"), format!("{PREFIX}{m}.{half}.default.weight")])
            .concat()
    };
    let Some(i) = names("lora_A").iter().position(|n| file.contains(n)) else { return Ok(None) };
    // A name of the new fashion comes first, in two forms.
    let found = if i < names("lora_A").len() / 2 { [module, older] } else { [older, module] };
    let (scale, rank) = config.of(config_path, found)?;
    let a = file.take(&names("lora_A")[i], &[rank, linear.inputs()]);
    let b = file.take(&names("lora_B")[i], &[linear.outputs(), rank]);
    Ok(Some(new_lora(module, a.to_f32()?, b.to_f32()?, scale, config.lora_dropout)))
}

/// Writes the model's adapters in PEFT's format.
pub fn save(vlm: &mut Vlm, options: &LoraOptions, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let (mut tensors, mut modules) = (Vec::new(), Vec::new());
    let mut outcome = Ok(());
    vlm.visit_linears(&mut |name, linear| {
        let Some(lora) = &linear.lora else { return };
        modules.push(name.to_string());
        for (half, param) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
            match param.value.to_device(&Device::Cpu) {
                Ok(value) => tensors.push((format!("{PREFIX}{name}.{half}.weight"), value)),
                Err(error) => outcome = Err(error),
            }
        }
    });
    outcome?;
    // What a pattern matched, by name: Python's regexes are others, and peft would match modules that are not linear layers too.
    let mut target_modules = match Targets::new(&options.targets)? {
        Targets::Pattern(_) => modules,
        Targets::Names(names) => names,
    };
    target_modules.sort();
    let config = json!({
        "alpha_pattern": {},
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": options.rank,
        "rank_pattern": {},
        "target_modules": target_modules,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": options.rslora,
    });
    let config_path = folder.join(CONFIG);
    let text = format!("{config:#}\n");
    std::fs::write(&config_path, text).map_err(|e| Error::io(&config_path, e))?;
    let borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(n, t)| (n.clone(), t)).collect();
    weights::save(&folder.join(WEIGHTS), &borrowed)
}

/// Drops all adapters.
pub fn detach(vlm: &mut Vlm) {
    vlm.visit_linears(&mut |_, linear| linear.lora = None);
}

/// Adds scale * B A to every adapted weight (rounded to the weight's own dtype) and drops the adapters.
pub fn merge(vlm: &mut Vlm) -> Result<()> {
    let mut failure = Ok(());
    vlm.visit_linears(&mut |name, linear| {
        if let Some(lora) = linear.lora.take()
            && failure.is_ok()
        {
            failure = merge_one(name, linear, &lora);
        }
    });
    failure
}

fn merge_one(name: &str, linear: &mut Linear, lora: &Lora) -> Result<()> {
    let (n, k, r) = (linear.outputs(), linear.inputs(), lora.a.value.rows());
    let Weight::Dense(weight) = &mut linear.weight else {
        let expected = "an adapter is added to weights in floating point, and this model's are int8";
        return Err(Error::Usage(format!("{expected}: merge first, then quantise")));
    };
    let mut merged = weight.value.to_f32()?;
    let a = View { data: lora.a.value.f32s()?, rs: k, cs: 1 };
    let b = View { data: lora.b.value.f32s()?, rs: r, cs: 1 };
    matmul(n, k, r, merged.f32s_mut()?, k, lora.scale, b, a, true);
    let rounded = merged.to_dtype(weight.value.dtype())?;
    let stored = rounded.to_f32()?;
    if let Some(i) = stored.f32s()?.iter().position(|v| !v.is_finite()) {
        let (row, col, got) = (i / k, i % k, stored.f32s()?[i]);
        let what = format!(
            "{name}: expected finite weights with the adapter in them, got {got} in row {row}, column {col}"
        );
        return Err(Error::Usage(what));
    }
    weight.value = rounded;
    Ok(())
}
