//! What cannot be done is refused with the reason and the right exit status.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use e2e::fwtrace;
use e2e::net::Net;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

fn refused(output: &Output, code: i32, naming: &[&str]) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "{}: {stderr}",
        output.status
    );
    for name in naming {
        ensure!(stderr.contains(name), "{name} is not named: {stderr}");
    }
    ensure!(!stderr.contains("panicked"), "{stderr}");
    // Stdout is for data: with --json that is one object that says the same.
    let stdout = String::from_utf8_lossy(&output.stdout);
    for line in stdout.lines() {
        let error: serde_json::Value = serde_json::from_str(line)?;
        ensure!(error["type"] == "error", "{error}");
        let message = error["message"].as_str().unwrap_or_default();
        ensure!(naming.iter().all(|n| message.contains(n)), "{error}");
    }
    Ok(())
}

#[test]
fn not_root() -> Result<()> {
    // Where nobody may go, root's target directory is one.
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    let copy = dir.path().join("fwtrace");
    std::fs::copy(fwtrace::binary()?, &copy)?;
    for args in [&["--port", "80"][..], &["--json"], &["demo"]] {
        let output = Command::new(&copy)
            .args(args)
            .uid(65534)
            .gid(65534)
            .output()?;
        refused(&output, 3, &["CAP_"]).with_context(|| format!("{args:?}"))?;
    }
    let output = Command::new(&copy).uid(65534).gid(65534).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        stderr.contains("CAP_BPF") || stderr.contains("CAP_SYS_ADMIN"),
        "{stderr}"
    );
    Ok(())
}

#[test]
fn no_btf() -> Result<()> {
    let binary = fwtrace::binary()?;
    let output = std::thread::spawn(move || -> Result<Output> {
        // A mount namespace of this thread's own, in which the kernel shows no BTF.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        let target = "/sys/kernel/btf";
        mount(
            Some("none"),
            target,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        Ok(Command::new(binary).args(["--duration", "1"]).output()?)
    });
    let output = output.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    refused(&output, 3, &["BTF"])
}

#[test]
fn what_is_not_there_or_makes_no_sense() -> Result<()> {
    let net = Net::routed()?;
    for (args, naming) in [
        (&["-i", "nosuch0"][..], "nosuch0"),
        (&["--iface", "r0", "--iface", "nosuch1"], "nosuch1"),
        (&["--src", "10.0.0.0/33"], "10.0.0.0/33"),
        (&["--dst", "fd00::/129"], "fd00::/129"),
        (&["--host", "10.0.0.256"], "10.0.0.256"),
        (&["--host", "example"], "example"),
        (&["--port", "80,http?"], "http?"),
        (&["--port", "65536"], "65536"),
        (&["--dport", "90-80"], "90-80"),
        (&["--proto", "nosuchproto"], "nosuchproto"),
        (&["--hook", "sideways"], "sideways"),
        (&["--reason", "NO_SUCH_REASON"], "NO_SUCH_REASON"),
        (&["-N", "no-such-namespace"], "no-such-namespace"),
        (&["-c", "many"], "many"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--color", "mauve"], "mauve"),
        (&["demo", "no-such-scene"], "no-such-scene"),
        (&["rules", "-N", "no-such-namespace"], "no-such-namespace"),
    ] {
        let output = fwtrace::run(Some(&net.r), args)?;
        refused(&output, 2, &[naming]).with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}
