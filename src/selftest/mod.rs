//! Every op that has a GPU launcher, on a device and on the CPU in f32, from the same inputs (rounded to the device's type). One file per
//! group of ops: each makes `Case`s, which is all that a new op needs to add.
//!
//! ```text
//! norms, elementwise, ... --Case--> mod.rs: on the device twice, on the CPU once --Output--> check.rs --> Row
//! ```

mod attention;
mod backward;
mod check;
mod elementwise;
mod int8;
mod kv_cache;
mod linear;
mod lora;
mod norms;
mod on;
mod patch_embed;
mod rows;
mod sample;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::tensor::{Card, DType, Device, Gpu, Tensor};
use check::{Tolerance, compare};
use on::On;

/// How large the shapes are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Those of real models, and odd ones.
    Full,
    /// Small and odd ones: for compute-sanitizer, and for kernels on the CPU.
    Quick,
}

impl Size {
    fn quick(self) -> bool {
        self == Size::Quick
    }
}

/// Makes inputs, calls the op, returns what it wrote.
type Run = dyn Fn(&mut On) -> Result<Vec<Output>>;

/// One op at one shape.
pub struct Case {
    pub op: &'static str,
    pub shape: String,
    types: &'static [DType],
    run: Box<Run>,
}

/// The types that most kernels are made for.
const BOTH: &[DType] = &[DType::F32, DType::Bf16];

impl Case {
    fn new(
        op: &'static str,
        shape: impl Into<String>,
        run: impl Fn(&mut On) -> Result<Vec<Output>> + 'static,
    ) -> Case {
        Case { op, shape: shape.into(), types: BOTH, run: Box::new(run) }
    }
}

/// What an op wrote, and how far it may be from what it should be.
struct Output {
    /// Empty for an op with one output.
    name: &'static str,
    tensor: Tensor,
    tolerance: Tolerance,
}

impl Output {
    fn new(name: &'static str, tensor: Tensor, tolerance: Tolerance) -> Output {
        Output { name, tensor, tolerance }
    }

    fn one(tensor: Tensor, tolerance: Tolerance) -> Result<Vec<Output>> {
        Ok(vec![Output::new("", tensor, tolerance)])
    }
}

/// What came of one output of a case in one type.
#[derive(Debug, Serialize)]
pub struct Row {
    pub op: String,
    pub dtype: String,
    pub shape: String,
    /// The largest absolute error; none if there is nothing to compare, or no number.
    pub error: Option<f64>,
    /// The largest share that an element's error has of what is allowed for it.
    pub used: Option<f64>,
    pub tolerance: String,
    pub reason: String,
    /// Two runs gave the same bits.
    pub same_bits: bool,
    pub ok: bool,
    /// What went wrong.
    pub why: Option<String>,
}

/// All cases whose op's name contains `filter`.
pub fn cases(size: Size, filter: &str) -> Vec<Case> {
    let groups = [
        norms::cases,
        elementwise::cases,
        rows::cases,
        linear::cases,
        int8::cases,
        lora::cases,
        attention::cases,
        kv_cache::cases,
        patch_embed::cases,
        sample::cases,
        backward::cases,
    ];
    groups.iter().flat_map(|cases| cases(size)).filter(|case| case.op.contains(filter)).collect()
}

/// Of each kernel the most dynamic shared memory that a launch asks for in any case, be it on Hopper or on another GPU. Nothing is computed.
pub fn dynamic_shared() -> BTreeMap<String, usize> {
    let cases = cases(Size::Full, "");
    let mut all = BTreeMap::new();
    for gpu in [Card::H100, Card::OTHER].map(Gpu::dry_with_our_kernels) {
        let device = Device::Cuda(gpu.clone());
        for (case, &dtype) in cases.iter().flat_map(|case| case.types.iter().map(move |dtype| (case, dtype)))
        {
            // A case that looks at what was computed finds nothing there and fails, after its launches.
            let _ = (case.run)(&mut On::dry(&device, dtype));
        }
        for (kernel, bytes) in gpu.launched() {
            let most = all.entry(kernel).or_insert(0);
            *most = bytes.max(*most);
        }
    }
    all
}

impl Case {
    /// A row for each type and output.
    pub fn rows(&self, device: &Device) -> Vec<Row> {
        let rows = |&dtype| match self.outcome(device, dtype) {
            Ok(rows) => rows,
            Err(error) => vec![Row {
                op: self.op.to_string(),
                dtype: dtype.to_string(),
                shape: self.shape.clone(),
                error: None,
                used: None,
                tolerance: String::new(),
                reason: String::new(),
                same_bits: false,
                ok: false,
                why: Some(error.to_string()),
            }],
        };
        self.types.iter().flat_map(rows).collect()
    }

    fn outcome(&self, device: &Device, dtype: DType) -> Result<Vec<Row>> {
        let run = |device: &Device| (self.run)(&mut On::new(device, dtype));
        let (first, second, wanted) = (run(device)?, run(device)?, run(&Device::Cpu)?);
        let row = |((first, second), wanted): ((Output, Output), Output)| {
            let Output { name, tensor, tolerance } = first;
            let (got, again) = (tensor.to_f32()?, second.tensor.to_f32()?);
            let (got, again, wanted) = (got.f32s()?, again.f32s()?, wanted.tensor.f32s()?);
            let found = compare(got, wanted, &tolerance);
            let same_bits = got.iter().zip(again).all(|(a, b)| a.to_bits() == b.to_bits());
            let why = found.why.or((!same_bits).then(|| "a second run gave other bits".to_string()));
            Ok(Row {
                op: format!("{} {name}", self.op).trim_end().to_string(),
                dtype: dtype.to_string(),
                shape: self.shape.clone(),
                error: found.error,
                used: found.used,
                tolerance: tolerance.to_string(),
                reason: tolerance.reason,
                same_bits,
                ok: why.is_none(),
                why,
            })
        };
        first.into_iter().zip(second).zip(wanted).map(row).collect()
    }
}
