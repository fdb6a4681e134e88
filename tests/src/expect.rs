//! An event against what the kernel says.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::netns::Netns;
use crate::nft::{Chain, Rule};

/// What dropped the packet.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// A rule.
    Rule(&'a Rule),
    /// A chain's policy.
    Policy(&'a Chain),
}

/// An interface of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iface {
    /// This one.
    Is(&'static str),
    /// None.
    No,
    /// This one, or not known: the packet has one, but the hook does not tell.
    Maybe(&'static str),
}

/// What an event has to say. `None` leaves a field open.
#[derive(Clone, Debug)]
pub struct Want<'a> {
    /// Where.
    pub netns: &'a Netns,
    /// By what.
    pub by: By<'a>,
    /// The base chain that the packet entered through.
    pub base_chain: &'a str,
    /// The packet's family as a rule calls it.
    pub family: &'a str,
    /// The hook.
    pub hook: &'a str,
    /// In.
    pub iif: Iface,
    /// Out.
    pub oif: Iface,
    /// `drop` or `reject`.
    pub verdict: &'a str,
    /// `tcp`, `udp`, `icmp`, `icmpv6`.
    pub proto: &'a str,
    /// Source; the port is not looked at if the protocol has none.
    pub src: SocketAddr,
    /// Destination.
    pub dst: SocketAddr,
    /// IP total length.
    pub len: Option<u64>,
    /// Conntrack state.
    pub ct: Option<&'a str>,
}

/// What is different, one line a field; nothing if the event is right.
pub fn differences(event: &Value, want: &Want<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut same = |path: &str, expected: Value| {
        let got = at(event, path);
        if got != expected {
            wrong.push(format!("{path}: {got}, expected {expected}"));
        }
    };
    same("verdict", json!(want.verdict));
    same("engine", json!("nftables"));
    same("family", json!(want.family));
    same("hook", json!(want.hook));
    same("reason", json!("NETFILTER_DROP"));
    same("netns.inode", json!(want.netns.inode()));
    same("netns.name", json!(want.netns.name()));
    same("count", json!(1));
    same("evidence.source", json!("kernel-stack"));
    same("evidence.confidence", json!("exact"));
    same("evidence.candidates", json!([]));
    match want.by {
        By::Rule(rule) => {
            same("rule.family", json!(rule.family));
            same("rule.table", json!(rule.table));
            same("rule.chain", json!(rule.chain));
            same("rule.base_chain", json!(want.base_chain));
            same("rule.number", json!(rule.number));
            same("rule.handle", json!(rule.handle));
            same("rule.comment", json!(rule.comment));
            same("rule.text", json!(rule.text));
            same("policy", Value::Null);
        }
        By::Policy(chain) => {
            same("rule", Value::Null);
            same("policy.family", json!(chain.family));
            same("policy.table", json!(chain.table));
            same("policy.chain", json!(chain.name));
        }
    }
    let v6 = want.dst.is_ipv6();
    same("packet.family", json!(if v6 { "ipv6" } else { "ipv4" }));
    same("packet.proto", json!(want.proto));
    same("packet.src", json!(want.src.ip().to_string()));
    same("packet.dst", json!(want.dst.ip().to_string()));
    if !want.proto.contains("icmp") {
        same("packet.sport", json!(want.src.port()));
        same("packet.dport", json!(want.dst.port()));
    }
    if let Some(len) = want.len {
        same("packet.len", json!(len));
    }
    if let Some(ct) = want.ct {
        same("conntrack.state", json!(ct));
    }
    for (path, iface) in [("iif", want.iif), ("oif", want.oif)] {
        let got = at(event, path);
        let right = match iface {
            Iface::Is(name) => got == name,
            Iface::No => got.is_null(),
            Iface::Maybe(name) => got == name || got.is_null(),
        };
        if !right {
            wrong.push(format!("{path}: {got}, expected {iface:?}"));
        }
    }
    wrong
}

/// A value by its dotted path; null if it is not there.
pub fn at(value: &Value, path: &str) -> Value {
    let mut found = value;
    for key in path.split('.') {
        found = &found[key];
    }
    found.clone()
}
