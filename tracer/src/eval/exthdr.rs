//! IPv6 extension headers, and the options of IPv4, TCP, SCTP and DCCP (net/netfilter/nft_exthdr.c, v6.18).

use super::{
    field::{DoubtKind, Reason, Value},
    headers::{DCCP, ETH_IPV4, ETH_IPV6, Gap, SCTP, TCP},
    packet::Packet,
};

/// `NFT_EXTHDR_F_PRESENT`.
const PRESENT: u32 = 1;

/// The most options of DCCP that are looked at; a header has room for no more.
const MAX_OPTIONS: u32 = 1024;

/// The value of `len` bytes at `offset` in the header or option of this kind, or whether it is there.
pub(super) fn load(
    packet: &Packet<'_>,
    op: u32,
    kind: u8,
    offset: u32,
    len: u32,
    flags: u32,
) -> Value {
    let want = Want { kind, offset, len };
    let found = match op {
        0 if packet.protocol != ETH_IPV6 => return Value::Break,
        0 => ipv6(packet, &want),
        1 => tcp(packet, &want),
        2 if packet.protocol != ETH_IPV4 => return Value::Break,
        2 => ipv4(packet, &want),
        3 => sctp(packet, &want),
        4 => dccp(packet, &want),
        _ => {
            return Value::Unknown(Reason::new(
                DoubtKind::Missing,
                format!("extension headers of kind {op} are not known"),
            ));
        }
    };
    match (found, flags & PRESENT != 0) {
        (Ok(Found::Short) | Err(Gap::End), false) => Value::Break,
        // A TCP option that is cut short is not there; of the others the header alone is asked for.
        (Ok(Found::Short), true) => Value::u8(u8::from(op != 1)),
        (Err(Gap::End), true) => Value::u8(0),
        (Ok(Found::At(_)), true) => Value::u8(1),
        (Ok(Found::At(bytes)), false) => Value::bytes(bytes),
        (Err(gap @ Gap::NotCaptured), _) => gap.into(),
    }
}

struct Want {
    kind: u8,
    offset: u32,
    len: u32,
}

enum Found<'a> {
    At(&'a [u8]),
    /// There, and shorter than what is wanted of it.
    Short,
}

impl<'a> Found<'a> {
    fn bytes(packet: &Packet<'a>, start: u32, want: &Want) -> Result<Self, Gap> {
        let at = start.checked_add(want.offset).ok_or(Gap::End)?;
        match packet.network(at, want.len) {
            Ok(bytes) => Ok(Self::At(bytes)),
            Err(Gap::End) => Ok(Self::Short),
            Err(gap) => Err(gap),
        }
    }
}

fn ipv6<'a>(packet: &Packet<'a>, want: &Want) -> Result<Found<'a>, Gap> {
    let header = packet.find(Some(want.kind))?;
    Found::bytes(packet, header.offset, want)
}

/// The length of the option of TCP or IP at the start of these bytes (`optlen()`).
fn option_len(options: &[u8]) -> usize {
    match options {
        [0 | 1, ..] | [_] | [_, 0, ..] | [] => 1,
        [_, len, ..] => usize::from(*len),
    }
}

fn tcp<'a>(packet: &Packet<'a>, want: &Want) -> Result<Found<'a>, Gap> {
    let transport = packet.transport()?;
    if transport.proto != TCP || transport.fragment != 0 {
        return Err(Gap::End);
    }
    let fixed = packet.network(transport.offset, 20)?;
    let total = usize::from(fixed[12] >> 4) * 4;
    if total < 20 {
        return Err(Gap::End);
    }
    let header = packet.network(transport.offset, total as u32)?;
    let mut at = 20;
    while at + 1 < total {
        let len = option_len(&header[at..]);
        if header[at] == want.kind {
            let (start, end) = (want.offset as usize, (want.offset + want.len) as usize);
            if at + len > total || end > len {
                return Ok(Found::Short);
            }
            let option = header.get(at + start..at + end);
            return Ok(option.map_or(Found::Short, Found::At));
        }
        at += len;
    }
    Err(Gap::End)
}

/// `ipv4_find_option()`: only source routes, record route and router alert are looked for.
fn ipv4<'a>(packet: &Packet<'a>, want: &Want) -> Result<Found<'a>, Gap> {
    const LSRR: u8 = 131;
    const SSRR: u8 = 137;
    const RR: u8 = 7;
    const RA: u8 = 148;
    let first = packet.network(0, 20)?[0];
    let total = usize::from(first & 0xf) * 4;
    if total <= 20 || !matches!(want.kind, LSRR | SSRR | RR | RA) {
        return Err(Gap::End);
    }
    let header = packet.network(0, total as u32)?;
    let mut at = 20;
    while at < total {
        let (kind, len) = match header[at] {
            // `IPOPT_END`, `IPOPT_NOOP`.
            0 => break,
            1 => (1, 1),
            kind => (kind, header.get(at + 1).copied().map_or(0, usize::from)),
        };
        if kind != 1 && (len < 2 || at + len > total) {
            break;
        }
        if kind == want.kind {
            return Found::bytes(packet, at as u32, want);
        }
        at += len;
    }
    Err(Gap::End)
}

fn sctp<'a>(packet: &Packet<'a>, want: &Want) -> Result<Found<'a>, Gap> {
    let transport = packet.transport()?;
    if transport.proto != SCTP || transport.fragment != 0 {
        return Err(Gap::End);
    }
    // The common header has 12 bytes.
    let mut at = transport.offset + 12;
    while at < packet.len {
        let chunk = packet.network(at, 4)?;
        let len = u32::from(u16::from_be_bytes([chunk[2], chunk[3]]));
        if len == 0 {
            break;
        }
        if chunk[0] == want.kind {
            if want.offset + want.len > len || at + len > packet.len {
                return Ok(Found::Short);
            }
            return Found::bytes(packet, at, want);
        }
        at = at.checked_add(len.next_multiple_of(4)).ok_or(Gap::End)?;
    }
    Err(Gap::End)
}

/// Options of DCCP have no value that nft could ask for: whether they are there is all.
fn dccp<'a>(packet: &Packet<'a>, want: &Want) -> Result<Found<'a>, Gap> {
    let transport = packet.transport()?;
    if transport.proto != DCCP || transport.fragment != 0 {
        return Err(Gap::End);
    }
    let fixed = packet.network(transport.offset, 12)?;
    let data = u32::from(fixed[4]) * 4;
    let kind = (fixed[8] >> 1) & 0xf;
    let extended = if fixed[8] & 1 != 0 { 4 } else { 0 };
    // `dccp_packet_hdr_len()`: request, response, data, acknowledgement and the like.
    let by_kind = match kind {
        0 => 4,
        1 => 12,
        2 => 0,
        7 => 12,
        _ => 8,
    };
    let mut at = 12 + extended + by_kind;
    for _ in 0..MAX_OPTIONS {
        if at >= data {
            break;
        }
        let option = packet.network(transport.offset + at, 1)?[0];
        if option == want.kind {
            return Found::bytes(
                packet,
                transport.offset + at,
                &Want {
                    len: 1,
                    offset: 0,
                    ..*want
                },
            );
        }
        // Options up to 31 are one byte.
        at += match option {
            0..=31 => 1,
            _ => match packet.network(transport.offset + at + 1, 1)?[0] {
                len @ 2.. => u32::from(len),
                _ => break,
            },
        };
    }
    Err(Gap::End)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_packet(options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[0] = 0x45;
        bytes[9] = TCP;
        bytes[32] = (((20 + options.len()) / 4) as u8) << 4;
        bytes.extend(options);
        bytes
    }

    fn read(bytes: &[u8], op: u32, kind: u8, offset: u32, len: u32, flags: u32) -> Value {
        let packet = Packet {
            bytes,
            len: bytes.len() as u32,
            pf: 2,
            protocol: ETH_IPV4,
            ..Packet::default()
        };
        load(&packet, op, kind, offset, len, flags)
    }

    #[test]
    fn tcp_options() {
        let bytes = tcp_packet(&[1, 1, 2, 4, 5, 0xb4, 3, 3, 7, 0, 0, 0]);
        assert_eq!(read(&bytes, 1, 2, 2, 2, 0), Value::bytes(&[5, 0xb4]));
        assert_eq!(read(&bytes, 1, 3, 2, 1, 0), Value::bytes(&[7]));
        assert_eq!(read(&bytes, 1, 4, 0, 1, PRESENT), Value::u8(0));
        assert_eq!(read(&bytes, 1, 2, 0, 1, PRESENT), Value::u8(1));
        assert_eq!(read(&bytes, 1, 4, 2, 1, 0), Value::Break);
        // More than the option has.
        assert_eq!(read(&bytes, 1, 2, 2, 4, 0), Value::Break);
    }

    #[test]
    fn ipv4_options() {
        let mut bytes = vec![0; 28];
        bytes[0] = 0x47;
        bytes[20..28].copy_from_slice(&[1, 148, 4, 0, 9, 0, 0, 0]);
        assert_eq!(read(&bytes, 2, 148, 0, 1, PRESENT), Value::u8(1));
        assert_eq!(read(&bytes, 2, 7, 0, 1, PRESENT), Value::u8(0));
        assert_eq!(read(&bytes, 2, 148, 2, 2, 0), Value::bytes(&[0, 9]));
    }

    #[test]
    fn what_was_not_captured_is_not_known() {
        let bytes = tcp_packet(&[2, 4, 5, 0xb4]);
        let packet = Packet {
            bytes: &bytes[..40],
            len: 44,
            pf: 2,
            protocol: ETH_IPV4,
            ..Packet::default()
        };
        assert!(matches!(
            load(&packet, 1, 2, 0, 1, PRESENT),
            Value::Unknown(_)
        ));
    }
}
