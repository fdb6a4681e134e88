//! Sets and maps of generated nft tables: named and anonymous, plain, interval, concatenated.

use std::fmt::Write as _;

use crate::net::Place;
use crate::oracle::aim::{PORTS, Wish, addresses};
use crate::oracle::nft_match::{Flavour, Match, plain};
use crate::oracle::packet::proto;
use crate::oracle::random::Random;

/// The sets of a table.
#[derive(Debug, Default)]
pub struct Sets {
    /// `add set ...` and `add map ...`.
    pub text: String,
    count: usize,
}

impl Sets {
    /// Declares a set or map; its name.
    fn declare(&mut self, table: &str, kind: &str, body: &str) -> String {
        self.count += 1;
        let name = format!("s{}", self.count);
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "add {kind} {table} {name} {{ {body} }}");
        name
    }
}

/// A key of a set: expression, type, what element text and wishes belong to a value.
struct Key {
    text: String,
    types: String,
    /// Element and what it wants, the first of some that differ.
    elements: Vec<(String, Vec<Wish>)>,
    /// Also as intervals: `None` if the type has no order that packets hit.
    intervals: Vec<(String, Vec<Wish>)>,
}

/// Address of sender or receiver.
fn address_key(random: &mut Random, v6: bool) -> Key {
    let source = random.percent(70);
    let place = if source {
        random.pick(&[Place::A, Place::A, Place::B])
    } else {
        random.pick(&[Place::R, Place::B])
    };
    let mut all = addresses(place, v6);
    all.sort();
    all.dedup();
    let family = if v6 { "ip6" } else { "ip" };
    let wish = |a| vec![if source { Wish::Src(a) } else { Wish::Dst(a) }];
    let elements: Vec<_> = all
        .iter()
        .take(3)
        .map(|a| (a.to_string(), wish(*a)))
        .collect();
    let (low, high) = (all[0], all[all.len().min(3) - 1]);
    let intervals = vec![(format!("{low}-{high}"), wish(low))];
    Key {
        text: format!("{family} {}", if source { "saddr" } else { "daddr" }),
        types: if v6 { "ipv6_addr" } else { "ipv4_addr" }.into(),
        elements,
        intervals,
    }
}

fn port_key(random: &mut Random, l4: u8) -> Key {
    let name = if l4 == proto::TCP { "tcp" } else { "udp" };
    let source = random.percent(20);
    let wish = |port| {
        vec![
            Wish::Proto(l4),
            if source {
                Wish::Sport(port)
            } else {
                Wish::Dport(port)
            },
        ]
    };
    let start = random.pick(&[0, 1, 2, 3, 4, 6, 8, 9]);
    let ports = &PORTS[start..start + 3];
    Key {
        text: format!("{name} {}", if source { "sport" } else { "dport" }),
        types: "inet_service".into(),
        elements: ports.iter().map(|p| (p.to_string(), wish(*p))).collect(),
        // Ports of the pool are at least two apart, but for 6000 to 6002.
        intervals: vec![
            (format!("{}-{}", ports[0], ports[0] + 1), wish(ports[0])),
            (format!("{}-{}", ports[2], ports[2] + 20), wish(ports[2])),
        ],
    }
}

/// A random key that a rule of this flavour can look up.
fn key(random: &mut Random, flavour: Flavour) -> Key {
    let mut parts = Vec::new();
    if let Some(v6) = flavour.v6
        && random.percent(60)
    {
        parts.push(address_key(random, v6));
    }
    if let Some(l4 @ (proto::TCP | proto::UDP)) = flavour.l4
        && (parts.is_empty() || random.percent(50))
    {
        parts.push(port_key(random, l4));
    }
    if parts.is_empty() || random.percent(10) {
        parts.push(match random.below(3) {
            0 => Key {
                text: "meta mark".into(),
                types: "mark".into(),
                elements: vec![
                    ("1".into(), vec![Wish::Mark(1)]),
                    ("2".into(), vec![Wish::Mark(2)]),
                    ("0".into(), vec![]),
                ],
                intervals: vec![("1-3".into(), vec![Wish::Mark(2)])],
            },
            1 => Key {
                text: "iifname".into(),
                types: "ifname".into(),
                elements: vec![
                    ("\"r0\"".into(), vec![Wish::From(Place::A)]),
                    ("\"r1\"".into(), vec![Wish::From(Place::B)]),
                ],
                intervals: vec![],
            },
            _ => Key {
                text: "meta l4proto".into(),
                types: "inet_proto".into(),
                elements: vec![
                    ("6".into(), vec![Wish::Proto(6)]),
                    ("17".into(), vec![Wish::Proto(17)]),
                    ("1".into(), vec![Wish::Proto(1)]),
                ],
                intervals: vec![("6-17".into(), vec![Wish::Proto(17)])],
            },
        });
    }
    let mut parts = parts.into_iter();
    let mut all = parts.next().unwrap_or_else(|| address_key(random, false));
    for part in parts {
        all.text += &format!(" . {}", part.text);
        all.types += &format!(" . {}", part.types);
        all.elements = join(&all.elements, &part.elements);
        let other = if part.intervals.is_empty() {
            &part.elements
        } else {
            &part.intervals
        };
        let own = if all.intervals.is_empty() {
            &all.elements
        } else {
            &all.intervals
        };
        all.intervals = join(own, other);
    }
    all
}

/// Elements of a concatenation.
fn join(a: &[(String, Vec<Wish>)], b: &[(String, Vec<Wish>)]) -> Vec<(String, Vec<Wish>)> {
    let pairs = a.iter().zip(b.iter().cycle()).take(3);
    pairs
        .map(|((a, x), (b, y))| (format!("{a} . {b}"), [x.as_slice(), y].concat()))
        .collect()
}

/// `KEY @set`, `KEY != @set`, `KEY { ... }`.
pub fn set_match(random: &mut Random, flavour: Flavour, table: &str, sets: &mut Sets) -> Match {
    let key = key(random, flavour);
    let concatenated = key.text.contains(" . ");
    let interval = random.percent(45) && !key.intervals.is_empty();
    let (elements, wishes) = list(random, &key, interval);
    let not = if random.percent(15) { "!= " } else { "" };
    if random.percent(30) {
        return plain(
            format!("{} {not}{{ {} }}", key.text, elements.join(", ")),
            wishes,
        );
    }
    let timeout = random.percent(25);
    let mut flags = Vec::new();
    if interval {
        flags.push("interval");
    }
    if timeout {
        flags.push("timeout");
    }
    let mut body = format!("type {}; ", key.types);
    if !flags.is_empty() {
        body += &format!("flags {}; ", flags.join(","));
    }
    if random.percent(15) && !interval {
        body += "counter; ";
    }
    let mut elements = elements;
    if timeout {
        elements[0] += " timeout 1h";
    }
    if random.percent(10) && !concatenated {
        elements.push("*".into());
    }
    body += &format!("elements = {{ {} }}; ", elements.join(", "));
    let name = sets.declare(table, "set", &body);
    plain(format!("{} {not}@{name}", key.text), wishes)
}

/// Elements of a key, and what hits one of them.
fn list(random: &mut Random, key: &Key, interval: bool) -> (Vec<String>, Vec<Wish>) {
    let source = if interval {
        &key.intervals
    } else {
        &key.elements
    };
    let hit = random.below(source.len());
    let elements = source.iter().map(|(text, _)| text.clone()).collect();
    (elements, source[hit].1.clone())
}

/// `KEY vmap { a : drop, b : jump x }`: the text, and what leads to which chain.
pub fn verdict_map(
    random: &mut Random,
    flavour: Flavour,
    table: &str,
    sets: &mut Sets,
    chain: Option<&str>,
) -> (Match, Vec<Wish>) {
    let key = key(random, flavour);
    let interval = random.percent(30) && !key.intervals.is_empty();
    let source = if interval {
        &key.intervals
    } else {
        &key.elements
    };
    let mut verdicts = vec![
        random
            .pick(&["drop", "drop", "accept", "return"])
            .to_owned(),
    ];
    if let Some(chain) = chain {
        let verb = random.pick(&["jump", "goto"]);
        verdicts.insert(0, format!("{verb} {chain}"));
    }
    verdicts.push(random.pick(&["drop", "continue", "accept"]).to_owned());
    let mut elements: Vec<String> = source
        .iter()
        .zip(verdicts.iter().cycle())
        .map(|((element, _), verdict)| format!("{element} : {verdict}"))
        .collect();
    if random.percent(12) && !key.text.contains(" . ") {
        elements.push("* : drop".into());
    }
    // The first leads to the chain, if there is one; which of them a packet hits is left to chance.
    let to_chain = source[0].1.clone();
    let hit = random.below(source.len());
    let wishes = source[hit].1.clone();
    let elements = elements.join(", ");
    let text = if random.percent(50) {
        format!("{} vmap {{ {elements} }}", key.text)
    } else {
        let flags = if interval { "flags interval; " } else { "" };
        let body = format!(
            "type {} : verdict; {flags}elements = {{ {elements} }}; ",
            key.types
        );
        format!("{} vmap @{}", key.text, sets.declare(table, "map", &body))
    };
    (plain(text, wishes), to_chain)
}

/// `meta mark set KEY map { a : 1, b : 2 }`.
pub fn mark_map(random: &mut Random, flavour: Flavour, table: &str, sets: &mut Sets) -> Match {
    let key = key(random, flavour);
    let elements: Vec<String> = key
        .elements
        .iter()
        .zip(["0x1", "0x2", "0x10"])
        .map(|((element, _), mark)| format!("{element} : {mark}"))
        .collect();
    let elements = elements.join(", ");
    let wishes = key.elements[0].1.clone();
    if random.percent(50) {
        return plain(
            format!("meta mark set {} map {{ {elements} }}", key.text),
            wishes,
        );
    }
    let body = format!("type {} : mark; elements = {{ {elements} }}; ", key.types);
    let name = sets.declare(table, "map", &body);
    plain(format!("meta mark set {} map @{name}", key.text), wishes)
}

/// A set that packets fill: a statement that does, or a match whose answer depends on them.
pub fn dynamic(
    random: &mut Random,
    flavour: Flavour,
    table: &str,
    sets: &mut Sets,
) -> Option<Match> {
    let v6 = flavour.v6?;
    let family = if v6 { "ip6" } else { "ip" };
    let types = if v6 { "ipv6_addr" } else { "ipv4_addr" };
    let body = format!("type {types}; flags dynamic,timeout; size 100; timeout 1m; ");
    let name = sets.declare(table, "set", &body);
    let verb = random.pick(&["add", "update"]);
    Some(match random.below(3) {
        0 => plain(format!("{verb} @{name} {{ {family} saddr }}"), []),
        1 => {
            let mut found = plain(
                format!(
                    "{verb} @{name} {{ {family} saddr limit rate over 2/minute burst 2 packets }}"
                ),
                [],
            );
            found.stateful = true;
            found
        }
        _ => {
            let mut found = plain(format!("{family} saddr @{name}"), []);
            found.stateful = true;
            found
        }
    })
}
