//! What each kernel takes of a multiprocessor, from ptxas' report and what its launches ask for: kernels/resources.tsv is this table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::kernels::{MODULES, NVCC};

/// A kernel on an architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KernelResources {
    pub kernel: String,
    pub arch: String,
    /// Most threads of a block (its launch bound).
    pub threads: u32,
    /// Of a thread.
    pub registers: u32,
    /// Bytes of a block that the kernel itself declares.
    pub static_shared: u32,
    /// Bytes of a block that a launch asks for, at the most; none if that is not known.
    pub dynamic_shared: Option<u32>,
    /// Bytes of a thread.
    pub stack: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
    /// Warps that a multiprocessor can hold at a time, in percent of its most: as far as registers, threads and shared memory go.
    pub occupancy: Option<u32>,
}

/// All kernels of this binary on all architectures that it has machine code for; empty without kernels. `dynamic`: shared memory that launches
/// ask for, by kernel.
pub fn kernel_resources(dynamic: &BTreeMap<String, usize>) -> Vec<KernelResources> {
    let mut rows: Vec<_> = MODULES.iter().flat_map(|m| parse(m.report, m.symbols)).collect();
    for row in &mut rows {
        // Elsewhere kernels for Hopper are empty (MPA_HOPPER in kernels/hopper.cuh), and never launched.
        let runs = !row.kernel.contains("_hopper_") || row.arch.starts_with("sm_90");
        let asked = if runs { dynamic.get(&row.kernel) } else { Some(&0) };
        row.dynamic_shared = asked.and_then(|&bytes| u32::try_from(bytes).ok());
        let shared = row.static_shared + row.dynamic_shared.unwrap_or_default();
        row.occupancy = occupancy(&row.arch, row.threads, row.registers, shared);
    }
    rows.sort_by(|a, b| (&a.kernel, &a.arch).cmp(&(&b.kernel, &b.arch)));
    rows
}

/// The same as tab-separated text; its first line names the compiler.
pub fn resources_table(dynamic: &BTreeMap<String, usize>) -> String {
    let mut text = format!("# nvcc {NVCC}\n");
    text += "kernel\tarch\tthreads\tregisters\tstatic_shared\tdynamic_shared\tstack\tspill_stores\tspill_loads\toccupancy_%\n";
    let known = |n: Option<u32>| n.map_or("?".to_string(), |n| n.to_string());
    for row in kernel_resources(dynamic) {
        let KernelResources { kernel, arch, threads, registers, static_shared, stack, .. } = &row;
        let (dynamic_shared, occupancy) = (known(row.dynamic_shared), known(row.occupancy));
        let _ = writeln!(
            text,
            "{kernel}\t{arch}\t{threads}\t{registers}\t{static_shared}\t{dynamic_shared}\t{stack}\t{}\t{}\t{occupancy}",
            row.spill_stores, row.spill_loads
        );
    }
    text
}

/// The rows of a report: it names an entry and its architecture, then in lines of their own what the entry takes. Functions that are no
/// entries come between and are passed over.
fn parse(report: &str, symbols: &[(&str, u32)]) -> Vec<KernelResources> {
    let mut rows: Vec<KernelResources> = Vec::new();
    // Whether what is said now is about the last row.
    let mut entry = false;
    for line in report.lines() {
        if let Some((name, arch)) = quoted_pair(line, "Compiling entry function") {
            let threads = symbols.iter().find(|(symbol, _)| *symbol == name).map_or(1024, |(_, n)| *n);
            rows.push(KernelResources {
                kernel: name.to_string(),
                arch: arch.to_string(),
                threads,
                registers: 0,
                static_shared: 0,
                dynamic_shared: None,
                stack: 0,
                spill_stores: 0,
                spill_loads: 0,
                occupancy: None,
            });
            continue;
        }
        let Some(row) = rows.last_mut() else { continue };
        if let Some((_, name)) = line.split_once("Function properties for ") {
            entry = name.trim() == row.kernel;
        } else if entry && line.contains("bytes stack frame") {
            row.stack = before(line, " bytes stack frame").unwrap_or_default();
            row.spill_stores = before(line, " bytes spill stores").unwrap_or_default();
            row.spill_loads = before(line, " bytes spill loads").unwrap_or_default();
        } else if line.contains(" registers") {
            row.registers = before(line, " registers").unwrap_or_default();
            row.static_shared = before(line, " bytes smem").unwrap_or_default();
        }
    }
    rows
}

/// The two words in quotes of `... what 'NAME' for 'ARCH'`.
fn quoted_pair<'a>(line: &'a str, what: &str) -> Option<(&'a str, &'a str)> {
    let mut parts = line.split_once(what)?.1.split('\'');
    Some((parts.nth(1)?, parts.nth(1)?))
}

/// The number right before `unit`.
fn before(line: &str, unit: &str) -> Option<u32> {
    let head = line.split_once(unit)?.0;
    head.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What a multiprocessor has (CUDA C++ programming guide, table of technical specifications per compute capability).
struct Multiprocessor {
    warps: u32,
    blocks: u32,
    shared: u32,
}

fn multiprocessor(arch: &str) -> Option<Multiprocessor> {
    let (warps, blocks, shared) = match arch.trim_start_matches("sm_").trim_end_matches('a') {
        "80" => (64, 32, 164),
        "86" => (48, 16, 100),
        "89" => (48, 24, 100),
        "90" => (64, 32, 228),
        _ => return None,
    };
    Some(Multiprocessor { warps, blocks, shared: shared << 10 })
}

/// In percent. Each of the four partitions has 16384 registers, given to warps in lots of 256; a block takes 1 KiB of shared memory beside
/// its own.
fn occupancy(arch: &str, threads: u32, registers: u32, shared: u32) -> Option<u32> {
    let most = multiprocessor(arch)?;
    let warps = threads.div_ceil(32).max(1);
    let of_warp = (registers.max(1) * 32).next_multiple_of(256);
    let by_registers = 4 * (16384 / of_warp) / warps;
    let by_shared = most.shared / (shared + 1024).next_multiple_of(128);
    let blocks = by_registers.min(by_shared).min(most.blocks).min(most.warps / warps);
    Some(100 * blocks * warps / most.warps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a_forward_f32' for 'sm_80'
ptxas info    : Function properties for a_forward_f32
    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 8 bytes cumulative stack size, 49152 bytes smem, 396 bytes cmem[0]
ptxas info    : Function properties for helper
    400 bytes stack frame, 1 bytes spill stores, 1 bytes spill loads
ptxas info    : Compiling entry function 'b_forward_f32' for 'sm_90a'
ptxas info    : Function properties for b_forward_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
";

    #[test]
    fn a_report_becomes_rows() {
        let rows = parse(REPORT, &[("a_forward_f32", 128), ("b_forward_f32", 256)]);
        let numbers: Vec<_> = rows
            .iter()
            .map(|r| [r.threads, r.registers, r.static_shared, r.stack, r.spill_stores, r.spill_loads])
            .collect();
        assert_eq!(numbers, [[128, 168, 49152, 8, 16, 24], [256, 32, 0, 0, 0, 0]]);
        assert_eq!((rows[0].arch.as_str(), rows[1].arch.as_str()), ("sm_80", "sm_90a"));
    }

    #[test]
    fn occupancy_follows_the_scarcest() {
        // 168 * 32 registers a warp, 3 warps a partition, 12 in all: 3 blocks of 4 warps; 164 KiB hold 3 of 49 KiB. 12 of 64 warps.
        assert_eq!(occupancy("sm_80", 128, 168, 48 << 10), Some(18));
        assert_eq!(occupancy("sm_90a", 384, 168, 192 << 10), Some(18), "one block");
        assert_eq!(occupancy("sm_80", 128, 32, 164 << 10), Some(0), "more than there is");
        assert_eq!(occupancy("sm_80", 32, 16, 0), Some(50), "32 blocks of a warp");
        assert_eq!(occupancy("sm_80", 128, 64, 0), Some(50), "registers");
        assert_eq!(occupancy("sm_89", 128, 32, 48 << 10), Some(16), "two blocks of shared memory");
        assert_eq!(occupancy("sm_89", 1024, 32, 0), Some(66), "threads");
        assert_eq!(occupancy("sm_999", 32, 16, 0), None);
    }
}
