//! `Tables` while iptables-legacy replaces them.

use std::net::UdpSocket;

use fwtrace::{
    netns::NetNs,
    xtables::{
        Family,
        legacy::{Table, follow::Tables, lock::Lock},
    },
};

use crate::{netns, run};

/// CLOCK_MONOTONIC, nanoseconds.
fn now() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(std::time::Duration::from(now).as_nanos()).unwrap()
}

/// How many rules INPUT has.
fn rules(table: &Table) -> usize {
    table.on_hook(1).unwrap().rules.len()
}

#[test]
fn replacements_are_followed() {
    let netns = netns();
    let mut tables = Tables::open(&NetNs::find(netns.name()).unwrap()).unwrap();
    assert_eq!((tables.generation(), tables.newest().count()), (1, 0));
    assert!(!tables.poll(false).unwrap());

    // A table appears.
    run(
        &netns,
        "iptables-legacy -w -A INPUT -p udp --dport 9 -j DROP",
    );
    assert!(tables.poll(false).unwrap());
    assert!(!tables.poll(false).unwrap());
    assert_eq!(tables.generation(), 2);
    let first = now();
    assert!(!tables.refresh().unwrap());

    // Counters are no change.
    netns.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", "127.0.0.1:9").unwrap();
    });
    let text = run(&netns, "iptables-legacy -w -L INPUT -v -n -x");
    assert!(text.contains("       1       29 DROP"), "{text}");
    assert!(!tables.refresh().unwrap());

    // Another rule of the same size in the place of the first, then one more, then another table.
    run(
        &netns,
        "iptables-legacy -w -R INPUT 1 -p udp --dport 10 -j DROP",
    );
    assert!(tables.refresh().unwrap());
    let second = now();
    assert!(!tables.refresh().unwrap());
    run(
        &netns,
        "iptables-legacy -w -A INPUT -p udp --dport 11 -j DROP",
    );
    assert!(tables.poll(false).unwrap());
    run(&netns, "ip6tables-legacy -w -t raw -P OUTPUT DROP");
    assert!(tables.poll(false).unwrap());
    assert_eq!(tables.generation(), 5);
    let names: Vec<_> = tables
        .newest()
        .map(|t| (t.family, t.name.as_str()))
        .collect();
    assert_eq!(names, [(Family::V4, "filter"), (Family::V6, "raw")]);

    let at = |time| {
        let found = tables.at(Family::V4, "filter", time).unwrap();
        (
            found.generation,
            found.certain,
            found.newest,
            rules(&found.table),
        )
    };
    assert_eq!(at(first), (2, true, false, 1));
    assert_eq!(at(second), (3, true, false, 1));
    assert_eq!(at(now()), (4, false, true, 2));
    assert!(tables.at(Family::V6, "filter", now()).is_none());

    // With its module, a table can be gone; with its rules flushed, it is there still.
    run(&netns, "iptables-legacy -w -F");
    assert!(tables.poll(false).unwrap());
    assert_eq!(rules(tables.table(Family::V4, "filter").unwrap()), 0);
}

/// Each of a hundred replacements in a row is seen by the reading after it, and none is seen that was not.
#[test]
fn every_replacement_counts_once() {
    let netns = netns();
    run(
        &netns,
        "iptables-legacy -w -A INPUT -p udp --dport 1 -j DROP",
    );
    let mut tables = Tables::open(&NetNs::find(netns.name()).unwrap()).unwrap();
    for n in 0..100 {
        let port = n % 7 + 2;
        run(
            &netns,
            &format!("iptables-legacy -w -R INPUT 1 -p udp --dport {port} -j DROP"),
        );
        assert!(tables.refresh().unwrap(), "{n}");
        assert!(!tables.refresh().unwrap(), "{n}");
        assert_eq!(tables.generation(), n + 2);
    }
}

/// The lock tells of each call of iptables-legacy, after it.
#[test]
fn the_lock_tells() {
    let netns = netns();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut lock = Lock::watch().unwrap();
        let mut tables = Tables::open(&NetNs::find(netns.name()).unwrap()).unwrap();
        for n in 1..=20 {
            let port = 100 + n;
            let append = format!("iptables-legacy -w -A INPUT -p udp --dport {port} -j DROP");
            run(&netns, &append);
            let told = tokio::time::timeout(e2e::PATIENCE, lock.released());
            told.await.expect("told");
            assert!(tables.poll(true).unwrap(), "{n}");
            let filter = tables.table(Family::V4, "filter").unwrap();
            assert_eq!(rules(filter), n);
        }
    });
}
