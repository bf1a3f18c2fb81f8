use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(mpa::cli::run(std::env::args_os()))
}
