//! Random rulesets in iptables-save syntax, for all four restore programs.

use std::fmt::Write as _;

use crate::oracle::aim::{Aim, Hook, Wish};
use crate::oracle::nft_rules::{Generated, Scope};
use crate::oracle::packet::proto;
use crate::oracle::random::Random;
use crate::oracle::xt_match::{self, Flavour};

/// A table with nothing in it; a restore leaves policies as they are unless it names them.
fn empty(name: &str, chains: &[&str]) -> String {
    let policies = chains.iter().map(|c| format!(":{c} ACCEPT [0:0]\n"));
    format!("*{name}\n{}COMMIT\n", policies.collect::<String>())
}

/// All tables, with nothing in them.
pub fn nothing() -> String {
    let tables = TABLES.iter().map(|(name, chains)| {
        let chains: Vec<&str> = chains.iter().map(|(chain, _)| *chain).collect();
        empty(name, &chains)
    });
    tables.collect::<String>() + &empty("nat", &[])
}

/// Tables and their built-in chains.
const TABLES: [(&str, &[(&str, Hook)]); 4] = [
    (
        "raw",
        &[("PREROUTING", Hook::Prerouting), ("OUTPUT", Hook::Output)],
    ),
    (
        "mangle",
        &[
            ("PREROUTING", Hook::Prerouting),
            ("INPUT", Hook::Input),
            ("FORWARD", Hook::Forward),
            ("OUTPUT", Hook::Output),
            ("POSTROUTING", Hook::Postrouting),
        ],
    ),
    (
        "filter",
        &[
            ("INPUT", Hook::Input),
            ("FORWARD", Hook::Forward),
            ("OUTPUT", Hook::Output),
        ],
    ),
    (
        "security",
        &[
            ("INPUT", Hook::Input),
            ("FORWARD", Hook::Forward),
            ("OUTPUT", Hook::Output),
        ],
    ),
];

/// A table under construction.
struct Table<'a> {
    random: &'a mut Random,
    name: &'static str,
    v6: bool,
    chains: String,
    rules: String,
    aims: Vec<Aim>,
    stateful: bool,
    count: usize,
    scope: Scope,
}

/// Sources of packets that make fwtrace take in the tables of a new legacy ruleset, IPv4 and IPv6.
pub const PRIMERS: [&str; 2] = ["10.1.0.8", "fd01::8"];

/// The rule that drops such packets, before everything else.
pub fn priming(v6: bool) -> String {
    let length = if v6 { 128 } else { 32 };
    let primer = PRIMERS[usize::from(v6)];
    format!("-A PREROUTING -s {primer}/{length} -j DROP")
}

/// All tables of a family; those that are not used are empty. With `primed`, packets from
/// [`PRIMERS`] are dropped first thing.
///
/// That is a rule of the table that is loaded last: who knows it can know the others.
pub fn ruleset(random: &mut Random, v6: bool, scope: Scope, primed: bool) -> Generated {
    let mut all = Generated::default();
    let mut last = String::new();
    for (name, hooks) in TABLES {
        let primer = match primed && name == "raw" {
            true => priming(v6) + "\n",
            false => String::new(),
        };
        let text = if name == "raw" {
            &mut last
        } else {
            &mut all.text
        };
        let weight = if name == "filter" { 95 } else { 25 };
        if !random.percent(weight) {
            let chains: Vec<&str> = hooks.iter().map(|(chain, _)| *chain).collect();
            let rules = format!("{primer}COMMIT");
            *text += &empty(name, &chains).replace("COMMIT", &rules);
            continue;
        }
        let mut table = Table {
            random,
            name,
            v6,
            chains: String::new(),
            rules: String::new(),
            aims: Vec::new(),
            stateful: false,
            count: 0,
            scope,
        };
        for &(chain, hook) in hooks {
            table.base(chain, hook);
        }
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "*{name}\n{}{primer}{}COMMIT\n",
            table.chains, table.rules
        );
        all.aims.append(&mut table.aims);
        all.stateful |= table.stateful;
    }
    all.text += "*nat\n";
    if random.percent(10) {
        let to = if v6 { "fd02::3" } else { "10.2.0.3" };
        all.text += &format!(
            "-A PREROUTING -p tcp -m tcp --dport 6000 -j DNAT --to-destination {to}\n\
             -A PREROUTING -p udp -m udp --dport 80 -j REDIRECT --to-ports 5353\n\
             -A POSTROUTING -o r1 -j MASQUERADE\n"
        );
    }
    all.text += "COMMIT\n";
    all.text += &last;
    all
}

impl Table<'_> {
    fn base(&mut self, chain: &str, hook: Hook) {
        let used = self
            .random
            .percent(if self.name == "filter" { 80 } else { 35 });
        let drop = used && self.random.percent(22);
        self.chains += &format!(":{chain} {} [0:0]\n", if drop { "DROP" } else { "ACCEPT" });
        if used {
            self.chain(chain, hook, &[Wish::V6(self.v6)], 0);
            self.aims.push(Aim {
                hook,
                wishes: vec![Wish::V6(self.v6)],
            });
        }
    }

    fn chain(&mut self, chain: &str, hook: Hook, outer: &[Wish], depth: usize) {
        let mut rules = String::new();
        for _ in 0..self.random.from(2, if depth == 0 { 8 } else { 4 }) {
            let (text, wishes) = self.rule(hook, outer, depth);
            rules += &format!("-A {chain} {text}\n");
            self.aims.push(Aim { hook, wishes });
        }
        self.rules += &rules;
    }

    fn rule(&mut self, hook: Hook, outer: &[Wish], depth: usize) -> (String, Vec<Wish>) {
        let wished = outer.iter().find_map(|w| {
            if let Wish::Proto(p) = w {
                Some(*p)
            } else {
                None
            }
        });
        let icmp = if self.v6 { proto::ICMPV6 } else { proto::ICMP };
        let l4 = self.random.weighted(&[
            (35, Some(proto::TCP)),
            (30, Some(proto::UDP)),
            (12, Some(icmp)),
            (2, Some(proto::SCTP)),
            (1, Some(proto::UDPLITE)),
            (1, Some(50)),
            (18, None),
        ]);
        let l4 = if wished.is_some() { wished } else { l4 };
        let flavour = Flavour {
            hook,
            v6: self.v6,
            l4,
            ct: self.name != "raw",
            state: self.scope.state,
        };
        let mut wishes = outer.to_vec();
        let mut parts: Vec<String> = Vec::new();
        let first = xt_match::protocol(flavour);
        wishes.extend(first.wishes);
        if !first.text.is_empty() {
            parts.push(first.text);
        }
        let mut count = self.random.weighted(&[(10, 0), (45, 1), (30, 2), (15, 3)]);
        if parts.is_empty() && self.random.percent(80) {
            // A rule without matches hides all that follow it.
            count = count.max(1);
        }
        let mut used: Vec<String> = Vec::new();
        for _ in 0..count {
            let found = xt_match::any(self.random, flavour);
            // A match or an address can stand in a rule once.
            let kind: Vec<&str> = found
                .text
                .trim_start_matches("! ")
                .split(' ')
                .take(2)
                .collect();
            let kind = if kind[0] == "-m" {
                kind.join(" ")
            } else {
                kind[0].to_owned()
            };
            if used.contains(&kind) {
                continue;
            }
            used.push(kind);
            self.stateful |= found.stateful;
            wishes.extend(found.wishes);
            parts.push(found.text);
        }
        parts.push(self.target(flavour, &wishes, depth));
        (parts.join(" "), wishes)
    }

    fn target(&mut self, flavour: Flavour, wishes: &[Wish], depth: usize) -> String {
        let hook = flavour.hook;
        let rejects = self.name == "filter";
        let kind = self.random.below(100);
        if (89..97).contains(&kind) {
            if !self.scope.writes {
                return String::new();
            }
            self.stateful = true;
        }
        match kind {
            0..44 => "-j DROP".into(),
            44..57 if rejects => self.reject(flavour),
            57..67 => "-j ACCEPT".into(),
            67..84 if depth < 3 => {
                self.count += 1;
                let sub = format!("sub{}", self.count);
                self.chains += &format!(":{sub} - [0:0]\n");
                self.chain(&sub, hook, wishes, depth + 1);
                let verb = if self.random.percent(75) { "-j" } else { "-g" };
                format!("{verb} {sub}")
            }
            84..89 => "-j RETURN".into(),
            89..92 if self.name == "mangle" => self
                .random
                .pick(&["-j DSCP --set-dscp 0x2e", "-j TOS --set-tos 0x10/0x3f"])
                .into(),
            89..92 if self.name == "raw" => "-j CT --notrack".into(),
            92..95 => "-j MARK --set-xmark 0x2/0xff".into(),
            95..97 if flavour.ct => "-j CONNMARK --set-xmark 0x10/0xffffffff".into(),
            97..98 => "-j NFLOG --nflog-group 9".into(),
            _ => String::new(),
        }
    }

    fn reject(&mut self, flavour: Flavour) -> String {
        if flavour.l4 == Some(proto::TCP) && self.random.percent(40) {
            return "-j REJECT --reject-with tcp-reset".into();
        }
        let types = if self.v6 {
            [
                "icmp6-port-unreachable",
                "icmp6-adm-prohibited",
                "icmp6-no-route",
            ]
        } else {
            [
                "icmp-port-unreachable",
                "icmp-admin-prohibited",
                "icmp-host-prohibited",
            ]
        };
        format!("-j REJECT --reject-with {}", self.random.pick(&types))
    }
}
