//! `fwtrace demo`'s scenes against the kernel and nft. Needs root and nft.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::{Duration, Instant},
};

use fwtrace::{
    demo::{
        lab::{Host, Lab},
        scenes::{SCENES, Scene},
        traffic,
    },
    netlink::{
        attr::Attrs,
        nft_write::{BaseChain, Batch, Rule},
        socket::{Protocol, Socket},
    },
    ruleset::model::{Data, Expr, Family},
};

fn set_up(scene: &Scene) -> Lab {
    let lab = Lab::new().expect("needs root");
    for table in (scene.tables)() {
        lab.load(&table).expect("the kernel takes the table");
    }
    lab
}

#[test]
fn the_firewall_shown_is_the_firewall_loaded() {
    for scene in SCENES {
        let lab = set_up(scene);
        let listing = lab
            .netns(Host::Firewall)
            .run(|| Command::new("nft").args(["list", "ruleset"]).output())
            .expect("the firewall's namespace")
            .expect("nft is installed");
        assert_eq!(
            String::from_utf8_lossy(&listing.stdout),
            scene.ruleset,
            "scene {}",
            scene.name
        );
    }
}

/// The chain and number of each rule of the firewall, by its table and handle.
fn rules_by_handle(lab: &Lab) -> BTreeMap<(String, u64), (String, u32)> {
    let listing = lab
        .netns(Host::Firewall)
        .run(|| Command::new("nft").args(["-a", "list", "ruleset"]).output())
        .expect("the firewall's namespace")
        .expect("nft is installed");
    let (mut table, mut chain, mut number) = (String::new(), String::new(), 0);
    let mut rules = BTreeMap::new();
    for line in String::from_utf8_lossy(&listing.stdout).lines() {
        let Some((text, handle)) = line.split_once(" # handle ") else {
            continue;
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["table", _, name, "{"] => table = name.to_owned(),
            ["chain", name, "{"] => (chain, number) = (name.to_owned(), 0),
            _ => {
                number += 1;
                let handle = handle.parse().expect("a handle");
                rules.insert((table.clone(), handle), (chain.clone(), number));
            }
        }
    }
    rules
}

/// Sets nftrace on whatever comes in or is sent.
fn trace_everything() -> Batch {
    const NFT_META_NFTRACE: u32 = 12;
    let mut batch = Batch::new(Family::Ip, "trace");
    batch.add_table();
    for (chain, base) in [("in", BaseChain::PREROUTING), ("out", BaseChain::OUTPUT)] {
        batch.add_base_chain(
            chain,
            &BaseChain {
                priority: -400,
                ..base
            },
        );
        let one = Data::Value(1_u32.to_ne_bytes().into());
        let rule = Rule::new(Family::Ip)
            .push(Expr::Immediate { dreg: 1, data: one })
            .push(Expr::MetaSet {
                sreg: 1,
                key: NFT_META_NFTRACE,
            });
        batch.add_rule(chain, rule);
    }
    batch
}

/// What the kernel's own trace says was dropped: chain, and rule number or `None` for the policy.
fn drops_traced(scene: &Scene) -> Vec<(String, Option<u32>)> {
    const NFNLGRP_NFTRACE: u32 = 9;
    const NFT_TRACETYPE_POLICY: u32 = 1;
    let lab = set_up(scene);
    let rules = rules_by_handle(&lab);
    lab.load(&trace_everything())
        .expect("the kernel takes the rules");
    let firewall = lab.netns(Host::Firewall).as_fd();
    let mut socket =
        Socket::open_in(firewall, Protocol::Netfilter, &[NFNLGRP_NFTRACE]).expect("a socket");
    let _service = scene
        .service
        .map(|(host, port)| traffic::listen(&lab, host, port).expect("a port"));
    let _open: Vec<_> = scene
        .sent
        .iter()
        .map(|packet| packet.send(&lab).expect("a packet"))
        .collect();

    let deadline = Instant::now() + Duration::from_secs(10);
    let mut drops = Vec::new();
    while drops.len() < scene.expected.len() {
        assert!(
            socket.wait(deadline).expect("a trace"),
            "scene {}: {drops:?}",
            scene.name
        );
        let Some(messages) = socket.recv().expect("a trace") else {
            continue;
        };
        for message in messages {
            let attrs = Attrs::after(message.expect("a message").payload, 4);
            let find = |kind| attrs.clone().find(kind).expect("attributes");
            let number = |kind| find(kind).map(|attr| attr.be32().expect("a number"));
            let code = find(5).and_then(|verdict| verdict.nested().find(1).expect("a verdict"));
            let dropped = match number(4) {
                Some(NFT_TRACETYPE_POLICY) => number(16) == Some(0),
                _ => code.is_some_and(|code| code.be32() == Ok(0)),
            };
            if dropped {
                let handle = find(3).map(|attr| attr.be64().expect("a handle"));
                let text = |kind| find(kind).expect("a name").str().expect("text").to_owned();
                drops.push(match handle {
                    Some(handle) => {
                        let (chain, number) = rules[&(text(1), handle)].clone();
                        (chain, Some(number))
                    }
                    None => (text(2), None),
                });
            }
        }
    }
    drops.sort();
    drops
}

#[test]
fn the_kernel_drops_what_the_scenes_say() {
    for scene in SCENES {
        let mut expected: Vec<_> = scene
            .expected
            .iter()
            .map(|drop| (drop.chain.to_owned(), drop.number))
            .collect();
        expected.sort();
        assert_eq!(drops_traced(scene), expected, "scene {}", scene.name);
    }
}

#[test]
fn scenes_have_names_of_their_own() {
    let names: BTreeSet<&str> = SCENES.iter().map(|scene| scene.name).collect();
    assert_eq!(names.len(), SCENES.len());
    assert!(
        SCENES
            .iter()
            .all(|scene| scene.expected.len() >= scene.sent.len())
    );
}
