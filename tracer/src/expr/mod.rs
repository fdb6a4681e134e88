//! Filter expressions in tcpdump's language (pcap-filter(7)): compiled by libpcap, run here on what was
//! captured of a drop.
//!
//! The kernel's side of the filter is handed what it can check ([`crate::cli`] does that); the whole
//! expression is always run here as well, so that what the kernel checks need only be necessary.

mod frame;
mod libpcap;
mod program;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use fwtrace_abi::{Record, SNAP_MAX};
use libc::sock_filter;

use self::frame::Frame;
use self::program::Loaded;
pub use self::program::Verdict;
use crate::pcapng::LinkType;

/// Bytes of link-layer header that an expression's offsets count and a capture's length does not.
const ETHERNET: usize = 14;

/// An expression that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// libpcap says what is wrong with it.
    #[error("cannot use the expression '{text}': {why}; pcap-filter(7) has the language")]
    Refused {
        /// The expression.
        text: String,
        /// libpcap's words.
        why: String,
    },
    /// No libpcap could be opened; why not, in the words of the dynamic loader.
    #[error(
        "filter expressions take libpcap, which is not here: {0}; install it (Debian: libpcap0.8, Fedora: libpcap), or use flags such as --port and --host"
    )]
    NoLibpcap(String),
}

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    program: Vec<sock_filter>,
    listing: String,
    /// It is about VLAN tags.
    vlan: bool,
    /// Programs for packets of capture files that begin otherwise; `None`: libpcap has none.
    others: HashMap<LinkType, Option<Vec<sock_filter>>>,
}

/// A packet of a capture file.
struct Captured<'a> {
    bytes: &'a [u8],
    original_len: u32,
}

impl program::Packet for Captured<'_> {
    fn load(&self, at: u64, size: usize) -> Loaded {
        if at + size as u64 > u64::from(self.wire_len()) {
            return Loaded::Outside;
        }
        // Within the length, which is a u32.
        match self.bytes.get(at as usize..at as usize + size) {
            Some(bytes) => Loaded::Value(big_endian(bytes)),
            None => Loaded::Unknown,
        }
    }

    fn wire_len(&self) -> u32 {
        self.original_len.max(self.bytes.len() as u32)
    }
}

fn big_endian(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

impl Expression {
    /// Has libpcap compile `text`. Host names in it are looked up by libpcap, as tcpdump does.
    ///
    /// # Errors
    /// There is no libpcap here, or it refuses the expression.
    pub fn compile(text: &str) -> Result<Self, Error> {
        let compiled = libpcap::compile(text, libpcap::ETHERNET)?;
        Ok(Self {
            text: text.to_owned(),
            program: compiled.program,
            listing: compiled.listing,
            vlan: has_word(text, "vlan"),
            others: HashMap::new(),
        })
    }

    /// As it was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The compiled program, as `tcpdump -d` prints it, a line an instruction.
    pub fn listing(&self) -> &str {
        &self.listing
    }

    /// Whether a drop meets it: `bytes` are those that were captured with `record`.
    ///
    /// A VLAN tag that the kernel holds beside the packet counts only if the expression is about tags,
    /// as in a live capture by tcpdump.
    pub fn judge(&self, record: &Record, bytes: &[u8]) -> Verdict {
        program::run(&self.program, &Frame::new(record, bytes, self.vlan))
    }

    /// Whether a packet of a capture file meets it: `bytes` of `original_len` were captured. Where libpcap has no program for
    /// the link type, that is not known.
    pub fn judge_captured(&mut self, link: LinkType, bytes: &[u8], original_len: u32) -> Verdict {
        match link {
            LinkType::ETHERNET => program::run(
                &self.program,
                &Captured {
                    bytes,
                    original_len,
                },
            ),
            LinkType::RAW | LinkType::IPV4 | LinkType::IPV6 => {
                program::run(&self.program, &Frame::of_packet(bytes, original_len))
            }
            link => {
                let text = &self.text;
                let program = self.others.entry(link).or_insert_with(|| {
                    // Of these link types, the numbers are those of DLT_ too.
                    let compiled = libpcap::compile(text, link.0.into());
                    compiled.map(|compiled| compiled.program).ok()
                });
                match program {
                    Some(program) => program::run(
                        program,
                        &Captured {
                            bytes,
                            original_len,
                        },
                    ),
                    None => Verdict::Unknown,
                }
            }
        }
    }

    /// Bytes from the network header on that have to be captured for it; `None`: any that there are.
    pub fn reach(&self) -> Option<usize> {
        program::reach(&self.program).map(|end| end.saturating_sub(ETHERNET))
    }

    /// Bytes to capture from the network header on: what it reads, as far as a record can hold it.
    pub fn snaplen(&self) -> u32 {
        // SNAP_MAX is a few kilobytes.
        self.reach().unwrap_or(SNAP_MAX).min(SNAP_MAX) as u32
    }
}

/// Says that so many packets may not meet the expression and were shown.
pub fn undecided(count: u64) -> String {
    let (packets, were) = if count == 1 {
        ("packet", "was")
    } else {
        ("packets", "were")
    };
    format!(
        "{count} {packets} had bytes unknown that the expression asks for, and {were} taken to meet it"
    )
}

/// Whether `word` is one of the words of an expression.
pub fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .any(|found| found == word)
}
