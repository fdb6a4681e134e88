//! Matches on what belongs to the packet without being in it: marks, sockets, devices, CPU.

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::info::{Cond, Masked, Not, Quoted, Span, fits, read, text};
use crate::ruleset::render::Names;

/// `mark` and `connmark`, revision 1: `struct xt_mark_mtinfo1`, `xt_connmark_mtinfo1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// `(mark & mask) == value`.
    pub mark: Cond<Masked<u32>>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawMasked {
    value: u32,
    mask: u32,
    inverted: u8,
}

impl RawMasked {
    fn get(&self) -> Cond<Masked<u32>> {
        let masked = Masked {
            value: self.value,
            mask: self.mask,
        };
        Cond::new(masked, self.inverted != 0)
    }
}

impl Mark {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawMasked = read(info)?;
        Some(Self { mark: raw.get() })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(out, "{} --mark {}", Not(self.mark.inverted), self.mark.want)
    }
}

/// Writes a number under a mask, by its name if the mask has every bit.
fn write_named(out: &mut String, masked: Masked<u32>, name: Option<&str>) -> fmt::Result {
    match name {
        Some(name) if masked.mask == u32::MAX => write!(out, " {name}"),
        _ => write!(out, " {masked}"),
    }
}

/// `owner`, revision 1: `struct xt_owner_match_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// There is a socket (inverted: none).
    pub socket: Option<Cond<()>>,
    /// User of the socket's file.
    pub uid: Option<Cond<Span<u32>>>,
    /// Group of the socket's file.
    pub gid: Option<Cond<Span<u32>>>,
    /// Supplementary groups are looked at too.
    pub supplementary_groups: bool,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawOwner {
    uid: [u32; 2],
    gid: [u32; 2],
    asked: u8,
    inverted: u8,
}

const _: () = assert!(size_of::<RawOwner>() == 20);

impl Owner {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        /// `XT_OWNER_*`.
        const UID: u8 = 1;
        const GID: u8 = 2;
        const SOCKET: u8 = 4;
        const SUPPLEMENTARY: u8 = 8;
        let raw: RawOwner = read(info)?;
        let asked = |bit: u8| raw.asked & bit != 0;
        let inverted = |bit: u8| raw.inverted & bit != 0;
        Some(Self {
            socket: asked(SOCKET).then(|| Cond::new((), inverted(SOCKET))),
            uid: asked(UID).then(|| Cond::new(raw.uid.into(), inverted(UID))),
            gid: asked(GID).then(|| Cond::new(raw.gid.into(), inverted(GID))),
            supplementary_groups: asked(SUPPLEMENTARY),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        if let Some(socket) = &self.socket {
            write!(out, "{} --socket-exists", Not(socket.inverted))?;
        }
        for (option, ids) in [("--uid-owner", &self.uid), ("--gid-owner", &self.gid)] {
            if let Some(Cond {
                want: Span { min, max },
                inverted,
            }) = ids
            {
                write!(out, "{} {option} {min}", Not(*inverted))?;
                if min != max {
                    write!(out, "-{max}")?;
                }
            }
        }
        if self.supplementary_groups {
            out.push_str(" --suppl-groups");
        }
        Ok(())
    }
}

/// `socket`, revisions 0 to 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Only transparent sockets.
    pub transparent: bool,
    /// Sockets bound to any address count too.
    pub nowildcard: bool,
    /// The packet gets the socket's mark.
    pub restore_skmark: bool,
}

impl Socket {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let flags: u8 = match rev {
            0 => fits(info, 0).then_some(0)?,
            1..=3 => read(info)?,
            _ => return None,
        };
        Some(Self {
            transparent: flags & 1 != 0,
            nowildcard: flags & 2 != 0,
            restore_skmark: flags & 4 != 0,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let options = [
            (self.transparent, " --transparent"),
            (self.nowildcard, " --nowildcard"),
            (self.restore_skmark, " --restore-skmark"),
        ];
        for (_, option) in options.iter().filter(|(set, _)| *set) {
            out.push_str(option);
        }
        Ok(())
    }
}

/// `cgroup`, revisions 0 to 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Path in the unified hierarchy.
    pub path: Option<Cond<String>>,
    /// Class of net_cls.
    pub classid: Option<Cond<u32>>,
}

/// Which of path and class is asked for, and inverted.
#[derive(FromBytes)]
#[repr(C)]
struct RawCgroupHead {
    has_path: u8,
    has_classid: u8,
    path_inverted: u8,
    classid_inverted: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawCgroup1 {
    head: RawCgroupHead,
    path: [u8; 4096],
    classid: u32,
    _priv: u64,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawCgroup2 {
    head: RawCgroupHead,
    /// A union: the class lies in its first four bytes.
    classid: [u8; 4],
    path_rest: [u8; 508],
    _priv: u64,
}

const _: () = assert!(size_of::<RawCgroup1>() == 4112);
const _: () = assert!(size_of::<RawCgroup2>() == 528);

impl Cgroup {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let (head, path, classid) = match rev {
            0 => {
                let [id, inverted]: [u32; 2] = read(info)?;
                return Some(Self {
                    path: None,
                    classid: Some(Cond::new(id, inverted != 0)),
                });
            }
            1 => {
                let raw: RawCgroup1 = read(info)?;
                (raw.head, text(&raw.path), raw.classid)
            }
            2 => {
                let raw: RawCgroup2 = read(info)?;
                let path = [&raw.classid[..], &raw.path_rest[..]].concat();
                (raw.head, text(&path), u32::from_ne_bytes(raw.classid))
            }
            _ => return None,
        };
        Some(Self {
            path: (head.has_path != 0).then(|| Cond::new(path, head.path_inverted != 0)),
            classid: (head.has_classid != 0)
                .then(|| Cond::new(classid, head.classid_inverted != 0)),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(out, "{} --path {}", Not(path.inverted), Quoted(&path.want))?;
        }
        if let Some(classid) = &self.classid {
            write!(out, "{} --cgroup {}", Not(classid.inverted), classid.want)?;
        }
        Ok(())
    }
}

/// `cpu`: `struct xt_cpu_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// The CPU that handles the packet.
    pub cpu: Cond<u32>,
}

impl Cpu {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let [cpu, inverted]: [u32; 2] = read(info)?;
        Some(Self {
            cpu: Cond::new(cpu, inverted != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(out, "{} --cpu {}", Not(self.cpu.inverted), self.cpu.want)
    }
}

/// `devgroup`: `struct xt_devgroup_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devgroup {
    /// Group of the incoming interface.
    pub source: Option<Cond<Masked<u32>>>,
    /// Group of the outgoing one.
    pub destination: Option<Cond<Masked<u32>>>,
}

impl Devgroup {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let [flags, source, source_mask, destination, destination_mask]: [u32; 5] = read(info)?;
        let group = |asked: u32, inverted: u32, value: u32, mask: u32| {
            (flags & asked != 0).then_some(Cond::new(Masked { value, mask }, flags & inverted != 0))
        };
        Some(Self {
            source: group(1, 2, source, source_mask),
            destination: group(4, 8, destination, destination_mask),
        })
    }

    pub(super) fn options(&self, names: &Names, out: &mut String) -> fmt::Result {
        for (option, group) in [
            ("--src-group", &self.source),
            ("--dst-group", &self.destination),
        ] {
            if let Some(group) = group {
                write!(out, "{} {option}", Not(group.inverted))?;
                write_named(out, group.want, names.group(group.want.value))?;
            }
        }
        Ok(())
    }
}

/// `physdev`: `struct xt_physdev_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Physdev {
    /// Incoming bridge port; ends in `+` where a prefix is compared.
    pub input: Option<Cond<String>>,
    /// Outgoing bridge port.
    pub output: Option<Cond<String>>,
    /// Came in through a bridge port.
    pub is_in: Option<Cond<()>>,
    /// Goes out through a bridge port.
    pub is_out: Option<Cond<()>>,
    /// Is bridged, not routed.
    pub is_bridged: Option<Cond<()>>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawPhysdev {
    input: [u8; 16],
    _input_mask: [u8; 16],
    output: [u8; 16],
    _output_mask: [u8; 16],
    inverted: u8,
    asked: u8,
}

const _: () = assert!(size_of::<RawPhysdev>() == 66);

impl Physdev {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        /// `XT_PHYSDEV_OP_*`.
        const IN: u8 = 1;
        const OUT: u8 = 2;
        const BRIDGED: u8 = 4;
        const IS_IN: u8 = 8;
        const IS_OUT: u8 = 0x10;
        let raw: RawPhysdev = read(info)?;
        let asked = |bit: u8| raw.asked & bit != 0;
        let inverted = |bit: u8| raw.inverted & bit != 0;
        let is = |bit: u8| asked(bit).then(|| Cond::new((), inverted(bit)));
        Some(Self {
            input: asked(IN).then(|| Cond::new(text(&raw.input), inverted(IN))),
            output: asked(OUT).then(|| Cond::new(text(&raw.output), inverted(OUT))),
            is_in: is(IS_IN),
            is_out: is(IS_OUT),
            is_bridged: is(BRIDGED),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        if let Some(is) = &self.is_in {
            write!(out, "{} --physdev-is-in", Not(is.inverted))?;
        }
        if let Some(port) = &self.input {
            write!(out, "{} --physdev-in {}", Not(port.inverted), port.want)?;
        }
        if let Some(is) = &self.is_out {
            write!(out, "{} --physdev-is-out", Not(is.inverted))?;
        }
        if let Some(port) = &self.output {
            write!(out, "{} --physdev-out {}", Not(port.inverted), port.want)?;
        }
        if let Some(is) = &self.is_bridged {
            write!(out, "{} --physdev-is-bridged", Not(is.inverted))?;
        }
        Ok(())
    }
}

/// `realm`: `struct xt_realm_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realm {
    /// Realm of the route.
    pub realm: Cond<Masked<u32>>,
}

impl Realm {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawMasked = read(info)?;
        Some(Self { realm: raw.get() })
    }

    pub(super) fn options(&self, names: &Names, out: &mut String) -> fmt::Result {
        write!(out, "{} --realm", Not(self.realm.inverted))?;
        write_named(out, self.realm.want, names.realm(self.realm.want.value))
    }
}

/// `osf`: `struct xt_osf_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Osf {
    /// Name of the system.
    pub genre: Cond<String>,
    /// How the TTL is compared, where that is said: 0 true, 1 less, 2 not at all.
    pub ttl: Option<u32>,
    /// What is logged, where that is said: 0 all, 1 first, 2 all known.
    pub log: Option<u32>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawOsf {
    genre: [u8; 32],
    _len: u32,
    flags: u32,
    log: u32,
    ttl: u32,
}

impl Osf {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawOsf = read(info)?;
        Some(Self {
            genre: Cond::new(text(&raw.genre), raw.flags & 8 != 0),
            ttl: (raw.flags & 2 != 0).then_some(raw.ttl),
            log: (raw.flags & 4 != 0).then_some(raw.log),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write!(
            out,
            "{} --genre {}",
            Not(self.genre.inverted),
            self.genre.want
        )?;
        if let Some(ttl) = self.ttl {
            write!(out, " --ttl {ttl}")?;
        }
        if let Some(log) = self.log {
            write!(out, " --log {log}")?;
        }
        Ok(())
    }
}
