//! kernels/resources.tsv is what the kernels take of a GPU: a change of registers, shared memory or occupancy is seen in the diff that makes it.

use std::fs;

use mpa::selftest::dynamic_shared;
use mpa::tensor::{NO_KERNELS, NVCC, kernel_resources, resources_table};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/resources.tsv");

#[test]
fn the_committed_table_is_that_of_these_kernels() {
    let committed = fs::read_to_string(FILE).unwrap();
    if let Some(why) = NO_KERNELS {
        eprintln!("kernels/resources.tsv is not compared: this binary has no kernels, since {why}");
        return;
    }
    let compiler = committed.lines().next().unwrap_or_default().to_string();
    if compiler != format!("# nvcc {NVCC}") {
        eprintln!("kernels/resources.tsv is not compared: it is {compiler:?}, this binary's nvcc is {NVCC}");
        return;
    }
    let (now, then) = (resources_table(&dynamic_shared()), committed);
    let only = |a: &str, b: &str| {
        let b: Vec<&str> = b.lines().collect();
        a.lines().filter(|line| !b.contains(line)).collect::<Vec<_>>().join("\n")
    };
    assert!(
        now == then,
        "kernels/resources.tsv is out of date; `just resources` renews it.\nIn the file only:\n{}\nIn this binary only:\n{}",
        only(&then, &now),
        only(&now, &then)
    );
}

#[test]
fn every_kernel_is_in_the_table_and_none_spills() {
    let rows = kernel_resources(&dynamic_shared());
    let mut kernels: Vec<_> = rows.iter().map(|row| &row.kernel).collect();
    kernels.dedup();
    assert_eq!(kernels.len(), mpa::tensor::kernel_count());
    for row in &rows {
        assert_eq!((row.spill_stores, row.spill_loads), (0, 0), "{row:?} spills registers");
        assert!(row.registers > 0 && row.occupancy.is_some_and(|o| o > 0), "{row:?}");
        assert!(row.dynamic_shared.is_some(), "src/selftest has no case for {}", row.kernel);
    }
}

#[test]
fn the_table_has_the_shared_memory_that_launches_ask_for() {
    let now = dynamic_shared();
    let committed = fs::read_to_string(FILE).unwrap();
    let mut lines = committed.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    let names = lines.next().unwrap();
    let [kernel, arch, dynamic] =
        ["kernel", "arch", "dynamic_shared"].map(|name| names.iter().position(|n| *n == name).unwrap());
    // Where all kernels run.
    for row in lines.filter(|row| row[arch] == "sm_90a") {
        let bytes = now.get(row[kernel]).map(ToString::to_string);
        assert_eq!(
            bytes.as_deref(),
            Some(row[dynamic]),
            "{}; `just resources` renews the table",
            row[kernel]
        );
    }
}
