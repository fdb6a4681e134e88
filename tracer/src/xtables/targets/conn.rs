//! Targets on the connection: CT, marks of connections.

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::info::{fits, read, text};

/// `CT`, revisions 0 to 2 (`struct xt_ct_target_info`, `xt_ct_target_info_v1`), and `NOTRACK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ct {
    /// It is to be printed as `-j NOTRACK`.
    pub alias: bool,
    /// The packet is not tracked.
    pub notrack: bool,
    /// Events, a bit for each (`IPCT_*`); 0 for all.
    pub events: u32,
    /// Events of expectations (`IPEXP_*`).
    pub expect_events: u32,
    /// Helper; empty for none.
    pub helper: String,
    /// Timeout policy; empty for none.
    pub timeout: String,
    /// Zone of conntrack.
    pub zone: Zone,
}

/// Zone of conntrack that `CT` puts a packet in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone {
    /// The zone; 0 for the default one.
    pub id: u16,
    /// It is the packet's mark rather than `id`.
    pub from_mark: bool,
    /// Only of the original direction.
    pub original: bool,
    /// Only of the reply direction.
    pub reply: bool,
}

/// `CONNMARK`, revisions 1 (`struct xt_connmark_tginfo1`) and 2 (`xt_connmark_tginfo2`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connmark {
    /// What it does.
    pub mode: ConnmarkMode,
    /// Value.
    pub ctmark: u32,
    /// Bits of the connection's mark.
    pub ctmask: u32,
    /// Bits of the packet's mark.
    pub nfmask: u32,
    /// Bits that the mark is shifted by on its way; revision 2 only.
    pub shift: Option<Shift>,
}

/// A shift of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    /// To the left.
    Left(u8),
    /// To the right.
    Right(u8),
}

/// What `CONNMARK` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnmarkMode {
    /// Sets the connection's mark to `(mark & !ctmask) ^ ctmark`.
    Set,
    /// Copies the packet's mark to the connection.
    Save,
    /// Copies the connection's mark to the packet.
    Restore,
    /// Not known.
    Other(u8),
}

#[derive(FromBytes)]
#[repr(C)]
struct RawCtHead {
    flags: u16,
    zone: u16,
    events: u32,
    expect_events: u32,
    helper: [u8; 16],
}

#[derive(FromBytes)]
#[repr(C)]
struct RawCt0 {
    head: RawCtHead,
    _ct: u64,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawCt1 {
    head: RawCtHead,
    timeout: [u8; 32],
    _ct: u64,
}

const _: () = assert!(size_of::<RawCt0>() == 40);
const _: () = assert!(size_of::<RawCt1>() == 72);

/// Names of `IPCT_*` by their number; of one that has none, nothing is printed.
const EVENTS: [(u32, &str); 10] = [
    (0, "new"),
    (1, "related"),
    (2, "destroy"),
    (3, "reply"),
    (4, "assured"),
    (5, "protoinfo"),
    (6, "helper"),
    (7, "mark"),
    (8, "natseqinfo"),
    (9, "secmark"),
];

/// Names of `IPEXP_*`.
const EXPECT_EVENTS: [(u32, &str); 1] = [(0, "new")];

impl Ct {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let (head, timeout) = match rev {
            0 => (read::<RawCt0>(info)?.head, String::new()),
            1 | 2 => {
                let RawCt1 { head, timeout, .. } = read(info)?;
                (head, text(&timeout))
            }
            _ => return None,
        };
        let flag = |bit: u16| head.flags & bit != 0;
        Some(Self {
            alias: flag(2),
            notrack: flag(1),
            events: head.events,
            expect_events: head.expect_events,
            helper: text(&head.helper),
            timeout,
            zone: Zone {
                id: head.zone,
                from_mark: flag(16),
                original: flag(4),
                reply: flag(8),
            },
        })
    }

    /// Decodes the target `NOTRACK`, which has no structure.
    pub(super) fn decode_notrack(info: &[u8]) -> Option<Self> {
        fits(info, 0).then(|| Self {
            alias: true,
            notrack: true,
            events: 0,
            expect_events: 0,
            helper: String::new(),
            timeout: String::new(),
            zone: Zone {
                id: 0,
                from_mark: false,
                original: false,
                reply: false,
            },
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        if self.alias {
            return Ok(());
        }
        if self.notrack {
            out.push_str(" --notrack");
        }
        if !self.helper.is_empty() {
            write!(out, " --helper {}", self.helper)?;
        }
        if !self.timeout.is_empty() {
            write!(out, " --timeout {}", self.timeout)?;
        }
        write_events(out, " --ctevents ", &EVENTS, self.events);
        write_events(out, " --expevents ", &EXPECT_EVENTS, self.expect_events);
        let Zone {
            id,
            from_mark,
            original,
            reply,
        } = self.zone;
        if from_mark || id != 0 {
            out.push_str(match (original, reply) {
                (true, false) => " --zone-orig",
                (false, true) => " --zone-reply",
                _ => " --zone",
            });
            if from_mark {
                out.push_str(" mark");
            } else {
                write!(out, " {id}")?;
            }
        }
        Ok(())
    }
}

fn write_events(out: &mut String, option: &str, names: &[(u32, &str)], events: u32) {
    if events == 0 {
        return;
    }
    out.push_str(option);
    let mut separator = "";
    for (_, name) in names.iter().filter(|(bit, _)| events & 1 << bit != 0) {
        out.push_str(separator);
        out.push_str(name);
        separator = ",";
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawConnmark1 {
    ctmark: u32,
    ctmask: u32,
    nfmask: u32,
    mode: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawConnmark2 {
    ctmark: u32,
    ctmask: u32,
    nfmask: u32,
    /// 0 is to the left.
    shift_right: u8,
    shift: u8,
    mode: u8,
}

const _: () = assert!(size_of::<RawConnmark1>() == 16);
const _: () = assert!(size_of::<RawConnmark2>() == 16);

impl Connmark {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let raw = match rev {
            1 => {
                let RawConnmark1 {
                    ctmark,
                    ctmask,
                    nfmask,
                    mode,
                } = read(info)?;
                RawConnmark2 {
                    ctmark,
                    ctmask,
                    nfmask,
                    shift_right: 0,
                    shift: 0,
                    mode,
                }
            }
            2 => read(info)?,
            _ => return None,
        };
        Some(Self {
            mode: match raw.mode {
                0 => ConnmarkMode::Set,
                1 => ConnmarkMode::Save,
                2 => ConnmarkMode::Restore,
                other => ConnmarkMode::Other(other),
            },
            ctmark: raw.ctmark,
            ctmask: raw.ctmask,
            nfmask: raw.nfmask,
            shift: match (raw.shift, raw.shift_right) {
                (0, _) => None,
                (bits, 0) => Some(Shift::Left(bits)),
                (bits, _) => Some(Shift::Right(bits)),
            },
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let masks = format!("--nfmask {:#x} --ctmask {:#x}", self.nfmask, self.ctmask);
        match self.mode {
            ConnmarkMode::Set => write!(out, " --set-xmark {:#x}/{:#x}", self.ctmark, self.ctmask)?,
            ConnmarkMode::Save => write!(out, " --save-mark {masks}")?,
            ConnmarkMode::Restore => write!(out, " --restore-mark {masks}")?,
            ConnmarkMode::Other(mode) => return write!(out, " [mode {mode}]"),
        }
        match self.shift {
            Some(Shift::Left(bits)) => write!(out, " --left-shift-mark {bits}"),
            Some(Shift::Right(bits)) => write!(out, " --right-shift-mark {bits}"),
            None => Ok(()),
        }
    }
}
