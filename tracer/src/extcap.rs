//! `fwtrace extcap`: what Wireshark asks of a capture program (its extcap interface, doc/extcap.adoc of
//! Wireshark 4.0), so that dropped packets are an interface in its list. The capture itself is a live run
//! that writes to Wireshark's pipe.

use std::io::{self, Write};

/// The interface's name, which `tshark -i` takes.
pub const INTERFACE: &str = "fwtrace";

/// What Wireshark wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Which interfaces there are.
    Interfaces,
    /// Which link types one has.
    LinkTypes,
    /// What can be chosen.
    Config,
    /// Whether a filter expression is right. It was compiled before this: it is.
    IsFilterRight,
    /// Nothing: a person has called it.
    Nothing,
}

/// Answers on `out`, in lines of `word {key=value}...`.
///
/// # Errors
/// `out`'s.
pub fn answer(question: Question, out: &mut impl Write) -> io::Result<()> {
    match question {
        Question::Interfaces => {
            writeln!(
                out,
                "extcap {{version={}}}{{display=fwtrace}}",
                env!("CARGO_PKG_VERSION")
            )?;
            writeln!(
                out,
                "interface {{value={INTERFACE}}}{{display=fwtrace: dropped packets}}"
            )
        }
        // What filter expressions are compiled for. The capture names the link type of each packet.
        Question::LinkTypes => writeln!(out, "dlt {{number=1}}{{name=EN10MB}}{{display=Ethernet}}"),
        Question::Config => out.write_all(CONFIG.as_bytes()),
        Question::IsFilterRight => Ok(()),
        Question::Nothing => out.write_all(HELP.as_bytes()),
    }
}

const HELP: &str = "This is for Wireshark, which calls it. To have dropped packets in Wireshark's list of interfaces:

    mkdir -p ~/.local/lib/wireshark/extcap
    ln -s \"$(command -v fwtrace)\" ~/.local/lib/wireshark/extcap/fwtrace-extcap

Capturing takes root's rights: docs/wireshark.md says how to give them.
";

/// The options, one a line. The namespace is a plain text: of a list that can be written into, Wireshark 4.0
/// makes no preference, so that tshark could not set it.
const CONFIG: &str = "\
arg {number=0}{call=--netns}{display=Network namespace}{type=string}{tooltip=A name of ip netns, a path or a process id; empty: the one that Wireshark runs in}{group=Drops}
arg {number=1}{call=--all-netns}{display=All network namespaces}{type=boolflag}{default=false}{group=Drops}
arg {number=2}{call=--filter}{display=Filter expression}{type=string}{tooltip=As tcpdump takes it: tcp and not port 22}{group=Drops}
arg {number=3}{call=--reason}{display=Drop reasons}{type=string}{tooltip=Names of the kernel's drop reasons with commas between them, or all; empty: those of the firewall}{group=Drops}
arg {number=4}{call=--trace}{display=Let the kernel trace matching packets}{type=boolflag}{default=false}{tooltip=Adds a table of its own to the firewall while it captures}{group=Drops}
";
