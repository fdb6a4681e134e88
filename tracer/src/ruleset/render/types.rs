//! The types of values: their numbers in the ruleset, sizes, byte orders and symbols, and how a value is written.
//!
//! nft keeps the type of a set's key as a number that the kernel stores and does not look at: nft's `enum datatypes`, version 1.0.6.

use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use jiff::tz::Offset;

use super::names::Names;
use super::symbols;

/// Byte order of a value in a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Network order.
    Big,
    /// The machine's order.
    Host,
}

impl Order {
    pub(super) fn swapped(self) -> Self {
        match self {
            Self::Big => Self::Host,
            Self::Host => Self::Big,
        }
    }
}

/// A type of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Invalid,
    Verdict,
    Nfproto,
    Bitmask,
    Integer,
    Str,
    Lladdr,
    Ip,
    Ip6,
    Ether,
    Ethertype,
    ArpOp,
    InetProto,
    Service,
    Icmp,
    TcpFlag,
    DccpPacket,
    Mobility,
    Time,
    Mark,
    Ifindex,
    Arphrd,
    Realm,
    Classid,
    Uid,
    Gid,
    CtState,
    CtDir,
    CtStatus,
    Icmp6,
    CtLabel,
    Pkttype,
    IcmpCode,
    Icmp6Code,
    IcmpxCode,
    Devgroup,
    Dscp,
    Ecn,
    FibAddr,
    Boolean,
    CtEvent,
    Ifname,
    Igmp,
    Date,
    Hour,
    Day,
    Cgroupv2,
    /// An integer of a payload without a name, written in hexadecimal; nft gives it the number of [`Type::Integer`].
    Hex,
}

/// What a value is: type, byte order, width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) ty: Type,
    pub(super) order: Order,
    pub(super) bits: u32,
}

impl Kind {
    pub(super) const fn new(ty: Type, order: Order, bits: u32) -> Self {
        Self { ty, order, bits }
    }

    /// Bytes that a field of this kind takes in a concatenation, without padding.
    pub(super) fn bytes(self) -> usize {
        self.bits.div_ceil(8) as usize
    }
}

use Order::{Big, Host};

/// By nft's number: the type, its name, bits (0 is any) and byte order.
const TYPES: &[(Type, &str, u32, Order)] = &[
    (Type::Invalid, "invalid", 0, Big),
    (Type::Verdict, "verdict", 0, Big),
    (Type::Nfproto, "nf_proto", 8, Big),
    (Type::Bitmask, "bitmask", 0, Big),
    (Type::Integer, "integer", 0, Big),
    (Type::Str, "string", 0, Host),
    (Type::Lladdr, "ll_addr", 0, Big),
    (Type::Ip, "ipv4_addr", 32, Big),
    (Type::Ip6, "ipv6_addr", 128, Big),
    (Type::Ether, "ether_addr", 48, Big),
    (Type::Ethertype, "ether_type", 16, Big),
    (Type::ArpOp, "arp_op", 16, Big),
    (Type::InetProto, "inet_proto", 8, Big),
    (Type::Service, "inet_service", 16, Big),
    (Type::Icmp, "icmp_type", 8, Big),
    (Type::TcpFlag, "tcp_flag", 8, Big),
    (Type::DccpPacket, "dccp_pkttype", 4, Big),
    (Type::Mobility, "mh_type", 8, Big),
    (Type::Time, "time", 32, Host),
    (Type::Mark, "mark", 32, Host),
    (Type::Ifindex, "iface_index", 32, Host),
    (Type::Arphrd, "iface_type", 16, Host),
    (Type::Realm, "realm", 32, Host),
    (Type::Classid, "classid", 32, Host),
    (Type::Uid, "uid", 32, Host),
    (Type::Gid, "gid", 32, Host),
    (Type::CtState, "ct_state", 32, Host),
    (Type::CtDir, "ct_dir", 8, Big),
    (Type::CtStatus, "ct_status", 32, Host),
    (Type::Icmp6, "icmpv6_type", 8, Big),
    (Type::CtLabel, "ct_label", 128, Host),
    (Type::Pkttype, "pkt_type", 8, Host),
    (Type::IcmpCode, "icmp_code", 8, Big),
    (Type::Icmp6Code, "icmpv6_code", 8, Big),
    (Type::IcmpxCode, "icmpx_code", 8, Big),
    (Type::Devgroup, "devgroup", 32, Host),
    (Type::Dscp, "dscp", 6, Big),
    (Type::Ecn, "ecn", 2, Big),
    (Type::FibAddr, "fib_addrtype", 32, Host),
    (Type::Boolean, "boolean", 1, Host),
    (Type::CtEvent, "ct_event", 32, Host),
    (Type::Ifname, "ifname", 128, Host),
    (Type::Igmp, "igmp_type", 8, Big),
    (Type::Date, "time", 64, Host),
    (Type::Hour, "hour", 32, Host),
    (Type::Day, "day", 8, Host),
    (Type::Cgroupv2, "cgroupsv2", 64, Host),
];

impl Type {
    /// The type with nft's number.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        let index = usize::try_from(number).ok()?;
        TYPES.get(index).map(|entry| entry.0)
    }

    fn entry(self) -> &'static (Self, &'static str, u32, Order) {
        let number = if self == Self::Hex {
            Self::Integer
        } else {
            self
        } as usize;
        TYPES.get(number).unwrap_or(&TYPES[0])
    }

    pub(super) fn name(self) -> &'static str {
        self.entry().1
    }

    /// Its width; 0 where that depends.
    pub(super) fn bits(self) -> u32 {
        self.entry().2
    }

    pub(super) fn order(self) -> Order {
        self.entry().3
    }

    pub(super) fn kind(self) -> Kind {
        Kind::new(self, self.order(), self.bits())
    }

    pub(super) fn is_string(self) -> bool {
        matches!(self, Self::Str | Self::Ifname)
    }

    /// Whether values are sets of flags.
    pub(super) fn is_bitmask(self) -> bool {
        matches!(
            self,
            Self::TcpFlag | Self::CtState | Self::CtStatus | Self::CtLabel | Self::CtEvent
        )
    }

    /// Whether `value/len` is how a range or mask of such values is written.
    pub(super) fn has_prefixes(self) -> bool {
        matches!(
            self,
            Self::Ip | Self::Ip6 | Self::Mark | Self::Devgroup | Self::Realm
        )
    }
}

/// The number in a register. `None` when it has more than 16 bytes.
pub(super) fn number(bytes: &[u8], order: Order) -> Option<u128> {
    if bytes.len() > 16 {
        return None;
    }
    let fold = |number: u128, byte: &u8| number << 8 | u128::from(*byte);
    Some(if order == Host && cfg!(target_endian = "little") {
        bytes.iter().rev().fold(0, fold)
    } else {
        bytes.iter().fold(0, fold)
    })
}

/// `len` bits of `bytes` from bit `start` on (0 is the most significant bit of the first byte), right-aligned in network order.
pub(super) fn bits(bytes: &[u8], start: u32, len: u32) -> Vec<u8> {
    let mut out = vec![0; len.div_ceil(8) as usize];
    let total = out.len() * 8;
    for i in 0..len {
        let from = (start + i) as usize;
        let bit = bytes
            .get(from / 8)
            .is_some_and(|byte| byte >> (7 - from % 8) & 1 == 1);
        let to = total - len as usize + i as usize;
        out[to / 8] |= u8::from(bit) << (7 - to % 8);
    }
    out
}

/// Hexadecimal as nft writes it, without leading zeros.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let digits = digits.trim_start_matches('0');
    format!("0x{}", if digits.is_empty() { "0" } else { digits })
}

/// The text of a string register up to its NUL. One that is not terminated is a prefix: `eth*`; a real `*` at the end is escaped.
pub(super) fn string(bytes: &[u8]) -> String {
    let len = bytes.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&bytes[..len.unwrap_or(bytes.len())]);
    match (len, text.strip_suffix('*')) {
        (None, _) => format!("\"{text}*\""),
        (Some(_), Some(stem)) => format!("\"{stem}\\*\""),
        (Some(_), None) => format!("\"{text}\""),
    }
}

/// The register's content as nft writes it. `numeric` is for the ends of ranges, which are never symbols.
pub(super) fn bytes_text(names: &Names, kind: Kind, bytes: &[u8], numeric: bool) -> String {
    if kind.ty.is_string() {
        return string(bytes);
    }
    match number(bytes, kind.order) {
        Some(number) => number_text(names, kind.ty, number, numeric),
        None => hex(bytes),
    }
}

/// A value as nft writes it.
pub(super) fn number_text(names: &Names, ty: Type, number: u128, numeric: bool) -> String {
    let low32 = number as u32;
    let quoted = |name: &str| format!("\"{name}\"");
    let named = |name: Option<&str>| name.filter(|_| !numeric).map(quoted);
    match ty {
        Type::Ip => Ipv4Addr::from(low32).to_string(),
        Type::Ip6 => ip6_text(number),
        Type::Ether | Type::Lladdr => {
            let bytes = number.to_be_bytes();
            let hex: Vec<String> = bytes[10..]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            hex.join(":")
        }
        Type::InetProto => match names.protocol(low32) {
            Some(name) if !numeric => name.to_owned(),
            _ => number.to_string(),
        },
        Type::Mark => named(names.mark(low32)).unwrap_or_else(|| format!("0x{low32:08x}")),
        Type::Realm => named(names.realm(low32)).unwrap_or_else(|| number.to_string()),
        Type::Devgroup => named(names.group(low32)).unwrap_or_else(|| number.to_string()),
        Type::Ifindex => names
            .interface(low32)
            .map_or_else(|| number.to_string(), quoted),
        Type::Classid => match low32 {
            0 => "none".to_owned(),
            u32::MAX => "root".to_owned(),
            handle => format!("{:x}:{:x}", handle >> 16, handle & 0xffff),
        },
        // In ranges nft writes seconds, even where that loses something; this does not.
        Type::Time if numeric && number.is_multiple_of(1000) => format!("{}s", number / 1000),
        Type::Time => time_text(number as u64),
        Type::Date => date_text(names, number),
        Type::Hour => hour_text(names, low32),
        Type::CtLabel => {
            let bit = number.trailing_zeros();
            names.label(bit).map_or_else(|| bit.to_string(), quoted)
        }
        Type::Cgroupv2 => match names.cgroup(number as u64) {
            Some(path) => quoted(&path),
            None => number.to_string(),
        },
        Type::Hex | Type::Invalid => format!("0x{number:x}"),
        _ => match symbols::of(ty)
            .iter()
            .find(|symbol| u128::from(symbol.1) == number)
        {
            Some(symbol) if !numeric && ty == Type::Day => quoted(symbol.0),
            Some(symbol) if !numeric => symbol.0.to_owned(),
            _ => plain_text(ty, number),
        },
    }
}

/// A value that has no symbol.
fn plain_text(ty: Type, number: u128) -> String {
    match ty {
        Type::Ethertype => format!("0x{number:04x}"),
        Type::Dscp => format!("0x{number:02x}"),
        Type::Ecn | Type::Bitmask => format!("0x{number:x}"),
        ty if ty.is_bitmask() => format!("0x{number:x}"),
        _ => number.to_string(),
    }
}

/// The prefix length of a range in network order that is one.
pub(super) fn prefix_of_range(from: &[u8], to: &[u8]) -> Option<u32> {
    let (from, bits) = (number(from, Big)?, 8 * from.len() as u32);
    prefix_len(from, number(to, Big)?, bits)
}

/// The prefix length of a range of numbers of `bits` bits that is one.
pub(super) fn prefix_len(from: u128, to: u128, bits: u32) -> Option<u32> {
    let span = to.checked_sub(from)?;
    let aligned = span & span.wrapping_add(1) == 0 && from & span == 0;
    (aligned && span != 0).then(|| bits.checked_sub(span.count_ones()))?
}

/// The flags of a bitmask value, each with its name, the lowest first.
pub(super) fn flags(names: &Names, ty: Type, number: u128) -> Vec<String> {
    (0..128)
        .filter(|bit| number >> bit & 1 == 1)
        .map(|bit| number_text(names, ty, 1 << bit, false))
        .collect()
}

/// An address as inet_ntop writes it: unlike Rust it also shows `::1.2.3.4`.
fn ip6_text(number: u128) -> String {
    let compatible = number >> 32 == 0 && number >> 16 != 0;
    if compatible {
        format!("::{}", Ipv4Addr::from(number as u32))
    } else {
        Ipv6Addr::from(number).to_string()
    }
}

/// Milliseconds as nft writes a duration: `1d2h3m4s5ms`, nothing for none.
pub(super) fn time_text(milliseconds: u64) -> String {
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
        (1, "ms"),
    ];
    let mut rest = milliseconds;
    let mut text = String::new();
    for (unit, suffix) in units {
        if rest >= unit {
            text += &format!("{}{suffix}", rest / unit);
            rest %= unit;
        }
    }
    text
}

/// Nanoseconds since the epoch as a local date and time.
fn date_text(names: &Names, nanoseconds: u128) -> String {
    let seconds = i64::try_from(nanoseconds / 1_000_000_000).ok();
    let stamp = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    match stamp {
        Some(stamp) => {
            let local = stamp.to_zoned(names.zone().clone());
            format!("\"{}\"", local.strftime("%Y-%m-%d %H:%M:%S"))
        }
        None => nanoseconds.to_string(),
    }
}

/// Seconds since midnight in UTC as local time of day.
fn hour_text(names: &Names, seconds: u32) -> String {
    let offset: Offset = names.zone().to_offset(Timestamp::now());
    let seconds = (i64::from(seconds) + i64::from(offset.seconds())).rem_euclid(86_400);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if seconds == 0 {
        format!("\"{hours:02}:{minutes:02}\"")
    } else {
        format!("\"{hours:02}:{minutes:02}:{seconds:02}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ty: Type, number: u128) -> String {
        number_text(&Names::default(), ty, number, false)
    }

    #[test]
    fn values_as_nft_writes_them() {
        assert_eq!(text(Type::Ip, 0x0a01_0203), "10.1.2.3");
        assert_eq!(text(Type::Ip6, 1), "::1");
        assert_eq!(text(Type::Ip6, 0xffff_0102_0304), "::ffff:1.2.3.4");
        assert_eq!(text(Type::Ip6, 0x0102_0304), "::1.2.3.4");
        assert_eq!(text(Type::Ether, 0x0011_2233_4455), "00:11:22:33:44:55");
        assert_eq!(text(Type::Mark, 255), "0x000000ff");
        assert_eq!(text(Type::Dscp, 0x0a), "af11");
        assert_eq!(text(Type::Dscp, 5), "0x05");
        assert_eq!(text(Type::Ethertype, 0x8100), "8021q");
        assert_eq!(text(Type::Classid, 0x0001_abcd), "1:abcd");
        assert_eq!(text(Type::Day, 6), "\"Saturday\"");
        assert_eq!(text(Type::Time, 86_400_000 + 5), "1d5ms");
        assert_eq!(text(Type::Hour, 17 * 3600 + 61), "\"17:01:01\"");
        assert_eq!(text(Type::TcpFlag, 0x29), "0x29");
        assert_eq!(
            number_text(&Names::default(), Type::InetProto, 6, true),
            "6"
        );
    }

    #[test]
    fn types_are_in_the_order_of_their_numbers() {
        for (number, entry) in TYPES.iter().enumerate() {
            assert_eq!(entry.0 as usize, number, "{}", entry.1);
        }
    }

    #[test]
    fn bits_of_registers() {
        assert_eq!(bits(&[0x12, 0x34], 4, 8), [0x23]);
        assert_eq!(bits(&[0xff, 0xff], 3, 13), [0x1f, 0xff]);
        assert_eq!(bits(&[0x80], 4, 12), [0, 0]);
        assert_eq!(hex(&[0, 0x0a, 0]), "0xa00");
        assert_eq!(hex(&[0, 0]), "0x0");
        assert_eq!(string(b"eth"), "\"eth*\"");
        assert_eq!(string(b"a*\0\0"), "\"a\\*\"");
    }
}
