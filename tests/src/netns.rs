//! A network namespace that is gone when its guard is.

use std::fs::File;
use std::io::Write;
use std::os::linux::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

/// A named network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    inode: u64,
}

impl Netns {
    /// Makes `N` namespaces, named `fwt-PID-COUNT`.
    ///
    /// # Errors
    /// `ip netns add` fails.
    pub fn create<const N: usize>() -> Result<[Self; N]> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let names: [String; N] = std::array::from_fn(|_| {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            format!("fwt-{}-{count}", std::process::id())
        });
        let script: String = names.iter().map(|n| format!("netns add {n}\n")).collect();
        run_fed(Command::new("ip").args(["-b", "-"]), &script)?;
        let mut made = Vec::with_capacity(N);
        for name in names {
            let file = File::open(path(&name))?;
            let inode = file.metadata()?.st_ino();
            made.push(Self { name, file, inode });
        }
        made.try_into()
            .map_err(|_| anyhow::anyhow!("not {N} namespaces"))
    }

    /// Its name in /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Inode of its nsfs file.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Runs `f` in a thread of its own inside the namespace. Sockets opened there, and processes
    /// started there, stay in it.
    ///
    /// # Panics
    /// If `f` does, or if the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            if let Err(e) = setns(&self.file, CloneFlags::CLONE_NEWNET) {
                panic!("entering {}: {e}", self.name);
            }
            f()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs a command inside the namespace, with `input` on its stdin; its stdout.
    ///
    /// # Errors
    /// It cannot be started, or it fails: then with what it said.
    pub fn command(&self, argv: &[&str], input: &str) -> Result<String> {
        let (program, args) = argv.split_first().context("no command")?;
        self.run(|| run_fed(Command::new(program).args(args), input))
            .with_context(|| format!("in {}", self.name))
    }

    /// Runs a batch of `ip` commands inside the namespace.
    ///
    /// # Errors
    /// One of them fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.command(&["ip", "-b", "-"], batch)?;
        Ok(())
    }

    /// Writes a sysctl of the namespace, `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// It is not there or does not take the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{key}"), value))
            .with_context(|| format!("sysctl {key}={value}"))
    }

    /// Takes the name away, as `ip netns del` does; the guard then has nothing left to do.
    ///
    /// # Errors
    /// It has none any more.
    pub fn delete(&self) -> Result<()> {
        umount2(&path(&self.name), MntFlags::MNT_DETACH)?;
        std::fs::remove_file(path(&self.name))?;
        Ok(())
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Deleted by the test already: not a mistake.
        let _ = self.delete();
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Runs a command to its end with `input` on its stdin; its stdout.
fn run_fed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input is judged by its exit status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}\ninput:\n{input}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
