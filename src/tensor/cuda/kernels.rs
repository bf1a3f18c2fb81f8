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

/// Where a driver may count on finding the 8-byte fields of a fatbin; bytes alone may lie anywhere in the binary.
#[allow(dead_code)] // without a compiler there are none
#[repr(C, align(64))]
struct Aligned<T>(T);

/// How many kernels this binary has for GPUs.
pub fn kernel_count() -> usize {
    MODULES.iter().map(|m| m.symbols.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fatbins_are_aligned() {
        for module in MODULES {
            assert_eq!(module.fatbin.as_ptr().addr() % 64, 0, "{}", module.stem);
        }
    }
}
