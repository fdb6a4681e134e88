//! Builds the BPF programs and tells the crate where the object file is: `env!("FWTRACE_BPF_OBJECT")`.
//!
//! Set the environment variable of the same name to embed an object that is already built.

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Error, Result};

const VARIABLE: &str = "FWTRACE_BPF_OBJECT";
/// Under the workspace's root: what the object depends on.
const INPUTS: [&str; 7] = [
    "Cargo.lock",
    "Cargo.toml",
    "tracer-ebpf/Cargo.toml",
    "tracer-ebpf/abi/Cargo.toml",
    "tracer-ebpf/abi/src",
    "tracer-ebpf/src",
    "xtask/src/ebpf.rs",
];

fn main() -> ExitCode {
    match object() {
        Ok(path) => println!("cargo::rustc-env={VARIABLE}={}", path.display()),
        Err(Failure { error, log }) => {
            // Cargo takes one line, and shows it as the error of this package.
            println!("cargo::error={}", format!("{error:#}").replace('\n', "; "));
            // With a compiler's output to show, fail: cargo then prints stderr as well.
            if !log.is_empty() {
                eprint!("{log}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

struct Failure {
    error: Error,
    /// What the compiler said, if it came to that.
    log: String,
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            log: String::new(),
        }
    }
}

fn object() -> Result<PathBuf, Failure> {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    if let Some(path) = std::env::var_os(VARIABLE) {
        let path = std::path::absolute(path)?;
        println!("cargo::rerun-if-changed={}", path.display());
        return Ok(path);
    }
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let root = manifest_dir.parent().context("no workspace root")?;
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }

    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let target_dir = target_dir(&out_dir)?;
    let log_path = out_dir.join("bpf.log");
    let log = File::create(&log_path)?;
    let target = ebpf::Target {
        arch: &variable("CARGO_CFG_TARGET_ARCH")?,
        endian: &variable("CARGO_CFG_TARGET_ENDIAN")?,
    };
    let built =
        ebpf::build(root, &target_dir, &target, Stdio::from(log)).map_err(|error| Failure {
            error,
            log: std::fs::read_to_string(&log_path).unwrap_or_default(),
        })?;
    // A copy of this build's own: another build may replace the original at any time.
    let object = out_dir.join("fwtrace-ebpf.o");
    std::fs::copy(&built, &object).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(object)
}

/// The target directory, from `<target>/[<triple>/]<profile>/build/.../out`.
fn target_dir(out_dir: &Path) -> Result<PathBuf> {
    let profile_dir = out_dir
        .ancestors()
        .find(|dir| dir.ends_with("build"))
        .and_then(Path::parent)
        .with_context(|| format!("{} is not in a build directory", out_dir.display()))?;
    ebpf::target_dir_of(profile_dir)
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("cargo did not set {name}"))
}
