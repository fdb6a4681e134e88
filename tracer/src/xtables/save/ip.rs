//! What every rule has: addresses, interfaces, protocol, fragments.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ruleset::render::Names;
use crate::xtables::Family;
use crate::xtables::legacy::Ip;

/// `IPT_F_FRAG`.
pub(super) const FRAGMENT: u8 = 1;

/// `IPT_INV_*` and `IP6T_INV_*` (include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h, v6.18).
pub(super) mod inverted {
    pub(crate) const IN: u8 = 0x01;
    pub(crate) const OUT: u8 = 0x02;
    pub(crate) const SOURCE: u8 = 0x08;
    pub(crate) const DESTINATION: u8 = 0x10;
    pub(crate) const FRAGMENT: u8 = 0x20;
    pub(crate) const PROTOCOL: u8 = 0x40;
}

/// Protocols that iptables has names of its own for, before the machine's.
const PROTOCOLS: &[(u16, &str)] = &[
    (1, "icmp"),
    (6, "tcp"),
    (17, "udp"),
    (50, "esp"),
    (51, "ah"),
    (58, "ipv6-icmp"),
    (132, "sctp"),
    (135, "mobility-header"),
    (136, "udplite"),
];

/// iptables-nft's way to say `! -i +`, which no packet matches: no interface can have this name.
const NO_INTERFACE: &str = "INVAL/D";
/// Nothing asked for.
pub(super) fn any(family: Family) -> Ip {
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    Ip {
        src: address,
        src_mask: address,
        dst: address,
        dst_mask: address,
        iface_in: String::new(),
        iface_out: String::new(),
        proto: 0,
        tos: 0,
        flags: 0,
        inverted: 0,
    }
}

/// Appends ` -s ... -d ... -i ... -o ... -p ... -f`, as much of it as the rule asks for.
pub(super) fn push(line: &mut String, ip: &Ip, family: Family, names: &Names) {
    let not = |flag: u8| if ip.inverted & flag != 0 { " !" } else { "" };
    for (letter, address, mask, flag) in [
        ('s', &ip.src, &ip.src_mask, inverted::SOURCE),
        ('d', &ip.dst, &ip.dst_mask, inverted::DESTINATION),
    ] {
        if asks_for(address, mask, family) || ip.inverted & flag != 0 {
            let (not, address, mask) = (not(flag), address_text(address), mask_text(mask));
            *line += &format!("{not} -{letter} {address}/{mask}");
        }
    }
    for (letter, name, flag) in [
        ('i', &ip.iface_in, inverted::IN),
        ('o', &ip.iface_out, inverted::OUT),
    ] {
        // `+` is every interface; without it the rule would ask for no other.
        match name.as_str() {
            "" | "+" if ip.inverted & flag == 0 => {}
            "" => *line += &format!(" ! -{letter} +"),
            name => *line += &format!("{} -{letter} {name}", not(flag)),
        }
    }
    if ip.proto != 0 {
        let not = not(inverted::PROTOCOL);
        *line += &format!("{not} -p {}", protocol(ip.proto, names));
    }
    if family == Family::V4 && ip.flags & FRAGMENT != 0 {
        *line += &format!("{} -f", not(inverted::FRAGMENT));
    }
}

/// Whether any packet could fail the test.
fn asks_for(address: &IpAddr, mask: &IpAddr, family: Family) -> bool {
    match family {
        Family::V4 => !(address.is_unspecified() && mask.is_unspecified()),
        Family::V6 => !mask.is_unspecified(),
    }
}

fn protocol(number: u16, names: &Names) -> String {
    let own = PROTOCOLS.iter().find(|known| known.0 == number);
    match own
        .map(|known| known.1)
        .or_else(|| names.protocol(u32::from(number)))
    {
        Some(name) => name.to_owned(),
        None => number.to_string(),
    }
}

/// A prefix length, or for masks that are no prefix the mask itself.
fn mask_text(mask: &IpAddr) -> String {
    let (bits, width) = match mask {
        IpAddr::V4(mask) => (u128::from(u32::from(*mask)) << 96, 32),
        IpAddr::V6(mask) => (u128::from(*mask), 128),
    };
    let ones = bits.leading_ones();
    if bits.count_ones() == ones && ones <= width {
        ones.to_string()
    } else {
        address_text(mask)
    }
}

/// As inet_ntop(3) of glibc has it: that writes the last 32 bits of an IPv6 address the IPv4 way where the longest row of zeros is the first
/// 96 bits, or 80 bits before `ffff`.
fn address_text(address: &IpAddr) -> String {
    if let IpAddr::V6(address) = address {
        let words = address.segments();
        if words[..6] == [0; 6] && words[6] != 0 {
            let low = u32::from(words[6]) << 16 | u32::from(words[7]);
            return format!("::{}", Ipv4Addr::from(low));
        }
    }
    address.to_string()
}

/// An interface by its name, with a 0 at its end, or by how its name begins; and whether it must not be that.
pub(super) fn interface(data: &[u8], not: bool) -> Option<(String, bool)> {
    let end = data.iter().position(|byte| *byte == 0);
    let (name, rest) = data.split_at(end.unwrap_or(data.len()));
    if name.is_empty() || rest.iter().any(|byte| *byte != 0) {
        return None;
    }
    let name = std::str::from_utf8(name).ok()?;
    match end {
        Some(_) if name == NO_INTERFACE && !not => Some(("+".to_owned(), true)),
        Some(_) if name.ends_with('+') => None,
        Some(_) => Some((name.to_owned(), not)),
        None => Some((format!("{name}+"), not)),
    }
}

pub(super) fn set_interface(interface: &mut String, name: String) -> Option<()> {
    if !interface.is_empty() {
        return None;
    }
    *interface = name;
    Some(())
}

/// An address, of which the first bytes are enough where its prefix is whole bytes, and its mask.
pub(super) fn address(
    family: Family,
    data: &[u8],
    mask: Option<&[u8]>,
) -> Option<(IpAddr, IpAddr)> {
    let whole = match family {
        Family::V4 => 4,
        Family::V6 => 16,
    };
    if mask.is_some_and(|mask| mask.len() != whole) {
        return None;
    }
    let mut masks = [0; 16];
    let mut bytes = [0; 16];
    bytes.get_mut(..data.len())?.copy_from_slice(data);
    match mask {
        Some(mask) => masks.get_mut(..whole)?.copy_from_slice(mask),
        None => masks.get_mut(..data.len())?.fill(0xff),
    }
    Some((to_address(family, bytes), to_address(family, masks)))
}

fn to_address(family: Family, bytes: [u8; 16]) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(bytes)),
    }
}

/// An address is asked for once only.
pub(super) fn set_address(
    address: &mut IpAddr,
    mask: &mut IpAddr,
    new_address: IpAddr,
    new_mask: IpAddr,
) -> Option<()> {
    if !mask.is_unspecified() || !address.is_unspecified() {
        return None;
    }
    (*address, *mask) = (new_address, new_mask);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ip: &Ip, family: Family) -> String {
        let mut line = String::new();
        push(&mut line, ip, family, &Names::default());
        line
    }

    #[test]
    fn masks_and_addresses() {
        let text = |a: &str| address_text(&a.parse().unwrap());
        for (given, printed) in [
            ("1.2.3.4", "1.2.3.4"),
            ("::", "::"),
            ("::1", "::1"),
            ("::1:2", "::0.1.0.2"),
            ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
            ("1:0:0:2::3", "1:0:0:2::3"),
            ("fe80:0:1::", "fe80:0:1::"),
        ] {
            assert_eq!(text(given), printed);
        }
        let mask = |a: &str| mask_text(&a.parse().unwrap());
        for (given, printed) in [
            ("255.255.255.255", "32"),
            ("0.0.0.0", "0"),
            ("255.255.240.0", "20"),
            ("255.0.255.0", "255.0.255.0"),
            ("0.0.0.255", "0.0.0.255"),
            ("ffff:ffff::", "32"),
            ("::", "0"),
            ("ffff::ffff", "ffff::ffff"),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "128"),
        ] {
            assert_eq!(mask(given), printed);
        }
    }

    #[test]
    fn nothing_asked_for_is_nothing_said() {
        for family in [Family::V4, Family::V6] {
            let mut ip = any(family);
            assert_eq!(line(&ip, family), "");
            ip.iface_in = "+".to_owned();
            assert_eq!(line(&ip, family), "");
            ip.inverted = 0x7f;
            assert!(line(&ip, family).contains(" ! -i + ! -o +"));
            assert!(line(&ip, family).contains("/0 ! -d "));
        }
    }

    #[test]
    fn the_order_of_words() {
        let ip = Ip {
            src: "10.1.0.0".parse().unwrap(),
            src_mask: "255.255.0.0".parse().unwrap(),
            dst: "10.0.0.1".parse().unwrap(),
            dst_mask: "255.0.0.255".parse().unwrap(),
            iface_in: "eth+".to_owned(),
            iface_out: "lo".to_owned(),
            proto: 47,
            flags: FRAGMENT,
            inverted: inverted::SOURCE | inverted::OUT | inverted::PROTOCOL | inverted::FRAGMENT,
            ..any(Family::V4)
        };
        assert_eq!(
            line(&ip, Family::V4),
            " ! -s 10.1.0.0/16 -d 10.0.0.1/255.0.0.255 -i eth+ ! -o lo ! -p gre ! -f"
        );
    }
}
