//! Finding the models of a set and reading their fixtures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mpa::data::images;
use mpa::models::image::Rgb;
use mpa::models::prompt::{Content, Message};
use mpa::models::vlm::Vlm;
use mpa::tensor::{DType, Device};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

pub struct Golden {
    pub folder: PathBuf,
    pub vlm: Vlm,
    pub report: Value,
    images: PathBuf,
}

/// One prompt of a case.
pub struct Row {
    pub messages: Vec<Message>,
    pub images: Vec<Arc<Rgb>>,
}

/// tests/golden and the sets in MPA_GOLDEN.
pub fn sets() -> Vec<PathBuf> {
    let mut sets = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")];
    if let Ok(more) = std::env::var("MPA_GOLDEN") {
        sets.extend(more.split(':').filter(|s| !s.is_empty()).map(PathBuf::from));
    }
    sets
}

/// Runs `test` on every model of every set.
pub fn for_each_model(test: fn(&Golden)) {
    for_each_model_on(&Device::Cpu, test);
}

/// The same with the models on a device, in f32.
pub fn for_each_model_on(device: &Device, test: impl Fn(&Golden)) {
    let mut models = 0;
    for set in sets() {
        let mut folders: Vec<PathBuf> = std::fs::read_dir(&set)
            .unwrap_or_else(|e| panic!("{}: {e}", set.display()))
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.join("fixtures/report.json").exists())
            .collect();
        folders.sort();
        assert!(!folders.is_empty(), "{}: no model folder", set.display());
        for folder in folders {
            eprintln!("{}", folder.display());
            test(&Golden::open(folder, set.join("images"), device));
            models += 1;
        }
    }
    assert!(models > 0);
}

impl Golden {
    fn open(folder: PathBuf, images: PathBuf, device: &Device) -> Golden {
        let vlm = load(&folder, None).to_device(device, DType::F32).unwrap();
        let report = json(&folder.join("fixtures/report.json"));
        Golden { folder, vlm, report, images }
    }

    pub fn fixture(&self, name: &str) -> Fixture {
        Fixture::read(&self.folder.join("fixtures").join(name))
    }

    pub fn image(&self, name: &str) -> Arc<Rgb> {
        Arc::new(images::read(&self.images.join(format!("{name}.png"))).unwrap())
    }

    /// The prompts of a case; `None` if the set does not have it.
    pub fn case(&self, name: &str) -> Option<Vec<Row>> {
        let case = self.report["cases"].get(name)?;
        let conversations = case["conversations"].as_array().unwrap();
        let row = |(i, conversation): (usize, &Value)| Row {
            messages: conversation.as_array().unwrap().iter().map(message).collect(),
            images: match &case["images"] {
                Value::Null => vec![],
                all => all[i].as_array().unwrap().iter().map(|n| self.image(n.as_str().unwrap())).collect(),
            },
        };
        Some(conversations.iter().enumerate().map(row).collect())
    }
}

pub fn load(folder: &Path, adapter: Option<&Path>) -> Vlm {
    Vlm::load(folder.to_str().unwrap(), adapter).unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .unwrap()
}

fn message(value: &Value) -> Message {
    let content = |part: &Value| match part["type"].as_str().unwrap() {
        "image" => Content::Image,
        _ => Content::Text(part["text"].as_str().unwrap().to_string()),
    };
    let parts = value["content"].as_array().unwrap().iter().map(content).collect();
    Message::new(value["role"].as_str().unwrap(), parts)
}

/// The tensors of one fixture file.
pub struct Fixture {
    pub floats: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub ints: BTreeMap<String, (Vec<usize>, Vec<i64>)>,
}

impl Fixture {
    fn read(path: &Path) -> Fixture {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut fixture = Fixture { floats: BTreeMap::new(), ints: BTreeMap::new() };
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let shape = view.shape().to_vec();
            match view.dtype() {
                Dtype::F32 => {
                    let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
                    fixture.floats.insert(name, (shape, data.collect()));
                }
                Dtype::I64 => {
                    let data = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()));
                    fixture.ints.insert(name, (shape, data.collect()));
                }
                other => panic!("{}: {name} is {other:?}", path.display()),
            }
        }
        fixture
    }

    pub fn f32s(&self, name: &str) -> &[f32] {
        &self.floats.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    pub fn ints(&self, name: &str) -> &[i64] {
        &self.ints.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    /// Rows of an integer matrix where `mask` (same shape) is 1.
    pub fn rows(&self, name: &str, mask: &str) -> Vec<Vec<i64>> {
        let width = self.ints[name].0[1];
        let (values, mask) = (self.ints(name).chunks(width), self.ints(mask).chunks(width));
        let keep =
            |(v, m): (&[i64], &[i64])| v.iter().zip(m).filter(|(_, m)| **m == 1).map(|(v, _)| *v).collect();
        values.zip(mask).map(keep).collect()
    }
}
