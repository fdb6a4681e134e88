//! What an evaluation must know of a namespace, against ipset and iproute2. Needs root.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use e2e::net::Net;
use e2e::netns::Netns;
use fwtrace::eval::world::{World, rtn};
use fwtrace::netlink::ipset::{Entry, IpSet, read_sets};
use fwtrace::netlink::routes::{GROUPS, read_world_on};
use fwtrace::netlink::socket::{Protocol, Socket};

fn sets(ns: &Netns) -> Result<Vec<IpSet>> {
    ns.run(|| Ok(read_sets(&mut Socket::open(Protocol::Netfilter, &[])?)?))
}

fn world(ns: &Netns) -> Result<World> {
    ns.run(|| Ok(read_world_on(&mut Socket::open(Protocol::Route, &[])?)?))
}

/// An element as `ipset save` writes it.
fn text(set: &IpSet, entry: &Entry) -> String {
    let mut parts = Vec::new();
    let network = |ip: IpAddr, cidr: Option<u8>| match cidr {
        Some(cidr) if cidr != if ip.is_ipv4() { 32 } else { 128 } => format!("{ip}/{cidr}"),
        _ => ip.to_string(),
    };
    parts.extend(entry.ip.map(|ip| network(ip, entry.cidr)));
    parts.extend(
        entry
            .mac
            .map(|mac| mac.map(|b| format!("{b:02X}")).join(":")),
    );
    parts.extend(entry.port.map(|port| match entry.proto {
        Some(6) => format!("tcp:{port}"),
        Some(17) => format!("udp:{port}"),
        Some(1) => format!("icmp:{}", if port == 0x800 { "echo-request" } else { "?" }),
        _ => port.to_string(),
    }));
    parts.extend(entry.ip2.map(|ip| network(ip, entry.cidr2)));
    parts.extend(
        entry
            .iface
            .as_ref()
            .map(|name| format!("{}{name}", if entry.physdev { "physdev:" } else { "" })),
    );
    parts.extend(entry.member.clone());
    let mut line = format!("add {} {}", set.name, parts.join(","));
    if entry.timeout.is_some() {
        line += " timeout";
    }
    if let Some((packets, bytes)) = entry.packets.zip(entry.bytes) {
        line += &format!(" packets {packets} bytes {bytes}");
    }
    if let Some(comment) = &entry.comment {
        line += &format!(" comment \"{comment}\"");
    }
    if entry.wildcard {
        line += " wildcard";
    }
    if entry.nomatch {
        line += " nomatch";
    }
    line
}

const SETS: &str = "\
create ip hash:ip family inet timeout 600 counters comment
add ip 10.0.0.1 timeout 100 packets 7 bytes 700 comment \"the first\"
add ip 10.0.0.2 timeout 0
create cut hash:ip netmask 24
add cut 10.7.0.9
create six hash:ip family inet6
add six fd00::1
create net hash:net
add net 10.0.0.0/8
add net 10.1.0.0/16 nomatch
add net 10.2.3.4
create port hash:ip,port
add port 10.0.0.1,tcp:80
add port 10.0.0.1,udp:53
add port 10.0.0.1,icmp:ping
create iface hash:net,iface
add iface 10.0.0.0/24,eth0
add iface 10.0.1.0/24,physdev:veth wildcard
create pair hash:ip,port,ip
add pair 10.0.0.1,tcp:80,10.0.0.2
create triple hash:ip,port,net
add triple 10.0.0.1,udp:80,10.9.0.0/16
create netport hash:net,port
add netport 10.5.0.0/16,tcp:443
create map bitmap:ip range 10.3.0.0/24
add map 10.3.0.7
create macs bitmap:ip,mac range 10.4.0.0/24
add macs 10.4.0.7,02:00:00:00:0A:00
create ports bitmap:port range 100-200
add ports 150
create list list:set size 8
add list net
add list ip
";

#[test]
fn ipsets_are_what_ipset_saves() -> Result<()> {
    let [ns] = Netns::create()?;
    ensure!(sets(&ns)?.is_empty());
    ns.command(&["ipset", "restore"], SETS)?;
    let found = sets(&ns)?;
    // What is left of a timeout moves; that there is one does not.
    let saved: BTreeSet<String> = ns
        .command(&["ipset", "save"], "")?
        .lines()
        .filter(|line| line.starts_with("add "))
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let timeout = words.iter().position(|word| *word == "timeout");
            let left = timeout.map_or(usize::MAX, |at| at + 1);
            let kept = words.iter().enumerate().filter(|(at, _)| *at != left);
            kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
        })
        .collect();
    ensure!(saved.len() == 20, "{saved:?}");
    let read: BTreeSet<String> = found
        .iter()
        .flat_map(|set| set.entries.iter().map(|entry| text(set, entry)))
        .collect();
    assert_eq!(read, saved);
    for set in &found {
        ensure!(set.index.is_some() && set.broken == 0, "{set:?}");
    }
    let set = |name: &str| found.iter().find(|set| set.name == name).context("no set");
    assert_eq!(set("ip")?.header.timeout, Some(600));
    assert!(set("ip")?.header.counters);
    assert_eq!(set("cut")?.header.netmask, Some(24));
    assert_eq!(set("ports")?.header.ports, Some((100, 200)));
    assert_eq!(
        set("map")?.header.addresses,
        Some(([10, 3, 0, 0].into(), [10, 3, 0, 255].into()))
    );
    let first = set("list")?.entries.first().and_then(|e| e.member.clone());
    assert_eq!(first.as_deref(), Some("net"), "a list keeps its order");
    Ok(())
}

#[test]
fn a_set_of_many_messages() -> Result<()> {
    let [ns] = Netns::create()?;
    let mut script = "create big hash:ip\n".to_owned();
    for n in 0..5000 {
        script += &format!("add big 10.0.{}.{}\n", n / 250, n % 250);
    }
    ns.command(&["ipset", "restore"], &script)?;
    let found = sets(&ns)?;
    let [set] = found.as_slice() else {
        anyhow::bail!("{} sets", found.len())
    };
    let distinct: BTreeSet<_> = set.entries.iter().map(|entry| entry.ip).collect();
    assert_eq!((set.entries.len(), distinct.len()), (5000, 5000));
    Ok(())
}

#[test]
fn links_and_routes_are_what_iproute2_says() -> Result<()> {
    let net = Net::routed()?;
    net.r.ip("link set r0 group 7\n\
         link add br9 type bridge\n\
         link add d0 type veth peer name d1\n\
         link set d0 master br9\n\
         route add 10.9.0.0/16 via 10.2.0.1 metric 20\n\
         route add 10.9.0.0/16 via 10.1.0.1 metric 10\n\
         route add blackhole 10.8.0.0/16\n\
         route add 10.7.0.0/16 nexthop via 10.1.0.1 nexthop via 10.2.0.1\n\
         route add unreachable fd09::/64\n\
         route add fd08::/64 via fd02::1\n\
         route add throw 10.6.0.0/16\n\
         route add 10.6.0.0/16 via 10.2.0.1 table default\n\
         route add default via 10.1.0.1\n")?;
    let world = world(&net.r)?;
    let links = world.links.as_ref().context("no links")?;
    let link = |name: &str| {
        links
            .iter()
            .find(|link| link.name == name)
            .context("no link")
    };
    assert_eq!((link("r0")?.group, link("r0")?.kind), (7, 1));
    assert_eq!(link("r0")?.driver.as_deref(), Some("veth"));
    assert_eq!(link("r0")?.address, [2, 0, 0, 0, 0x0b, 0]);
    assert_eq!(link("d0")?.master, Some(link("br9")?.index));
    assert_eq!((link("lo")?.kind, link("lo")?.flags & 8), (772, 8));

    let mut hits = 0;
    for address in [
        "10.1.0.2",
        "10.2.0.2",
        "10.1.0.1",
        "10.2.0.9",
        "10.1.0.255",
        "10.9.1.1",
        "10.8.1.1",
        "10.6.1.1",
        "10.7.1.1",
        "127.9.9.9",
        "8.8.8.8",
        "fd01::2",
        "fd01::1",
        "fd02::77",
        "fd09::1",
        "fd08::1",
        "fd77::1",
        "::1",
    ] {
        let ip: IpAddr = address.parse()?;
        let got = net.r.command(&["ip", "route", "get", address], "");
        let hit = if ip.is_ipv4() {
            world.route4(ip)
        } else {
            world.route6(ip, None, false)
        };
        let hit = hit.map_err(anyhow::Error::msg)?;
        let Ok(got) = got else {
            let refused = hit.is_none_or(|hit| (6..=8).contains(&hit.route.kind));
            ensure!(refused, "{address}: no route for ip, {hit:?} here");
            continue;
        };
        let words: Vec<&str> = got.split_whitespace().collect();
        let dev = words.iter().position(|word| *word == "dev");
        let dev = dev.and_then(|at| words.get(at + 1)).context("no dev")?;
        let kind = match words.first() {
            Some(&"local") => rtn::LOCAL,
            Some(&"broadcast") => rtn::BROADCAST,
            _ => rtn::UNICAST,
        };
        let hit = hit.with_context(|| format!("{address}: {got}"))?;
        assert_eq!(hit.route.kind, kind, "{address}: {got}");
        if kind == rtn::UNICAST {
            let uses = hit.uses(link(dev)?.index).map_err(anyhow::Error::msg)?;
            assert!(uses, "{address}: {got}");
        }
        if ip.is_ipv4() {
            assert_eq!(world.address_type4(ip, None), Ok(kind), "{address}");
        }
        hits += 1;
    }
    assert!(hits > 10);
    assert_eq!(
        world.has_address6("fd01::2".parse()?, link("r0")?.index),
        Ok(true)
    );
    assert_eq!(
        world.has_address6("fd01::2".parse()?, link("r1")?.index),
        Ok(false)
    );
    Ok(())
}

#[test]
fn policy_rules_make_routes_unknown_and_changes_are_announced() -> Result<()> {
    let [ns] = Netns::create()?;
    ns.ip("link set lo up\n")?;
    let ip: IpAddr = "127.0.0.1".parse()?;
    assert!(world(&ns)?.route4(ip).is_ok());
    let mut listener = ns.run(|| Socket::open(Protocol::Route, &GROUPS))?;
    for change in [
        "rule add fwmark 7 table 100",
        "-6 rule add fwmark 7 table 100",
        "route add blackhole 10.0.0.0/8",
        "route add blackhole fd00::/8",
        "addr add 10.0.0.1/32 dev lo",
        "addr add fd00::1/128 dev lo",
        "link add d0 type bridge",
    ] {
        let argv: Vec<&str> = std::iter::once("ip").chain(change.split(' ')).collect();
        ns.command(&argv, "")?;
        ensure!(
            e2e::wait_until(|| matches!(listener.recv(), Ok(Some(_)))),
            "{change} is not announced"
        );
        while listener.recv()?.is_some() {}
    }
    let ruled = world(&ns)?;
    assert!(ruled.route4(ip).is_err());
    assert!(ruled.route6("::1".parse()?, None, false).is_err());
    assert_eq!(ruled.address_type4(ip, None), Ok(rtn::LOCAL));
    Ok(())
}
