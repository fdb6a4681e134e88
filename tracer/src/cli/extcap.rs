//! The flags that Wireshark calls `fwtrace extcap` with.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Error;
use crate::extcap::{INTERFACE, Question};

/// The name under which Wireshark finds the program: there it gives no command.
const PROGRAM: &str = "fwtrace-extcap";

#[derive(Debug, clap::Args)]
pub(super) struct ExtcapArgs {
    /// List the interfaces
    #[arg(long)]
    extcap_interfaces: bool,
    /// Wireshark's version
    #[arg(long, value_name = "VERSION", num_args = 0..=1)]
    extcap_version: Option<Option<String>>,
    /// The interface that is meant
    #[arg(long, value_name = "NAME")]
    extcap_interface: Option<String>,
    /// List its link types
    #[arg(long, requires = "extcap_interface")]
    extcap_dlts: bool,
    /// List its options
    #[arg(long, requires = "extcap_interface")]
    extcap_config: bool,
    /// The option whose values are wanted anew
    #[arg(long, value_name = "OPTION")]
    extcap_reload_option: Option<String>,
    /// A filter expression, to be checked or captured with
    #[arg(long, value_name = "EXPRESSION")]
    extcap_capture_filter: Option<String>,
    /// Capture
    #[arg(long, requires_all = ["extcap_interface", "fifo"])]
    capture: bool,
    /// Where the capture is written to
    #[arg(long, value_name = "FILE")]
    fifo: Option<PathBuf>,
    /// Network namespace: a name of `ip netns`, a path or a process id
    #[arg(long, value_name = "NAME|PATH|PID")]
    netns: Option<String>,
    /// Every network namespace
    #[arg(long)]
    all_netns: bool,
    /// A filter expression
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// Drop reasons
    #[arg(long, value_name = "NAMES|all")]
    reason: Option<String>,
    /// Let the kernel trace matching packets
    #[arg(long)]
    trace: bool,
}

/// What is to be done.
pub(super) enum Extcap {
    /// Answer.
    Answer(Question),
    /// See whether an expression is right, then answer.
    Check(String),
    /// Capture: the command line of a live run.
    Capture(Vec<OsString>),
}

impl ExtcapArgs {
    pub(super) fn plan(self) -> Result<Extcap, Error> {
        if self.extcap_interfaces {
            return Ok(Extcap::Answer(Question::Interfaces));
        }
        let Some(interface) = &self.extcap_interface else {
            return Ok(Extcap::Answer(Question::Nothing));
        };
        if interface != INTERFACE {
            return Err(Error::usage(format!(
                "no interface '{interface}'; fwtrace has one, '{INTERFACE}'"
            )));
        }
        // Wireshark passes on what was left empty, too.
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        if self.extcap_dlts {
            return Ok(Extcap::Answer(Question::LinkTypes));
        }
        if self.extcap_config {
            return Ok(Extcap::Answer(Question::Config));
        }
        let fifo = match &self.fifo {
            Some(fifo) if self.capture => fifo,
            _ => {
                return Ok(match given(&self.extcap_capture_filter) {
                    Some(expression) => Extcap::Check(expression),
                    None => Extcap::Answer(Question::Nothing),
                });
            }
        };
        let mut line: Vec<OsString> = ["fwtrace", "--quiet", "--write"].map(OsString::from).into();
        line.push(fifo.into());
        if self.all_netns {
            line.push("--all-netns".into());
        } else if let Some(netns) = given(&self.netns) {
            line.push(format!("--netns={netns}").into());
        }
        if let Some(reason) = given(&self.reason) {
            line.push(format!("--reason={reason}").into());
        }
        if self.trace {
            line.push("--trace".into());
        }
        let filters = [given(&self.extcap_capture_filter), given(&self.filter)];
        let filters: Vec<String> = filters.into_iter().flatten().collect();
        if let [only] = filters.as_slice() {
            line.extend(["--".into(), only.into()]);
        } else if !filters.is_empty() {
            line.extend(["--".into(), format!("({})", filters.join(") and (")).into()]);
        }
        Ok(Extcap::Capture(line))
    }
}

/// The command line with the command that the program's name stands for.
pub(super) fn named(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.collect();
    let is_extcap = args.first().is_some_and(|program| {
        Path::new(program)
            .file_name()
            .is_some_and(|name| name == PROGRAM)
    });
    if is_extcap {
        args.insert(1, "extcap".into());
    }
    args
}
