//! Project tasks: `cargo xtask <task>`.
#![expect(clippy::print_stdout, reason = "a command-line tool")]

mod ebpf;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Project tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the BPF programs and print where the object is (`cargo build` does this by itself)
    BuildEbpf,
}

/// Where things are.
pub(crate) struct Dirs {
    /// The workspace.
    pub(crate) root: PathBuf,
    /// Cargo's target directory.
    pub(crate) target: PathBuf,
}

impl Dirs {
    fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("no workspace root")?
            .to_owned();
        let exe = std::env::current_exe()?;
        let profile_dir = exe.parent().context("not in a target directory")?;
        let target = ebpf::target_dir_of(profile_dir)?;
        Ok(Self { root, target })
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let dirs = Dirs::find()?;
    match task {
        Task::BuildEbpf => {
            let target = ebpf::Target {
                arch: std::env::consts::ARCH,
                endian: if cfg!(target_endian = "big") {
                    "big"
                } else {
                    "little"
                },
            };
            let object = ebpf::build(&dirs.root, &dirs.target, &target, Stdio::inherit())?;
            println!("{}", object.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}
