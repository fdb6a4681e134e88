//! Random cases.

use std::collections::HashSet;

use crate::net::Place;
use crate::oracle::aim::{self, Aim, Hook};
use crate::oracle::case::{Case, Loader, Sent, Step};
use crate::oracle::flow::Flow;
use crate::oracle::nft_rules::{self, Generated, Scope};
use crate::oracle::packet::{Spec, proto};
use crate::oracle::random::Random;
use crate::oracle::truth::Key;
use crate::oracle::xt_rules;

/// What loads the rulesets of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// nft.
    Nft,
    /// iptables-nft and ip6tables-nft.
    IptablesNft,
    /// Both.
    NftAndIptablesNft,
    /// iptables-legacy and ip6tables-legacy.
    Legacy,
    /// nft beside iptables-legacy.
    NftAndLegacy,
}

impl Kind {
    /// A random one.
    pub fn any(random: &mut Random) -> Self {
        random.weighted(&[
            (45, Self::Nft),
            (20, Self::IptablesNft),
            (8, Self::NftAndIptablesNft),
            (20, Self::Legacy),
            (7, Self::NftAndLegacy),
        ])
    }

    /// Whether legacy tables are in it.
    pub fn has_legacy(self) -> bool {
        matches!(self, Self::Legacy | Self::NftAndLegacy)
    }
}

/// A case with this many packets.
pub fn case(random: &mut Random, kind: Kind, name: String, packets: usize) -> Case {
    let conntrack = random.percent(65);
    let traced = random.percent(25);
    let scope = Scope {
        conntrack: conntrack || random.percent(30),
        state: random.percent(30),
        writes: random.percent(40),
    };
    let (mut steps, mut aims, mut stateful) = (Vec::new(), Vec::new(), false);
    let mut add = |loader, generated: Generated| {
        steps.push(Step {
            loader,
            text: generated.text,
        });
        aims.extend(generated.aims);
        stateful |= generated.stateful;
    };
    let (v4, v6) = match kind {
        Kind::Nft => (None, None),
        Kind::IptablesNft | Kind::NftAndIptablesNft => {
            (Some(Loader::IptablesNft), Some(Loader::Ip6tablesNft))
        }
        Kind::Legacy | Kind::NftAndLegacy => {
            (Some(Loader::IptablesLegacy), Some(Loader::Ip6tablesLegacy))
        }
    };
    for (loader, v6) in [(v4, false), (v6, true)] {
        if let Some(loader) = loader {
            add(
                loader,
                xt_rules::ruleset(random, v6, scope, kind.has_legacy()),
            );
        }
    }
    if !matches!(kind, Kind::IptablesNft | Kind::Legacy) {
        add(Loader::Nft, nft_rules::ruleset(random, scope));
    }
    let flows: Vec<Flow> = if conntrack && random.percent(60) {
        (0..6).map(|number| Flow::new(random, number)).collect()
    } else {
        Vec::new()
    };
    let mut ids = Ids::default();
    let mut opening = Vec::new();
    for (index, flow) in flows.iter().enumerate() {
        let mut like = aim::plain(random, Hook::Forward, flow.v6);
        like.payload = vec![b'o'; 4];
        like.ttl = 64;
        for mut spec in flow.opening(index, &like) {
            ids.mark(&mut spec);
            opening.push(sent(&spec));
        }
    }
    if aims.is_empty() {
        // No chain has a rule: the policies are there still.
        aims.push(Aim {
            hook: Hook::Input,
            wishes: Vec::new(),
        });
    }
    let packets = (0..packets).map(|_| {
        let mut spec = packet(random, &aims, &flows);
        ids.mark(&mut spec);
        sent(&spec)
    });
    let packets = packets.collect();
    Case {
        name,
        conntrack,
        stateful,
        traced,
        opening,
        steps,
        packets,
    }
}

/// A packet, half of the time just what a rule wants, else nearly.
fn packet(random: &mut Random, aims: &[Aim], flows: &[Flow]) -> Spec {
    let aim = &aims[random.below(aims.len())];
    let mut spec = aim::at(random, aim, flows);
    if random.percent(10) {
        aim::established(random, &mut spec, flows);
    } else if random.percent(3) {
        aim::related(random, &mut spec, flows);
    }
    if random.percent(50) {
        for _ in 0..random.from(1, 2) {
            aim::mutate(random, &mut spec);
        }
    }
    spec
}

/// Makes packets tell themselves apart.
#[derive(Debug, Default)]
struct Ids {
    next: u16,
    used: HashSet<Key>,
}

impl Ids {
    /// Gives IPv4 packets an identification of their own, and makes others longer until nothing
    /// is like them.
    fn mark(&mut self, spec: &mut Spec) {
        self.next += 1;
        if spec.id == 0 {
            spec.id = self.next;
        }
        for _ in 0..200 {
            let bytes = spec.ip_packet();
            let start = if spec.v6 { 40 } else { 20 };
            let key = Key::read(&bytes, bytes.get(start..).unwrap_or_default());
            // Not every trace shows these.
            let key = key.map(|key| Key {
                proto: None,
                ports: None,
                ..key
            });
            if key.is_none_or(|key| self.used.insert(key)) {
                return;
            }
            if spec.v6 {
                // By eight, for fragments.
                let add = if spec.fragment.is_some() { 8 } else { 1 };
                spec.payload.extend(std::iter::repeat_n(b'.', add));
            } else {
                self.next += 1;
                spec.id = self.next;
            }
        }
    }
}

fn sent(spec: &Spec) -> Sent {
    let whole = spec.fragment.is_none() && spec.cut.is_none();
    let plain =
        whole && spec.proto == proto::TCP && spec.ip_options.is_empty() && spec.exts.is_empty();
    Sent {
        from: spec.from,
        bytes: spec.bytes(),
        mark: if spec.from == Place::R { spec.mark } else { 0 },
        acknowledges: spec.flow.is_some()
            && plain
            && spec.vlans.is_empty()
            && spec.flags & 0x10 != 0,
    }
}
