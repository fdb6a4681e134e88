//! The filter: decided on the captured headers before anything is sent.
//!
//! Loops are `bpf_loop` callbacks over state in [`Scratch`]: the verifier follows a callback once,
//! a plain loop once per value of everything that it branches on.

use core::{ffi::c_void, ptr::null_mut};

use aya_ebpf::helpers::generated::bpf_loop;
use fwtrace_abi::{IFACES, IFNAMSIZ, PORTS, PREFIXES, REASONS, SIDE_DST, SIDE_SRC, Settings};

use crate::{
    kernel::copy,
    scratch::{SETTINGS, Scratch, scratch},
    uapi::{ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6},
};

/// VLAN tags inside the packet that are skipped.
const VLANS: usize = 2;
/// No packet's protocol: its header was not captured.
const NO_PROTO: u32 = 256;
/// IPv6 extension headers that are skipped.
const EXTENSIONS: u32 = 8;

/// What the filter needs of a packet's headers, and which conditions they have met.
#[repr(C)]
pub struct Headers {
    /// 4, 6, or 0 if it is neither.
    version: u32,
    /// Protocol of the transport header; while IPv6 extensions are walked, of the next header.
    proto: u32,
    /// Offset of the transport header (or next extension); 0 if it is not in this packet.
    transport: u32,
    /// Host order.
    source_port: u32,
    destination_port: u32,
    /// A bit per side: a condition was asked for.
    asked: u32,
    /// A bit per side: one of its alternatives was met.
    met: u32,
    pad: u32,
    /// Network order; IPv4 in the first word.
    source: [u32; 4],
    destination: [u32; 4],
}

/// Copies `N` bytes at `at` of the capture; false, and zeros, if they were not all captured. From the
/// packet itself rather than from the copy: the helper takes any offset, the verifier doesn't.
#[inline(always)]
fn load<const N: usize>(scratch: &Scratch, at: u32, to: &mut [u8; N]) -> bool {
    *to = [0; N];
    at + N as u32 <= scratch.record.captured
        && copy(to.as_mut_ptr(), N as u32, scratch.packet + at as u64)
}

/// Parses the headers that conditions look at. `protocol` is `skb->protocol`, host order.
#[inline(always)]
fn parse(scratch: &mut Scratch, mut protocol: u16) {
    let mut l3 = scratch.record.l2_len as u32;
    for _ in 0..VLANS {
        if protocol != ETH_P_8021Q && protocol != ETH_P_8021AD {
            break;
        }
        let mut tag = [0; 4];
        load(scratch, l3, &mut tag);
        protocol = u16::from_be_bytes([tag[2], tag[3]]);
        l3 += 4;
    }
    scratch.headers.version = 0;
    scratch.headers.proto = NO_PROTO;
    scratch.headers.transport = 0;
    scratch.headers.source = [0; 4];
    scratch.headers.destination = [0; 4];
    match protocol {
        ETH_P_IP => ipv4(scratch, l3),
        ETH_P_IPV6 => ipv6(scratch, l3),
        _ => return,
    }
    let mut ports = [0; 4];
    if !load(scratch, scratch.headers.transport, &mut ports) {
        // A source port alone can be asked for, too.
        let mut source = [0; 2];
        if !load(scratch, scratch.headers.transport, &mut source) {
            scratch.headers.transport = 0;
        }
        ports = [source[0], source[1], 0, 0];
    }
    scratch.headers.source_port = u16::from_be_bytes([ports[0], ports[1]]) as u32;
    scratch.headers.destination_port = u16::from_be_bytes([ports[2], ports[3]]) as u32;
}

#[inline(always)]
fn ipv4(scratch: &mut Scratch, l3: u32) {
    scratch.headers.version = 4;
    let mut ip = [0; 20];
    if !load(scratch, l3, &mut ip) {
        return;
    }
    scratch.headers.proto = ip[9] as u32;
    scratch.headers.source = [
        u32::from_ne_bytes([ip[12], ip[13], ip[14], ip[15]]),
        0,
        0,
        0,
    ];
    scratch.headers.destination = [
        u32::from_ne_bytes([ip[16], ip[17], ip[18], ip[19]]),
        0,
        0,
        0,
    ];
    // Only the first fragment has a transport header.
    if ip[6] & 0x1f == 0 && ip[7] == 0 {
        scratch.headers.transport = l3 + (ip[0] & 0xf) as u32 * 4;
    }
}

#[inline(always)]
fn ipv6(scratch: &mut Scratch, l3: u32) {
    scratch.headers.version = 6;
    let mut start = [0; 8];
    if !load(scratch, l3, &mut start) || l3 + 40 > scratch.record.captured {
        return;
    }
    scratch.headers.proto = start[6] as u32;
    scratch.headers.transport = l3 + 40;
    let addresses = scratch.packet + l3 as u64 + 8;
    copy((&raw mut scratch.headers.source).cast(), 16, addresses);
    copy(
        (&raw mut scratch.headers.destination).cast(),
        16,
        addresses + 16,
    );
    each(scratch, EXTENSIONS, extension);
}

/// Steps over one IPv6 extension header.
extern "C" fn extension(_: u32, _: *mut c_void) -> i64 {
    let Some(scratch) = scratch() else { return 1 };
    let at = scratch.headers.transport;
    let mut header = [0; 4];
    load(scratch, at, &mut header);
    // IANA protocol numbers: hop-by-hop 0, routing 43, fragment 44, AH 51, destination options 60.
    let length = match scratch.headers.proto {
        0 | 43 | 60 => (header[1] as u32 + 1) * 8,
        51 => (header[1] as u32 + 2) * 4,
        44 => 8,
        _ => return 1,
    };
    let later_fragment = scratch.headers.proto == 44 && (header[2] | header[3] & 0xf8) != 0;
    scratch.headers.proto = header[0] as u32;
    if later_fragment {
        scratch.headers.transport = 0;
        return 1;
    }
    scratch.headers.transport = at + length;
    0
}

/// Calls `callback` with 0 to `count - 1`. The callbacks look `scratch` up for themselves, which the
/// compiler cannot know: it has to be told that what it holds of it may have changed.
#[inline(always)]
pub fn each(scratch: &mut Scratch, count: u32, callback: extern "C" fn(u32, *mut c_void) -> i64) {
    core::hint::black_box(&mut *scratch);
    // SAFETY: the callbacks here use no context.
    unsafe { bpf_loop(count, callback as *mut c_void, null_mut(), 0) };
    core::hint::black_box(&mut *scratch);
}

/// Whether it depends on the packet or its interfaces which drops are wanted.
#[inline(always)]
pub fn is_conditional(settings: &Settings) -> bool {
    packet_conditions(settings) | settings.iface_count != 0
}

#[inline(always)]
fn packet_conditions(settings: &Settings) -> u32 {
    settings.ip_version | settings.proto_set | settings.prefix_count | settings.port_count
}

/// Whether the packet's headers match: version, protocol, addresses, ports. `protocol` is
/// `skb->protocol`, host order.
#[inline(always)]
pub fn packet_matches(settings: &Settings, scratch: &mut Scratch, protocol: u16) -> bool {
    if packet_conditions(settings) == 0 {
        return true;
    }
    parse(scratch, protocol);
    let version = scratch.headers.version;
    if settings.ip_version != 0 && settings.ip_version != version {
        return false;
    }
    if settings.proto_set != 0 && settings.proto != scratch.headers.proto {
        return false;
    }
    if settings.prefix_count != 0 {
        scratch.headers.asked = 0;
        scratch.headers.met = 0;
        each(scratch, settings.prefix_count, prefix);
        if scratch.headers.asked & !scratch.headers.met != 0 {
            return false;
        }
    }
    if settings.port_count != 0 {
        // TCP, UDP, DCCP, SCTP, UDP-Lite: the ports are the first four bytes.
        if scratch.headers.transport == 0
            || !matches!(scratch.headers.proto, 6 | 17 | 33 | 132 | 136)
        {
            return false;
        }
        scratch.headers.asked = 0;
        scratch.headers.met = 0;
        each(scratch, settings.port_count, port);
        if scratch.headers.asked & !scratch.headers.met != 0 {
            return false;
        }
    }
    true
}

/// Notes one alternative of `side`. Without branches, for the verifier.
#[inline(always)]
fn note(headers: &mut Headers, side: u32, source: bool, destination: bool) {
    let met = (source & (side != SIDE_DST)) | (destination & (side != SIDE_SRC));
    headers.asked |= 1 << (side & 3);
    headers.met |= (met as u32) << (side & 3);
}

/// `index`, known to the verifier to be less than `N`, a power of two; the mask must survive the
/// compiler, which knows as much already.
#[inline(always)]
fn bounded<const N: usize>(index: u32) -> usize {
    const { assert!(N.is_power_of_two()) };
    core::hint::black_box(index) as usize & (N - 1)
}

/// Tries one port range.
extern "C" fn port(index: u32, _: *mut c_void) -> i64 {
    let (Some(settings), Some(scratch)) = (SETTINGS.get(0), scratch()) else {
        return 1;
    };
    let range = &settings.ports[bounded::<PORTS>(index)];
    let headers = &mut scratch.headers;
    let (first, last) = (range.first as u32, range.last as u32);
    let source = headers.source_port >= first && headers.source_port <= last;
    let destination = headers.destination_port >= first && headers.destination_port <= last;
    note(headers, range.side, source, destination);
    0
}

/// Tries one address prefix.
extern "C" fn prefix(index: u32, _: *mut c_void) -> i64 {
    let (Some(settings), Some(scratch)) = (SETTINGS.get(0), scratch()) else {
        return 1;
    };
    let prefix = &settings.prefixes[bounded::<PREFIXES>(index)];
    let headers = &mut scratch.headers;
    let (mut source, mut destination) = (0, 0);
    for i in 0..4 {
        // An IPv4 prefix has a zero mask behind the first word.
        source |= (headers.source[i] & prefix.mask[i]) ^ prefix.addr[i];
        destination |= (headers.destination[i] & prefix.mask[i]) ^ prefix.addr[i];
    }
    let family = prefix.family == headers.version;
    note(
        headers,
        prefix.side,
        family & (source == 0),
        family & (destination == 0),
    );
    0
}

/// Whether the packet came in or was going out through one of the interfaces asked for.
#[inline(always)]
pub fn interface_matches(settings: &Settings, scratch: &mut Scratch) -> bool {
    if settings.iface_count == 0 {
        return true;
    }
    scratch.headers.met = 0;
    each(scratch, settings.iface_count, interface);
    scratch.headers.met != 0
}

/// Tries one interface.
extern "C" fn interface(index: u32, _: *mut c_void) -> i64 {
    let (Some(settings), Some(scratch)) = (SETTINGS.get(0), scratch()) else {
        return 1;
    };
    let wanted = &settings.ifaces[bounded::<IFACES>(index)];
    let same = differ(wanted, &scratch.record.iif_name) == 0
        || differ(wanted, &scratch.record.oif_name) == 0;
    scratch.headers.met |= same as u32;
    0
}

/// Zero if two NUL-padded names are the same. By words, and volatile: of single bytes the compiler makes
/// a branch each, and the verifier follows every combination.
#[inline(always)]
fn differ(a: &[u8; IFNAMSIZ], b: &[u8; IFNAMSIZ]) -> u64 {
    let mut different = 0;
    for word in 0..IFNAMSIZ / 8 {
        // SAFETY: within the names; both stand at multiples of 8, in the settings and in the record.
        unsafe {
            different |= core::ptr::read_volatile(a.as_ptr().cast::<u64>().add(word))
                ^ core::ptr::read_volatile(b.as_ptr().cast::<u64>().add(word));
        }
    }
    different
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
    for i in 0..REASONS {
        if settings.reasons[i] == reason {
            return true;
        }
    }
    false
}
