//! The scenes: for each a broken firewall, what is sent, and what fwtrace must find.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{
    lab::{FIREWALL, Host, SERVER},
    traffic::Traffic,
};
use crate::{
    event::{DropEvent, Verdict},
    netlink::nft_write::{BaseChain, Batch, Key, Reject, Rule, ct_state, verdict},
    ruleset::model::Family,
};

/// A scene.
#[derive(Debug)]
pub struct Scene {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What is wrong, in one line.
    pub story: &'static str,
    /// Makes the firewall's tables.
    pub tables: fn() -> Vec<Batch>,
    /// The same as `nft list ruleset` prints it.
    pub ruleset: &'static str,
    /// A TCP service that must run.
    pub service: Option<(Host, u16)>,
    /// What is sent, in this order.
    pub sent: &'static [Traffic],
    /// What fwtrace must find, in any order.
    pub expected: &'static [Expected],
    /// What the reader should notice.
    pub look_at: &'static str,
}

/// A drop that a scene must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Dropped or rejected.
    pub verdict: Verdict,
    /// The chain of the rule, or of the policy.
    pub chain: &'static str,
    /// The rule's number in its chain; `None`: the chain's policy.
    pub number: Option<u32>,
}

impl Expected {
    const fn rule(chain: &'static str, number: u32) -> Self {
        Self {
            verdict: Verdict::Drop,
            chain,
            number: Some(number),
        }
    }

    const fn policy(chain: &'static str) -> Self {
        Self {
            verdict: Verdict::Drop,
            chain,
            number: None,
        }
    }

    const fn reject(chain: &'static str, number: u32) -> Self {
        Self {
            verdict: Verdict::Reject,
            ..Self::rule(chain, number)
        }
    }

    /// Whether the event is this drop.
    pub fn is(&self, event: &DropEvent) -> bool {
        let found = match (&event.rule, &event.policy) {
            (Some(rule), None) => rule
                .number
                .is_some_and(|number| (&*rule.chain, Some(number)) == (self.chain, self.number)),
            (None, Some(policy)) => (&*policy.chain, None) == (self.chain, self.number),
            _ => false,
        };
        found && event.verdict == self.verdict
    }
}

impl Scene {
    /// The expected drops that are not among `drops`, in words; `None`: they are all there.
    pub fn missing(&self, drops: &[DropEvent]) -> Option<String> {
        let mut unused: Vec<&DropEvent> = drops.iter().collect();
        let mut missing = Vec::new();
        for expected in self.expected {
            match unused.iter().position(|drop| expected.is(drop)) {
                Some(at) => {
                    unused.swap_remove(at);
                }
                None => missing.push(expected.to_string()),
            }
        }
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = self.verdict.as_str();
        match self.number {
            Some(number) => write!(f, "{verdict} by {} rule {number}", self.chain),
            None => write!(f, "{verdict} by the policy of {}", self.chain),
        }
    }
}

const fn tcp(from: Host, to: Ipv4Addr, port: u16) -> Traffic {
    Traffic::Tcp {
        from,
        to: SocketAddrV4::new(to, port),
    }
}

const fn udp(from: Host, to: Ipv4Addr, port: u16) -> Traffic {
    Traffic::Udp {
        from,
        to: SocketAddrV4::new(to, port),
    }
}

const REPLIES: u32 = ct_state::ESTABLISHED | ct_state::RELATED;

fn rule() -> Rule {
    Rule::new(Family::Inet)
}

fn filter() -> Batch {
    let mut batch = Batch::new(Family::Inet, "filter");
    batch.add_table();
    batch
}

/// All scenes, in the order in which they are played.
pub const SCENES: &[Scene] = &[
    Scene {
        name: "drop-before-accept",
        story: "Port 80 is open, yet the web server cannot be reached: a drop stands before the accept.",
        tables: || {
            let mut batch = filter();
            batch.add_base_chain("input", &BaseChain::INPUT);
            batch.add_rule("input", rule().ct_state(REPLIES).accept());
            batch.add_rule(
                "input",
                rule()
                    .ip_saddr_in([192, 0, 2, 0].into(), 24)
                    .drop()
                    .comment("guests"),
            );
            batch.add_rule("input", rule().tcp_dport(80).accept());
            vec![batch]
        },
        ruleset: "table inet filter {
\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t\tct state established,related accept
\t\tip saddr 192.0.2.0/24 drop comment \"guests\"
\t\ttcp dport 80 accept
\t}
}
",
        service: None,
        sent: &[tcp(Host::Client, FIREWALL, 80)],
        expected: &[Expected::rule("input", 2)],
        look_at: "rule 2 took the packet; rule 3, which would have accepted it, was never asked",
    },
    Scene {
        name: "policy",
        story: "No rule drops anything, and the new service on port 8080 still gets no packet.",
        tables: || {
            let mut batch = filter();
            batch.add_base_chain("input", &BaseChain::INPUT.policy_drop());
            batch.add_rule("input", rule().ct_state(REPLIES).accept());
            batch.add_rule("input", rule().tcp_dport(22).accept());
            batch.add_rule("input", rule().tcp_dport(80).accept());
            vec![batch]
        },
        ruleset: "table inet filter {
\tchain input {
\t\ttype filter hook input priority filter; policy drop;
\t\tct state established,related accept
\t\ttcp dport 22 accept
\t\ttcp dport 80 accept
\t}
}
",
        service: None,
        sent: &[tcp(Host::Client, FIREWALL, 8080)],
        expected: &[Expected::policy("input")],
        look_at: "\"policy drop\": the packet came to the end of the chain, and no rule had accepted port 8080",
    },
    Scene {
        name: "no-established",
        story: "The firewall cannot open connections of its own: they go out, and the replies are dropped.",
        tables: || {
            let mut batch = filter();
            batch.add_base_chain("input", &BaseChain::INPUT);
            batch.add_rule("input", rule().iifname("lo").accept());
            batch.add_rule(
                "input",
                rule().ct_state(ct_state::NEW).tcp_dport(22).accept(),
            );
            batch.add_rule("input", rule().counter().drop());
            vec![batch]
        },
        ruleset: "table inet filter {
\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t\tiifname \"lo\" accept
\t\tct state new tcp dport 22 accept
\t\tcounter packets 0 bytes 0 drop
\t}
}
",
        service: Some((Host::Server, 443)),
        sent: &[tcp(Host::Firewall, SERVER, 443)],
        expected: &[Expected::rule("input", 3)],
        look_at: "\"ct established\": this is the server's answer; \"ct state established,related accept\" is missing before rule 3",
    },
    Scene {
        name: "wrong-interface",
        story: "SSH is allowed, but only on the interface that the administrator does not come in by.",
        tables: || {
            let mut batch = filter();
            batch.add_base_chain("input", &BaseChain::INPUT.policy_drop());
            batch.add_rule("input", rule().ct_state(REPLIES).accept());
            batch.add_rule("input", rule().iifname("wan0").tcp_dport(22).accept());
            vec![batch]
        },
        ruleset: "table inet filter {
\tchain input {
\t\ttype filter hook input priority filter; policy drop;
\t\tct state established,related accept
\t\tiifname \"wan0\" tcp dport 22 accept
\t}
}
",
        service: None,
        sent: &[tcp(Host::Client, FIREWALL, 22)],
        expected: &[Expected::policy("input")],
        look_at: "\"lan0>\": the packet came in by lan0, the rule for port 22 says wan0",
    },
    Scene {
        name: "forward",
        story: "The router passes web traffic and nothing else: no time from the server, no ping.",
        tables: || {
            let mut batch = filter();
            let ports = [80_u16.to_be_bytes(), 443_u16.to_be_bytes()];
            let [http, https] = &ports;
            let web = batch.add_anonymous_verdict_map(
                Key::Service,
                &[(http, verdict::accept()), (https, verdict::accept())],
            );
            batch.add_chain("lan_to_wan");
            batch.add_rule("lan_to_wan", rule().tcp_dport_vmap(&web));
            batch.add_rule("lan_to_wan", rule().counter().drop());
            batch.add_base_chain("forward", &BaseChain::FORWARD.policy_drop());
            batch.add_rule("forward", rule().ct_state(REPLIES).accept());
            batch.add_rule(
                "forward",
                rule().iifname("lan0").oifname("wan0").jump("lan_to_wan"),
            );
            vec![batch]
        },
        ruleset: "table inet filter {
\tchain lan_to_wan {
\t\ttcp dport vmap { 80 : accept, 443 : accept }
\t\tcounter packets 0 bytes 0 drop
\t}

\tchain forward {
\t\ttype filter hook forward priority filter; policy drop;
\t\tct state established,related accept
\t\tiifname \"lan0\" oifname \"wan0\" jump lan_to_wan
\t}
}
",
        service: None,
        sent: &[
            udp(Host::Client, SERVER, 123),
            Traffic::Ping {
                from: Host::Client,
                to: SERVER,
            },
        ],
        expected: &[
            Expected::rule("lan_to_wan", 2),
            Expected::rule("lan_to_wan", 2),
        ],
        look_at: "\"lan0>wan0\": dropped on the way through, in the chain that rule 2 of forward jumps to",
    },
    Scene {
        name: "reject",
        story: "\"Connection refused\" and \"Packet filtered\": the packet is not lost, the firewall answers.",
        tables: || {
            let mut batch = filter();
            batch.add_base_chain("input", &BaseChain::INPUT);
            batch.add_rule("input", rule().tcp_dport(23).reject(Reject::TcpReset));
            batch.add_rule("input", rule().udp_dport(53).reject(Reject::Icmpx(3)));
            vec![batch]
        },
        ruleset: "table inet filter {
\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t\ttcp dport 23 reject with tcp reset
\t\tudp dport 53 reject with icmpx admin-prohibited
\t}
}
",
        service: None,
        sent: &[
            tcp(Host::Client, FIREWALL, 23),
            udp(Host::Client, FIREWALL, 53),
        ],
        expected: &[Expected::reject("input", 1), Expected::reject("input", 2)],
        look_at: "REJECT, not DROP: the sender was told, so its error message is the firewall's word, not the service's",
    },
    Scene {
        name: "two-tables",
        story: "The rule says accept, and its packets are still turned away: another table has the last word.",
        tables: || {
            let mut first = filter();
            first.add_base_chain("input", &BaseChain::INPUT);
            first.add_rule("input", rule().tcp_dport(80).accept());
            let mut second = Batch::new(Family::Inet, "manager");
            second.add_table();
            second.add_base_chain(
                "late",
                &BaseChain {
                    priority: 10,
                    ..BaseChain::INPUT
                },
            );
            second.add_rule("late", rule().ct_state(REPLIES).accept());
            second.add_rule("late", rule().tcp_dport(22).accept());
            second.add_rule("late", rule().reject(Reject::Icmpx(3)));
            vec![first, second]
        },
        ruleset: "table inet filter {
\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t\ttcp dport 80 accept
\t}
}
table inet manager {
\tchain late {
\t\ttype filter hook input priority filter + 10; policy accept;
\t\tct state established,related accept
\t\ttcp dport 22 accept
\t\treject with icmpx admin-prohibited
\t}
}
",
        service: None,
        sent: &[tcp(Host::Client, FIREWALL, 80)],
        expected: &[Expected::reject("late", 3)],
        look_at: "\"by inet manager late\": an accept ends its own chain only; every later chain of the hook is asked too",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn drop_event(verdict: &str, decision: &str) -> DropEvent {
        let line = format!(
            r#"{{"v":1,"type":"drop","time":"2026-11-22T14:03:41.512345678Z","verdict":"{verdict}",
            "netns":{{"inode":4026532246,"name":null}},"engine":"nftables","family":"ip","hook":"input","reason":"NETFILTER_DROP",
            "iif":"lan0","oif":null,
            "packet":{{"family":"ipv4","proto":"tcp","src":"192.0.2.10","sport":36334,"dst":"192.0.2.1","dport":80,"len":60,"flags":"S"}},
            {decision},"path":[],"evidence":{{"source":"kernel-stack","confidence":"exact","candidates":[]}},
            "conntrack":null,"process":null,"count":1}}"#
        );
        match Event::from_json(&line).unwrap() {
            Event::Drop(event) => *event,
            other => panic!("{other:?}"),
        }
    }

    fn by_rule(verdict: &str, chain: &str, number: u32) -> DropEvent {
        let rule = r#"{"family":"inet","table":"filter","base_chain":null,"handle":3,"text":null"#;
        drop_event(
            verdict,
            &format!(r#""rule":{rule},"chain":"{chain}","number":{number}}}"#),
        )
    }

    fn by_policy(chain: &str) -> DropEvent {
        let policy = r#"{"family":"inet","table":"filter","rules":3,"none_matched":true"#;
        drop_event(
            "drop",
            &format!(r#""rule":null,"policy":{policy},"chain":"{chain}"}}"#),
        )
    }

    fn scene(name: &str) -> &'static Scene {
        SCENES.iter().find(|scene| scene.name == name).unwrap()
    }

    #[test]
    fn the_right_drops_are_enough() {
        assert_eq!(scene("policy").missing(&[by_policy("input")]), None);
        let both = [by_rule("reject", "input", 2), by_rule("reject", "input", 1)];
        assert_eq!(scene("reject").missing(&both), None);
        let twice = [
            by_rule("drop", "lan_to_wan", 2),
            by_rule("drop", "lan_to_wan", 2),
        ];
        assert_eq!(scene("forward").missing(&twice), None);
    }

    #[test]
    fn anything_else_is_missed() {
        let missed = |name: &str, drops: &[DropEvent]| scene(name).missing(drops);
        assert_eq!(
            missed("policy", &[]).as_deref(),
            Some("drop by the policy of input")
        );
        assert_eq!(
            missed("policy", &[by_rule("drop", "input", 2)]).as_deref(),
            Some("drop by the policy of input")
        );
        assert_eq!(
            missed("drop-before-accept", &[by_policy("input")]).as_deref(),
            Some("drop by input rule 2")
        );
        assert!(missed("drop-before-accept", &[by_rule("drop", "input", 3)]).is_some());
        assert!(missed("drop-before-accept", &[by_rule("drop", "other", 2)]).is_some());
        assert!(missed("forward", &[by_rule("drop", "lan_to_wan", 2)]).is_some());
        let dropped = [by_rule("drop", "input", 1), by_rule("reject", "input", 2)];
        assert_eq!(
            missed("reject", &dropped).as_deref(),
            Some("reject by input rule 1")
        );
    }
}
