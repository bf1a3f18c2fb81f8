//! Scores against an axis of numbers as SVG: a line for each choice of the other axes, with deviations over seeds. The axis' values stand at
//! even distances, in their order.
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::plot::{cut, ticks};
use super::table::Group;
use crate::error::{Error, Result};

const WIDTH: i32 = 720;
const HEIGHT: i32 = 380;
const LEFT: i32 = 60;
/// For the lines' names.
const RIGHT: i32 = 240;
const TOP: i32 = 20;
const BOTTOM: i32 = 60;

/// Of the lines, in turn; seen on white, and on black when a page turns the drawing's light into dark.
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(227, 119, 194),
    RGBColor(140, 86, 75),
    RGBColor(127, 127, 127),
];

/// Points of a line: places on the axis, and groups.
type Line<'a> = (String, Vec<(usize, &'a Group)>);

/// The axes along which something can be drawn: numbers, more than one. The seed is no axis of groups.
pub fn axes(axes: &[String], groups: &[Group]) -> Vec<String> {
    let own = axes.iter().filter(|axis| *axis != "seed").enumerate();
    own.filter(|(at, _)| numbers(*at, groups).len() > 1).map(|(_, axis)| axis.clone()).collect()
}

/// Scores against `axis`, one of `axes`.
pub fn scores(axes: &[String], axis: &str, groups: &[Group]) -> Result<String> {
    let mut svg = String::new();
    draw(axes, axis, groups, &mut svg).map_err(|e| Error::Failure(format!("plot-{axis}.svg: {e}")))?;
    Ok(svg)
}

/// The different numbers of an axis in rising order, as they are written; none if one is no number.
fn numbers(at: usize, groups: &[Group]) -> Vec<&str> {
    let written = groups.iter().filter_map(|group| group.values.get(at)).filter(|value| !value.is_empty());
    let mut all: Vec<(f64, &str)> = Vec::new();
    for value in written {
        match value.parse::<f64>() {
            Ok(number) if number.is_finite() => all.push((number, value)),
            _ => return Vec::new(),
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all.dedup_by(|a, b| a.0 == b.0);
    all.into_iter().map(|(_, value)| value).collect()
}

/// A number is named after its axis: it would say nothing alone.
fn lines<'a>(axes: &[&str], at: usize, ticks: &[&str], groups: &'a [Group]) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for group in groups {
        let Some(place) = ticks.iter().position(|tick| *tick == group.values[at]) else { continue };
        let others = group.values.iter().enumerate().filter(|(i, value)| *i != at && !value.is_empty());
        let named = others.map(|(i, value)| match value.parse::<f64>() {
            Ok(_) => format!("{} {value}", axes[i]),
            Err(_) => value.clone(),
        });
        let name = named.collect::<Vec<_>>().join(" / ");
        match lines.iter_mut().find(|(there, _)| *there == name) {
            Some((_, points)) => points.push((place, group)),
            None => lines.push((name, vec![(place, group)])),
        }
    }
    lines
}

fn draw(
    axes: &[String],
    axis: &str,
    groups: &[Group],
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let axes: Vec<&str> = axes.iter().map(String::as_str).filter(|axis| *axis != "seed").collect();
    let at = axes.iter().position(|own| *own == axis).unwrap_or(0);
    let places = numbers(at, groups);
    let root = SVGBackend::with_string(svg, (WIDTH as u32, HEIGHT as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let ticks = ticks(groups);
    let (low, high) = (ticks[0], ticks[ticks.len() - 1]);
    let step = f64::from(WIDTH - LEFT - RIGHT) / places.len().max(1) as f64;
    let x = |place: usize| LEFT + (step * (place as f64 + 0.5)).round() as i32;
    let y = |score: f64| {
        HEIGHT - BOTTOM - (f64::from(HEIGHT - TOP - BOTTOM) * (score - low) / (high - low)).round() as i32
    };
    let text = |h| ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(h, VPos::Center));
    for &score in &ticks {
        let line = vec![(LEFT, y(score)), (WIDTH - RIGHT, y(score))];
        root.draw(&PathElement::new(line, RGBColor(225, 225, 225)))?;
        root.draw(&Text::new(format!("{:.0}", 100.0 * score), (LEFT - 8, y(score)), text(HPos::Right)))?;
    }
    for (place, number) in places.iter().enumerate() {
        root.draw(&Text::new(*number, (x(place), HEIGHT - BOTTOM + 14), text(HPos::Center)))?;
    }
    let about = format!("accuracy in % after levelling, with deviation over seeds, against {axis}");
    root.draw(&Text::new(about, ((LEFT + WIDTH - RIGHT) / 2 + 40, HEIGHT - 18), text(HPos::Center)))?;
    let flat = [
        ("before", groups.first().and_then(|g| g.before)),
        ("teacher", groups.first().and_then(|g| g.teacher)),
    ];
    for (name, spread) in flat {
        let Some(spread) = spread else { continue };
        let at = y(spread.mean);
        root.draw(&PathElement::new(vec![(LEFT, at), (WIDTH - RIGHT, at)], BLACK.mix(0.5)))?;
        root.draw(&Text::new(name, (LEFT + 4, at - 9), text(HPos::Left)))?;
    }
    for (i, (name, mut points)) in lines(&axes, at, &places, groups).into_iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        points.sort_by_key(|(place, _)| *place);
        // Beside each other, so that deviations do not hide each other.
        let aside = 4 * (i as i32 % 5 - 2);
        let scored: Vec<_> =
            points.iter().filter_map(|(p, group)| Some((x(*p) + aside, group.after?))).collect();
        let path: Vec<(i32, i32)> = scored.iter().map(|(x, spread)| (*x, y(spread.mean))).collect();
        root.draw(&PathElement::new(path, colour.stroke_width(2)))?;
        for (x, spread) in scored {
            let d = spread.deviation.unwrap_or(0.0);
            let bar = vec![(x, y(spread.mean - d)), (x, y(spread.mean + d))];
            root.draw(&PathElement::new(bar, colour.stroke_width(1)))?;
            root.draw(&Circle::new((x, y(spread.mean)), 3, colour.filled()))?;
        }
        let place = TOP + 8 + 20 * i as i32;
        let mark = vec![(WIDTH - RIGHT + 12, place), (WIDTH - RIGHT + 34, place)];
        root.draw(&PathElement::new(mark, colour.stroke_width(2)))?;
        root.draw(&Text::new(cut(&name), (WIDTH - RIGHT + 42, place), text(HPos::Left)))?;
    }
    root.present()?;
    drop(root);
    Ok(())
}
