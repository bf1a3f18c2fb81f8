use std::fmt::Write;
use std::fs;

use serde_json::{Value, json};

use crate::bench::{Bench, Row, Shape, shapes};
use crate::error::{Error, Result};
use crate::mpa::progress::Progress;
use crate::tensor::{DType, Device};

use super::compute::{self, Facts, align};
use super::{Output, args};

pub fn ops(args: &args::BenchOps, compute_args: &args::Compute, progress: &Progress) -> Result<Output> {
    let dtype = compute::dtype(compute_args);
    if args.shapes {
        return list(&args.filter, dtype);
    }
    let (device, why) = Device::choose(compute_args.backend, compute_args.device)?;
    progress.note(&format!("device: {device} ({why})"));
    let mut bench = Bench::new(&device, dtype, args.quick)?;
    let shapes = bench.shapes(&args.filter);
    let mut meter = progress.start("bench", shapes.len(), 0);
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    let facts = Facts::of(&device);
    for shape in &shapes {
        meter.message(format!("{} {}", shape.work.op(), shape.name));
        match bench.row(shape) {
            Ok(row) => rows.push(row),
            Err(error) => failed.push(format!("{}, {}: {error}", shape.work.op(), shape.name)),
        }
        // After each: time on a GPU is lent, and may end here.
        if let Some(path) = &args.csv {
            fs::write(path, csv(&rows, &facts)).map_err(|e| Error::io(path, e))?;
        }
        meter.advance(1);
        if let Device::Cuda(gpu) = &device
            && let Err(error) = gpu.synchronize()
        {
            failed.push(format!("further shapes were not measured, the GPU is lost: {error}"));
            break;
        }
    }
    meter.finish();
    let json = json!({"gpu": facts.gpu, "driver": facts.driver, "commit": facts.commit, "rows": rows, "failed": failed});
    let mut text = format!("{facts}\n{}", table(&rows));
    for line in &failed {
        let _ = write!(text, "\nFAILED {line}");
    }
    let why = (!failed.is_empty())
        .then(|| format!("bench: {} of {} rows are missing", shapes.len() - rows.len(), shapes.len()));
    Ok(Output::new(&json, text)?.failed(why))
}

/// The shapes, for peers that measure the same.
fn list(filter: &str, dtype: DType) -> Result<Output> {
    let wanted = |s: &Shape| s.ceiling || s.name.contains(filter) || s.work.op().contains(filter);
    let all: Vec<Shape> = shapes().into_iter().filter(wanted).collect();
    let (bytes, op) = (|s: &Shape| s.work.bytes(dtype.size()), |s: &Shape| s.work.op());
    let entry = |s: &Shape| -> Result<Value> {
        let mut value = serde_json::to_value(s).map_err(|e| Error::Failure(format!("--json: {e}")))?;
        for (key, fact) in
            [("op", json!(op(s))), ("bytes", json!(bytes(s))), ("flops", json!(s.work.flops()))]
        {
            value[key] = fact;
        }
        Ok(value)
    };
    let json =
        json!({"dtype": dtype.to_string(), "shapes": all.iter().map(entry).collect::<Result<Vec<_>>>()?});
    let mut lines = vec![["op", "shape", "bytes", "FLOPs"].map(String::from)];
    lines.extend(
        all.iter()
            .map(|s| [op(s).to_string(), s.name.clone(), bytes(s).to_string(), s.work.flops().to_string()]),
    );
    Output::new(&json, align(&lines))
}

fn table(rows: &[Row]) -> String {
    let mut lines =
        vec![["op", "shape", "type", "median us", "GB/s", "TFLOP/s", "% of ceiling"].map(String::from)];
    lines.extend(rows.iter().map(|r| {
        let percent = r.percent_of_ceiling.map_or("-".to_string(), |p| format!("{p:.1}"));
        let (time, bandwidth) = (format!("{:.1}", r.median_us), format!("{:.1}", r.gb_s));
        let flops = if r.flops == 0 { "-".to_string() } else { format!("{:.2}", r.tflop_s) };
        [r.op.to_string(), r.shape.clone(), r.dtype.clone(), time, bandwidth, flops, percent]
    }));
    align(&lines)
}

/// `note` is for peers: which of several ways was the fastest.
pub(super) fn csv(rows: &[Row], facts: &Facts) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let mut text = String::from(
        "op,shape,dtype,median_us,bytes,flops,GB/s,TFLOP/s,percent_of_ceiling,gpu,driver,commit,note\n",
    );
    for r in rows {
        let percent = r.percent_of_ceiling.map_or(String::new(), |p| format!("{p:.2}"));
        let (shape, gpu, driver, commit) = (&r.shape, &facts.gpu, &facts.driver, facts.commit);
        let texts = [gpu.as_str(), driver.as_str(), commit].map(quoted).join(",");
        let _ = writeln!(
            text,
            "{},{},{},{:.3},{},{},{:.2},{:.4},{percent},{texts},",
            r.op,
            quoted(shape),
            r.dtype,
            r.median_us,
            r.bytes,
            r.flops,
            r.gb_s,
            r.tflop_s
        );
    }
    text
}
