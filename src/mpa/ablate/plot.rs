//! Scores as SVG: a line a group, with the mean after levelling and its deviation over seeds, between student and teacher.
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::table::{Group, Spread};
use crate::error::{Error, Result};

const WIDTH: u32 = 720;
/// Of one group.
const HEIGHT: i32 = 26;
/// Pixels for the groups' names, and above and below the lines.
const LEFT: i32 = 250;
const TOP: i32 = 34;
const BOTTOM: i32 = 50;
/// Names are cut after so many letters.
const LETTERS: usize = 34;

pub fn scores(axes: &[String], groups: &[Group]) -> Result<String> {
    let mut svg = String::new();
    draw(axes, groups, &mut svg).map_err(|e| Error::Failure(format!("plot-scores.svg: {e}")))?;
    Ok(svg)
}

fn draw(axes: &[String], groups: &[Group], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let height = TOP + BOTTOM + HEIGHT * groups.len() as i32;
    let root = SVGBackend::with_string(svg, (WIDTH, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let ticks = ticks(groups);
    let (low, high) = (ticks[0], ticks[ticks.len() - 1]);
    let x = |score: f64| {
        LEFT + (f64::from(WIDTH as i32 - LEFT - 24) * (score - low) / (high - low)).round() as i32
    };
    let text = |place| ("sans-serif", 13).into_font().color(&BLACK).pos(place);
    let (right, middle) = (Pos::new(HPos::Right, VPos::Center), Pos::new(HPos::Center, VPos::Center));
    for &score in &ticks {
        let line = vec![(x(score), TOP), (x(score), height - BOTTOM)];
        root.draw(&PathElement::new(line, RGBColor(225, 225, 225)))?;
        root.draw(&Text::new(
            format!("{:.0}", 100.0 * score),
            (x(score), height - BOTTOM + 14),
            text(middle),
        ))?;
    }
    let about = "accuracy in %: | before, circle after with deviation over seeds, || teacher";
    root.draw(&Text::new(about, ((LEFT + WIDTH as i32) / 2, height - 14), text(middle)))?;
    let own: Vec<&str> = axes.iter().map(String::as_str).filter(|axis| *axis != "seed").collect();
    root.draw(&Text::new(cut(&own.join(" / ")), (LEFT - 12, TOP / 2), text(right)))?;
    for (i, group) in groups.iter().enumerate() {
        let y = TOP + HEIGHT * i as i32 + HEIGHT / 2;
        root.draw(&Text::new(cut(&group.values.join(" / ")), (LEFT - 12, y), text(right)))?;
        let bar =
            |at: i32| root.draw(&PathElement::new(vec![(at, y - 7), (at, y + 7)], BLACK.stroke_width(2)));
        if let Some(before) = group.before {
            bar(x(before.mean))?;
        }
        if let Some(teacher) = group.teacher {
            bar(x(teacher.mean) - 2)?;
            bar(x(teacher.mean) + 2)?;
        }
        let Some(Spread { mean, deviation }) = group.after else { continue };
        let spread = deviation.unwrap_or(0.0);
        let ends = vec![(x(mean - spread), y), (x(mean + spread), y)];
        root.draw(&PathElement::new(ends, BLUE.stroke_width(2)))?;
        root.draw(&Circle::new((x(mean), y), 4, BLUE.filled()))?;
    }
    root.present()?;
    drop(root);
    Ok(())
}

/// Round scores at even distances, between which every score and its deviation lies; two at least.
pub fn ticks(groups: &[Group]) -> Vec<f64> {
    let ends = |spread: Spread| {
        let d = spread.deviation.unwrap_or(0.0);
        [spread.mean - d, spread.mean + d]
    };
    let all = groups.iter().flat_map(|g| [g.before, g.after, g.teacher]).flatten().flat_map(ends);
    // In percent, as they are written.
    let (low, high) =
        all.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(100.0 * v), high.max(100.0 * v)));
    let (low, high) = if low > high { (0.0, 100.0) } else { (low.max(0.0), high.min(100.0)) };
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| (high - low) / step <= 8.0).unwrap_or(20.0);
    let (first, last) = ((low / step).floor() as u32, ((high / step).ceil() as u32).max(1));
    (first.min(last - 1)..=last).map(|i| f64::from(i) * step / 100.0).collect()
}

pub fn cut(text: &str) -> String {
    text.chars().take(LETTERS).collect()
}
