//! Matches on extension headers of IPv6.

use std::{
    fmt::{self, Write as _},
    net::Ipv6Addr,
};

use zerocopy::FromBytes;

use super::super::info::{Address, Cond, InetAddr, Masked, Not, Span, prefix, read, write_span};
use crate::ruleset::render::Names;

/// Any number.
const ANY: Span<u32> = Span::new(0, u32::MAX);

/// `ah` of IPv6: `struct ip6t_ah`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ah6 {
    /// SPI; 0 to 4294967295 where the rule asks for none.
    pub spi: Cond<Span<u32>>,
    /// Length of the header in bytes; 0 for any.
    pub length: Cond<u32>,
    /// The reserved field must be zero.
    pub reserved: bool,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawAh {
    spi: [u32; 2],
    length: u32,
    reserved: u8,
    inverted: u8,
}

const _: () = assert!(size_of::<RawAh>() == 16);

impl Ah6 {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawAh = read(info)?;
        Some(Self {
            spi: Cond::new(raw.spi.into(), raw.inverted & 1 != 0),
            length: Cond::new(raw.length, raw.inverted & 2 != 0),
            reserved: raw.reserved != 0,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write_span(out, "--ahspi", &self.spi, &ANY)?;
        if self.length.want != 0 || self.length.inverted {
            write!(
                out,
                "{} --ahlen {}",
                Not(self.length.inverted),
                self.length.want
            )?;
        }
        if self.reserved {
            out.push_str(" --ahres");
        }
        Ok(())
    }
}

/// `frag`: `struct ip6t_frag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frag {
    /// Identification; 0 to 4294967295 where the rule asks for none.
    pub id: Cond<Span<u32>>,
    /// Length of the header; 0 for any.
    pub length: Cond<u32>,
    /// Bits `IP6T_FRAG_*`: 1 ids, 2 length, 4 reserved is zero, 8 first, 0x10 more, 0x20 last.
    pub flags: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawFrag {
    id: [u32; 2],
    length: u32,
    flags: u8,
    inverted: u8,
}

impl Frag {
    /// `IP6T_FRAG_LEN`.
    pub const LENGTH: u8 = 2;
    /// `IP6T_FRAG_RES`: the reserved fields are zero.
    pub const RESERVED: u8 = 4;
    /// `IP6T_FRAG_FST`: the first fragment.
    pub const FIRST: u8 = 8;
    /// `IP6T_FRAG_MF`: more fragments follow.
    pub const MORE: u8 = 0x10;
    /// `IP6T_FRAG_NMF`: the last fragment.
    pub const LAST: u8 = 0x20;

    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawFrag = read(info)?;
        Some(Self {
            id: Cond::new(raw.id.into(), raw.inverted & 1 != 0),
            length: Cond::new(raw.length, raw.inverted & 2 != 0),
            flags: raw.flags,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write_span(out, "--fragid", &self.id, &ANY)?;
        if self.flags & Self::LENGTH != 0 {
            write!(
                out,
                "{} --fraglen {}",
                Not(self.length.inverted),
                self.length.want
            )?;
        }
        let options = [
            (Self::RESERVED, " --fragres"),
            (Self::FIRST, " --fragfirst"),
            (Self::MORE, " --fragmore"),
            (Self::LAST, " --fraglast"),
        ];
        for (_, option) in options.iter().filter(|(bit, _)| self.flags & bit != 0) {
            out.push_str(option);
        }
        Ok(())
    }
}

/// `rt`: `struct ip6t_rt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rt {
    /// Bits `IP6T_RT_*`: 1 type, 2 segments left, 4 length, 8 reserved, 0x10 addresses in order, 0x20 addresses in any order.
    pub flags: u8,
    /// Type.
    pub kind: Cond<u32>,
    /// Segments left; 0 to 4294967295 where the rule asks for none.
    pub segments_left: Cond<Span<u32>>,
    /// Length of the header; 0 for any.
    pub length: Cond<u32>,
    /// At most 16.
    pub addresses: Vec<Ipv6Addr>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawRt {
    kind: u32,
    segments_left: [u32; 2],
    length: u32,
    flags: u8,
    inverted: u8,
    addresses: [InetAddr; 16],
    count: u8,
}

const _: () = assert!(size_of::<RawRt>() == 280);

impl Rt {
    /// `IP6T_RT_TYP`.
    pub const KIND: u8 = 1;
    /// `IP6T_RT_SGS`.
    pub const SEGMENTS_LEFT: u8 = 2;
    /// `IP6T_RT_LEN`.
    pub const LENGTH: u8 = 4;
    /// `IP6T_RT_RES`: the reserved field is zero.
    pub const RESERVED: u8 = 8;
    /// `IP6T_RT_FST`: these addresses, in this order.
    pub const ADDRESSES: u8 = 0x10;
    /// `IP6T_RT_FST_NSTRICT`: others may stand between.
    pub const NOT_STRICT: u8 = 0x20;

    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawRt = read(info)?;
        let addresses = raw.addresses.get(..usize::from(raw.count))?;
        Some(Self {
            flags: raw.flags,
            kind: Cond::new(raw.kind, raw.inverted & 1 != 0),
            segments_left: Cond::new(raw.segments_left.into(), raw.inverted & 2 != 0),
            length: Cond::new(raw.length, raw.inverted & 4 != 0),
            addresses: addresses.iter().map(|address| address.v6()).collect(),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let flag = |bit: u8| self.flags & bit != 0;
        if flag(Self::KIND) {
            write!(
                out,
                "{} --rt-type {}",
                Not(self.kind.inverted),
                self.kind.want
            )?;
        }
        write_span(out, "--rt-segsleft", &self.segments_left, &ANY)?;
        if flag(Self::LENGTH) {
            write!(
                out,
                "{} --rt-len {}",
                Not(self.length.inverted),
                self.length.want
            )?;
        }
        if flag(Self::RESERVED) {
            out.push_str(" --rt-0-res");
        }
        if flag(Self::ADDRESSES) {
            out.push_str(" --rt-0-addrs");
        }
        for (at, address) in self.addresses.iter().enumerate() {
            write!(
                out,
                "{}{}",
                if at == 0 { ' ' } else { ',' },
                Address((*address).into())
            )?;
        }
        if flag(Self::NOT_STRICT) {
            out.push_str(" --rt-0-not-strict");
        }
        Ok(())
    }
}

/// `hbh` and `dst`: `struct ip6t_opts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Length of the header in bytes, where the rule asks for it.
    pub length: Option<Cond<u32>>,
    /// Options in their order, where the rule asks for them.
    pub options: Option<Vec<Ipv6Option>>,
    /// `IP6T_OPTS_NSTRICT`, which the kernel refuses today.
    pub not_strict: bool,
}

/// An option of a header of options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv6Option {
    /// Type.
    pub kind: u8,
    /// Length of its data; `None` for any.
    pub length: Option<u8>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawOptions {
    length: u32,
    flags: u8,
    inverted: u8,
    /// Type in the high byte, length in the low one; 255 is any length.
    options: [u16; 16],
    count: u8,
}

const _: () = assert!(size_of::<RawOptions>() == 40);

impl Options {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawOptions = read(info)?;
        let options = raw.options.get(..usize::from(raw.count))?;
        let option = |[kind, length]: [u8; 2]| Ipv6Option {
            kind,
            length: (length != 0xff).then_some(length),
        };
        Some(Self {
            length: (raw.flags & 1 != 0).then(|| Cond::new(raw.length, raw.inverted & 1 != 0)),
            options: (raw.flags & 2 != 0).then(|| {
                options
                    .iter()
                    .map(|number| option(number.to_be_bytes()))
                    .collect()
            }),
            not_strict: raw.flags & 4 != 0,
        })
    }

    /// Options of `hbh` or `dst`, which is their name too.
    pub(super) fn options(&self, out: &mut String, name: &str) -> fmt::Result {
        if let Some(length) = &self.length {
            write!(out, "{} --{name}-len {}", Not(length.inverted), length.want)?;
        }
        let Some(options) = &self.options else {
            return Ok(());
        };
        write!(out, " --{name}-opts")?;
        for (at, option) in options.iter().enumerate() {
            write!(out, "{}{}", if at == 0 { ' ' } else { ',' }, option.kind)?;
            if let Some(length) = option.length {
                write!(out, ":{length}")?;
            }
        }
        Ok(())
    }
}

/// `ipv6header`: `struct ip6t_ipv6header_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6Header {
    /// A bit for each header: 0x80 hop-by-hop, 0x40 destination, 0x20 route, 0x10 fragment, 8 AH, 4 ESP, 2 none, 1 protocol.
    pub headers: Cond<u8>,
    /// At least these rather than exactly these.
    pub soft: bool,
}

impl Ipv6Header {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let [headers, inverted, soft]: [u8; 3] = read(info)?;
        // Nobody turns round some of the headers only.
        if !matches!(inverted, 0 | 0xff) {
            return None;
        }
        Some(Self {
            headers: Cond::new(headers, inverted != 0),
            soft: soft != 0,
        })
    }

    pub(super) fn options(&self, names: &Names, out: &mut String) -> fmt::Result {
        /// Bit, number of the protocol, name where the machine has none for it.
        const HEADERS: [(u8, u32, &str); 8] = [
            (0x80, 0, "hop-by-hop"),
            (0x40, 60, "dst"),
            (0x20, 43, "route"),
            (0x10, 44, "frag"),
            (0x08, 51, "auth"),
            (0x04, 50, "esp"),
            (0x02, 59, "none"),
            (0x01, 255, "protocol"),
        ];
        write!(out, "{} --header", Not(self.headers.inverted))?;
        if self.headers.want == 0 {
            out.push_str(" NONE");
        }
        let mut separator = ' ';
        for (_, number, name) in HEADERS
            .iter()
            .filter(|(bit, ..)| self.headers.want & bit != 0)
        {
            // Protocol 0 is no name of the hop-by-hop header.
            let known = names.protocol(*number).filter(|_| *number != 0);
            write!(out, "{separator}{}", known.unwrap_or(name))?;
            separator = ',';
        }
        if self.soft {
            out.push_str(" --soft");
        }
        Ok(())
    }
}

/// `mh`: `struct ip6t_mh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mh {
    /// Type of the mobility header.
    pub types: Cond<Span<u8>>,
}

impl Mh {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let [min, max, inverted]: [u8; 3] = read(info)?;
        Some(Self {
            types: Cond::new(Span::new(min, max), inverted & 1 != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        write_span(out, "--mh-type", &self.types, &Span::new(0, 0xff))
    }
}

/// `srh`, revisions 0 (`struct ip6t_srh`) and 1 (`struct ip6t_srh1`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srh {
    /// Next header.
    pub next_header: Option<Cond<u8>>,
    /// Length of the header (eight bytes, less the first), in the order and with the sense of [`SRH_OPS`].
    pub length: [Option<Cond<u8>>; 3],
    /// Segments left, likewise.
    pub segments_left: [Option<Cond<u8>>; 3],
    /// Last entry, likewise.
    pub last_entry: [Option<Cond<u8>>; 3],
    /// Tag.
    pub tag: Option<Cond<u16>>,
    /// Previous SID; revision 1.
    pub previous: Option<Cond<Masked<Ipv6Addr>>>,
    /// Next SID; revision 1.
    pub next: Option<Cond<Masked<Ipv6Addr>>>,
    /// Last SID; revision 1.
    pub last: Option<Cond<Masked<Ipv6Addr>>>,
}

/// How the three numbers of a test of `srh` are compared: equal, greater, less.
pub const SRH_OPS: [&str; 3] = ["eq", "gt", "lt"];

#[derive(FromBytes)]
#[repr(C)]
struct RawSrhHead {
    next_header: u8,
    length: u8,
    segments_left: u8,
    last_entry: u8,
    tag: u16,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawSrh0 {
    head: RawSrhHead,
    flags: [u16; 2],
}

#[derive(FromBytes)]
#[repr(C)]
struct RawSrh1 {
    head: RawSrhHead,
    /// Previous, next, last.
    sids: [InetAddr; 3],
    masks: [InetAddr; 3],
    flags: [u16; 2],
}

const _: () = assert!(size_of::<RawSrh0>() == 10);
const _: () = assert!(size_of::<RawSrh1>() == 108);

impl Srh {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let (head, sids, [asked, inverted]) = match rev {
            0 => {
                let raw: RawSrh0 = read(info)?;
                (raw.head, None, raw.flags)
            }
            1 => {
                let raw: RawSrh1 = read(info)?;
                (raw.head, Some((raw.sids, raw.masks)), raw.flags)
            }
            _ => return None,
        };
        // Bits of `mt_flags` and `mt_invflags`, in order: next header, three each of the numbers, tag, three SIDs.
        let test = |bit: u32, value: u8| {
            (asked & 1 << bit != 0).then_some(Cond::new(value, inverted & 1 << bit != 0))
        };
        let tests = |bit: u32, value: u8| [bit, bit + 1, bit + 2].map(|bit| test(bit, value));
        let sid = |bit: u32, sid: usize| {
            let (sids, masks) = sids.as_ref()?;
            let masked = Masked {
                value: sids.get(sid)?.v6(),
                mask: masks.get(sid)?.v6(),
            };
            (asked & 1 << bit != 0).then_some(Cond::new(masked, inverted & 1 << bit != 0))
        };
        Some(Self {
            next_header: test(0, head.next_header),
            length: tests(1, head.length),
            segments_left: tests(4, head.segments_left),
            last_entry: tests(7, head.last_entry),
            tag: (asked & 1 << 10 != 0).then_some(Cond::new(head.tag, inverted & 1 << 10 != 0)),
            previous: sid(11, 0),
            next: sid(12, 1),
            last: sid(13, 2),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        if let Some(next) = &self.next_header {
            write!(out, "{} --srh-next-hdr {}", Not(next.inverted), next.want)?;
        }
        let numbers = [
            ("hdr-len", &self.length),
            ("segs-left", &self.segments_left),
            ("last-entry", &self.last_entry),
        ];
        for (name, tests) in numbers {
            for (op, test) in SRH_OPS.iter().zip(tests) {
                if let Some(test) = test {
                    write!(
                        out,
                        "{} --srh-{name}-{op} {}",
                        Not(test.inverted),
                        test.want
                    )?;
                }
            }
        }
        if let Some(tag) = &self.tag {
            write!(out, "{} --srh-tag {}", Not(tag.inverted), tag.want)?;
        }
        for (name, sid) in [
            ("psid", &self.previous),
            ("nsid", &self.next),
            ("lsid", &self.last),
        ] {
            if let Some(sid) = sid {
                let Masked { value, mask } = sid.want;
                let address = Address(value.into());
                // What is no prefix prints as -1 through %u.
                let length = prefix(mask.into()).unwrap_or(u32::MAX);
                write!(out, "{} --srh-{name} {address}/{length}", Not(sid.inverted))?;
            }
        }
        Ok(())
    }
}
