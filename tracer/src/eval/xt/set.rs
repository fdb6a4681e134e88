//! `set`: whether the packet is in an ipset (net/netfilter/xt_set.c, net/netfilter/ipset/, v6.18).

use std::net::IpAddr;

use super::{
    super::{
        field::{Field, Value},
        outcome::Words,
        read::{Fields, Reader},
        world::World,
    },
    Answer, XtField,
    answer::{self, Test, destination, missing, not, source, stateful, words},
    ip::{address, high, name},
    load::{HERE, SCTP, TCP, UDP, UDPLITE},
    meta::MARK,
};
use crate::{
    netlink::ipset::{Entry, IpSet},
    ruleset::expr::PayloadBase,
    xtables::{Family, matches},
};

/// `NFT_META_IIFNAME`.
const IIFNAME: u32 = 6;
/// `NFT_META_OIFNAME`.
const OIFNAME: u32 = 7;
/// Sets in a list can be no lists: one level.
const DEPTH: u32 = 2;

/// The match.
#[derive(Debug, Clone)]
pub(super) struct Set {
    want: matches::set::Set,
    family: Family,
}

/// What a set says (`ip_set_test()`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Membership {
    In,
    Out,
    /// An element that is an exception covers it (`-ENOTEMPTY`).
    Excepted,
}

impl Set {
    pub(super) fn new(want: &matches::set::Set, family: Family, fields: &mut Fields) -> Self {
        fields.need_sets();
        // What is read depends on the set's type; the address of a link is among it.
        fields.need_links();
        fields.slot(source(family));
        fields.slot(MARK);
        Self {
            want: want.clone(),
            family,
        }
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        let world = reader.world();
        let set = world.set(self.want.set.index).map_err(missing)?;
        Ok(self.is_in(set, world, reader, DEPTH)? != self.want.inverted)
    }

    /// `ip_set_test()`.
    fn is_in(&self, set: &IpSet, world: &World, reader: &mut Reader<'_>, depth: u32) -> Test {
        let dimension = set.kind.split_once(':').map_or(1, |(_, what)| {
            // `list:set` has one, too.
            what.split(',').count()
        });
        let family = match self.family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        if self.want.set.sources.len() < dimension || set.family != 0 && set.family != family {
            return Ok(false);
        }
        if set.broken > 0 {
            return Err(missing("elements of the ipset could not be read"));
        }
        if set.kind == "list:set" {
            return self.is_in_list(set, world, reader, depth);
        }
        let found = match self.lookup(set, reader) {
            // The packet has nothing that such a set holds.
            Err(Answer::Miss) => Membership::Out,
            other => other?,
        };
        Ok(match found {
            Membership::In => !(self.want.return_nomatch && excepts(set)),
            Membership::Excepted => self.want.return_nomatch,
            Membership::Out => false,
        })
    }

    fn is_in_list(&self, list: &IpSet, world: &World, reader: &mut Reader<'_>, depth: u32) -> Test {
        if depth == 0 {
            return Err(missing("lists of ipsets are nested"));
        }
        for entry in &list.entries {
            let sets = world.sets.as_deref().unwrap_or_default();
            let member = entry.member.as_deref();
            let set = sets.iter().find(|set| Some(set.name.as_str()) == member);
            let set = set.ok_or_else(|| missing("a set of a list of ipsets is not known"))?;
            if self.is_in(set, world, reader, depth - 1)? {
                self.extensions(entry)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What `ip_set_match_extensions()` says of an element that fits: nothing is known where its counters or its end decide.
    fn extensions(&self, entry: &Entry) -> Result<(), Answer> {
        if self.want.packets.is_some() || self.want.bytes.is_some() {
            return Err(stateful("the element's counters decide"));
        }
        // Read to the second.
        if entry.timeout.is_some_and(|left| left == 1) {
            return Err(stateful("the element is about to expire"));
        }
        Ok(())
    }

    fn is_source(&self, dimension: usize) -> bool {
        self.want.set.sources.get(dimension).copied() == Some(true)
    }

    fn address(&self, dimension: usize, reader: &mut Reader<'_>) -> Result<IpAddr, Answer> {
        let field = if self.is_source(dimension) {
            source(self.family)
        } else {
            destination(self.family)
        };
        let bytes = answer::bytes(reader, field, Answer::Miss)?;
        Ok(address(bytes.wide(), self.family))
    }

    /// Protocol and port.
    fn port(&self, dimension: usize, reader: &mut Reader<'_>) -> Result<(u8, u16), Answer> {
        let source = self.is_source(dimension);
        let field = Field::Xt(XtField::SetPort { source });
        let (protocol, port) = match answer::bytes(reader, field, Answer::Miss)?.as_slice() {
            &[HERE, protocol, high, low] => (protocol, u16::from_be_bytes([high, low])),
            _ => return Err(Answer::Miss),
        };
        if !matches!(protocol, TCP | UDP | SCTP | UDPLITE) {
            return Ok((protocol, port));
        }
        // What rules and NAT make of the port is known of this field.
        let field = Field::Payload {
            base: PayloadBase::Transport,
            offset: if source { 0 } else { 2 },
            len: 2,
        };
        let port = answer::bytes(reader, field, Answer::Miss)?;
        Ok((protocol, (port.wide() >> 112) as u16))
    }

    fn mac(&self, source: bool, reader: &mut Reader<'_>) -> Result<[u8; 6], Answer> {
        let field = if source {
            XtField::SourceMac
        } else {
            XtField::DestinationMac
        };
        let bytes = answer::bytes(reader, Field::Xt(field), Answer::Miss)?;
        let mac: [u8; 6] = bytes.as_slice().try_into().map_err(|_| Answer::Miss)?;
        if mac == [0; 6] {
            return Err(Answer::Miss);
        }
        Ok(mac)
    }

    fn interface(&self, dimension: usize, reader: &mut Reader<'_>) -> Result<String, Answer> {
        let key = if self.is_source(dimension) {
            IIFNAME
        } else {
            OIFNAME
        };
        let found = match reader.read(Field::Meta(key)) {
            Value::Bytes(bytes) => name(bytes.wide()),
            Value::Break => String::new(),
            Value::Unknown(reason) => return Err(Answer::Unknown(reason)),
        };
        if found.is_empty() {
            return Err(Answer::Miss);
        }
        Ok(found)
    }

    /// `kadt()` of the set's type; `Answer::Miss` where it refuses the packet.
    fn lookup(&self, set: &IpSet, reader: &mut Reader<'_>) -> Result<Membership, Answer> {
        let entries = &set.entries;
        let any = |fits: &dyn Fn(&Entry) -> bool| -> Result<Membership, Answer> {
            match entries.iter().find(|entry| fits(entry)) {
                None => Ok(Membership::Out),
                Some(entry) => {
                    self.extensions(entry)?;
                    Ok(if entry.nomatch {
                        Membership::Excepted
                    } else {
                        Membership::In
                    })
                }
            }
        };
        let ported = |entry: &Entry, (protocol, port): (u8, u16)| {
            entry.proto == Some(protocol) && entry.port == Some(port)
        };
        match set.kind.as_str() {
            "hash:ip" | "bitmap:ip" => {
                let ip = cut(set, self.address(0, reader)?);
                if set.kind == "hash:ip" && ip.is_unspecified() {
                    return Err(Answer::Miss);
                }
                any(&|entry| entry.ip.map(|known| cut(set, known)) == Some(ip))
            }
            "hash:ip,mark" => {
                let ip = self.address(0, reader)?;
                let mark = match reader.read(MARK) {
                    Value::Bytes(bytes) => {
                        u32::from_ne_bytes(((bytes.wide() >> 96) as u32).to_be_bytes())
                    }
                    Value::Break => return Err(Answer::Miss),
                    Value::Unknown(reason) => return Err(Answer::Unknown(reason)),
                };
                let mark = mark & set.header.markmask.unwrap_or(u32::MAX);
                any(&|entry| entry.ip == Some(ip) && entry.mark == Some(mark))
            }
            "hash:mac" => {
                let mac = self.mac(self.is_source(0), reader)?;
                any(&|entry| entry.mac == Some(mac))
            }
            "hash:ip,mac" => {
                let ip = self.address(0, reader)?;
                let mac = self.mac(self.is_source(1), reader)?;
                any(&|entry| entry.ip == Some(ip) && entry.mac == Some(mac))
            }
            "bitmap:ip,mac" => {
                let ip = self.address(0, reader)?;
                let mac = self.mac(self.is_source(1), reader)?;
                // An element without a MAC address takes that of the first packet.
                any(&|entry| entry.ip == Some(ip) && entry.mac.is_none_or(|known| known == mac))
            }
            "bitmap:port" => match self.port(0, reader)? {
                (6 | 17, port) => any(&|entry| entry.port == Some(port)),
                _ => Err(Answer::Miss),
            },
            "hash:ip,port" => {
                let port = self.port(1, reader)?;
                let ip = cut(set, self.address(0, reader)?);
                any(&|entry| {
                    entry.ip.map(|known| cut(set, known)) == Some(ip) && ported(entry, port)
                })
            }
            "hash:ip,port,ip" => {
                let port = self.port(1, reader)?;
                let ip = self.address(0, reader)?;
                let ip2 = self.address(2, reader)?;
                any(&|entry| entry.ip == Some(ip) && entry.ip2 == Some(ip2) && ported(entry, port))
            }
            "hash:net" => {
                let ip = self.address(0, reader)?;
                self.nets(set, |entry| covers(entry.ip, entry.cidr, ip))
            }
            "hash:net,port" => {
                let port = self.port(1, reader)?;
                let ip = self.address(0, reader)?;
                self.nets(set, |entry| {
                    covers(entry.ip, entry.cidr, ip) && ported(entry, port)
                })
            }
            "hash:ip,port,net" => {
                let port = self.port(1, reader)?;
                let ip = self.address(0, reader)?;
                let ip2 = self.address(2, reader)?;
                self.nets(set, |entry| {
                    entry.ip == Some(ip)
                        && covers(entry.ip2, entry.cidr2, ip2)
                        && ported(entry, port)
                })
            }
            "hash:net,net" => {
                let ip = self.address(0, reader)?;
                let ip2 = self.address(1, reader)?;
                self.nets(set, |entry| {
                    covers(entry.ip, entry.cidr, ip) && covers(entry.ip2, entry.cidr2, ip2)
                })
            }
            "hash:net,port,net" => {
                let port = self.port(1, reader)?;
                let ip = self.address(0, reader)?;
                let ip2 = self.address(2, reader)?;
                self.nets(set, |entry| {
                    covers(entry.ip, entry.cidr, ip)
                        && covers(entry.ip2, entry.cidr2, ip2)
                        && ported(entry, port)
                })
            }
            "hash:net,iface" => {
                let ip = self.address(0, reader)?;
                let interface = self.interface(1, reader)?;
                // The most specific network decides, also where its interface is another one. A rule cannot ask for bridge ports.
                let longest = set
                    .entries
                    .iter()
                    .filter(|entry| !entry.physdev && covers(entry.ip, entry.cidr, ip))
                    .map(|entry| entry.cidr)
                    .max();
                any(&|entry| {
                    let known = entry.iface.as_deref().unwrap_or_default();
                    Some(entry.cidr) == longest
                        && !entry.physdev
                        && covers(entry.ip, entry.cidr, ip)
                        && if entry.wildcard {
                            interface.starts_with(known)
                        } else {
                            interface == known
                        }
                })
            }
            _ => Err(missing("ipsets of this type are not evaluated")),
        }
    }

    /// Of the elements that fit the one with the longest prefixes decides.
    fn nets(&self, set: &IpSet, fits: impl Fn(&Entry) -> bool) -> Result<Membership, Answer> {
        let found = set
            .entries
            .iter()
            .filter(|entry| fits(entry))
            .max_by_key(|entry| (length(entry.ip, entry.cidr), length(entry.ip2, entry.cidr2)));
        let Some(entry) = found else {
            return Ok(Membership::Out);
        };
        self.extensions(entry)?;
        Ok(if entry.nomatch {
            Membership::Excepted
        } else {
            Membership::In
        })
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        let set = &self.want.set;
        let known = reader.world().set(set.index).ok();
        let text = match known {
            Some(set) => set.name.clone(),
            None => format!("number {}", set.index),
        };
        let directions: Vec<&str> = set
            .sources
            .iter()
            .map(|source| if *source { "src" } else { "dst" })
            .collect();
        let wanted = format!("{}{text} {}", not(self.want.inverted), directions.join(","));
        words("match-set", wanted, answer::found(self.address(0, reader)))
    }
}

/// Whether elements of this type of set can be exceptions (`IPSET_TYPE_NOMATCH`).
fn excepts(set: &IpSet) -> bool {
    set.kind.starts_with("hash:") && set.kind.contains("net")
}

/// An address cut as the set was made to do.
fn cut(set: &IpSet, address: IpAddr) -> IpAddr {
    let family = if address.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let mut bits = high(address);
    if let Some(netmask) = set.header.netmask {
        bits &= prefix(netmask);
    }
    if let Some(bitmask) = set.header.bitmask {
        bits &= high(bitmask);
    }
    self::address(bits, family)
}

/// The mask of so many leading bits.
fn prefix(length: u8) -> u128 {
    u128::MAX
        .checked_shl(128_u32.saturating_sub(u32::from(length)))
        .unwrap_or(0)
}

/// An element's prefix length; one that has none is a single address.
fn length(ip: Option<IpAddr>, cidr: Option<u8>) -> u8 {
    match (cidr, ip) {
        (Some(cidr), _) => cidr,
        (None, Some(IpAddr::V4(_))) => 32,
        (None, _) => 128,
    }
}

/// Whether an element's network has the address.
fn covers(ip: Option<IpAddr>, cidr: Option<u8>, address: IpAddr) -> bool {
    ip.is_some_and(|network| {
        let mask = prefix(length(ip, cidr));
        network.is_ipv4() == address.is_ipv4() && high(network) & mask == high(address) & mask
    })
}
