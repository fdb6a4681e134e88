//! Test bench: namespaces, traffic, and a driver for the `fwtrace` binary.
//!
//! | module | subject |
//! |---|---|
//! | [`netns`] | a network namespace that is gone when its guard is |
//! | [`net`] | three of them in a row, routed or bridged |
//! | [`nft`] | loads rulesets, and lists them: the oracle |
//! | [`traffic`] | packets, sent from a thread inside a namespace |
//! | [`fwtrace`] | runs the binary and reads what it says |
//! | [`expect`] | an event against what the kernel says |
//! | [`oracle`] | the differential harness: random firewalls, the kernel's trace against fwtrace |
//! | [`system`] | what a run may leave behind: BPF programs, sysctls, processes |

pub mod conntrack;
pub mod expect;
pub mod fwtrace;
pub mod legacy;
pub mod net;
pub mod netns;
pub mod nft;
pub mod oracle;
pub mod packages;
pub mod queue;
pub mod system;
pub mod traffic;

use std::io::Write;
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine before it counts as not happening.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks `done` every millisecond until it says yes; false when [`PATIENCE`] has run out.
pub fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Prints a count that is to be seen of passing tests too: past the capture of their output.
pub fn report(line: &str) {
    // Nobody may be listening.
    let _ = writeln!(std::io::stderr(), "{line}");
}
