//! Programs whose packages the machine has not installed, run from packages that were only fetched.
//!
//! They are unpacked over the machine's /usr, /etc and /var in a mount namespace that goes with the program:
//! what they write is seen by nobody else and gone with it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::netns::Netns;

/// Arguments: the packages' directory, an empty directory. Later layers of overlayfs win over the machine's files.
const UNPACK: &str = r#"set -e
debs=$1 top=$2
mount -t tmpfs -o mode=755 none "$top"
mkdir -p "$top/in/usr/bin" "$top/in/usr/sbin" "$top/in/usr/lib" "$top/in/etc" "$top/in/var"
for dir in bin sbin lib; do ln -s "usr/$dir" "$top/in/$dir"; done
for deb in "$debs"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$top/in"
done
for dir in usr etc var; do
    mkdir -p "$top/up/$dir" "$top/scratch/$dir"
    mount -t overlay -o "lowerdir=$top/in/$dir:/$dir,upperdir=$top/up/$dir,workdir=$top/scratch/$dir" none "/$dir"
done
mount -t tmpfs none /run
cd /
"#;

/// Fetched packages.
#[derive(Debug)]
pub struct Packages {
    debs: PathBuf,
    top: TempDir,
}

impl Packages {
    /// Those that `cargo xtask setup --tests` has fetched into this target directory.
    ///
    /// # Errors
    /// It has not.
    pub fn fetched(target: &Path) -> Result<Self> {
        let debs = target.join("test-packages");
        ensure!(
            debs.join("complete").is_file(),
            "no packages in {}: run `cargo xtask setup --tests`",
            debs.display()
        );
        let top = tempfile::tempdir()?;
        Ok(Self { debs, top })
    }

    /// The shell with the packages in place. `args` are `$1`, `$2`... of the script.
    fn command(&self, unshare: &[&str], script: &str, args: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(unshare)
            .args(["--mount", "sh", "-c"])
            .arg(format!("{UNPACK}shift 2\n{script}"))
            .arg("sh")
            .arg(&self.debs)
            .arg(self.top.path())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// A script that ends in `exec PROGRAM`: the process is then the program. `args` are its `$1`, `$2`...
    #[must_use]
    pub fn program(&self, script: &str, args: &[&str]) -> Command {
        self.command(&[], script, args)
    }

    /// Runs a script to its end in the namespace; its output. What it has left running is killed.
    ///
    /// # Errors
    /// It fails: then with what it said.
    pub fn script(&self, ns: &Netns, script: &str) -> Result<String> {
        let alone = ["--pid", "--fork", "--kill-child", "--mount-proc"];
        let mut command = self.command(&alone, script, &[]);
        let output = ns
            .run(|| command.output())
            .context("unshare cannot be run")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{}: {said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }
}
