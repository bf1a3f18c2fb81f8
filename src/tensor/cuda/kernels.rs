//! The compiled kernels in this binary: one fatbin for each kernels/*.cu, and which symbols it has (build.rs writes the table).

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A compiled kernels/*.cu.
pub(super) struct Module {
    pub(super) stem: &'static str,
    pub(super) fatbin: &'static [u8],
    pub(super) symbols: &'static [&'static str],
}

/// How many kernels this binary has for GPUs.
pub fn kernel_count() -> usize {
    MODULES.iter().map(|m| m.symbols.len()).sum()
}
