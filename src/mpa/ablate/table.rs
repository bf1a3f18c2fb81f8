//! Results as tables: a row a cell as CSV, a row a group (the cells that differ in their seed only) as Markdown and LaTeX.
use std::fmt::Write;

use serde::Serialize;

/// What came of a cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    pub cell: String,
    /// Of the axes.
    pub values: Vec<String>,
    /// Pseudo-labels that were not rejected, the parity set of them (of the last round; 0 with labels), and samples trained on.
    pub pseudo: usize,
    pub parity: usize,
    pub samples: usize,
    pub steps: usize,
    /// Accuracies: the teacher's, the student's before and after.
    pub teacher: Option<f64>,
    pub before: Option<f64>,
    pub after: Option<f64>,
    /// Of the accuracy between student and teacher; none where the teacher is not ahead.
    pub gap_recovered: Option<f64>,
    /// Of all stages of the cell, also those it shares.
    pub seconds: f64,
    pub error: Option<String>,
}

/// Mean, and standard deviation of the sample (by n - 1), of which one value has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub mean: f64,
    pub deviation: Option<f64>,
}

impl Spread {
    /// None of no values.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let deviation = (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt());
        (!values.is_empty()).then_some(Spread { mean, deviation })
    }
}

/// The cells that differ in their seed only.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Of the axes without the seed.
    pub values: Vec<String>,
    pub cells: usize,
    pub failed: usize,
    pub parity: Option<Spread>,
    pub teacher: Option<Spread>,
    pub before: Option<Spread>,
    pub after: Option<Spread>,
    pub gap_recovered: Option<Spread>,
}

fn without_seed<'a>(axes: &[String], values: &'a [String]) -> Vec<&'a str> {
    axes.iter().zip(values).filter(|(axis, _)| *axis != "seed").map(|(_, value)| value.as_str()).collect()
}

/// In the order of their first cells.
pub fn groups(axes: &[String], rows: &[Row]) -> Vec<Group> {
    let mut parts: Vec<(Vec<&str>, Vec<&Row>)> = Vec::new();
    for row in rows {
        let values = without_seed(axes, &row.values);
        match parts.iter_mut().find(|(there, _)| *there == values) {
            Some((_, rows)) => rows.push(row),
            None => parts.push((values, vec![row])),
        }
    }
    let group = |(values, rows): (Vec<&str>, Vec<&Row>)| {
        let good: Vec<&Row> = rows.iter().copied().filter(|row| row.error.is_none()).collect();
        let spread = |get: &dyn Fn(&Row) -> Option<f64>| {
            Spread::of(&good.iter().filter_map(|row| get(row)).collect::<Vec<_>>())
        };
        Group {
            values: values.into_iter().map(str::to_string).collect(),
            cells: rows.len(),
            failed: rows.len() - good.len(),
            parity: spread(&|row| Some(row.parity as f64)),
            teacher: spread(&|row| row.teacher),
            before: spread(&|row| row.before),
            after: spread(&|row| row.after),
            gap_recovered: spread(&|row| row.gap_recovered),
        }
    };
    parts.into_iter().map(group).collect()
}

/// As RFC 4180 has it, with `\n` at the ends of lines.
pub fn csv(axes: &[String], rows: &[Row]) -> String {
    let tail = [
        "pseudo",
        "parity",
        "samples",
        "steps",
        "teacher",
        "before",
        "after",
        "gap_recovered",
        "error",
        "seconds",
    ];
    let head = ["cell"].into_iter().chain(axes.iter().map(String::as_str)).chain(tail);
    let mut text = line(head.map(quoted));
    for row in rows {
        let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.6}"));
        let counts = [row.pseudo, row.parity, row.samples, row.steps].map(|count| count.to_string());
        let scores = [row.teacher, row.before, row.after, row.gap_recovered].map(number);
        let end = [row.error.clone().unwrap_or_default(), format!("{:.1}", row.seconds)];
        let all = [&row.cell].into_iter().chain(&row.values).chain(&counts).chain(&scores).chain(&end);
        text += &line(all.map(|field| quoted(field)));
    }
    text
}

fn line(fields: impl Iterator<Item = String>) -> String {
    fields.collect::<Vec<_>>().join(",") + "\n"
}

fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_string()
    }
}

fn heads(axes: &[String]) -> Vec<String> {
    let own = axes.iter().filter(|axis| *axis != "seed").cloned();
    own.chain(["cells", "parity set", "teacher", "before", "after", "gap recovered"].map(String::from))
        .collect()
}

/// `by`: stands between a mean and its deviation.
fn fields(group: &Group, by: &str) -> Vec<String> {
    let show = |spread: Option<Spread>, scale: f64, digits: usize| match spread {
        None => "-".to_string(),
        Some(Spread { mean, deviation: None }) => format!("{:.digits$}", mean * scale),
        Some(Spread { mean, deviation: Some(d) }) => {
            format!("{:.digits$}{by}{:.digits$}", mean * scale, d * scale)
        }
    };
    let cells = match group.failed {
        0 => group.cells.to_string(),
        failed => format!("{} ({failed} failed)", group.cells),
    };
    let scores = [group.teacher, group.before, group.after, group.gap_recovered].map(|s| show(s, 100.0, 1));
    group.values.iter().cloned().chain([cells, show(group.parity, 1.0, 0)]).chain(scores).collect()
}

/// In percent; mean and standard deviation over seeds.
pub fn markdown(axes: &[String], groups: &[Group]) -> String {
    let heads = heads(axes);
    let row = |fields: Vec<String>| {
        let fields: Vec<String> = fields.iter().map(|field| one_line(field).replace('|', "\\|")).collect();
        format!("| {} |\n", fields.join(" | "))
    };
    let mut text = row(heads.clone());
    text += &format!("|{}\n", "---|".repeat(heads.len()));
    for group in groups {
        text += &row(fields(group, " ± "));
    }
    text
}

/// The same as a plain `tabular`, which needs no package.
pub fn latex(axes: &[String], groups: &[Group]) -> String {
    let heads = heads(axes);
    let own = heads.len() - 6;
    let row = |fields: &[String]| format!("{} \\\\\n", fields.join(" & "));
    let heads: Vec<String> = heads.iter().map(|head| escaped(head)).collect();
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\\begin{{tabular}}{{{}{}}}\n\\hline", "l".repeat(own), "r".repeat(6));
    text += &row(&heads);
    text += "\\hline\n";
    for group in groups {
        let all = fields(group, "\u{0}");
        text +=
            &row(&all.iter().map(|field| escaped(field).replace('\u{0}', " $\\pm$ ")).collect::<Vec<_>>());
    }
    text + "\\hline\n\\end{tabular}\n"
}

/// A line break would end the row, or in TeX, twice, the paragraph.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for letter in one_line(text).chars() {
        match letter {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', letter]),
            '\\' => out += "\\textbackslash{}",
            '^' => out += "\\textasciicircum{}",
            '~' => out += "\\textasciitilde{}",
            _ => out.push(letter),
        }
    }
    out
}
