//! Curves as SVG.

use std::fs;
use std::path::Path;

use minijinja::Value;
use plotters::prelude::*;
use serde::Deserialize;

use crate::data::records::Reader;
use crate::error::{Error, Result};

/// Size of the drawing. Small, so that its letters are still read when a phone shows it at half of that.
const SIZE: (u32, u32) = (520, 280);
/// Points of a curve: each is the mean of the steps around it.
const POINTS: usize = 100;
/// Stand for what the page's style decides (light or dark), and are replaced in the finished drawing.
const INK: RGBColor = RGBColor(1, 2, 3);
const LINE: RGBColor = RGBColor(4, 5, 6);

/// One line: the losses of one training, say.
pub struct Curve {
    /// Number of its colour in the page's style.
    pub colour: usize,
    points: Vec<(f64, f64)>,
}

#[derive(Deserialize)]
struct Step {
    step: f64,
    loss: f64,
}

impl Curve {
    /// Reads a loss.jsonl; none if it is not there or empty.
    pub fn read(path: &Path, colour: usize) -> Result<Option<Curve>> {
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        // A line without its end is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let step = |(i, line): (usize, &str)| {
            let step: Step =
                serde_json::from_str(line).map_err(|e| Error::line(path, i + 1, e.to_string()))?;
            Ok((step.step, step.loss))
        };
        let steps: Vec<(f64, f64)> = whole.lines().enumerate().map(step).collect::<Result<_>>()?;
        Ok((!steps.is_empty()).then(|| Curve { colour, points: averaged(&steps) }))
    }

    /// How many samples were kept when so many pictures had been looked at; none without both files.
    pub fn kept(folder: &Path, colour: usize) -> Result<Option<Curve>> {
        let (all, kept) = (folder.join("annotate.jsonl"), folder.join("parity.jsonl"));
        if !all.exists() || !kept.exists() {
            return Ok(None);
        }
        let mut parity = Reader::open_growing(&kept)?.map(|record| record.map(|record| record.id)).peekable();
        let (mut points, mut count, mut picture) = (Vec::new(), 0.0, None);
        for record in Reader::open_growing(&all)? {
            let record = record?;
            if picture.as_ref() != Some(&record.image) {
                picture = Some(record.image);
                points.push((points.len() as f64 + 1.0, count));
            }
            // The parity set has the order of the annotations.
            if parity.next_if(|next| next.as_ref().map_or(true, |id| *id == record.id)).transpose()?.is_some()
            {
                count += 1.0;
            }
            if let Some(last) = points.last_mut() {
                last.1 = count;
            }
        }
        Ok((count > 0.0).then(|| Curve { colour, points: averaged(&points) }))
    }
}

/// At most `POINTS` points, each the mean of as many steps.
fn averaged(steps: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    steps.chunks(steps.len().div_ceil(POINTS).max(1)).map(mean).collect()
}

/// What a drawing says beside its curves.
pub struct About {
    pub title: &'static str,
    pub x: &'static str,
    pub y: &'static str,
}

/// The drawing, marked as safe to put into the page; none if there is nothing to draw.
pub fn draw(about: &About, curves: &[Curve]) -> Result<Option<Value>> {
    let points = || curves.iter().flat_map(|c| &c.points).filter(|p| p.1.is_finite());
    let last = points().map(|p| p.0).fold(0.0, f64::max);
    let top = points().map(|p| p.1).fold(0.0, f64::max);
    if points().next().is_none() {
        return Ok(None);
    }
    let mut svg = String::new();
    plot(about, curves, last, top, &mut svg)
        .map_err(|e| Error::Failure(format!("report.html: {}: {e}", about.title)))?;
    Ok(Some(Value::from_safe_string(themed(about, svg, curves))))
}

fn plot(
    about: &About,
    curves: &[Curve],
    last: f64,
    top: f64,
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    // Nothing may be infinitely thin: one step, or a loss of 0.
    let (last, top) = (last.max(2.0), if top > 0.0 { top * 1.05 } else { 1.0 });
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(1.0..last, 0.0..top)?;
    let style = |size| ("sans-serif", size).into_font().color(&INK);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(LINE)
        .axis_style(LINE)
        .label_style(style(17))
        .axis_desc_style(style(17))
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| if top < 10.0 { format!("{y:.1}") } else { format!("{y:.0}") })
        .x_desc(about.x)
        .y_desc(about.y)
        .draw()?;
    for curve in curves {
        let points = curve.points.iter().copied().filter(|p| p.1.is_finite());
        chart.draw_series(LineSeries::new(points, colour(curve).stroke_width(2)))?;
    }
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}

fn colour(curve: &Curve) -> RGBColor {
    RGBColor(10, 20, curve.colour as u8)
}

/// Hands the choice of colours over to the page's style.
fn themed(about: &About, svg: String, curves: &[Curve]) -> String {
    let hex = |c: RGBColor| format!("#{:02X}{:02X}{:02X}", c.0, c.1, c.2);
    let mut svg = svg.replace(&hex(INK), "currentColor");
    svg = svg.replace(&format!("stroke=\"{}\"", hex(LINE)), "class=\"line\"");
    for curve in curves {
        let class = format!("class=\"c{}\"", curve.colour);
        svg = svg.replace(&format!("stroke=\"{}\"", hex(colour(curve))), &class);
    }
    let svg = svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{}\" ", about.title), 1);
    svg.replacen('>', &format!("><title>{}</title>", about.title), 1)
}
