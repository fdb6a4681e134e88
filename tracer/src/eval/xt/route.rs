//! Matches that look up routes (net/netfilter/xt_addrtype.c, net/ipv4/netfilter/ipt_rpfilter.c, net/ipv6/netfilter/ip6t_rpfilter.c, v6.18).

use std::net::{IpAddr, Ipv6Addr};

use super::{
    super::{
        field::{Field, Value},
        outcome::Words,
        read::{Fields, Reader, Slot},
        world::{Link, World, rtn},
    },
    Answer,
    answer::{self, All, Test, destination, missing, not, source, words},
    ip::address,
};
use crate::xtables::{
    Family,
    info::Cond,
    matches::address::{Addrtype, Rpfilter},
};

/// `NFT_META_IIF`.
const IIF: u32 = 4;
/// `NFT_META_OIF`.
const OIF: u32 = 5;
/// `NFT_META_PKTTYPE`.
const PKTTYPE: u32 = 19;
/// `PACKET_LOOPBACK`.
const LOOPBACK: u128 = 5;

/// A match that looks up routes.
#[derive(Debug, Clone)]
pub(super) struct Route {
    source: Slot,
    destination: Slot,
    iif: Slot,
    oif: Slot,
    family: Family,
    want: Want,
}

#[derive(Debug, Clone)]
enum Want {
    Addrtype(Addrtype),
    /// And the packet's type.
    Rpfilter(Rpfilter, Slot),
}

/// Names of `XT_ADDRTYPE_*` from the lowest bit.
const TYPES: [&str; 12] = [
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

fn types(mask: u16) -> String {
    let set: Vec<&str> = TYPES
        .iter()
        .enumerate()
        .filter(|(bit, _)| mask >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    set.join(",")
}

impl Route {
    pub(super) fn addrtype(want: &Addrtype, family: Family, fields: &mut Fields) -> Self {
        Self::new(Want::Addrtype(want.clone()), family, fields)
    }

    pub(super) fn rpfilter(want: &Rpfilter, family: Family, fields: &mut Fields) -> Self {
        let pkttype = fields.slot(Field::Meta(PKTTYPE));
        Self::new(Want::Rpfilter(want.clone(), pkttype), family, fields)
    }

    fn new(want: Want, family: Family, fields: &mut Fields) -> Self {
        fields.need_links();
        Self {
            source: fields.slot(source(family)),
            destination: fields.slot(destination(family)),
            iif: fields.slot(Field::Meta(IIF)),
            oif: fields.slot(Field::Meta(OIF)),
            family,
            want,
        }
    }

    fn address(&self, slot: Slot, reader: &mut Reader<'_>) -> Result<IpAddr, Answer> {
        let bits = answer::wide(reader, slot, &Answer::Miss)?;
        Ok(address(bits, self.family))
    }

    /// The interface that the types are limited to.
    fn device(&self, want: &Addrtype, reader: &mut Reader<'_>) -> Result<Option<u32>, Answer> {
        let slot = match (want.limit_in, want.limit_out) {
            (true, _) => self.iif,
            (false, true) => self.oif,
            (false, false) => return Ok(None),
        };
        match reader.value(slot) {
            Value::Break => Ok(None),
            _ => {
                answer::host(reader, slot, &Answer::Miss).map(|index| (index != 0).then_some(index))
            }
        }
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        match &self.want {
            Want::Addrtype(want) => {
                let device = self.device(want, reader)?;
                let mut all = All::default();
                for (cond, slot) in [
                    (want.source, self.source),
                    (want.destination, self.destination),
                ] {
                    let Some(cond) = cond else { continue };
                    let address = self.address(slot, reader)?;
                    all.also(is_of_type(cond, address, device, reader.world()))?;
                }
                all.end()
            }
            Want::Rpfilter(want, pkttype) => {
                Ok(self.reverse(want, *pkttype, reader)? != want.inverted)
            }
        }
    }

    /// `rpfilter_mt()`, without the inversion.
    fn reverse(&self, want: &Rpfilter, pkttype: Slot, reader: &mut Reader<'_>) -> Test {
        let device = answer::host(reader, self.iif, &Answer::Miss)?;
        let world = reader.world();
        let known = |reason: &'static str| missing(reason);
        if world.link(device).map_err(known)?.flags & Link::LOOPBACK != 0 {
            return Ok(true);
        }
        let from = self.address(self.source, reader)?;
        let to = self.address(self.destination, reader)?;
        if answer::number(reader, pkttype, 1, &Answer::Miss) == Ok(LOOPBACK) {
            return Ok(true);
        }
        match (from, to) {
            (IpAddr::V4(from4), IpAddr::V4(to)) => {
                let local = to.octets().starts_with(&[224, 0, 0]);
                if from4.is_unspecified() && (to.is_broadcast() || local) {
                    return Ok(true);
                }
                let Some(hit) = world.route4(from).map_err(known)? else {
                    return Ok(false);
                };
                match hit.route.kind {
                    rtn::UNICAST => {}
                    rtn::LOCAL if want.accept_local => {}
                    _ => return Ok(false),
                }
                if want.loose {
                    return Ok(true);
                }
                hit.uses(device).map_err(known)
            }
            (IpAddr::V6(from6), _) => {
                if from6.is_unspecified() {
                    return Ok(true);
                }
                let link_local = from6.is_unicast_link_local();
                let oif = (link_local || !want.loose).then_some(device);
                let Some(hit) = world.route6(from, oif, link_local).map_err(known)? else {
                    return Ok(false);
                };
                match hit.route.kind {
                    rtn::UNICAST | rtn::MULTICAST => {}
                    rtn::LOCAL => return Ok(want.accept_local),
                    _ => return Ok(false),
                }
                if want.loose {
                    return Ok(true);
                }
                hit.uses(device).map_err(known)
            }
            _ => Ok(false),
        }
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        match &self.want {
            Want::Addrtype(want) => {
                let Ok(device) = self.device(want, reader) else {
                    return words("addrtype", "", "");
                };
                for (subject, cond, slot) in [
                    ("src-type", want.source, self.source),
                    ("dst-type", want.destination, self.destination),
                ] {
                    let Some(cond) = cond else { continue };
                    let has = self.address(slot, reader);
                    let world = reader.world();
                    let test = has
                        .clone()
                        .and_then(|has| is_of_type(cond, has, device, world));
                    if test != Ok(true) {
                        let found = match has {
                            Ok(has @ IpAddr::V4(_)) => world
                                .address_type4(has, device)
                                .map(|kind| types(1_u16.checked_shl(kind.into()).unwrap_or(0))),
                            Ok(has) => Ok(has.to_string()),
                            Err(_) => Ok(String::new()),
                        };
                        let wanted = format!("{}{}", not(cond.inverted), types(cond.want));
                        return words(subject, wanted, found.unwrap_or_default());
                    }
                }
                words("addrtype", "", "")
            }
            Want::Rpfilter(want, _) => {
                let wanted = if want.inverted {
                    "no way back by the incoming interface"
                } else {
                    "a way back by the incoming interface"
                };
                let found = answer::found(self.address(self.source, reader));
                words("rpfilter", wanted, found)
            }
        }
    }
}

/// `match_type()`, `match_type6()`.
fn is_of_type(cond: Cond<u16>, address: IpAddr, device: Option<u32>, world: &World) -> Test {
    let hit = match address {
        IpAddr::V4(_) => {
            let kind = world.address_type4(address, device).map_err(missing)?;
            cond.want >> kind & 1 == 1
        }
        IpAddr::V6(v6) => is_of_type6(cond.want, v6, device, world)?,
    };
    Ok(hit != cond.inverted)
}

const LOCAL: u16 = 1 << rtn::LOCAL;
const ANYCAST: u16 = 1 << rtn::ANYCAST;
const UNREACHABLE: u16 = 1 << rtn::UNREACHABLE;

fn is_of_type6(mask: u16, v6: Ipv6Addr, device: Option<u32>, world: &World) -> Test {
    let asks = |kind: u8| mask >> kind & 1 == 1;
    let mapped = v6.to_ipv4_mapped().is_some();
    let unicast = !v6.is_multicast() && !v6.is_unspecified() && !mapped;
    if asks(rtn::MULTICAST) && !v6.is_multicast()
        || asks(rtn::UNICAST) && !unicast
        || asks(rtn::UNSPEC) && !v6.is_unspecified()
    {
        return Ok(false);
    }
    if mask & (LOCAL | ANYCAST | UNREACHABLE) == 0 {
        return Ok(true);
    }
    Ok(mask & lookup6(mask, v6, device, world)? != 0)
}

/// `match_lookup_rt6()`.
fn lookup6(mask: u16, v6: Ipv6Addr, device: Option<u32>, world: &World) -> Result<u16, Answer> {
    let address = IpAddr::V6(v6);
    let mut found = 0;
    if let Some(device) = device
        && mask & LOCAL != 0
        && world.has_address6(address, device).map_err(missing)?
    {
        found |= LOCAL;
    }
    // With an interface the lookup is bound to it, as no source is given.
    let Some(hit) = world
        .route6(address, device, device.is_some())
        .map_err(missing)?
    else {
        return Ok(UNREACHABLE);
    };
    let route = hit.route;
    match route.kind {
        rtn::BLACKHOLE | rtn::UNREACHABLE | rtn::PROHIBIT => return Ok(UNREACHABLE),
        rtn::LOCAL if device.is_none() => found |= LOCAL,
        rtn::ANYCAST => found |= ANYCAST,
        _ => {}
    }
    if mask & ANYCAST != 0 && route.prefix < 127 && route.dst == address {
        return Err(missing("whether the address is the subnet's anycast one"));
    }
    Ok(found)
}
