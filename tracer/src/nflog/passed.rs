//! The logging rules that a dropped packet has passed or may have, and how it can have looked to them.
//!
//! Of the hook that dropped the packet, the path tells which of its rules the packet matched. Of the hooks before it nothing is known, and
//! with address translation in between the packet had other addresses and ports there.

use std::{net::SocketAddr, sync::Arc};

use super::{
    correlate::{Passed, Sign},
    rules::{LogRule, LogRules},
};
use crate::{
    event::{DropEvent, Family, Hook, PathStep, RuleRef, Tuple},
    trace::headers::Headers,
};

// NFPROTO_* (include/uapi/linux/netfilter.h, v6.18).
const IPV4: u8 = 2;
const ARP: u8 = 3;
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;
const IPV6: u8 = 10;

/// The rules of which a log can come, of those groups that are `heard`.
pub fn passed(event: &DropEvent, rules: &LogRules, heard: impl Fn(u16) -> bool) -> Vec<Passed> {
    let mut passed = Vec::new();
    for (group, prefix, (pf, hook), rules) in rules.all() {
        if !heard(group) || !comes_by(event, pf, hook) {
            continue;
        }
        let sign = Sign {
            group,
            prefix: Arc::clone(prefix),
            pf,
            hook,
        };
        let here = is_at(event, pf, hook);
        let (sure, others): (Vec<_>, Vec<_>) =
            rules.iter().partition(|rule| is_matched(event, rule, here));
        passed.extend(sure.iter().map(|rule| Passed {
            sign: sign.clone(),
            rule: Some(named(event, &rule.rule)),
            sure: true,
        }));
        // What the packet matched on this hook is known.
        if here && event.path.is_some() {
            continue;
        }
        let alone = sure.is_empty() && others.len() == 1;
        passed.extend(others.iter().map(|rule| Passed {
            sign: sign.clone(),
            rule: alone.then(|| Arc::clone(&rule.rule)),
            sure: false,
        }));
    }
    passed
}

/// Whether the packet has matched the rule; `here`: it is one of the hook that dropped it.
fn is_matched(event: &DropEvent, rule: &LogRule, here: bool) -> bool {
    let decided = event.rule.as_ref().is_some_and(|own| is(own, &rule.rule));
    let path = event.path.iter().flat_map(|path| path.iter());
    (here && decided) || path.into_iter().any(|step| is_step(step, &rule.rule))
}

fn is(a: &RuleRef, b: &RuleRef) -> bool {
    let same = match (a.handle, b.handle) {
        (Some(a), Some(b)) => a == b,
        _ => a.number.is_some() && a.number == b.number,
    };
    same && a.family == b.family && a.table == b.table && a.chain == b.chain
}

fn is_step(step: &PathStep, rule: &RuleRef) -> bool {
    let same = match (step.handle, rule.handle) {
        (Some(a), Some(b)) => a == b,
        _ => step.number.is_some() && step.number == rule.number,
    };
    same && step.table == rule.table && step.chain == rule.chain
}

/// The event's own name for it, if it has one: that knows the base chain.
fn named(event: &DropEvent, rule: &Arc<RuleRef>) -> Arc<RuleRef> {
    let own = event.rule.as_ref().filter(|own| is(own, rule));
    Arc::clone(own.unwrap_or(rule))
}

/// `NFPROTO_*` of a packet that an IP hook sees.
fn pf(family: Option<Family>) -> Option<u8> {
    match family? {
        Family::Ip => Some(IPV4),
        Family::Ip6 => Some(IPV6),
        Family::Arp => Some(ARP),
        Family::Bridge => Some(BRIDGE),
        Family::Inet | Family::Netdev => None,
    }
}

/// The hook with this number in this family.
fn hook(pf: u8, number: u8) -> Option<Hook> {
    Some(match (pf, number) {
        (NETDEV, 0) | (IPV4 | IPV6, 5) => Hook::Ingress,
        (NETDEV, 1) => Hook::Egress,
        (ARP, 0) => Hook::Input,
        (ARP, 1) => Hook::Output,
        (ARP, 2) => Hook::Forward,
        (_, 0) => Hook::Prerouting,
        (_, 1) => Hook::Input,
        (_, 2) => Hook::Forward,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::Postrouting,
        _ => return None,
    })
}

/// Whether packets of this family at this hook are those that the event's hook sees.
fn is_at(event: &DropEvent, family: u8, number: u8) -> bool {
    let at = hook(family, number);
    let own = pf(event.family).is_none_or(|own| own == family);
    at.is_some() && at == event.hook && (own || family == NETDEV)
}

/// Whether the packet of the event can have come by that place, as far as the hooks tell.
fn comes_by(event: &DropEvent, family: u8, number: u8) -> bool {
    use Hook::{Egress, Forward, Ingress, Input, Output, Postrouting, Prerouting};
    let Some(at) = hook(family, number) else {
        return true;
    };
    match (pf(event.family), family) {
        (Some(ARP), own) | (Some(own), ARP) if own != ARP => return false,
        (Some(IPV4), IPV6) | (Some(IPV6), IPV4) => return false,
        // A bridge's hooks are before and behind those of IP.
        (Some(BRIDGE), IPV4 | IPV6) | (Some(IPV4 | IPV6), BRIDGE) => return true,
        _ => {}
    }
    let Some(end) = event.hook else {
        return true;
    };
    // What leaves through the loopback device comes in again.
    let looped = event.iif.as_deref() == Some("lo");
    match (at, end) {
        (Input, _) => end == Input,
        (Ingress, Output) => false,
        (Ingress, _) => true,
        (Prerouting, Prerouting | Input | Forward | Postrouting | Egress) => true,
        (Forward, Forward | Postrouting | Egress) => true,
        (Output, Output | Postrouting | Egress) => true,
        (Postrouting, Postrouting | Egress) => true,
        (Egress, Egress) => true,
        (Output | Postrouting | Egress, Ingress | Prerouting | Input) => looped,
        _ => false,
    }
}

/// The packet's headers, and then those that it can have had at hooks before, where its connection's addresses were not yet or no longer
/// translated.
pub fn looks(event: &DropEvent, headers: Headers) -> Vec<Headers> {
    let mut looks = vec![headers];
    let nat = event.conntrack.as_ref().and_then(|ct| ct.nat.as_ref());
    let (Some(nat), Some(own)) = (nat, own_ends(event)) else {
        return looks;
    };
    let ends = |tuple: &Tuple| {
        let end = |ip, port: Option<u16>| SocketAddr::new(ip, port.unwrap_or(0));
        (end(tuple.src, tuple.sport), end(tuple.dst, tuple.dport))
    };
    let (orig, reply) = (ends(&nat.orig), ends(&nat.reply));
    // Sources and destinations that a packet of either direction can have.
    let directions = [
        ([orig.0, reply.1], [orig.1, reply.0]),
        ([reply.0, orig.1], [reply.1, orig.0]),
    ];
    let mut seen = vec![own];
    for (sources, destinations) in directions {
        if !sources.contains(&own.0) || !destinations.contains(&own.1) {
            continue;
        }
        for source in sources {
            for ends in destinations.map(|destination| (source, destination)) {
                if seen.contains(&ends) {
                    continue;
                }
                seen.push(ends);
                let other = looks.first().and_then(|own| own.with_ends(ends.0, ends.1));
                looks.extend(other);
            }
        }
    }
    looks
}

/// Source and destination of the event's packet; without ports where it has none.
fn own_ends(event: &DropEvent) -> Option<(SocketAddr, SocketAddr)> {
    let packet = &event.packet;
    Some((
        SocketAddr::new(packet.src?, packet.sport.unwrap_or(0)),
        SocketAddr::new(packet.dst?, packet.dport.unwrap_or(0)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{Conntrack, CtState, Nat, tests::drop_event},
        nflog::rules::tests::{chain, log, nft, table},
        ruleset::model,
    };

    /// What of the rules is expected, one word each: prefix, `!` if it is sure, the number if it is named.
    fn words(event: &DropEvent, rules: &LogRules) -> Vec<String> {
        let passed = passed(event, rules, |group| group == 5);
        let word = |passed: &Passed| {
            let sure = if passed.sure { "!" } else { "" };
            let number = passed.rule.as_ref().and_then(|rule| rule.number);
            let number = number.map(|number| number.to_string()).unwrap_or_default();
            format!("{}{sure}{number}", passed.sign.prefix)
        };
        let mut words: Vec<String> = passed.iter().map(word).collect();
        words.sort();
        words
    }

    fn rule(prefix: &str) -> Vec<crate::ruleset::expr::Expr> {
        vec![log(Some(5), Some(prefix))]
    }

    /// A table with the same rules on three hooks and in a chain that none leads to.
    fn rules() -> LogRules {
        let some = |hook: &str| {
            let prefixes = ["a", "b", "b"].map(|prefix| rule(&format!("{hook}-{prefix}")));
            prefixes.to_vec()
        };
        nft(vec![table(
            model::Family::Inet,
            vec![
                chain("pre", Some(0), some("pre")),
                chain("in", Some(1), some("in")),
                chain("out", Some(3), some("out")),
            ],
        )])
    }

    fn step(chain: &str, number: u32) -> PathStep {
        PathStep {
            table: "t".into(),
            chain: chain.into(),
            number: Some(number),
            handle: Some(u64::from(number) + 10),
            verdict: "continue".into(),
        }
    }

    #[test]
    fn of_the_own_hook_the_path_tells_and_of_those_before_nobody() {
        let mut event = drop_event();
        event.path = Some([step("in", 3)].into());
        let before = ["pre-a1", "pre-b", "pre-b"];
        let mut want = vec!["in-b!3"];
        want.extend(before);
        assert_eq!(words(&event, &rules()), want);
        // It is not known: of two that look the same it may be either.
        event.path = None;
        let mut want = vec!["in-a1", "in-b", "in-b"];
        want.extend(before);
        assert_eq!(words(&event, &rules()), want);
        // A trace tells of the hooks before, too.
        event.path = Some([step("pre", 1)].into());
        assert_eq!(words(&event, &rules()), ["pre-a!1", "pre-b", "pre-b"]);
    }

    #[test]
    fn the_rule_that_drops_logs_itself_and_other_groups_are_not_heard() {
        let mut event = drop_event();
        event.path = Some([].into());
        let mut own = RuleRef::clone(event.rule.as_ref().unwrap());
        (own.chain, own.number, own.handle) = ("in".into(), Some(2), Some(12));
        event.rule = Some(Arc::new(own));
        assert!(words(&event, &rules()).contains(&"in-b!2".to_owned()));
        assert_eq!(passed(&event, &rules(), |group| group == 6), []);
        let passed = passed(&event, &rules(), |_| true);
        let own = passed.iter().find(|passed| passed.sure).unwrap();
        assert!(Arc::ptr_eq(
            own.rule.as_ref().unwrap(),
            event.rule.as_ref().unwrap()
        ));
    }

    #[test]
    fn hooks_come_one_after_the_other() {
        let mut event = drop_event();
        event.path = Some([].into());
        for (hook, family, iif, want) in [
            (Hook::Forward, Family::Ip, "eth0", "pre"),
            (Hook::Forward, Family::Ip6, "eth0", "pre"),
            (Hook::Output, Family::Ip, "", ""),
            (Hook::Postrouting, Family::Ip, "", "out pre"),
            (Hook::Input, Family::Ip, "lo", "out pre"),
            (Hook::Ingress, Family::Ip, "eth0", ""),
            (Hook::Egress, Family::Ip, "eth0", "out pre"),
            (Hook::Forward, Family::Bridge, "eth0", "in out pre"),
            (Hook::Input, Family::Arp, "eth0", ""),
        ] {
            (event.hook, event.family) = (Some(hook), Some(family));
            event.iif = Some(iif.into());
            let mut hooks = words(&event, &rules());
            hooks.iter_mut().for_each(|word| {
                let end = word.find('-').unwrap_or_default();
                word.truncate(end);
            });
            hooks.dedup();
            assert_eq!(hooks.join(" "), want, "{hook:?} {family:?} {iif}");
        }
    }

    /// UDP from 10.0.0.`src` to 10.0.0.`dst`, ports 1000 and `dport`.
    fn headers(src: u8, dst: u8, dport: u16) -> Headers {
        let mut bytes = vec![0x45, 0, 0, 28, 0, 7, 0, 0, 64, 17, 0, 0];
        bytes.extend([10, 0, 0, src, 10, 0, 0, dst]);
        bytes.extend([0x03, 0xe8]);
        bytes.extend(dport.to_be_bytes());
        bytes.extend([0, 8, dst, 2]);
        Headers::of_packet(&bytes).unwrap()
    }

    #[test]
    fn translated_packets_looked_otherwise_before() {
        let mut event = drop_event();
        let end = |last: u8| Some([10, 0, 0, last].into());
        (event.packet.src, event.packet.dst) = (end(1), end(2));
        (event.packet.sport, event.packet.dport) = (Some(1000), Some(8080));
        let now = headers(1, 2, 8080);
        assert_eq!(looks(&event, now.clone()), std::slice::from_ref(&now));
        let tuple = |src: u8, sport, dst: u8, dport| Tuple {
            src: [10, 0, 0, src].into(),
            sport: Some(sport),
            dst: [10, 0, 0, dst].into(),
            dport: Some(dport),
        };
        // To 10.0.0.9:80, sent on to 10.0.0.2:8080 as from 10.0.0.5.
        event.conntrack = Some(Conntrack {
            nat: Some(Nat {
                orig: tuple(1, 1000, 9, 80),
                reply: tuple(2, 8080, 5, 1000),
            }),
            ..Conntrack::stateless(CtState::New)
        });
        let found = looks(&event, now.clone());
        assert_eq!((found.len(), &found[0]), (4, &now));
        for (src, dst, dport) in [(1, 9, 80), (5, 2, 8080), (5, 9, 80)] {
            let then = headers(src, dst, dport);
            assert!(found.iter().any(|look| look.is(&then)), "{src} {dst}");
        }
        for other in [headers(1, 9, 81), headers(9, 1, 80), headers(2, 9, 80)] {
            assert!(!found.iter().any(|look| look.is(&other)));
        }
        // An error about the connection has ends of its own.
        event.packet.src = end(77);
        assert_eq!(looks(&event, now.clone()), [now]);
    }
}
