//! Builds the BPF programs. Shared by `cargo xtask` and `tracer/build.rs`, so that a plain
//! `cargo build` does exactly what `cargo xtask build-ebpf` does.
//!
//! The BPF targets have no prebuilt `core`, so they take a compiler with its library sources and
//! the right to use `-Z build-std`, and a bpf-linker that reads that compiler's LLVM bitcode. Two
//! such sets exist in practice: rustup's nightly with rust-src, and a distribution's own compiler
//! with its source package.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Where a distribution installs its compiler.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";
const SYSTEM_CARGO: &str = "/usr/bin/cargo";
/// LLVM versions that bpf-linker can be built for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;
/// Package and binary of the BPF programs.
const PACKAGE: &str = "fwtrace-ebpf";

/// A compiler that can build `core` for the BPF targets.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    /// What to call it in messages.
    pub(crate) name: String,
    rustc: PathBuf,
    cargo: PathBuf,
    /// Major version of its LLVM.
    pub(crate) llvm: u32,
    /// Not a nightly: unstable options have to be unlocked.
    bootstrap: bool,
}

impl Compiler {
    fn new(rustc: PathBuf, cargo: PathBuf) -> Result<Self> {
        let version = stdout(clean_command(&rustc).arg("-vV"))?;
        let field = |key: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
                .with_context(|| format!("{} -vV does not say its {key}", rustc.display()))
        };
        let release = field("release")?;
        let llvm = field("LLVM version")?
            .split('.')
            .next()
            .and_then(|major| major.parse().ok())
            .with_context(|| format!("{}: unreadable LLVM version", rustc.display()))?;
        if !LLVM.contains(&llvm) {
            bail!(
                "{} {release} has LLVM {llvm}, bpf-linker needs {} to {}",
                rustc.display(),
                LLVM.start(),
                LLVM.end()
            );
        }
        let sysroot = stdout(clean_command(&rustc).args(["--print", "sysroot"]))?;
        if !Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/Cargo.lock")
            .exists()
        {
            bail!("{} {release} has no library sources", rustc.display());
        }
        Ok(Self {
            name: format!("{} {release}", rustc.display()),
            bootstrap: !release.contains("nightly") && !release.contains("dev"),
            rustc,
            cargo,
            llvm,
        })
    }

    /// rustup's nightly, if it has rust-src.
    fn nightly() -> Result<Self> {
        let rustc = stdout(
            clean_command("rustup")
                .args(["which", "--toolchain", "nightly", "rustc"])
                .env("RUSTUP_AUTO_INSTALL", "0"),
        )
        .context("no rustup nightly")?;
        let rustc = PathBuf::from(rustc.trim());
        let cargo = rustc.with_file_name("cargo");
        Self::new(rustc, cargo)
    }

    /// The distribution's compiler, if its source package is installed.
    fn system() -> Result<Self> {
        for file in [SYSTEM_RUSTC, SYSTEM_CARGO] {
            if !Path::new(file).exists() {
                bail!("no {file}");
            }
        }
        Self::new(SYSTEM_RUSTC.into(), SYSTEM_CARGO.into())
    }

    /// Every usable compiler of this machine, best first, and why the others are not usable.
    pub(crate) fn find() -> (Vec<Self>, Vec<String>) {
        let mut found = Vec::new();
        let mut reasons = Vec::new();
        for candidate in [Self::nightly(), Self::system()] {
            match candidate {
                Ok(compiler) => found.push(compiler),
                Err(error) => reasons.push(format!("{error:#}")),
            }
        }
        (found, reasons)
    }
}

/// Where `cargo xtask setup` installs tools.
pub(crate) fn tools_dir(target_dir: &Path) -> PathBuf {
    target_dir.join("bpf-tools")
}

/// A bpf-linker for bitcode of LLVM `llvm`: the one that setup installed, else one on PATH.
pub(crate) fn linker(target_dir: &Path, llvm: u32) -> Option<PathBuf> {
    let tools = tools_dir(target_dir);
    // What `cargo install` notes about its installations names the LLVM it was built for.
    let right_llvm = std::fs::read_to_string(tools.join(".crates2.json"))
        .map_or(true, |notes| notes.contains(&format!("\"llvm-{llvm}\"")));
    let own = right_llvm.then(|| tools.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    own.into_iter()
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join("bpf-linker"))
        // It must also run: its libLLVM may be gone.
        .find(|linker| linker.is_file() && stdout(clean_command(linker).arg("--version")).is_ok())
}

/// A complete set: a compiler and its linker. The error says what to do.
pub(crate) fn toolchain(target_dir: &Path) -> Result<(Compiler, PathBuf)> {
    let (compilers, mut reasons) = Compiler::find();
    for compiler in compilers {
        if let Some(linker) = linker(target_dir, compiler.llvm) {
            return Ok((compiler, linker));
        }
        reasons.push(format!(
            "{} has no bpf-linker for LLVM {}",
            compiler.name, compiler.llvm
        ));
    }
    bail!(
        "no toolchain for the BPF programs: run `cargo xtask setup` ({})",
        reasons.join("; ")
    )
}

/// What the BPF programs are built for.
pub(crate) struct Target<'a> {
    /// Architecture of the kernel, as in `CARGO_CFG_TARGET_ARCH`: registers and `pt_regs` depend on it.
    pub(crate) arch: &'a str,
    /// "little" or "big".
    pub(crate) endian: &'a str,
}

/// Builds the BPF programs of the workspace at `root` under `target_dir`; returns the object's path.
/// Cargo's talk goes to `log`.
pub(crate) fn build(
    root: &Path,
    target_dir: &Path,
    target: &Target<'_>,
    log: Stdio,
) -> Result<PathBuf> {
    let (compiler, linker) = toolchain(target_dir)?;
    let triple = match target.endian {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let out = target_dir.join("bpf");
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", target.arch);
    let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", &arch].join("\x1f");

    let mut path = OsString::from(linker.parent().unwrap_or(Path::new("")));
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    let mut command = clean_command(&compiler.cargo);
    command
        .args(["build", "--locked", "--release", "--package", PACKAGE])
        .args(["-Z", "build-std=core", "--target", triple])
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&out)
        .current_dir(root)
        .env("RUSTC", &compiler.rustc)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("PATH", path)
        .stdout(Stdio::null())
        .stderr(log);
    if compiler.bootstrap {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", compiler.cargo.display()))?;
    if !status.success() {
        bail!(
            "the BPF programs did not build with {} and {}",
            compiler.name,
            linker.display()
        );
    }
    Ok(out.join(triple).join("release").join(PACKAGE))
}

/// The target directory that holds `<target>/[<triple>/]<profile>`.
pub(crate) fn target_dir_of(profile_dir: &Path) -> Result<PathBuf> {
    let parent = profile_dir
        .parent()
        .with_context(|| format!("{} is not in a target directory", profile_dir.display()))?;
    // With an explicit --target there is one more level, named after it.
    let triple = parent.file_name().and_then(OsStr::to_str).is_some_and(|n| {
        n.starts_with(&format!("{}-", std::env::consts::ARCH)) && n.contains("-linux-")
    });
    let dir = if triple { parent.parent() } else { None };
    Ok(dir.unwrap_or(parent).to_owned())
}

/// A command that does not see what an outer cargo (or clippy, or a build script's environment)
/// means for itself.
pub(crate) fn clean_command(program: impl AsRef<OsStr>) -> Command {
    /// What the user configures for every cargo: network, registries, the home directory.
    const KEEP: [&str; 8] = [
        "CARGO_BUILD_JOBS",
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const DROP: [&str; 14] = [
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "DEBUG",
        "HOST",
        "LD_LIBRARY_PATH",
        "MAKEFLAGS",
        "MFLAGS",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
    ];
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os() {
        let Some(name) = key.to_str() else { continue };
        let cargo = name.starts_with("CARGO") && !KEEP.iter().any(|keep| name.starts_with(keep));
        let rust = name.starts_with("RUSTC") || name.starts_with("RUSTDOC");
        if cargo || rust || DROP.contains(&name) {
            command.env_remove(&key);
        }
    }
    command
}

/// Standard output of a command that succeeded.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            command.get_program().display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
