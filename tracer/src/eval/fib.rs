//! `fib`: what routing says about an address of the packet (net/ipv4/netfilter/nft_fib_ipv4.c, net/ipv6/netfilter/nft_fib_ipv6.c, v6.18).
//!
//! The kernel's lookup also takes the mark (`NFTA_FIB_F_MARK`, not for types of IPv4 addresses), the other address, and the type of service or
//! the traffic class and flow label. They choose among policy rules, routes of a service and routes of a source: where there are such,
//! nothing is answered here, so that an answer depends on the one address alone.

use std::{net::IpAddr, ops::Range};

use super::{
    field::{Reason, Value},
    headers::{ETH_IPV4, ETH_IPV6, Gap, IPV4, IPV6, NETDEV},
    load,
    packet::{Device, Fact, Packet},
    world::{World, rtn},
};

/// `NFTA_FIB_F_*`.
mod flag {
    pub(super) const SADDR: u32 = 1;
    pub(super) const MARK: u32 = 4;
    pub(super) const IIF: u32 = 8;
    pub(super) const OIF: u32 = 16;
    pub(super) const PRESENT: u32 = 32;
}

/// `NFT_FIB_RESULT_*`.
const OIF: u32 = 1;
const OIFNAME: u32 = 2;
const ADDRTYPE: u32 = 3;

/// The value of a `fib` expression.
pub(super) fn value(packet: &Packet<'_>, world: &World, result: u32, flags: u32) -> Value {
    let v6 = match (packet.family(), packet.protocol) {
        (IPV4, _) | (NETDEV, ETH_IPV4) => false,
        (IPV6, _) | (NETDEV, ETH_IPV6) => true,
        _ => return Value::Break,
    };
    let destination = match destination(packet, flags, v6) {
        Ok(destination) => destination,
        Err(gap) => return gap.into(),
    };
    let device = match flags & (flag::IIF | flag::OIF) {
        0 => None,
        flag::IIF => match packet.iif {
            Fact::Known(device) => Some(device),
            Fact::Absent => None,
            Fact::Unknown => return missing("the interface is not known"),
        },
        flag::OIF => match packet.oif {
            Fact::Known(device) => Some(device),
            Fact::Absent => None,
            Fact::Unknown => return missing("the interface is not known"),
        },
        _ => return missing("fib with both interfaces is not evaluated"),
    };
    let answer = match (result, v6) {
        (ADDRTYPE, false) => world
            .address_type4(destination, device.map(|device| device.index))
            .map(|kind| Value::u32(kind.into())),
        (ADDRTYPE, true) => type6(world, destination, device),
        (OIF | OIFNAME, _) => {
            if flags & flag::MARK != 0 {
                return missing("routing by mark is not evaluated");
            }
            return interface(packet, world, result, flags, destination, device);
        }
        _ => return Value::Break,
    };
    answer.unwrap_or_else(missing)
}

fn missing(text: &'static str) -> Value {
    Value::Unknown(Reason::missing(text))
}

/// Where in the network header the address stands whose route is asked for, in bytes.
pub(super) fn address(flags: u32, v6: bool) -> Range<u32> {
    match (v6, flags & flag::SADDR != 0) {
        (false, true) => 12..16,
        (false, false) => 16..20,
        (true, true) => 8..24,
        (true, false) => 24..40,
    }
}

fn destination(packet: &Packet<'_>, flags: u32, v6: bool) -> Result<IpAddr, Gap> {
    // The kernel takes the header whole.
    let header = packet.network(0, if v6 { 40 } else { 20 })?;
    let Range { start, end } = address(flags, v6);
    let bytes = header.get(start as usize..end as usize).ok_or(Gap::End)?;
    let v4 = || <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4().or_else(|_| v6()).map_err(|_| Gap::End)
}

/// `__nft_fib6_eval_type()`.
fn type6(
    world: &World,
    address: IpAddr,
    device: Option<Device<'_>>,
) -> Result<Value, &'static str> {
    let IpAddr::V6(v6) = address else {
        return Err("not an IPv6 address");
    };
    let link_local = v6.segments()[0] & 0xffc0 == 0xfe80;
    let own = match device {
        Some(device) => world.has_address6(address, device.index)?,
        None => false,
    };
    let oif = match device {
        Some(device) if link_local || v6.is_multicast() => Some(device.index),
        None if link_local => {
            return Err("the type of a link-local address depends on the interface");
        }
        _ => None,
    };
    let kind = match world.route6(address, oif, link_local)? {
        None => rtn::UNREACHABLE,
        Some(hit) => match hit.route.kind {
            kind @ (rtn::BLACKHOLE | rtn::UNREACHABLE | rtn::PROHIBIT | rtn::THROW) => kind,
            rtn::ANYCAST => rtn::ANYCAST,
            _ if own => rtn::LOCAL,
            rtn::LOCAL if device.is_none() => rtn::LOCAL,
            _ if v6.is_multicast() => rtn::MULTICAST,
            _ if v6.is_unspecified() => rtn::UNSPEC,
            _ => rtn::UNICAST,
        },
    };
    Ok(Value::u32(kind.into()))
}

/// The interface of the route, or with [`flag::PRESENT`] whether there is one.
fn interface(
    packet: &Packet<'_>,
    world: &World,
    result: u32,
    flags: u32,
    destination: IpAddr,
    device: Option<Device<'_>>,
) -> Value {
    let present = flags & flag::PRESENT != 0;
    let found = |index: u32, name: &str| match (result, present) {
        (_, true) => Value::u32(1),
        (OIF, false) => Value::u32(index),
        (_, false) => load::name(name),
    };
    let none = || match (result, present) {
        (_, true) | (OIF, false) => Value::u32(0),
        (_, false) => load::name(""),
    };
    // What comes over the loopback device is taken to be routed back there (`nft_fib_can_skip()`).
    if let (0..=1, Fact::Known(iif)) = (packet.hook, packet.iif)
        && iif.name == "lo"
    {
        return found(iif.index, iif.name);
    }
    let hit = match destination {
        // Of a source in 0.0.0.0/8 the answer depends on the destination, too.
        IpAddr::V4(v4) if v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] == 0 => {
            return missing("fib of group addresses is not evaluated");
        }
        IpAddr::V4(_) => world.route4(destination),
        IpAddr::V6(_) => world.route6(destination, device.map(|device| device.index), false),
    };
    let hit = match hit {
        Ok(Some(hit)) => hit,
        Ok(None) => return none(),
        Err(reason) => return missing(reason),
    };
    if hit.route.kind != rtn::UNICAST {
        // A local route: not what `fib` looks for, except on the loopback device.
        return match hit.route.kind {
            rtn::LOCAL => none(),
            _ => missing("this kind of route is not evaluated"),
        };
    }
    if let Some(device) = device {
        return match hit.uses(device.index) {
            Ok(true) => match world.link(device.index) {
                Ok(link) => found(device.index, &link.name),
                Err(reason) => missing(reason),
            },
            Ok(false) => none(),
            Err(reason) => missing(reason),
        };
    }
    match &hit.route.oifs[..] {
        [index] => match world.link(*index) {
            Ok(link) => found(*index, &link.name),
            Err(reason) => missing(reason),
        },
        _ => missing("the route has several next hops"),
    }
}
