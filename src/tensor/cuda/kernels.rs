//! The compiled kernels in this binary: one fatbin for each kernels/*.cu, and which symbols it has (build.rs writes the table).

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A compiled kernels/*.cu.
pub(super) struct Module {
    pub(super) stem: &'static str,
    pub(super) fatbin: &'static [u8],
    /// Names of the kernels, each with the most threads of a block.
    pub(super) symbols: &'static [(&'static str, u32)],
    /// What ptxas says of them.
    pub(super) report: &'static str,
}

/// How many kernels this binary has for GPUs.
pub fn kernel_count() -> usize {
    MODULES.iter().map(|m| m.symbols.len()).sum()
}
