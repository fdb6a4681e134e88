//! What an evaluation must know of the network namespace beside its rules: links, routes, ipsets.
//!
//! Plain data. [`crate::netlink::routes::read_world`] fills it; [`World::default`] knows nothing, and what is not known is an error that
//! says so, never an answer.

use std::{collections::HashMap, net::IpAddr};

use crate::netlink::ipset::IpSet;

/// Why the world does not answer, in words for the user.
pub type Reason = &'static str;

/// `RT_TABLE_*`.
pub mod table {
    /// What policy rules fall back to.
    pub const DEFAULT: u32 = 253;
    /// The one that `ip route` lists.
    pub const MAIN: u32 = 254;
    /// Addresses of the machine itself.
    pub const LOCAL: u32 = 255;
}

/// `RTN_*` (include/uapi/linux/rtnetlink.h): types of routes and of addresses.
pub mod rtn {
    /// No type.
    pub const UNSPEC: u8 = 0;
    /// To a gateway or a neighbour.
    pub const UNICAST: u8 = 1;
    /// To this machine.
    pub const LOCAL: u8 = 2;
    /// To everybody, if it is a broadcast.
    pub const BROADCAST: u8 = 3;
    /// To one of several.
    pub const ANYCAST: u8 = 4;
    /// To a group.
    pub const MULTICAST: u8 = 5;
    /// Dropped.
    pub const BLACKHOLE: u8 = 6;
    /// Refused.
    pub const UNREACHABLE: u8 = 7;
    /// Refused as forbidden.
    pub const PROHIBIT: u8 = 8;
    /// Not in this table.
    pub const THROW: u8 = 9;
}

/// What is known of a network namespace.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Counts up with each reading: what was concluded from an older one is void.
    pub version: u64,
    /// Its links; `None` if not known.
    pub links: Option<Vec<Link>>,
    /// Its IPv4 routes; `None` if not known.
    pub ipv4: Option<Fib>,
    /// Its IPv6 routes; `None` if not known.
    pub ipv6: Option<Fib>,
    /// Its ipsets; `None` if not known.
    pub sets: Option<Vec<IpSet>>,
}

/// A link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `ARPHRD_*`.
    pub kind: u16,
    /// `IFF_*`.
    pub flags: u32,
    /// Group (`ip link set group`).
    pub group: u32,
    /// Index of the bridge, bond or VRF that it is a part of.
    pub master: Option<u32>,
    /// `IFLA_INFO_KIND`: `veth`, `bridge`, `vrf`; `None` for hardware.
    pub driver: Option<String>,
    /// Link-layer address, of any length.
    pub address: Vec<u8>,
}

impl Link {
    /// `IFF_LOOPBACK`.
    pub const LOOPBACK: u32 = 8;
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// `RT_TABLE_*`.
    pub table: u32,
    /// Network.
    pub dst: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
    /// It is for some sources only (IPv6).
    pub sourced: bool,
    /// Type of service that it is for, 0 for all.
    pub tos: u8,
    /// `RTN_*`.
    pub kind: u8,
    /// Metric; the lowest wins.
    pub metric: u32,
    /// Interfaces of its next hops, those that are dead left out. Empty if the route has none or they are not told.
    pub oifs: Vec<u32>,
    /// It has next hops, but all of them are dead.
    pub dead: bool,
}

/// Routes of one family, and whether plain policy rules choose among their tables.
#[derive(Debug, Clone, Default)]
pub struct Fib {
    tables: HashMap<u32, Vec<Networks>>,
    /// There are policy rules beside those that every namespace has.
    ruled: bool,
}

/// The networks of one prefix length in a table.
#[derive(Debug, Clone)]
struct Networks {
    prefix: u8,
    /// By network, the routes in the order of preference.
    routes: HashMap<u128, Vec<Route>>,
}

/// A route and the interface that was found with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit<'a> {
    /// The route.
    pub route: &'a Route,
}

impl Hit<'_> {
    /// Whether a next hop leaves by this interface (`fib_info_nh_uses_dev()`). Errors: its next hops are not told.
    pub fn uses(&self, oif: u32) -> Result<bool, Reason> {
        if self.route.oifs.is_empty() && self.route.kind == rtn::UNICAST {
            return Err("the route's next hops are not known");
        }
        Ok(self.route.oifs.contains(&oif))
    }
}

fn number(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

/// The first `prefix` bits of an address of `width` bits.
fn cut(bits: u128, prefix: u8, width: u8) -> u128 {
    let host = u32::from(width.saturating_sub(prefix));
    bits.checked_shr(host)
        .and_then(|bits| bits.checked_shl(host))
        .unwrap_or(0)
}

impl Fib {
    /// Of the routes of one family, as the kernel lists them. `ruled`: there are policy rules beside the default ones.
    pub fn new(routes: Vec<Route>, ruled: bool) -> Self {
        let mut fib = Self {
            tables: HashMap::new(),
            ruled,
        };
        for route in routes {
            let (bits, width) = number(route.dst);
            let networks = fib.tables.entry(route.table).or_default();
            let at = match networks.binary_search_by(|n| route.prefix.cmp(&n.prefix)) {
                Ok(at) => at,
                Err(at) => {
                    let fresh = Networks {
                        prefix: route.prefix,
                        routes: HashMap::new(),
                    };
                    networks.insert(at, fresh);
                    at
                }
            };
            if let Some(networks) = networks.get_mut(at) {
                let same = networks
                    .routes
                    .entry(cut(bits, route.prefix, width))
                    .or_default();
                // The kernel lists those of one metric in the order in which it tries them.
                let at = same.partition_point(|other| other.metric <= route.metric);
                same.insert(at, route);
            }
        }
        fib
    }

    /// Whether policy rules other than the default ones choose the table.
    pub fn has_policy_rules(&self) -> bool {
        self.ruled
    }

    /// The routes to this address in one table, from the longest prefix to the shortest.
    fn covering(&self, table: u32, address: IpAddr) -> impl Iterator<Item = (u8, &[Route])> {
        let (bits, width) = number(address);
        self.tables
            .get(&table)
            .into_iter()
            .flatten()
            .filter_map(move |networks| {
                let routes = networks.routes.get(&cut(bits, networks.prefix, width))?;
                Some((networks.prefix, routes.as_slice()))
            })
    }
}

/// What a table of IPv4 routes answers (`fib_table_lookup()`).
enum Answer<'a> {
    Hit(Hit<'a>),
    /// Blackhole, unreachable, prohibit: the search is over.
    Refused,
    /// Nothing, or throw: the next table.
    Nothing,
}

impl World {
    /// The link of this index.
    pub fn link(&self, index: u32) -> Result<&Link, Reason> {
        self.links
            .as_ref()
            .ok_or("links are not known")?
            .iter()
            .find(|link| link.index == index)
            .ok_or("the interface is not known")
    }

    /// The ipset of this index, as matches and targets keep it.
    pub fn set(&self, index: u16) -> Result<&IpSet, Reason> {
        self.sets
            .as_ref()
            .ok_or("ipsets are not known")?
            .iter()
            .find(|set| set.index == Some(index))
            .ok_or("the ipset is not known")
    }

    /// The IPv4 type of an address, `RTN_*` (`inet_dev_addr_type()`, net/ipv4/fib_frontend.c, v6.18).
    ///
    /// With `dev` a local or broadcast address of another interface is a unicast one.
    pub fn address_type4(&self, address: IpAddr, dev: Option<u32>) -> Result<u8, Reason> {
        let IpAddr::V4(v4) = address else {
            return Err("not an IPv4 address");
        };
        if v4.is_unspecified() || v4.is_broadcast() {
            return Ok(rtn::BROADCAST);
        }
        if v4.is_multicast() {
            return Ok(rtn::MULTICAST);
        }
        let fib = self.ipv4.as_ref().ok_or("IPv4 routes are not known")?;
        // Without policy rules the local and the main table are one trie, and it is searched whole.
        let tables: &[u32] = if fib.ruled {
            &[table::LOCAL]
        } else {
            &[table::LOCAL, table::MAIN]
        };
        let Answer::Hit(hit) = search4(fib, tables, address)? else {
            return Ok(rtn::UNICAST);
        };
        let Some(dev) = dev else {
            return Ok(hit.route.kind);
        };
        let same = hit.route.oifs.first() == Some(&dev);
        Ok(if same { hit.route.kind } else { rtn::UNICAST })
    }

    /// The IPv4 route to an address from this machine's routing as a whole (`fib_lookup()` without an interface, mark or type of service).
    ///
    /// `None`: there is none, or it refuses.
    pub fn route4(&self, address: IpAddr) -> Result<Option<Hit<'_>>, Reason> {
        let fib = self.ipv4.as_ref().ok_or("IPv4 routes are not known")?;
        if fib.ruled {
            return Err("policy routing rules choose the table");
        }
        for tables in [&[table::LOCAL, table::MAIN][..], &[table::DEFAULT]] {
            match search4(fib, tables, address)? {
                Answer::Hit(hit) => return Ok(Some(hit)),
                Answer::Refused => return Ok(None),
                Answer::Nothing => {}
            }
        }
        Ok(None)
    }

    /// The IPv6 route to an address (`ip6_route_lookup()`, net/ipv6/route.c, v6.18): of the most specific routes the first one by `oif`,
    /// else the first one, or with `strict` none. `None`: there is none; one that refuses is returned.
    pub fn route6(
        &self,
        address: IpAddr,
        oif: Option<u32>,
        strict: bool,
    ) -> Result<Option<Hit<'_>>, Reason> {
        let fib = self.ipv6.as_ref().ok_or("IPv6 routes are not known")?;
        if fib.ruled {
            return Err("policy routing rules choose the table");
        }
        for table in [table::LOCAL, table::MAIN] {
            for (_, routes) in fib.covering(table, address) {
                if routes.iter().any(|route| route.sourced) {
                    return Err("the route depends on the source address");
                }
                let mut live = routes.iter().filter(|route| !route.dead);
                let exact =
                    oif.and_then(|oif| live.clone().find(|route| route.oifs.contains(&oif)));
                let found = match exact {
                    None if strict && oif.is_some() => None,
                    None => live.next(),
                    exact => exact,
                };
                match found {
                    // As if the table had nothing.
                    Some(route) if route.kind == rtn::THROW => break,
                    Some(route) => return Ok(Some(Hit { route })),
                    None => {}
                }
            }
        }
        Ok(None)
    }

    /// Whether an IPv6 address is one of this interface (`ipv6_chk_addr()` with `strict`).
    pub fn has_address6(&self, address: IpAddr, dev: u32) -> Result<bool, Reason> {
        let fib = self.ipv6.as_ref().ok_or("IPv6 routes are not known")?;
        Ok(fib
            .covering(table::LOCAL, address)
            .filter(|(prefix, _)| *prefix == 128)
            .flat_map(|(_, routes)| routes)
            .any(|route| route.kind == rtn::LOCAL && route.oifs.contains(&dev)))
    }
}

/// The longest prefix in the union of the tables, which are named in the order of preference.
fn search4<'a>(fib: &'a Fib, tables: &[u32], address: IpAddr) -> Result<Answer<'a>, Reason> {
    let mut found: Vec<(u8, &[Route])> = tables
        .iter()
        .flat_map(|table| fib.covering(*table, address))
        .collect();
    found.sort_by_key(|(prefix, _)| std::cmp::Reverse(*prefix));
    for route in found.iter().flat_map(|(_, routes)| *routes) {
        if route.tos != 0 {
            return Err("the route depends on the type of service");
        }
        match route.kind {
            rtn::BLACKHOLE | rtn::UNREACHABLE | rtn::PROHIBIT => return Ok(Answer::Refused),
            rtn::THROW => return Ok(Answer::Nothing),
            _ if route.dead => {}
            _ => return Ok(Answer::Hit(Hit { route })),
        }
    }
    Ok(Answer::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(table: u32, dst: &str, kind: u8, metric: u32, oif: u32) -> Route {
        let (dst, prefix) = dst.split_once('/').unwrap();
        Route {
            table,
            dst: dst.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
            sourced: false,
            tos: 0,
            kind,
            metric,
            oifs: (oif > 0).then_some(oif).into_iter().collect(),
            dead: false,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn world(ruled: bool) -> World {
        let v4 = vec![
            route(table::LOCAL, "127.0.0.0/8", rtn::LOCAL, 0, 1),
            route(table::LOCAL, "10.1.0.2/32", rtn::LOCAL, 0, 2),
            route(table::LOCAL, "10.1.0.255/32", rtn::BROADCAST, 0, 2),
            route(table::MAIN, "10.1.0.0/24", rtn::UNICAST, 0, 2),
            route(table::MAIN, "10.9.0.0/16", rtn::BLACKHOLE, 0, 0),
            route(table::MAIN, "10.9.9.0/24", rtn::UNICAST, 100, 3),
            route(table::MAIN, "10.9.9.0/24", rtn::UNICAST, 50, 2),
            route(table::MAIN, "10.8.0.0/16", rtn::THROW, 0, 0),
            route(table::MAIN, "0.0.0.0/0", rtn::UNICAST, 0, 3),
            route(table::DEFAULT, "10.8.0.0/16", rtn::UNICAST, 0, 4),
        ];
        let v6 = vec![
            route(table::LOCAL, "fd01::2/128", rtn::LOCAL, 0, 2),
            route(table::LOCAL, "ff00::/8", rtn::MULTICAST, 256, 2),
            route(table::MAIN, "fd01::/64", rtn::UNICAST, 256, 2),
            route(table::MAIN, "fe80::/64", rtn::UNICAST, 256, 2),
            route(table::MAIN, "fe80::/64", rtn::UNICAST, 256, 3),
            route(table::MAIN, "fd09::/64", rtn::UNREACHABLE, 1024, 1),
        ];
        World {
            links: Some(vec![Link {
                index: 2,
                name: "r0".into(),
                ..Link::default()
            }]),
            ipv4: Some(Fib::new(v4, ruled)),
            ipv6: Some(Fib::new(v6, ruled)),
            sets: None,
            version: 1,
        }
    }

    #[test]
    fn types_of_ipv4_addresses() {
        let world = world(false);
        for (address, dev, expected) in [
            ("10.1.0.2", None, rtn::LOCAL),
            ("10.1.0.2", Some(2), rtn::LOCAL),
            ("10.1.0.2", Some(3), rtn::UNICAST),
            ("127.3.4.5", None, rtn::LOCAL),
            ("10.1.0.255", None, rtn::BROADCAST),
            ("255.255.255.255", Some(3), rtn::BROADCAST),
            ("0.0.0.0", None, rtn::BROADCAST),
            ("0.1.2.3", None, rtn::UNICAST),
            ("224.0.0.1", None, rtn::MULTICAST),
            ("10.9.1.1", None, rtn::UNICAST),
            ("8.8.8.8", None, rtn::UNICAST),
        ] {
            let found = world.address_type4(ip(address), dev);
            assert_eq!(found, Ok(expected), "{address} {dev:?}");
        }
    }

    #[test]
    fn routes_to_ipv4_addresses() {
        let world = world(false);
        let oif = |address| {
            world
                .route4(ip(address))
                .unwrap()
                .map(|hit| hit.route.oifs.clone())
        };
        assert_eq!(oif("10.1.0.7"), Some(vec![2]));
        assert_eq!(oif("10.9.9.1"), Some(vec![2]), "the lower metric");
        assert_eq!(oif("10.9.1.1"), None, "a blackhole");
        assert_eq!(oif("10.8.1.1"), Some(vec![4]), "thrown to the next table");
        assert_eq!(oif("8.8.8.8"), Some(vec![3]));
    }

    #[test]
    fn routes_to_ipv6_addresses() {
        let world = world(false);
        let find = |address, oif, strict| {
            let hit = world.route6(ip(address), oif, strict).unwrap();
            hit.map(|hit| (hit.route.kind, hit.route.oifs.clone()))
        };
        assert_eq!(find("fd01::2", None, false), Some((rtn::LOCAL, vec![2])));
        assert_eq!(
            find("fd01::3", Some(3), false),
            Some((rtn::UNICAST, vec![2]))
        );
        assert_eq!(find("fd01::3", Some(3), true), None);
        assert_eq!(
            find("fe80::9", Some(3), true),
            Some((rtn::UNICAST, vec![3]))
        );
        assert_eq!(
            find("fd09::1", None, false),
            Some((rtn::UNREACHABLE, vec![1]))
        );
        assert_eq!(find("fd77::1", None, false), None);
        assert_eq!(world.has_address6(ip("fd01::2"), 2), Ok(true));
        assert_eq!(world.has_address6(ip("fd01::2"), 3), Ok(false));
    }

    #[test]
    fn what_is_not_known_is_no_answer() {
        let nothing = World::default();
        assert!(nothing.route4(ip("10.0.0.1")).is_err());
        assert!(nothing.route6(ip("fd01::1"), None, false).is_err());
        assert!(nothing.address_type4(ip("10.0.0.1"), None).is_err());
        assert_eq!(
            nothing.address_type4(ip("224.0.0.1"), None),
            Ok(rtn::MULTICAST)
        );
        assert!(nothing.link(1).is_err());
        assert!(nothing.set(0).is_err());
        let ruled = world(true);
        assert!(ruled.route4(ip("10.1.0.7")).is_err());
        assert_eq!(ruled.address_type4(ip("10.1.0.2"), None), Ok(rtn::LOCAL));
        assert!(world(false).link(9).is_err());
    }

    #[test]
    fn a_dead_route_and_one_for_a_service() {
        let mut dead = route(table::MAIN, "10.0.0.0/8", rtn::UNICAST, 0, 0);
        dead.dead = true;
        let mut served = route(table::MAIN, "10.2.0.0/16", rtn::UNICAST, 0, 2);
        served.tos = 8;
        let fallback = route(table::MAIN, "0.0.0.0/0", rtn::UNICAST, 0, 7);
        let world = World {
            ipv4: Some(Fib::new(vec![dead, served, fallback], false)),
            ..World::default()
        };
        let hit = world.route4(ip("10.1.1.1")).unwrap().unwrap();
        assert_eq!(hit.uses(7), Ok(true));
        assert!(world.route4(ip("10.2.1.1")).is_err());
    }
}
