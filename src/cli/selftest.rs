use serde_json::json;

use crate::error::{Error, Result};
use crate::mpa::progress::Progress;
use crate::selftest::{Row, Size, cases};
use crate::tensor::{Backend, Device};

use super::{Output, args, compute};

pub fn run(args: &args::Selftest, compute: &args::Compute, progress: &Progress) -> Result<Output> {
    let gpu = a_gpu(compute)?;
    let size = if args.quick { Size::Quick } else { Size::Full };
    let cases = cases(size, &args.filter);
    if cases.is_empty() {
        return Err(Error::Usage(format!("--filter {}: no op has that in its name", args.filter)));
    }
    let mut meter = progress.start("selftest", cases.len(), 0);
    let mut rows: Vec<Row> = Vec::new();
    let mut lost = None;
    for case in &cases {
        // Said beforehand and at once: a kernel may hang, and a run be killed.
        progress.note(&format!("{} {}", case.op, case.shape));
        let new = case.rows(&gpu);
        for row in new.iter().filter(|row| !row.ok) {
            let why = row.why.as_deref().unwrap_or_default();
            progress.warn(&format!("{} {} {}: {why}", row.op, row.dtype, row.shape));
        }
        rows.extend(new);
        meter.advance(1);
        lost = match &gpu {
            Device::Cuda(gpu) => gpu.synchronize().err(),
            Device::Cpu => None,
        };
        if lost.is_some() {
            // After an access out of bounds the driver does nothing more for this process: further ops would fail too.
            break;
        }
    }
    meter.finish();
    let bad = rows.iter().filter(|row| !row.ok).count();
    let facts = compute::Facts::of(&gpu);
    let json = json!({"gpu": facts.gpu, "driver": facts.driver, "commit": facts.commit, "failed": bad, "rows": rows});
    let text = format!("{facts}\n{}\n{} rows, {bad} failed", table(&rows), rows.len());
    let why = match lost {
        Some(error) => Some(format!("selftest: further ops were not tested, the GPU is lost: {error}")),
        None => (bad > 0).then(|| format!("selftest: {bad} of {} rows failed", rows.len())),
    };
    Ok(Output::new(&json, text)?.failed(why))
}

/// The device to test: the CPU is what it is tested against.
fn a_gpu(compute: &args::Compute) -> Result<Device> {
    if compute.backend == Backend::Cpu {
        return Err(Error::Usage("selftest compares a GPU with the CPU, expected --backend cuda".into()));
    }
    match Device::choose(compute.backend, compute.device)? {
        (Device::Cpu, why) => Err(Error::Failure(format!("selftest: there is no GPU to test: {why}"))),
        (gpu, _) => Ok(gpu),
    }
}

fn table(rows: &[Row]) -> String {
    let number = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.1e}"));
    let mut lines = vec![
        ["op", "type", "shape", "worst", "of allowed", "allowed", "why that much", ""].map(String::from),
    ];
    lines.extend(rows.iter().map(|row| {
        let verdict = match &row.why {
            None => "ok".to_string(),
            Some(why) => format!("FAIL: {why}"),
        };
        [
            row.op.clone(),
            row.dtype.clone(),
            row.shape.clone(),
            number(row.error),
            row.used.map_or("-".to_string(), |x| format!("{:.0} %", x * 100.0)),
            row.tolerance.clone(),
            row.reason.clone(),
            verdict,
        ]
    }));
    compute::align(&lines)
}
