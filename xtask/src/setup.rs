//! `cargo xtask setup`: what building and testing fwtrace takes, beyond a stable Rust.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::Dirs;
use crate::ebpf::{self, Compiler};

/// Debian's compiler set for its web browsers: a recent Rust with its sources, in every supported release.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// The release that [`Compiler`]'s range of LLVM versions belongs to.
const BPF_LINKER: &str = "0.13.0";
/// Programs that the end-to-end tests run, with the Debian package of each.
const TEST_PROGRAMS: [(&str, &str); 12] = [
    ("nft", "nftables"),
    ("iptables-nft", "iptables"),
    ("iptables-legacy", "iptables"),
    ("ip", "iproute2"),
    ("conntrack", "conntrack"),
    ("ipset", "ipset"),
    ("nfacct", "nfacct"),
    ("setpriv", "util-linux"),
    ("tshark", "tshark"),
    ("capinfos", "wireshark-common"),
    ("editcap", "wireshark-common"),
    // With the library that compiles filter expressions.
    ("tcpdump", "tcpdump"),
];

/// Programs that the end-to-end tests run without installing them: as installed packages they would start or
/// enable services that take over the machine's firewall. The tests unpack them where only they see it.
const TEST_PACKAGES: [&str; 3] = ["ulogd2", "ufw", "firewalld"];

/// What for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Build and run fwtrace.
    Build,
    /// Also run the end-to-end tests.
    Test,
}

/// Installs what is missing; says so only then.
pub(crate) fn setup(dirs: &Dirs, purpose: Purpose) -> Result<()> {
    let mut packages: Vec<String> = Vec::new();
    if purpose == Purpose::Test {
        packages.extend(missing_programs());
    }
    let bpf_ready = ebpf::toolchain(&dirs.target).is_ok();
    if !bpf_ready && Compiler::find().0.is_empty() {
        packages.extend(COMPILER_PACKAGES.map(String::from));
    }
    if !bpf_ready {
        eprintln!(
            "setup: no BPF toolchain yet. It takes a Rust compiler with its sources, LLVM's \
             development files and bpf-linker {BPF_LINKER}; what is missing is installed now."
        );
    }
    let mut apt = Apt::default();
    if !packages.is_empty() {
        apt.install(&packages)?;
    }
    if purpose == Purpose::Test {
        apt.download(&dirs.target.join("test-packages"))?;
    }
    if !bpf_ready {
        install_linker(dirs, &mut apt)?;
        let (compiler, linker) = ebpf::toolchain(&dirs.target)?;
        eprintln!("BPF toolchain: {}, {}", compiler.name, linker.display());
    }
    Ok(())
}

/// Packages of the test programs that are not on PATH.
fn missing_programs() -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's PATH often lacks the directories of the programs for root.
    let dirs: Vec<PathBuf> = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .collect();
    let mut packages: Vec<String> = TEST_PROGRAMS
        .iter()
        .filter(|(program, _)| !dirs.iter().any(|dir| dir.join(program).is_file()))
        .map(|(_, package)| (*package).to_owned())
        .collect();
    packages.dedup();
    packages
}

/// Builds bpf-linker for the LLVM of a compiler found, into the target directory.
fn install_linker(dirs: &Dirs, apt: &mut Apt) -> Result<()> {
    let (compilers, reasons) = Compiler::find();
    let ready = compilers.iter().find(|c| llvm_prefix(c.llvm).is_some());
    // Debian has the LLVM of its own compiler, the last in the list, but maybe not nightly's.
    let Some(compiler) = ready.or(compilers.last()) else {
        bail!(
            "still no compiler for the BPF programs: {}",
            reasons.join("; ")
        );
    };
    let llvm = compiler.llvm;
    if llvm_prefix(llvm).is_none() {
        apt.install(&[
            format!("llvm-{llvm}-dev"),
            format!("libpolly-{llvm}-dev"),
            "g++".into(),
            "libxml2-dev".into(),
            "libzstd-dev".into(),
            "zlib1g-dev".into(),
        ])?;
    }
    let prefix = llvm_prefix(llvm)
        .with_context(|| format!("LLVM {llvm}'s development files are still missing"))?;
    let root = ebpf::tools_dir(&dirs.target);
    eprintln!(
        "setup: building bpf-linker {BPF_LINKER} for LLVM {llvm} into {} (a minute or two)",
        root.display()
    );
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut install = ebpf::clean_command(cargo);
    if !std::io::stderr().is_terminal() {
        install.arg("--quiet");
    }
    run(install
        .args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER,
            "--locked",
            "--force",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
        ])
        .arg("--root")
        .arg(&root)
        // LLVM does the work; optimising the driver only costs time here.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("LLVM_PREFIX", prefix))
}

/// Where LLVM `version` is installed with its development files.
fn llvm_prefix(version: u32) -> Option<PathBuf> {
    let chosen = std::env::var_os("LLVM_PREFIX").map(PathBuf::from);
    chosen
        .into_iter()
        .chain([format!("/usr/lib/llvm-{version}").into()])
        .find(|prefix| {
            ebpf::stdout(Command::new(prefix.join("bin/llvm-config")).arg("--version"))
                .is_ok_and(|v| v.split('.').next() == Some(&version.to_string()))
                && prefix.join("include/llvm-c/Core.h").exists()
        })
}

/// apt, with its package lists brought up to date once.
#[derive(Default)]
struct Apt {
    updated: bool,
}

impl Apt {
    /// Installs packages, or says how to.
    fn install(&mut self, packages: &[String]) -> Result<()> {
        let list = packages.join(" ");
        if !Path::new("/usr/bin/apt-get").exists() {
            bail!(
                "missing (by Debian's package names): {list}\n\
                 Install them with this system's package manager. For the BPF toolchain, rustup has it too:\n{RUSTUP}"
            );
        }
        if !is_root() {
            bail!(
                "missing packages. Run:\n    sudo apt-get update\n    \
                 sudo apt-get install -y --no-install-recommends {list}\n    cargo xtask setup"
            );
        }
        eprintln!("setup: installing {list}");
        self.update();
        for package in packages {
            if !has_candidate(package)? {
                bail!(
                    "this distribution has no package {package}. rustup has a BPF toolchain:\n{RUSTUP}"
                );
            }
        }
        // Never take a package away from the machine to make room.
        run(apt_get()
            .args(["install", "-y", "--no-install-recommends", "--no-remove"])
            .args(packages))
    }

    /// Brings the package lists up to date, once.
    fn update(&mut self) {
        if self.updated {
            return;
        }
        // A source that does not answer need not be the one that matters.
        if run(apt_get().arg("update")).is_err() {
            eprintln!("setup: apt-get update failed, going on with the lists there are");
        }
        self.updated = true;
    }

    /// Fetches [`TEST_PACKAGES`], and what they need that the machine has not, into a directory. Nothing is installed.
    fn download(&mut self, into: &Path) -> Result<()> {
        let done = into.join("complete");
        if done.is_file() {
            return Ok(());
        }
        let list = TEST_PACKAGES.join(" ");
        if !Path::new("/usr/bin/apt-get").exists() || !is_root() {
            eprintln!(
                "setup: the tests with {list} need Debian's apt and root to fetch these packages; without them they fail"
            );
            return Ok(());
        }
        eprintln!("setup: fetching {list} for the tests (not installed)");
        self.update();
        std::fs::create_dir_all(into.join("partial"))?;
        let mut archives = std::ffi::OsString::from("Dir::Cache::archives=");
        archives.push(into);
        run(apt_get()
            .args(["install", "-y", "--no-install-recommends", "--reinstall"])
            .args(["--download-only", "-o"])
            .arg(archives)
            .args(TEST_PACKAGES))?;
        std::fs::write(done, list)?;
        Ok(())
    }
}

/// apt-get that asks nothing. Errors come on stderr.
fn apt_get() -> Command {
    let mut command = Command::new("/usr/bin/apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-qq", "-o", "Dpkg::Use-Pty=0"])
        .stdout(Stdio::null());
    command
}

/// The other way to a BPF toolchain, for systems where setup cannot install one.
const RUSTUP: &str = "    rustup toolchain install nightly --component rust-src
    cargo install cargo-binstall
    cargo binstall bpf-linker";

fn has_candidate(package: &str) -> Result<bool> {
    let policy = ebpf::stdout(
        Command::new("/usr/bin/apt-cache")
            .args(["policy", package])
            .env("LC_ALL", "C"),
    )?;
    Ok(policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .any(|version| version != "(none)"))
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Uid: real, effective, saved, file system.
    status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1))
        == Some("0")
}

/// Runs a command to its end; an error if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let status = command
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}
