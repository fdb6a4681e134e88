//! Targets that mark the packet or put it into a set.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use zerocopy::FromBytes;

use super::super::{
    Family,
    info::{InetAddr, Masked, RawSet, RawSet0, SetRef, prefix, read, text},
};
use crate::ruleset::render::Names;

/// `SET`, revisions 0 to 3: `struct xt_set_info_target_v0` to `v3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The packet is added to this set.
    pub add: Option<SetRef>,
    /// The packet is deleted from this set.
    pub del: Option<SetRef>,
    /// The packet takes marks from this set.
    pub map: Option<SetRef>,
    /// An element that is there already has its timeout reset.
    pub exist: bool,
    /// Seconds; `None` for the set's.
    pub timeout: Option<u32>,
    /// Takes the mark.
    pub map_mark: bool,
    /// Takes the priority.
    pub map_prio: bool,
    /// Takes the queue.
    pub map_queue: bool,
}

/// `SECMARK`, revisions 0 and 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secmark {
    /// 1 is SELinux.
    pub mode: u8,
    /// Context.
    pub context: String,
}

/// `HMARK`: `struct xt_hmark_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hmark {
    /// Bits `1 << XT_HMARK_*`.
    pub flags: u32,
    /// Mask of the source.
    pub source_mask: IpAddr,
    /// Mask of the destination.
    pub destination_mask: IpAddr,
    /// Source port.
    pub source_port: Masked<u16>,
    /// Destination port.
    pub destination_port: Masked<u16>,
    /// The two ports as one word: SPI.
    pub spi: Masked<u32>,
    /// Mask of the protocol.
    pub proto_mask: u16,
    /// Seed.
    pub seed: u32,
    /// Modulus.
    pub modulus: u32,
    /// Offset.
    pub offset: u32,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawSet2 {
    sets: [RawSet; 2],
    flags: u32,
    timeout: u32,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawSet3 {
    sets: [RawSet; 3],
    flags: u32,
    timeout: u32,
}

const _: () = assert!(size_of::<RawSet2>() == 16);
const _: () = assert!(size_of::<RawSet3>() == 20);

/// `IPSET_FLAG_*`.
mod flag {
    pub(super) const EXIST: u32 = 1 << 0;
    pub(super) const MAP_MARK: u32 = 1 << 8;
    pub(super) const MAP_PRIO: u32 = 1 << 9;
    pub(super) const MAP_QUEUE: u32 = 1 << 10;
}

impl Set {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let (sets, flags, timeout) = match rev {
            0 => {
                let [add, del]: [RawSet0; 2] = read(info)?;
                ([add.get(), del.get(), None], 0, u32::MAX)
            }
            1 => {
                let [add, del]: [RawSet; 2] = read(info)?;
                ([add.get(), del.get(), None], 0, u32::MAX)
            }
            2 => {
                let RawSet2 {
                    sets: [add, del],
                    flags,
                    timeout,
                } = read(info)?;
                ([add.get(), del.get(), None], flags, timeout)
            }
            3 => {
                let RawSet3 {
                    sets: [add, del, map],
                    flags,
                    timeout,
                } = read(info)?;
                ([add.get(), del.get(), map.get()], flags, timeout)
            }
            _ => return None,
        };
        let [add, del, map] = sets;
        Some(Self {
            add,
            del,
            map,
            exist: flags & flag::EXIST != 0,
            timeout: (timeout != u32::MAX).then_some(timeout),
            map_mark: flags & flag::MAP_MARK != 0,
            map_prio: flags & flag::MAP_PRIO != 0,
            map_queue: flags & flag::MAP_QUEUE != 0,
        })
    }

    pub(super) fn options(&self, names: &Names, out: &mut String) -> fmt::Result {
        if let Some(set) = &self.add {
            out.push_str(" --add-set");
            set.write(names, out)?;
        }
        if self.exist {
            out.push_str(" --exist");
        }
        if let Some(timeout) = self.timeout {
            write!(out, " --timeout {timeout}")?;
        }
        if let Some(set) = &self.del {
            out.push_str(" --del-set");
            set.write(names, out)?;
        }
        if let Some(set) = &self.map {
            out.push_str(" --map-set");
            set.write(names, out)?;
        }
        let options = [
            (self.map_mark, " --map-mark"),
            (self.map_prio, " --map-prio"),
            (self.map_queue, " --map-queue"),
        ];
        for (_, option) in options.iter().filter(|(set, _)| *set) {
            out.push_str(option);
        }
        Ok(())
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawSecmark0 {
    mode: u8,
    _secid: u32,
    context: [u8; 256],
}

#[derive(FromBytes)]
#[repr(C)]
struct RawSecmark1 {
    mode: u8,
    context: [u8; 256],
    _secid: u32,
}

const _: () = assert!(size_of::<RawSecmark0>() == 264);
const _: () = assert!(size_of::<RawSecmark1>() == 264);

impl Secmark {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let (mode, context) = match rev {
            0 => {
                let raw: RawSecmark0 = read(info)?;
                (raw.mode, text(&raw.context))
            }
            1 => {
                let raw: RawSecmark1 = read(info)?;
                (raw.mode, text(&raw.context))
            }
            _ => return None,
        };
        Some(Self { mode, context })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        match self.mode {
            1 => write!(out, " --selctx {}", self.context),
            mode => write!(out, " [mode {mode}: {}]", self.context),
        }
    }
}

#[derive(FromBytes)]
#[repr(C)]
struct RawHmark {
    masks: [InetAddr; 2],
    /// Source and destination port, in network order; together the SPI.
    port_masks: [u16; 2],
    ports: [u16; 2],
    flags: u32,
    proto_mask: u16,
    seed: u32,
    modulus: u32,
    offset: u32,
}

const _: () = assert!(size_of::<RawHmark>() == 60);

impl Hmark {
    pub(super) fn decode(info: &[u8], family: Family) -> Option<Self> {
        let raw: RawHmark = read(info)?;
        let [source_mask, destination_mask] = raw.masks.map(|mask| mask.get(family));
        let spi = |[high, low]: [u16; 2]| u32::from(high) << 16 | u32::from(low);
        let (ports, masks) = (
            raw.ports.map(u16::from_be),
            raw.port_masks.map(u16::from_be),
        );
        let ([source, destination], [source_port_mask, destination_port_mask]) = (ports, masks);
        Some(Self {
            flags: raw.flags,
            source_mask,
            destination_mask,
            source_port: Masked {
                value: source,
                mask: source_port_mask,
            },
            destination_port: Masked {
                value: destination,
                mask: destination_port_mask,
            },
            spi: Masked {
                value: spi(ports),
                mask: spi(masks),
            },
            proto_mask: raw.proto_mask,
            seed: raw.seed,
            modulus: raw.modulus,
            offset: raw.offset,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        // The bits are 1 << XT_HMARK_*, which number the options.
        let flag = |number: u32| self.flags & 1 << number != 0;
        for (number, option, mask) in [
            (0, "--hmark-src-prefix", self.source_mask),
            (1, "--hmark-dst-prefix", self.destination_mask),
        ] {
            if flag(number) {
                match prefix(mask) {
                    Some(length) => write!(out, " {option} {length}")?,
                    None => write!(out, " {option} -1")?,
                }
            }
        }
        let short = |number: u32, option: &str, value: u16| match flag(number) {
            true => format!(" {option} {value:#06x}"),
            false => String::new(),
        };
        out.push_str(&short(6, "--hmark-sport-mask", self.source_port.mask));
        out.push_str(&short(7, "--hmark-dport-mask", self.destination_port.mask));
        if flag(3) {
            write!(out, " --hmark-spi-mask {:#010x}", self.spi.mask)?;
        }
        out.push_str(&short(4, "--hmark-sport", self.source_port.value));
        out.push_str(&short(5, "--hmark-dport", self.destination_port.value));
        if flag(2) {
            write!(out, " --hmark-spi {:#010x}", self.spi.value)?;
        }
        if flag(8) {
            write!(out, " --hmark-proto-mask {:#04x}", self.proto_mask)?;
        }
        if flag(9) {
            write!(out, " --hmark-rnd {:#010x}", self.seed)?;
        }
        if flag(10) {
            write!(out, " --hmark-mod {}", self.modulus)?;
        }
        if flag(11) {
            write!(out, " --hmark-offset {}", self.offset)?;
        }
        if flag(12) {
            out.push_str(" --hmark-tuple ct");
        }
        Ok(())
    }
}
