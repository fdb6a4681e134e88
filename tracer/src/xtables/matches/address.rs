//! Matches on addresses, beyond those that every rule has.

use std::net::IpAddr;

use std::fmt::{self, Write as _};

use zerocopy::FromBytes;

use super::super::{
    Family,
    info::{Address, Bits, Cond, InetAddr, Masked, Not, Span, read},
};
use crate::ruleset::render::Names;

/// `addrtype`: `struct xt_addrtype_info` (revision 0), `xt_addrtype_info_v1` (revision 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addrtype {
    /// Bits `XT_ADDRTYPE_*` (1 unspec, 2 unicast, 4 local, 8 broadcast, ...) of the source; `None` if it is not looked at.
    pub source: Option<Cond<u16>>,
    /// Likewise of the destination.
    pub destination: Option<Cond<u16>>,
    /// Only as the incoming interface sees it.
    pub limit_in: bool,
    /// Only as the outgoing interface sees it.
    pub limit_out: bool,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawAddrtype0 {
    source: u16,
    destination: u16,
    source_inverted: u32,
    destination_inverted: u32,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawAddrtype1 {
    source: u16,
    destination: u16,
    flags: u32,
}

impl Addrtype {
    pub(super) fn decode(rev: u8, info: &[u8]) -> Option<Self> {
        let kinds = |kinds: u16, inverted: bool| (kinds != 0).then_some(Cond::new(kinds, inverted));
        match rev {
            0 => {
                let raw: RawAddrtype0 = read(info)?;
                Some(Self {
                    source: kinds(raw.source, raw.source_inverted != 0),
                    destination: kinds(raw.destination, raw.destination_inverted != 0),
                    limit_in: false,
                    limit_out: false,
                })
            }
            1 => {
                let raw: RawAddrtype1 = read(info)?;
                Some(Self {
                    source: kinds(raw.source, raw.flags & 1 != 0),
                    destination: kinds(raw.destination, raw.flags & 2 != 0),
                    limit_in: raw.flags & 4 != 0,
                    limit_out: raw.flags & 8 != 0,
                })
            }
            _ => None,
        }
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        /// By `RTN_*`.
        const KINDS: [&str; 12] = [
            "UNSPEC",
            "UNICAST",
            "LOCAL",
            "BROADCAST",
            "ANYCAST",
            "MULTICAST",
            "BLACKHOLE",
            "UNREACHABLE",
            "PROHIBIT",
            "THROW",
            "NAT",
            "XRESOLVE",
        ];
        for (option, kinds) in [
            ("--src-type", &self.source),
            ("--dst-type", &self.destination),
        ] {
            if let Some(kinds) = kinds {
                let names = Bits {
                    bits: kinds.want.into(),
                    names: &KINDS,
                };
                write!(out, "{} {option} {names}", Not(kinds.inverted))?;
            }
        }
        if self.limit_in {
            out.push_str(" --limit-iface-in");
        }
        if self.limit_out {
            out.push_str(" --limit-iface-out");
        }
        Ok(())
    }
}

/// `iprange`, revision 1: `struct xt_iprange_mtinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iprange {
    /// Source address.
    pub source: Option<Cond<Span<IpAddr>>>,
    /// Destination address.
    pub destination: Option<Cond<Span<IpAddr>>>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawIprange {
    source: [InetAddr; 2],
    destination: [InetAddr; 2],
    flags: u8,
}

const _: () = assert!(size_of::<RawIprange>() == 68);

impl Iprange {
    pub(super) fn decode(info: &[u8], family: Family) -> Option<Self> {
        let raw: RawIprange = read(info)?;
        let range = |range: [InetAddr; 2], asked: u8, inverted: u8| {
            let span = Span::from(range.map(|addr| addr.get(family)));
            (raw.flags & asked != 0).then(|| Cond::new(span, raw.flags & inverted != 0))
        };
        Some(Self {
            source: range(raw.source, 1, 0x10),
            destination: range(raw.destination, 2, 0x20),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        for (option, range) in [
            ("--src-range", &self.source),
            ("--dst-range", &self.destination),
        ] {
            if let Some(range) = range {
                let (min, max) = (Address(range.want.min), Address(range.want.max));
                write!(out, "{} {option} {min}-{max}", Not(range.inverted))?;
            }
        }
        Ok(())
    }
}

/// `mac`: `struct xt_mac_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mac {
    /// Source address of the Ethernet header.
    pub source: Cond<[u8; 6]>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawMac {
    source: [u8; 6],
    inverted: u32,
}

impl Mac {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let raw: RawMac = read(info)?;
        Some(Self {
            source: Cond::new(raw.source, raw.inverted != 0),
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let [a, b, c, d, e, f] = self.source.want;
        write!(
            out,
            "{} --mac-source {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}",
            Not(self.source.inverted)
        )
    }
}

/// `rpfilter`: `struct xt_rpfilter_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rpfilter {
    /// Any interface will do.
    pub loose: bool,
    /// The packet's mark is part of the route lookup.
    pub validmark: bool,
    /// Packets with a local source are let through.
    pub accept_local: bool,
    /// Matches packets that fail the test.
    pub inverted: bool,
}

impl Rpfilter {
    pub(super) fn decode(info: &[u8]) -> Option<Self> {
        let flags: u8 = read(info)?;
        Some(Self {
            loose: flags & 1 != 0,
            validmark: flags & 2 != 0,
            accept_local: flags & 4 != 0,
            inverted: flags & 8 != 0,
        })
    }

    pub(super) fn options(&self, out: &mut String) -> fmt::Result {
        let options = [
            (self.loose, " --loose"),
            (self.validmark, " --validmark"),
            (self.accept_local, " --accept-local"),
            (self.inverted, " --invert"),
        ];
        for (_, option) in options.iter().filter(|(set, _)| *set) {
            out.push_str(option);
        }
        Ok(())
    }
}

/// `policy`: `struct xt_policy_info`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The policy that decapsulated the packet (`XT_POLICY_MATCH_IN`), otherwise the one that will encapsulate it.
    pub dir_in: bool,
    /// `XT_POLICY_MATCH_OUT`.
    pub dir_out: bool,
    /// There is no policy.
    pub none: bool,
    /// The elements are those of the policy exactly; otherwise one of it must match.
    pub strict: bool,
    /// At most four.
    pub elements: Vec<PolicyElement>,
}

/// `struct xt_policy_elem`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyElement {
    /// `reqid`.
    pub reqid: Option<Cond<u32>>,
    /// SPI, as it stands: the kernel compares it with the packet's, in network order; iptables writes it there in host order.
    pub spi: Option<Cond<u32>>,
    /// IP protocol.
    pub proto: Option<Cond<u8>>,
    /// 0 transport, 1 tunnel.
    pub mode: Option<Cond<u8>>,
    /// Source of the tunnel.
    pub tunnel_src: Option<Cond<Masked<IpAddr>>>,
    /// Destination of the tunnel.
    pub tunnel_dst: Option<Cond<Masked<IpAddr>>>,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawPolicyElement {
    /// Source, its mask, destination, its mask.
    addresses: [InetAddr; 4],
    spi: u32,
    reqid: u32,
    proto: u8,
    mode: u8,
    /// `struct xt_policy_spec`, a bit field: source, destination, protocol, mode, SPI, reqid.
    asked: u8,
    inverted: u8,
}

#[derive(FromBytes)]
#[repr(C)]
struct RawPolicy {
    elements: [RawPolicyElement; 4],
    flags: u16,
    len: u16,
}

const _: () = assert!(size_of::<RawPolicy>() == 308);

/// The bits of `struct xt_policy_spec` from the first one: the compiler fills a byte from the end that comes first.
const fn spec_bit(number: u32) -> u8 {
    if cfg!(target_endian = "little") {
        1 << number
    } else {
        0x80 >> number
    }
}

impl Policy {
    pub(super) fn decode(info: &[u8], family: Family) -> Option<Self> {
        let raw: RawPolicy = read(info)?;
        let len = usize::from(raw.len);
        Some(Self {
            dir_in: raw.flags & 1 != 0,
            dir_out: raw.flags & 2 != 0,
            none: raw.flags & 4 != 0,
            strict: raw.flags & 8 != 0,
            elements: raw
                .elements
                .iter()
                .take(len)
                .map(|raw| PolicyElement::decode(raw, family))
                .collect(),
        })
    }

    pub(super) fn options(&self, names: &Names, out: &mut String) -> fmt::Result {
        out.push_str(if self.dir_in {
            " --dir in"
        } else {
            " --dir out"
        });
        out.push_str(if self.none {
            " --pol none"
        } else {
            " --pol ipsec"
        });
        if self.strict {
            out.push_str(" --strict");
        }
        for (at, element) in self.elements.iter().enumerate() {
            if at > 0 {
                out.push_str(" --next");
            }
            element.write(names, out)?;
        }
        Ok(())
    }
}

impl PolicyElement {
    fn decode(raw: &RawPolicyElement, family: Family) -> Self {
        let inverted = |bit: u32| raw.inverted & spec_bit(bit) != 0;
        let asked = |bit: u32| raw.asked & spec_bit(bit) != 0;
        let address = |bit: u32, value: InetAddr, mask: InetAddr| {
            let masked = Masked {
                value: value.get(family),
                mask: mask.get(family),
            };
            asked(bit).then(|| Cond::new(masked, inverted(bit)))
        };
        let [source, source_mask, destination, destination_mask] = raw.addresses;
        Self {
            tunnel_src: address(0, source, source_mask),
            tunnel_dst: address(1, destination, destination_mask),
            proto: asked(2).then(|| Cond::new(raw.proto, inverted(2))),
            mode: asked(3).then(|| Cond::new(raw.mode, inverted(3))),
            spi: asked(4).then(|| Cond::new(raw.spi, inverted(4))),
            reqid: asked(5).then(|| Cond::new(raw.reqid, inverted(5))),
        }
    }

    fn write(&self, names: &Names, out: &mut String) -> fmt::Result {
        if let Some(reqid) = &self.reqid {
            write!(out, "{} --reqid {}", Not(reqid.inverted), reqid.want)?;
        }
        if let Some(spi) = &self.spi {
            write!(out, "{} --spi {:#x}", Not(spi.inverted), spi.want)?;
        }
        if let Some(proto) = &self.proto {
            write!(out, "{} --proto ", Not(proto.inverted))?;
            match names.protocol(proto.want.into()) {
                Some(name) => out.push_str(name),
                None => write!(out, "{}", proto.want)?,
            }
        }
        if let Some(mode) = &self.mode {
            write!(out, "{} --mode ", Not(mode.inverted))?;
            out.push_str(match mode.want {
                0 => "transport",
                1 => "tunnel",
                _ => "???",
            });
        }
        for (option, address) in [
            ("--tunnel-dst", &self.tunnel_dst),
            ("--tunnel-src", &self.tunnel_src),
        ] {
            if let Some(address) = address {
                write!(out, "{} {option} {}", Not(address.inverted), address.want)?;
            }
        }
        Ok(())
    }
}
