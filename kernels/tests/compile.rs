//! Every kernel compiles for the architectures of data centre GPUs. Needs NVRTC and no GPU.
#![allow(clippy::unwrap_used)]

use optpipe_kernels::cuda::compile::{Architecture, CompileError, compile, nvrtc_is_present};
use optpipe_kernels::cuda::sources::{ALL, Source};
use std::collections::BTreeSet;
use std::io::Write;

/// Ampere, Hopper, Blackwell.
const ARCHITECTURES: [Architecture; 3] = [Architecture::new(8, 0), Architecture::new(9, 0), Architecture::new(10, 0)];

/// Whether the test can go on. Where OPTPIPE_REQUIRE_NVRTC is 1, a missing NVRTC fails it.
fn nvrtc(test: &str) -> bool {
    if nvrtc_is_present() {
        return true;
    }
    let error = compile(ALL[0], ARCHITECTURES[0]).unwrap_err();
    assert_eq!(error, CompileError::NoLibrary);
    assert!(std::env::var_os("OPTPIPE_REQUIRE_NVRTC").is_none_or(|value| value != "1"), "{test}: {error}");
    // Past the capture of passing tests' output.
    let mut terminal = std::io::stderr();
    writeln!(terminal, "SKIPPED {test}: {error}").unwrap();
    false
}

#[test]
fn every_kernel_compiles() {
    if !nvrtc("every_kernel_compiles") {
        return;
    }
    for source in ALL {
        for architecture in ARCHITECTURES {
            let compiled = compile(*source, architecture).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(compiled.log, "", "{} for {architecture} compiles with remarks", source.name);
            assert!(compiled.cubin.starts_with(b"\x7fELF"), "{} for {architecture} is no cubin", source.name);
            let entries: BTreeSet<_> = compiled
                .ptx
                .lines()
                .filter_map(|line| {
                    line.split_once(".entry ")?.1.split(|c: char| !(c.is_alphanumeric() || c == '_')).next()
                })
                .collect();
            assert_eq!(entries, source.kernels.iter().copied().collect(), "kernels of {}", source.name);
            assert!(!compiled.ptx.contains(".f64"), "{} computes in f64", source.name);
        }
    }
}

#[test]
fn errors_name_the_kernel_and_the_line() {
    if !nvrtc("errors_name_the_kernel_and_the_line") {
        return;
    }
    let wrong =
        Source { name: "wrong", text: "extern \"C\" __global__ void f() {\n    undeclared = 1;\n}", kernels: &["f"] };
    let error = compile(wrong, ARCHITECTURES[0]).unwrap_err().to_string();
    assert!(error.contains("`wrong`") && error.contains("sm_80") && error.contains("wrong.cu(2)"), "{error}");
    let unknown = compile(ALL[0], Architecture::new(3, 0)).unwrap_err().to_string();
    assert!(unknown.contains("sm_30") && unknown.contains(ALL[0].name), "{unknown}");
}
