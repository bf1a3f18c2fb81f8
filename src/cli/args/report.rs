use std::path::PathBuf;

use clap::Args;

/// Show runs, evaluations and ablations in one HTML page that needs nothing else
///
/// Scores with intervals, samples with pictures at each step, curves, times, settings; of several folders also what differs between them.
/// A run that is not finished is shown as far as it has come.
#[derive(Args)]
#[command(after_help = "\
Examples:
  mpa report runs/first
  mpa report runs/first runs/second --out compared.html
  mpa report runs/first --per-hour 2.5
  mpa report scores-before scores-after --out scores.html")]
pub struct Report {
    /// Folders that `mpa run`, `mpa demo`, `mpa evaluate` or `mpa ablate` have written
    #[arg(value_name = "DIR", required = true)]
    pub folders: Vec<PathBuf>,
    /// Where the page goes [default: report.html in the one DIR; of several, in the current folder]
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// What an hour of the device costs, in any currency: the table of times gets a column of costs
    #[arg(long, value_name = "PRICE", value_parser = price, allow_negative_numbers = true)]
    pub per_hour: Option<f64>,
}

fn price(text: &str) -> Result<f64, String> {
    let price = text.parse().ok().filter(|price: &f64| price.is_finite() && *price >= 0.0);
    price.ok_or_else(|| "expected a number, at least 0".to_string())
}
