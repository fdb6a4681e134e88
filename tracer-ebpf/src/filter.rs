//! The filter: decided on the captured headers before anything is sent.

use fwtrace_abi::{
    IFACES, IFNAMSIZ, PORTS, PREFIXES, PortRange, Prefix, Record, SIDE_DST, SIDE_SRC,
    Settings,
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
/// VLAN tags inside the packet that are skipped.
const VLANS: usize = 2;
/// IPv6 extension headers that are skipped.
const EXTENSIONS: usize = 8;
/// Reach of header parsing into the capture; a power of two, for the verifier.
const REACH: u32 = 1024;

/// A window on the captured bytes.
#[derive(Clone, Copy)]
pub struct Window {
    data: *const u8,
    len: u32,
}

impl Window {
    /// `data` must point to at least [`REACH`] readable bytes, of which `len` were captured.
    #[inline(always)]
    pub fn new(data: *const u8, len: u32) -> Self {
        Self { data, len }
    }

    /// The byte at `at`, if it was captured.
    #[inline(always)]
    fn byte(self, at: u32) -> Option<u8> {
        if at >= self.len || at >= REACH {
            return None;
        }
        // SAFETY: bounded by REACH.
        Some(unsafe { core::ptr::read_volatile(self.data.add((at & (REACH - 1)) as usize)) })
    }

    /// The big-endian u16 at `at`.
    #[inline(always)]
    fn be16(self, at: u32) -> Option<u16> {
        Some((self.byte(at)? as u16) << 8 | self.byte(at + 1)? as u16)
    }
}

/// What the filter needs of a packet's headers.
#[derive(Clone, Copy, Default)]
pub struct Headers {
    /// 4, 6, or 0 if it is neither.
    pub version: u32,
    /// Protocol of the transport header.
    proto: u8,
    /// Where the addresses start.
    addresses: u32,
    /// Where the transport header starts; 0 if there is none here (a later fragment, cut short).
    transport: u32,
}

/// Parses from the network header on. `protocol` is `skb->protocol`, host order.
#[inline(always)]
pub fn headers(window: Window, mut l3: u32, mut protocol: u16) -> Headers {
    for _ in 0..VLANS {
        if protocol != ETH_P_8021Q && protocol != ETH_P_8021AD {
            break;
        }
        protocol = window.be16(l3 + 2).unwrap_or(0);
        l3 += 4;
    }
    match protocol {
        ETH_P_IP => ipv4(window, l3).unwrap_or_default(),
        ETH_P_IPV6 => ipv6(window, l3).unwrap_or_default(),
        _ => Headers::default(),
    }
}

#[inline(always)]
fn ipv4(window: Window, l3: u32) -> Option<Headers> {
    let first = window.byte(l3)?;
    let fragment = window.be16(l3 + 6)? & 0x1fff;
    let ihl = (first & 0xf) as u32 * 4;
    Some(Headers {
        version: 4,
        proto: window.byte(l3 + 9)?,
        addresses: l3 + 12,
        transport: if fragment == 0 { l3 + ihl } else { 0 },
    })
}

#[inline(always)]
fn ipv6(window: Window, l3: u32) -> Option<Headers> {
    let mut next = window.byte(l3 + 6)?;
    let mut at = l3 + 40;
    let mut first_fragment = true;
    for _ in 0..EXTENSIONS {
        // IANA protocol numbers: hop-by-hop 0, routing 43, fragment 44, AH 51, destination 60.
        let length = match next {
            0 | 43 | 60 => (window.byte(at + 1).unwrap_or(0) as u32 + 1) * 8,
            51 => (window.byte(at + 1).unwrap_or(0) as u32 + 2) * 4,
            44 => {
                if window.be16(at + 2).unwrap_or(0) & 0xfff8 != 0 {
                    first_fragment = false;
                }
                8
            }
            _ => break,
        };
        next = window.byte(at).unwrap_or(59);
        at += length;
        if !first_fragment {
            break;
        }
    }
    Some(Headers {
        version: 6,
        proto: next,
        addresses: l3 + 8,
        transport: if first_fragment { at } else { 0 },
    })
}

/// Whether the packet's headers match: version, protocol, addresses, ports.
#[inline(always)]
pub fn packet_matches(settings: &Settings, window: Window, headers: &Headers) -> bool {
    if settings.ip_version != 0 && settings.ip_version != headers.version {
        return false;
    }
    if settings.proto_set != 0
        && (headers.version == 0 || settings.proto != headers.proto as u32)
    {
        return false;
    }
    if settings.prefix_count != 0 && !addresses_match(settings, window, headers) {
        return false;
    }
    settings.port_count == 0 || ports_match(settings, window, headers)
}

/// For each side: not asked for, or asked for and matched by one of the alternatives.
struct Sides {
    asked: [bool; 3],
    matched: [bool; 3],
}

impl Sides {
    #[inline(always)]
    fn new() -> Self {
        Self {
            asked: [false; 3],
            matched: [false; 3],
        }
    }

    #[inline(always)]
    fn note(&mut self, side: u32, source: bool, destination: bool) {
        match side {
            SIDE_SRC => {
                self.asked[1] = true;
                self.matched[1] |= source;
            }
            SIDE_DST => {
                self.asked[2] = true;
                self.matched[2] |= destination;
            }
            _ => {
                self.asked[0] = true;
                self.matched[0] |= source | destination;
            }
        }
    }

    #[inline(always)]
    fn all(&self) -> bool {
        (!self.asked[0] | self.matched[0])
            & (!self.asked[1] | self.matched[1])
            & (!self.asked[2] | self.matched[2])
    }
}

#[inline(always)]
fn ports_match(settings: &Settings, window: Window, headers: &Headers) -> bool {
    // TCP, UDP, DCCP, SCTP, UDP-Lite: the ports are the first four bytes.
    if headers.transport == 0 || !matches!(headers.proto, 6 | 17 | 33 | 132 | 136) {
        return false;
    }
    let (Some(source), Some(destination)) = (
        window.be16(headers.transport),
        window.be16(headers.transport + 2),
    ) else {
        return false;
    };
    let mut sides = Sides::new();
    for i in 0..PORTS {
        if i as u32 >= settings.port_count {
            break;
        }
        let PortRange { first, last, side } = settings.ports[i];
        sides.note(
            side,
            source >= first && source <= last,
            destination >= first && destination <= last,
        );
    }
    sides.all()
}

#[inline(always)]
fn prefix_matches(prefix: &Prefix, window: Window, at: u32, length: u32) -> bool {
    for i in 0..16u32 {
        if i >= length {
            break;
        }
        let mask = prefix.mask[i as usize];
        if mask == 0 {
            break;
        }
        match window.byte(at + i) {
            Some(byte) if byte & mask == prefix.addr[i as usize] => {}
            _ => return false,
        }
    }
    true
}

#[inline(always)]
fn addresses_match(settings: &Settings, window: Window, headers: &Headers) -> bool {
    if headers.version == 0 {
        return false;
    }
    let length = if headers.version == 4 { 4 } else { 16 };
    let mut sides = Sides::new();
    for i in 0..PREFIXES {
        if i as u32 >= settings.prefix_count {
            break;
        }
        let prefix = &settings.prefixes[i];
        let family = prefix.family == headers.version;
        let source = family
            && prefix.side != SIDE_DST
            && prefix_matches(prefix, window, headers.addresses, length);
        let destination = family
            && prefix.side != SIDE_SRC
            && prefix_matches(prefix, window, headers.addresses + length, length);
        sides.note(prefix.side, source, destination);
    }
    sides.all()
}

/// Whether the packet came in or was going out through one of the interfaces asked for.
#[inline(always)]
pub fn interface_matches(settings: &Settings, record: &Record) -> bool {
    if settings.iface_count == 0 {
        return true;
    }
    for i in 0..IFACES {
        if i as u32 >= settings.iface_count {
            break;
        }
        let wanted = &settings.ifaces[i];
        if same(wanted, &record.iif_name) || same(wanted, &record.oif_name) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn same(a: &[u8; IFNAMSIZ], b: &[u8; IFNAMSIZ]) -> bool {
    for i in 0..IFNAMSIZ {
        if a[i] != b[i] {
            return false;
        }
        if a[i] == 0 {
            return true;
        }
    }
    true
}

/// Whether a drop for `reason` gets a record, or is only counted.
#[inline(always)]
pub fn reason_wanted(settings: &Settings, reason: u32) -> bool {
    if settings.all_reasons != 0 {
        return true;
    }
    if settings.reason_count == 0 {
        return reason == settings.netfilter_drop;
    }
    for i in 0..fwtrace_abi::REASONS {
        if i as u32 >= settings.reason_count {
            break;
        }
        if settings.reasons[i] == reason {
            return true;
        }
    }
    false
}
