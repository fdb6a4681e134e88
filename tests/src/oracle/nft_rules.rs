//! Random nft rulesets.

use std::fmt::Write as _;

use crate::oracle::aim::{Aim, Hook, Wish};
use crate::oracle::nft_match::{self, Flavour, Match};
use crate::oracle::nft_set::{self, Sets};
use crate::oracle::packet::proto;
use crate::oracle::random::Random;

/// A ruleset, and what can be aimed at in it.
#[derive(Clone, Debug, Default)]
pub struct Generated {
    /// One command a line.
    pub text: String,
    /// Its rules.
    pub aims: Vec<Aim>,
    /// Whether a rule depends on state, or changes what a later one matches: after that, what the
    /// packet was before cannot always be told.
    pub stateful: bool,
}

/// What the rulesets of a case may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Match conntrack.
    pub conntrack: bool,
    /// Match state that nobody outside knows.
    pub state: bool,
    /// Change packets and marks.
    pub writes: bool,
}

/// A table under construction.
struct Table<'a> {
    random: &'a mut Random,
    /// `inet t0`.
    name: String,
    family: &'static str,
    chains: String,
    sets: Sets,
    rules: String,
    aims: Vec<Aim>,
    stateful: bool,
    count: usize,
    scope: Scope,
}

/// Tables named `t0`, `t1`, ...
pub fn ruleset(random: &mut Random, scope: Scope) -> Generated {
    let mut all = Generated::default();
    for number in 0..random.weighted(&[(4, 1), (4, 2), (2, 3)]) {
        let family = random.weighted(&[(50, "inet"), (22, "ip"), (15, "ip6"), (8, "netdev")]);
        let mut table = Table {
            random,
            name: format!("{family} t{number}"),
            family,
            chains: String::new(),
            sets: Sets::default(),
            rules: String::new(),
            aims: Vec::new(),
            stateful: false,
            count: 0,
            scope: Scope {
                conntrack: scope.conntrack && family != "netdev",
                ..scope
            },
        };
        table.fill();
        // Writing to a string does not fail.
        let _ = writeln!(all.text, "add table {}", table.name);
        all.text += &table.chains;
        all.text += &table.sets.text;
        all.text += &table.rules;
        all.aims.append(&mut table.aims);
        all.stateful |= table.stateful;
    }
    all
}

impl Table<'_> {
    fn fill(&mut self) {
        let hooks: &[(usize, Hook)] = if self.family == "netdev" {
            &[(3, Hook::Ingress), (1, Hook::Egress)]
        } else {
            &[
                (20, Hook::Input),
                (20, Hook::Forward),
                (18, Hook::Output),
                (18, Hook::Prerouting),
                (8, Hook::Postrouting),
            ]
        };
        if self.random.percent(30) {
            self.chains += &format!("add counter {} named\n", self.name);
        }
        for _ in 0..self.random.from(1, 3) {
            let hook = self.random.weighted(hooks);
            self.count += 1;
            let chain = format!("{}{}", hook.as_str(), self.count);
            let device = if self.family == "netdev" {
                "devices = { r0, r1 } "
            } else {
                ""
            };
            let priority = match hook {
                Hook::Prerouting => self.random.pick(&[-300, -250, -150, -90, 0, 10]),
                _ => self.random.pick(&[-150, -90, -5, 0, 0, 7, 50, 110]),
            };
            let policy = if self.random.percent(22) {
                "drop"
            } else {
                "accept"
            };
            self.chains += &format!(
                "add chain {} {chain} {{ type filter hook {} {device}priority {priority}; policy {policy}; }}\n",
                self.name,
                hook.as_str()
            );
            self.chain(&chain, hook, &[], 0);
            self.aims.push(Aim {
                hook,
                wishes: Vec::new(),
            });
        }
        if self.family == "inet" && self.scope.conntrack && self.random.percent(12) {
            self.nat();
        }
    }

    /// The rules of a chain, and the chains that they lead to.
    fn chain(&mut self, chain: &str, hook: Hook, outer: &[Wish], depth: usize) {
        let mut rules = String::new();
        for _ in 0..self.random.from(2, if depth == 0 { 9 } else { 5 }) {
            let (text, inner) = self.rule(hook, outer, depth);
            rules += &format!("add rule {} {chain} {text}\n", self.name);
            let aims = if inner.is_empty() {
                outer.to_vec()
            } else {
                inner
            };
            self.aims.push(Aim { hook, wishes: aims });
        }
        self.rules += &rules;
    }

    fn flavour(&mut self, hook: Hook, outer: &[Wish]) -> Flavour {
        let v6 = match self.family {
            "ip" => Some(false),
            "ip6" => Some(true),
            _ => {
                let wished = outer.iter().find_map(|w| {
                    if let Wish::V6(v6) = w {
                        Some(*v6)
                    } else {
                        None
                    }
                });
                wished.or_else(|| self.random.pick(&[None, Some(false), Some(true)]))
            }
        };
        let wished = outer.iter().find_map(|w| {
            if let Wish::Proto(p) = w {
                Some(*p)
            } else {
                None
            }
        });
        let icmp = match v6 {
            Some(true) => proto::ICMPV6,
            _ => proto::ICMP,
        };
        let l4 = self.random.weighted(&[
            (35, Some(proto::TCP)),
            (30, Some(proto::UDP)),
            (12, Some(icmp)),
            (2, Some(proto::SCTP)),
            (1, Some(proto::UDPLITE)),
            (1, Some(47)),
            (20, None),
        ]);
        Flavour {
            hook,
            v6,
            l4: if wished.is_some() { wished } else { l4 },
            ct: self.scope.conntrack,
            state: self.scope.state,
        }
    }

    /// A rule without its head, and all that leads to it.
    fn rule(&mut self, hook: Hook, outer: &[Wish], depth: usize) -> (String, Vec<Wish>) {
        let flavour = self.flavour(hook, outer);
        let mut wishes = outer.to_vec();
        if let Some(v6) = flavour.v6 {
            wishes.push(Wish::V6(v6));
        }
        let mut parts = Vec::new();
        for _ in 0..self.random.weighted(&[(2, 0), (45, 1), (35, 2), (18, 3)]) {
            let found = self.one_match(flavour);
            self.stateful |= found.stateful;
            wishes.extend(found.wishes);
            parts.push(found.text);
        }
        if parts.is_empty() && self.random.percent(70) {
            // A rule without matches hides all that follow it.
            parts.push(format!("meta l4proto {}", self.random.pick(&[6, 17])));
        }
        if let Some(statement) = self.statement(flavour) {
            parts.push(statement);
        }
        if self.random.percent(6) {
            let text = self.vmap(flavour, hook, &mut wishes, depth);
            parts.push(text);
            return (parts.join(" "), wishes);
        }
        if self.random.percent(40) {
            parts.push("counter".into());
        }
        let verdict = self.verdict(flavour, hook, &wishes, depth);
        parts.push(verdict);
        (parts.join(" "), wishes)
    }

    fn one_match(&mut self, flavour: Flavour) -> Match {
        if self.random.percent(20) {
            return nft_set::set_match(self.random, flavour, &self.name, &mut self.sets);
        }
        nft_match::any(self.random, flavour)
    }

    /// Something that a rule does besides its verdict.
    fn statement(&mut self, flavour: Flavour) -> Option<String> {
        if !self.random.percent(22) {
            return None;
        }
        let kind = self.random.below(10);
        if kind < 8 && kind != 4 {
            if !self.scope.writes {
                return None;
            }
            self.stateful = true;
        }
        let prerouting = flavour.hook == Hook::Prerouting || flavour.hook == Hook::Output;
        Some(match kind {
            0 | 1 => format!(
                "meta mark set {}",
                self.random
                    .pick(&["1", "2", "0x10", "meta mark | 0x2", "meta mark ^ 0x3"])
            ),
            2 => nft_set::mark_map(self.random, flavour, &self.name, &mut self.sets).text,
            3 if self.scope.conntrack => format!(
                "ct mark set {}",
                self.random.pick(&["0x10", "0x20", "meta mark"])
            ),
            4 => "log group 9".into(),
            5 if flavour.v6 == Some(false) => {
                format!("ip dscp set {}", self.random.pick(&["ef", "cs1"]))
            }
            6 if flavour.v6 == Some(true) => "ip6 hoplimit set 33".into(),
            7 if self.scope.conntrack && prerouting => "notrack".into(),
            8 if self.scope.state => {
                let found = nft_set::dynamic(self.random, flavour, &self.name, &mut self.sets)?;
                self.stateful |= found.stateful;
                found.text
            }
            _ if self.chains.contains("counter") => "counter name \"named\"".into(),
            _ => return None,
        })
    }

    fn vmap(
        &mut self,
        flavour: Flavour,
        hook: Hook,
        wishes: &mut Vec<Wish>,
        depth: usize,
    ) -> String {
        let sub = (depth < 3).then(|| self.declare(hook));
        let (found, to_chain) = nft_set::verdict_map(
            self.random,
            flavour,
            &self.name,
            &mut self.sets,
            sub.as_deref(),
        );
        if let Some(sub) = sub {
            let outer = [wishes.as_slice(), &to_chain].concat();
            self.chain(&sub, hook, &outer, depth + 1);
        }
        wishes.extend(found.wishes);
        found.text
    }

    fn verdict(&mut self, flavour: Flavour, hook: Hook, wishes: &[Wish], depth: usize) -> String {
        let rejects = matches!(
            hook,
            Hook::Prerouting | Hook::Input | Hook::Forward | Hook::Output
        );
        match self.random.below(100) {
            0..45 => "drop".into(),
            45..58 if rejects => self.reject(flavour),
            58..68 => "accept".into(),
            68..86 if depth < 3 => {
                let sub = self.declare(hook);
                let verb = if self.random.percent(75) {
                    "jump"
                } else {
                    "goto"
                };
                self.chain(&sub, hook, wishes, depth + 1);
                format!("{verb} {sub}")
            }
            86..91 => "return".into(),
            _ => "counter".into(),
        }
    }

    fn reject(&mut self, flavour: Flavour) -> String {
        let icmp = match (self.family, flavour.v6) {
            ("inet", _) => "reject with icmpx type admin-prohibited",
            (_, Some(true)) => "reject with icmpv6 type no-route",
            _ => "reject with icmp type host-unreachable",
        };
        if flavour.l4 == Some(proto::TCP) && self.random.percent(50) {
            return "meta l4proto tcp reject with tcp reset".into();
        }
        self.random.pick(&["reject", icmp]).into()
    }

    /// A chain of its own.
    fn declare(&mut self, hook: Hook) -> String {
        self.count += 1;
        let chain = format!("sub{}_{}", self.count, hook.as_str());
        self.chains += &format!("add chain {} {chain}\n", self.name);
        chain
    }

    /// Address translation.
    fn nat(&mut self) {
        let (table, port) = (self.name.clone(), self.random.pick(&[6000, 80]));
        self.chains += &format!(
            "add chain {table} natpre {{ type nat hook prerouting priority -100; }}\n\
             add chain {table} natpost {{ type nat hook postrouting priority 100; }}\n"
        );
        let target = self.random.pick(&["10.2.0.3", "10.2.0.4:8080", "10.1.0.2"]);
        self.rules += &format!(
            "add rule {table} natpre tcp dport {port} counter dnat ip to {target}\n\
             add rule {table} natpre udp dport {port} counter redirect to :5353\n\
             add rule {table} natpost oifname \"r1\" meta nfproto ipv4 masquerade\n"
        );
        for v6 in [false, true] {
            let wishes = vec![Wish::V6(v6), Wish::Proto(proto::TCP), Wish::Dport(port)];
            self.aims.push(Aim {
                hook: Hook::Prerouting,
                wishes,
            });
        }
    }
}
