//! The `fwtrace` command from outside: exit codes, and what goes where. No root needed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Command, Output};

fn fwtrace(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fwtrace"))
        .args(args)
        .output()
        .unwrap()
}

/// Exit code 2, nothing on stdout, and stderr names what is wrong.
fn refuses(args: &[&str], named: &str) {
    let output = fwtrace(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(stderr.contains(named), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn version_goes_to_stdout() {
    let output = fwtrace(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let expected = format!("fwtrace {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert!(output.stderr.is_empty());
}

#[test]
fn wrong_usage_names_the_value() {
    refuses(&["--src", "10.0.0.0/33"], "'10.0.0.0/33'");
    refuses(&["--port", "http-none"], "'http-none'");
    refuses(&["-i", "no-such-if0"], "'no-such-if0'");
    refuses(&["-N", "no-such-netns"], "'no-such-netns'");
    refuses(&["rules", "-N", "no-such-netns"], "'no-such-netns'");
    refuses(&["--frobnicate"], "'--frobnicate'");
    refuses(&["-6", "--dst", "192.0.2.0/24"], "192.0.2.0/24");
}
