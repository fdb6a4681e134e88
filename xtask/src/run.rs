//! `cargo xtask demo`, `test`, `oracle` and `bench`: set up, build, run.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result};

use crate::Dirs;
use crate::setup::{self, Purpose, is_root};

/// The tests' variable for the binary under test.
const BINARY: &str = "FWTRACE_BIN";

/// Builds and runs `fwtrace demo`.
pub(crate) fn demo(dirs: &Dirs, args: &[String]) -> Result<ExitCode> {
    setup::setup(dirs, Purpose::Build)?;
    let fwtrace = build(dirs, Profile::Dev)?;
    let status = as_root(&fwtrace)
        .arg("demo")
        .args(args)
        .status()
        .with_context(|| format!("cannot run {}", fwtrace.display()))?;
    Ok(exit_code(status))
}

/// What the differential harness does as a test: enough for every kind of ruleset, the same
/// packets each time.
const ORACLE: [&str; 4] = ["--packets", "3000", "--seed", "1"];

/// Builds and runs the unit tests, then the end-to-end tests, and the differential harness unless
/// tests are picked by `args`.
pub(crate) fn test(dirs: &Dirs, args: &[String]) -> Result<ExitCode> {
    setup::setup(dirs, Purpose::Test)?;
    let fwtrace = build(dirs, Profile::Dev)?;
    let units = cargo(dirs)
        .args(["test", "--locked", "--no-fail-fast", "--workspace"])
        .args(["--exclude", "e2e", "--exclude", "fwtrace-ebpf", "--"])
        .args(args)
        .status()?;
    let mut e2e = cargo(dirs);
    e2e.args([
        "test",
        "--locked",
        "--no-fail-fast",
        "--package",
        "e2e",
        "--tests",
    ]);
    let e2e = run_as_root(&mut e2e)
        .env(BINARY, &fwtrace)
        // A failure's own words, not the functions of the runner, are the end of its output.
        .env("RUST_BACKTRACE", "0")
        .args(["--", "--test-threads=1"])
        .args(args)
        .status()?;
    let oracle = if args.is_empty() {
        run_oracle(dirs, &fwtrace, &ORACLE.map(String::from))?
    } else {
        e2e
    };
    if !units.success() {
        eprintln!("error: unit tests failed, see above");
        return Ok(exit_code(units));
    }
    if !e2e.success() {
        eprintln!("error: end-to-end tests failed, see above");
        return Ok(exit_code(e2e));
    }
    Ok(exit_code(oracle))
}

/// Builds and runs the differential harness.
pub(crate) fn oracle(dirs: &Dirs, args: &[String]) -> Result<ExitCode> {
    setup::setup(dirs, Purpose::Test)?;
    let fwtrace = build(dirs, Profile::Dev)?;
    Ok(exit_code(run_oracle(dirs, &fwtrace, args)?))
}

fn run_oracle(dirs: &Dirs, fwtrace: &Path, args: &[String]) -> Result<ExitStatus> {
    let mut oracle = cargo(dirs);
    oracle.args(["run", "--locked", "--quiet", "--package", "e2e"]);
    oracle.args(["--bin", "oracle"]);
    let status = run_as_root(&mut oracle)
        .env(BINARY, fwtrace)
        .arg("--")
        .arg("--cases")
        .arg(dirs.target.join("oracle"))
        .args(args)
        .status()?;
    Ok(status)
}

/// Builds for release and prints what tracing costs.
pub(crate) fn bench(dirs: &Dirs, args: &[String]) -> Result<ExitCode> {
    setup::setup(dirs, Purpose::Test)?;
    let fwtrace = build(dirs, Profile::Release)?;
    let mut bench = cargo(dirs);
    bench.args(["bench", "--locked", "--package", "e2e"]);
    // Of the evaluator's there is no part for legacy tables.
    if !args.iter().any(|arg| arg == "legacy") {
        bench.args(["--bench", "eval"]);
    }
    bench.args(["--bench", "cost"]);
    let status = run_as_root(&mut bench)
        .env(BINARY, &fwtrace)
        .arg("--")
        .args(args)
        .status()?;
    Ok(exit_code(status))
}

/// Makes cargo run what it has built as root; what cargo itself writes stays the user's.
fn run_as_root(cargo: &mut Command) -> &mut Command {
    if !is_root() {
        let runner = format!("target.'cfg(all())'.runner=['sudo','--preserve-env={BINARY}']");
        cargo.args(["--config", &runner]);
    }
    cargo
}

/// How to build fwtrace.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Builds fwtrace; returns the binary.
pub(crate) fn build(dirs: &Dirs, profile: Profile) -> Result<PathBuf> {
    let (name, dir) = match profile {
        Profile::Dev => ("dev", "debug"),
        Profile::Release => ("release", "release"),
    };
    setup::run(cargo(dirs).args([
        "build",
        "--locked",
        "--package",
        "fwtrace",
        "--profile",
        name,
    ]))?;
    Ok(dirs.target.join(dir).join("fwtrace"))
}

/// The cargo that runs this task, on the workspace, as the user has set it up.
fn cargo(dirs: &Dirs) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(&dirs.root)
        .env("CARGO_TARGET_DIR", &dirs.target);
    command
}

/// A command that runs `program` as root.
fn as_root(program: &Path) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

fn exit_code(status: ExitStatus) -> ExitCode {
    // None: killed by a signal.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}
