//! Project tasks: `cargo xtask <task>`.
#![expect(clippy::print_stdout, reason = "a command-line tool")]

mod dist;
mod ebpf;
mod run;
mod setup;

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::setup::Purpose;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Project tasks", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building fwtrace takes: a BPF toolchain. Does nothing when all is there
    Setup {
        /// Also the programs that the end-to-end tests run
        #[arg(long)]
        tests: bool,
    },
    /// Build the BPF programs and print where the object is (`cargo build` does this by itself)
    BuildEbpf,
    /// Set up, build, and run `fwtrace demo` (with sudo, unless root)
    Demo {
        /// Arguments for `fwtrace demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Set up, build, and run all tests; those with namespaces and traffic with sudo, unless root
    Test {
        /// Arguments for the test runner, such as a name to filter by
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Set up, build, and hold fwtrace against the kernel's own trace: random firewalls and
    /// packets, in namespaces of its own. Prints a table; exit code 1 if an answer is wrong
    Oracle {
        /// --packets N, --seed S, --only KIND, --cases DIR, --replay FILE
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Set up, build for release, and lay out what to install, with the parts for Wireshark
    Dist,
    /// Set up, build for release, and print what tracing costs
    Bench {
        /// Arguments for the bench
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
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
    match task(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn task(task: Task) -> Result<ExitCode> {
    let dirs = Dirs::find()?;
    match task {
        Task::Setup { tests } => {
            let purpose = if tests { Purpose::Test } else { Purpose::Build };
            setup::setup(&dirs, purpose)?;
            eprintln!("setup: everything is there");
        }
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
        Task::Demo { args } => return run::demo(&dirs, &args),
        Task::Test { args } => return run::test(&dirs, &args),
        Task::Oracle { args } => return run::oracle(&dirs, &args),
        Task::Dist => dist::dist(&dirs)?,
        Task::Bench { args } => return run::bench(&dirs, &args),
    }
    Ok(ExitCode::SUCCESS)
}
