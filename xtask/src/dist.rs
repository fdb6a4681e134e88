//! `cargo xtask dist`: what to install, in one directory, and how.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::run::{self, Profile};
use crate::setup::{self, Purpose};
use crate::{Dirs, setup::run as run_command};

/// Files of the workspace that go with the binary.
const FILES: [&str; 6] = [
    "README.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "docs/wireshark.md",
    "tracer/wireshark/fwtrace.lua",
];

/// The steps, which also stand in the directory.
const INSTALL: &str = "\
The program, for everybody on this machine:

    sudo install -m 755 fwtrace /usr/local/bin/

Filter expressions take libpcap (Debian: libpcap0.8), which comes with tcpdump and Wireshark.

For Wireshark, as the user who runs it: dropped packets as an interface, and fields to filter by:

    mkdir -p ~/.local/lib/wireshark/extcap ~/.local/lib/wireshark/plugins
    ln -sf /usr/local/bin/fwtrace ~/.local/lib/wireshark/extcap/fwtrace-extcap
    cp fwtrace.lua ~/.local/lib/wireshark/plugins/

Wireshark before 4.2 looks in ~/.config/wireshark/extcap for the first; Help > About Wireshark > Folders has
both directories. How Wireshark gets the rights to capture: wireshark.md.
";

/// Builds, and lays everything out in `<target>/dist`.
pub(crate) fn dist(dirs: &Dirs) -> Result<()> {
    setup::setup(dirs, Purpose::Build)?;
    let fwtrace = run::build(dirs, Profile::Release)?;
    let dist = dirs.target.join("dist");
    match fs::remove_dir_all(&dist) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", dist.display()));
        }
        _ => {}
    }
    fs::create_dir_all(&dist).with_context(|| format!("cannot make {}", dist.display()))?;
    copy(&fwtrace, &dist)?;
    for file in FILES {
        copy(&dirs.root.join(file), &dist)?;
    }
    fs::write(dist.join("INSTALL"), INSTALL)?;
    // What is handed out is what runs.
    run_command(
        std::process::Command::new(dist.join("fwtrace"))
            .arg("--version")
            .stdout(std::process::Stdio::null()),
    )?;
    println!("{}:\n\n{INSTALL}", dist.display());
    Ok(())
}

fn copy(file: &Path, dir: &Path) -> Result<()> {
    let name = file.file_name().context("no file name")?;
    fs::copy(file, dir.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    Ok(())
}
