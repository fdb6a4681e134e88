//! `sctp`.

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::{
    super::info::{Cond, Not, Span, read},
    transport::write_ports,
};

/// `sctp`: `struct xt_sctp_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sctp {
    /// Source port, where the rule asks for it.
    pub source: Option<Cond<Span<u16>>>,
    /// Destination port, where the rule asks for it.
    pub destination: Option<Cond<Span<u16>>>,
    /// Chunks, where the rule asks for them.
    pub chunks: Option<Cond<SctpChunks>>,
}

/// Which chunks a packet of SCTP must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SctpChunks {
    /// How the map is compared.
    pub mode: SctpChunkMode,
    /// A bit for each chunk type: bit `type % 32` of word `type / 32`.
    pub map: [u32; 8],
    /// Flags that chunks of a type must have.
    pub flags: Vec<SctpChunkFlags>,
}

/// How a packet's chunks are compared with the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SctpChunkMode {
    /// At least one chunk is in the map.
    Any,
    /// Every type of the map is in the packet.
    All,
    /// No chunk is outside the map.
    Only,
    /// A value that the kernel does not know: it then matches any packet that has chunks.
    Other(u32),
}

/// `struct xt_sctp_flag_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SctpChunkFlags {
    /// Chunk type.
    pub chunk: u8,
    /// Flags that must be set.
    pub flag: u8,
    /// Flags that are looked at.
    pub mask: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawSctp {
    destination: [u16; 2],
    source: [u16; 2],
    /// Eight words would do for 256 types: the header divides by the bytes of a word, not by its bits.
    map: [u32; 64],
    mode: u32,
    chunk_flags: [[u8; 3]; 4],
    chunk_flags_count: i32,
    flags: u32,
    inverted: u32,
}

const _: () = assert!(size_of::<RawSctp>() == 292);

impl Sctp {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawSctp = read(info)?;
        let (&map, _) = raw.map.split_first_chunk()?;
        let inverted = |bit: u32| raw.inverted & bit != 0;
        let asked = |bit: u32| raw.flags & bit != 0;
        let count = usize::try_from(raw.chunk_flags_count).unwrap_or(0);
        Some(Self {
            source: asked(1).then(|| Cond::new(raw.source.into(), inverted(1))),
            destination: asked(2).then(|| Cond::new(raw.destination.into(), inverted(2))),
            chunks: asked(4).then(|| {
                let chunks = SctpChunks {
                    mode: match raw.mode {
                        1 => SctpChunkMode::Any,
                        2 => SctpChunkMode::All,
                        4 => SctpChunkMode::Only,
                        other => SctpChunkMode::Other(other),
                    },
                    map,
                    flags: raw
                        .chunk_flags
                        .iter()
                        .take(count)
                        .map(|&[chunk, flag, mask]| SctpChunkFlags { chunk, flag, mask })
                        .collect(),
                };
                Cond::new(chunks, inverted(4))
            }),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write_ports(out, "--sport", self.source.as_ref())?;
        write_ports(out, "--dport", self.destination.as_ref())?;
        if let Some(chunks) = &self.chunks {
            write!(
                out,
                "{} --chunk-types {}",
                Not(chunks.inverted),
                chunks.want
            )?;
        }
        Ok(())
    }
}

/// Names of chunk types (RFC 9260, 8260, 6525, 5061, 4820, 3758).
fn chunk_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0 => "DATA",
        1 => "INIT",
        2 => "INIT_ACK",
        3 => "SACK",
        4 => "HEARTBEAT",
        5 => "HEARTBEAT_ACK",
        6 => "ABORT",
        7 => "SHUTDOWN",
        8 => "SHUTDOWN_ACK",
        9 => "ERROR",
        10 => "COOKIE_ECHO",
        11 => "COOKIE_ACK",
        12 => "ECN_ECNE",
        13 => "ECN_CWR",
        14 => "SHUTDOWN_COMPLETE",
        64 => "I_DATA",
        128 => "ASCONF_ACK",
        130 => "RE_CONFIG",
        132 => "PAD",
        192 => "FORWARD_TSN",
        193 => "ASCONF",
        194 => "I_FORWARD_TSN",
        _ => return None,
    })
}

/// Letters of a chunk's flags, bit 0 first; iptables has them for these chunks only.
fn chunk_letters(kind: u8) -> &'static [char] {
    match kind {
        0 => &['E', 'B', 'U', 'I'],
        6 | 14 => &['T'],
        _ => &[],
    }
}

impl SctpChunks {
    /// Whether the map has this type.
    pub fn has(&self, kind: u8) -> bool {
        let word = self.map.get(usize::from(kind / 32)).copied().unwrap_or(0);
        word & 1 << (kind % 32) != 0
    }
}

impl fmt::Display for SctpChunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            SctpChunkMode::Any => f.write_str("any ")?,
            SctpChunkMode::All => f.write_str("all ")?,
            SctpChunkMode::Only => f.write_str("only ")?,
            SctpChunkMode::Other(mode) => write!(f, "[{mode}] ")?,
        }
        if self.map == [0; 8] {
            return f.write_str("NONE");
        }
        if self.map == [u32::MAX; 8] {
            return f.write_str("ALL");
        }
        let mut separator = "";
        for kind in (0..=u8::MAX).filter(|kind| self.has(*kind)) {
            f.write_str(separator)?;
            separator = ",";
            match chunk_name(kind) {
                Some(name) => f.write_str(name)?,
                None => write!(f, "{kind}")?,
            }
            for flags in self.flags.iter().filter(|flags| flags.chunk == kind) {
                if flags.mask != 0 {
                    f.write_char(':')?;
                }
                for bit in (0..8).rev().filter(|bit| flags.mask & 1 << bit != 0) {
                    let letter = chunk_letters(kind).get(bit).copied().unwrap_or('-');
                    let set = flags.flag & 1 << bit != 0;
                    f.write_char(if set {
                        letter
                    } else {
                        letter.to_ascii_lowercase()
                    })?;
                }
            }
        }
        Ok(())
    }
}
