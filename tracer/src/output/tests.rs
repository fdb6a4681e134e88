use std::sync::Arc;

use super::*;
use crate::event::tests::drop_event;
use crate::event::{
    Candidate, ChangedBy, Confidence, Conntrack, ConntrackCounters, Counted, CtState, DecidedBy,
    Doubt, DoubtKind, DropEvent, Engine, ErrorEvent, Evidence, EvidenceSource, Family, Hook,
    LogRef, Logged, Nat, NearestMiss, NetnsRef, Phase, PolicyRef, Process, RuleRef, Step,
    StepResult, Summary, Tuple, Verdict,
};
use crate::packet::Proto;

fn options() -> Options {
    Options {
        format: Format::Text,
        color: ColorChoice::Never,
        verbosity: 0,
        quiet: false,
        numeric: false,
        show_netns: false,
    }
}

/// What stdout and stderr hold after `events`.
fn shown(options: &Options, color: bool, events: &[Event]) -> (String, String) {
    let mut sink = Sink::new(options, color, TimeZone::UTC, Vec::new(), Vec::new());
    for event in events {
        sink.event(event).unwrap();
    }
    sink.flush().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(sink.out.into_inner().unwrap()), text(sink.talk))
}

fn lines(options: &Options, drop: DropEvent) -> String {
    shown(options, false, &[Event::Drop(Box::new(drop))]).0
}

fn policy(rules: u32, none_matched: Option<bool>) -> DropEvent {
    let mut drop = drop_event();
    drop.rule = None;
    drop.policy = Some(Arc::new(PolicyRef {
        family: Family::Inet,
        table: "fw".into(),
        chain: "forward".into(),
        rules: Some(rules),
        none_matched,
    }));
    drop
}

/// The three drops of the design's example, byte for byte.
#[test]
fn example() {
    let mut reject = drop_event();
    reject.time = "2026-11-22T14:03:42.018Z".parse().unwrap();
    reject.verdict = Verdict::Reject;
    reject.iif = Some("eth1".into());
    reject.packet.proto = Some(Proto::UDP);
    reject.packet.src = Some([10, 9, 0, 7].into());
    (reject.packet.sport, reject.packet.dport) = (Some(5353), Some(53));
    (reject.packet.len, reject.packet.flags) = (Some(71), None);
    let rule = Arc::make_mut(reject.rule.as_mut().unwrap());
    rule.family = Family::Ip;
    (rule.table, rule.chain) = ("filter".into(), "INPUT".into());
    (rule.number, rule.handle) = (Some(7), None);
    rule.text = Some(
        "-A INPUT -p udp -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable".into(),
    );
    let mut forward = policy(9, Some(true));
    forward.time = "2026-11-22T14:03:43.101Z".parse().unwrap();
    forward.oif = Some("eth1".into());
    forward.packet.dst = Some([10, 8, 0, 9].into());
    (forward.packet.sport, forward.packet.dport) = (Some(4411), Some(8080));

    let events = [drop_event(), reject, forward].map(|drop| Event::Drop(Box::new(drop)));
    let (out, talk) = shown(&options(), false, &events);
    assert_eq!(
        out,
        r#"14:03:41.512 DROP   eth0>   tcp 10.9.0.1:36334 > 10.9.0.2:80 SYN len 60   by inet t sub rule 1 (handle 3)  ct new
                    tcp dport 80 counter drop comment "block web"
14:03:42.018 REJECT eth1>   udp 10.9.0.7:5353 > 10.9.0.2:53 len 71        by ip filter INPUT rule 7  ct new
                    -A INPUT -p udp -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable
14:03:43.101 DROP   eth0>eth1 tcp 10.9.0.1:4411 > 10.8.0.9:8080 SYN len 60 by inet fw forward policy drop (9 rules, none matched)  ct new
"#
    );
    assert_eq!(talk, "");
}

#[test]
fn policies_say_only_what_is_known() {
    for (rules, none_matched, expected) in [
        (9, Some(false), "policy drop (9 rules, none decided)"),
        (9, None, "policy drop (9 rules, none decided)"),
        (1, Some(true), "policy drop (1 rule, none matched)"),
        (0, Some(true), "policy drop (no rules)"),
    ] {
        let out = lines(&options(), policy(rules, none_matched));
        assert!(out.contains(expected), "{out}");
    }
}

#[test]
fn engine_evidence() {
    let mut drop = drop_event();
    drop.rule = None;
    drop.path = None;
    drop.evidence = Evidence::engine(Some("nf_hook_slow+0x7d".into()), None);
    let out = lines(&options(), drop.clone());
    assert!(
        out.ends_with(" by nftables input (rule not known: engine evidence)  ct new\n"),
        "{out}"
    );
    drop.evidence.decided_by = Some(DecidedBy::Policy);
    let out = lines(&options(), drop.clone());
    assert!(
        out.ends_with(" by nftables input policy (chain not known: engine evidence)  ct new\n"),
        "{out}"
    );
    let verbose = Options {
        verbosity: 1,
        ..options()
    };
    let out = lines(&verbose, drop);
    assert!(
        out.contains("evidence engine, engine, at nf_hook_slow+0x7d"),
        "{out}"
    );
}

#[test]
fn gone_rule() {
    let mut drop = drop_event();
    let rule = Arc::make_mut(drop.rule.as_mut().unwrap());
    (rule.text, rule.comment, rule.gone) = (None, None, true);
    assert_eq!(
        lines(&options(), drop).lines().nth(1),
        Some("                    rule no longer in the ruleset")
    );
}

/// One of two, for a limit or for a mark that a rule has changed.
fn one_of_two(confidence: Confidence) -> DropEvent {
    let mut drop = drop_event();
    let first = drop.rule.take().unwrap();
    let second = policy(2, None).policy.unwrap();
    let (kind, text) = match confidence {
        Confidence::Ambiguous => (DoubtKind::State, "how many tokens the limit has left"),
        _ => (DoubtKind::Rewritten, "a rule changed the mark"),
    };
    let text = text.into();
    drop.evidence = Evidence {
        source: EvidenceSource::Evaluator,
        confidence,
        candidates: vec![Candidate::Rule(first), Candidate::Policy(second)],
        doubts: vec![Doubt { kind, text }],
        location: None,
        decided_by: None,
        disagreement: None,
    };
    drop
}

#[test]
fn ambiguous_and_unknown_name_every_candidate() {
    for (confidence, by, doubt) in [
        (
            Confidence::Ambiguous,
            "by nftables input, one of 2 candidates (evaluator evidence)  ct new\n",
            "how many tokens the limit has left",
        ),
        (
            Confidence::Unknown,
            "by nftables input (rule not known: one of 2 candidates, evaluator evidence)  ct new\n",
            "a rule changed the mark",
        ),
    ] {
        let drop = one_of_two(confidence);
        let out = lines(&options(), drop.clone());
        assert!(out.contains(by), "{out}");
        assert!(out.contains("\n                    inet t sub rule 1 (handle 3): tcp dport 80 counter drop comment \"block web\"\n"), "{out}");
        assert!(
            out.ends_with("\n                    inet fw forward policy drop\n"),
            "{out}"
        );
        let verbose = Options {
            verbosity: 1,
            ..options()
        };
        let out = lines(&verbose, drop.clone());
        let doubt = format!("\n                    not known: {doubt}\n");
        assert!(out.contains(&doubt), "{out}");
        let comment = comment(&drop);
        let all = format!(
            " | evaluator, {} | or inet t sub rule 1 (handle 3) | or inet fw forward policy drop",
            confidence.as_str()
        );
        assert!(comment.contains(&all), "{comment}");
    }
}

#[test]
fn a_log_says_who_may_have_dropped_the_packet() {
    let line = |confidence, candidates: usize| {
        let mut log = one_of_two(confidence);
        log.verdict = Verdict::Unknown;
        log.evidence.source = EvidenceSource::Nflog;
        log.evidence.candidates.truncate(candidates);
        let out = shown(&options(), false, &[Event::Log(Box::new(log))]).0;
        let line = out.lines().next().unwrap_or_default();
        let (_, told) = line.split_once("SYN len 60 ").unwrap();
        told.trim().to_owned()
    };
    for (confidence, candidates, told) in [
        (
            Confidence::Ambiguous,
            1,
            "let pass at input, or dropped by the candidate (ambiguous)  ct new",
        ),
        (
            Confidence::Unknown,
            2,
            "let pass at input, or dropped by one of 2 candidates (not known)  ct new",
        ),
        (
            Confidence::Unknown,
            0,
            "what became of it at input is not known  ct new",
        ),
    ] {
        assert_eq!(line(confidence, candidates), told);
    }
}

#[test]
fn computed_says_so() {
    let mut drop = drop_event();
    drop.evidence.confidence = Confidence::Computed;
    let out = lines(&options(), drop);
    assert!(out.contains("rule 1 (handle 3) (computed)  ct"), "{out}");
}

#[test]
fn not_by_the_firewall() {
    let mut drop = drop_event();
    drop.engine = Engine::Other;
    (drop.rule, drop.hook, drop.conntrack) = (None, None, None);
    drop.reason = Some("NO_SOCKET".into());
    drop.evidence = Evidence::engine(Some("tcp_v4_rcv+0x1".into()), None);
    let out = lines(&options(), drop);
    assert!(
        out.ends_with(" not by the firewall: NO_SOCKET (tcp_v4_rcv+0x1)\n"),
        "{out}"
    );
}

#[test]
fn process_netns_and_count() {
    let mut drop = drop_event();
    drop.iif = None;
    drop.oif = Some("eth0".into());
    drop.count = 3;
    drop.process = Some(Process {
        pid: 1234,
        comm: "cu\x1b[31mrl".into(),
        uid: Some(0),
    });
    let out = lines(
        &Options {
            show_netns: true,
            ..options()
        },
        drop.clone(),
    );
    assert!(
        out.starts_with("14:03:41.512 DROP   web: >eth0   tcp "),
        "{out}"
    );
    assert!(
        out.contains("  ct new  [cu\u{fffd}[31mrl 1234 uid 0]  x3\n"),
        "{out}"
    );
    drop.netns.name = None;
    let out = lines(
        &Options {
            show_netns: true,
            ..options()
        },
        drop,
    );
    assert!(out.contains(" netns 4026532246: >eth0 "), "{out}");
}

#[test]
fn verbose_details() {
    let mut drop = drop_event();
    drop.mark = 0x10;
    let tuple = |a: u8, sport, b: u8, dport| Tuple {
        src: [10, 0, 0, a].into(),
        sport: Some(sport),
        dst: [10, 0, 0, b].into(),
        dport: Some(dport),
    };
    let counted = |packets, bytes| Counted { packets, bytes };
    drop.conntrack = Some(Conntrack {
        state: CtState::Established,
        status: vec!["seen-reply".into(), "dnat".into()],
        mark: Some(1),
        zone: Some(2),
        tcp_state: Some("ESTABLISHED".into()),
        invalid: None,
        timeout: Some(29),
        helper: Some("tftp".into()),
        counters: Some(ConntrackCounters {
            orig: counted(2, 58),
            reply: counted(1, 40),
        }),
        labels: vec![5, 77],
        nat: Some(Nat {
            orig: tuple(1, 4000, 2, 80),
            reply: tuple(3, 8080, 1, 4000),
        }),
    });
    let out = lines(
        &Options {
            verbosity: 1,
            ..options()
        },
        drop,
    );
    let below: Vec<_> = out.lines().skip(2).map(str::trim_start).collect();
    assert_eq!(
        below,
        [
            "evidence kernel-stack, exact; hook input, base chain in; mark 0x10; netns 4026532246; ct mark 0x1 zone 2 ESTABLISHED status seen-reply,dnat timeout 29 s helper tftp label 5,77",
            "connection: packets 2 bytes 58, answers: packets 1 bytes 40",
            "nat: 10.0.0.1:4000 > 10.0.0.2:80 answered by 10.0.0.3:8080 > 10.0.0.1:4000",
            "through t in rule 2 (handle 5): jump sub",
        ]
    );
}

#[test]
fn colour_adds_only() {
    let event = [Event::Drop(Box::new(drop_event()))];
    let (colored, _) = shown(&options(), true, &event);
    assert!(
        colored.starts_with("14:03:41.512 \u{1b}[31mDROP\u{1b}[0m   eth0>"),
        "{colored:?}"
    );
    let plain = anstream::adapter::strip_str(&colored).to_string();
    assert_eq!(plain, shown(&options(), false, &event).0);
}

#[test]
fn numeric() {
    let out = lines(
        &Options {
            numeric: true,
            ..options()
        },
        drop_event(),
    );
    assert!(out.contains(" proto 6 10.9.0.1:36334 > "), "{out}");
}

fn summary() -> Summary {
    let mut tally = Tally::default();
    tally.add(&policy(2, None));
    tally.add(&drop_event());
    tally.add(&drop_event());
    Summary {
        written: None,
        time: drop_event().time,
        seen: 20,
        shown: tally.shown(),
        filtered: 16,
        aggregated: tally.aggregated(),
        lost: 1,
        other: [("IP_RPFILTER".into(), 2), ("NO_SOCKET".into(), 10)].into(),
        disagreed: tally.disagreed(),
        rules: tally.rules(),
        conntrack: Vec::new(),
        logged: None,
    }
}

#[test]
fn the_summary_tells_of_logs_without_a_drop() {
    let mut summary = summary();
    let mut told = |logged| {
        summary.logged = Some(logged);
        let (_, talk) = shown(&options(), false, &[Event::Summary(summary.clone())]);
        let nflog = talk.lines().find(|line| line.starts_with("NFLOG"));
        nflog.unwrap_or_default().to_owned()
    };
    let joined = Logged {
        received: 2,
        joined: 2,
        ..Logged::default()
    };
    assert_eq!(told(joined.clone()), "");
    let all = Logged {
        passed: 3,
        missing: 4,
        lost: 5,
        unknown: 6,
        ..joined
    };
    assert_eq!(
        told(all),
        "NFLOG: 3 logged and not dropped, 4 logs of drops did not come in time, 5 logs lost, 6 logs that nobody knows the drop of"
    );
}

#[test]
fn logs_stand_on_the_line_and_verbose_names_their_rules() {
    let mut drop = drop_event();
    drop.log = vec![
        LogRef {
            group: 5,
            prefix: Some("dns \u{1b}".into()),
            rule: drop.rule.clone(),
        },
        LogRef {
            group: 6,
            prefix: None,
            rule: None,
        },
    ];
    let event = [Event::Drop(Box::new(drop))];
    let (out, _) = shown(&options(), false, &event);
    let first = out.lines().next().unwrap();
    assert!(
        first.ends_with("  log group 5 \"dns \u{fffd}\"  log group 6"),
        "{first}"
    );
    assert!(!out.contains("log group 6 by"), "{out}");
    let verbose = Options {
        verbosity: 1,
        ..options()
    };
    let (out, _) = shown(&verbose, false, &event);
    assert!(
        out.contains("\n                    log group 5 \"dns \u{fffd}\" by inet t sub rule 1 (handle 3)\n                    log group 6 by a rule that is not known\n"),
        "{out}"
    );
}

#[test]
fn summary_for_people_goes_to_stderr() {
    let (out, talk) = shown(&options(), false, &[Event::Summary(summary())]);
    assert_eq!(out, "");
    assert_eq!(
        talk,
        "20 drops seen: 3 shown, 16 filtered out, 1 lost\n\
         \x20 2  inet t sub rule 1 (handle 3): tcp dport 80 counter drop comment \"block web\"\n\
         \x20 1  inet fw forward policy drop\n\
         12 more were dropped, not by the firewall: 10 NO_SOCKET, 2 IP_RPFILTER; --reason all shows them\n"
    );
    let mut doubtful = drop_event();
    doubtful.evidence.disagreement = Some(Vec::new());
    let mut tally = Tally::default();
    for drop in [&drop_event(), &doubtful, &doubtful] {
        tally.add(drop);
    }
    let mut disagreed = summary();
    disagreed.disagreed = tally.disagreed();
    let (_, talk) = shown(&options(), false, &[Event::Summary(disagreed)]);
    assert_eq!(
        talk.lines().nth(1),
        Some(
            "in 2 of them the evaluator disagreed with the kernel (a bug in fwtrace, please report it); -v shows where"
        )
    );
    let quiet = Options {
        quiet: true,
        ..options()
    };
    let (out, talk) = shown(&quiet, false, &[Event::Summary(summary())]);
    assert_eq!((out.as_str(), talk.as_str()), ("", ""));
}

#[test]
fn other_drops_by_the_firewall_are_called_that() {
    let mut summary = summary();
    summary.other = [("NETFILTER_DROP".into(), 1)].into();
    let (_, talk) = shown(&options(), false, &[Event::Summary(summary)]);
    assert!(
        talk.ends_with("\n1 more was dropped by the firewall; --reason all shows them\n"),
        "{talk}"
    );
}

#[test]
fn lost_traces_are_no_lost_drops() {
    let lost = Event::Lost(Lost {
        time: drop_event().time,
        source: Lost::TRACE.into(),
        count: 7,
    });
    let (out, talk) = shown(&options(), false, &[lost]);
    assert_eq!(
        (out.as_str(), talk.as_str()),
        (
            "",
            "fwtrace: 7 messages of the kernel's trace were lost; their drops are shown without it\n"
        )
    );
}

#[test]
fn json_has_everything_on_stdout() {
    let time = drop_event().time;
    let events = [
        Event::Drop(Box::new(drop_event())),
        Event::Lost(Lost {
            time,
            source: "ring".into(),
            count: 2,
        }),
        Event::RulesetChange(RulesetChange {
            time,
            netns: NetnsRef {
                inode: 1,
                name: None,
            },
            generation: 4,
            by: Some(ChangedBy {
                pid: 9,
                comm: "nft".into(),
            }),
        }),
        Event::Error(ErrorEvent {
            time,
            message: "broken".to_owned(),
        }),
        Event::Summary(summary()),
    ];
    let json = Options {
        format: Format::Json,
        verbosity: 1,
        ..options()
    };
    let (out, talk) = shown(&json, true, &events);
    let back: Vec<Event> = out
        .lines()
        .map(|line| Event::from_json(line).unwrap())
        .collect();
    assert_eq!(back, events);
    assert!(
        talk.starts_with(
            "fwtrace: 2 drops lost: ring\nfwtrace: ruleset changed by nft 9, generation 4\nfwtrace: broken\n20 drops seen"
        ),
        "{talk}"
    );
}

#[test]
fn a_reader_that_goes_away_is_a_broken_pipe() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut sink = Sink::new(&options(), false, TimeZone::UTC, writer, Vec::new());
    sink.event(&Event::Drop(Box::new(drop_event()))).unwrap();
    let err = sink.flush().unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn nothing_waits_longer_than_it_may() {
    let mut sink = Sink::new(&options(), false, TimeZone::UTC, Vec::new(), Vec::new());
    let event = Event::Drop(Box::new(drop_event()));
    sink.event(&event).unwrap();
    assert!(sink.out.get_ref().is_empty(), "buffered");
    sink.waiting = sink.waiting.and_then(|since| since.checked_sub(WAIT));
    sink.event(&event).unwrap();
    assert!(sink.out.buffer().is_empty() && !sink.out.get_ref().is_empty());
}

#[test]
fn hook_is_named_without_a_rule() {
    let mut drop = drop_event();
    drop.rule = None;
    drop.hook = Some(Hook::Egress);
    drop.evidence = Evidence::engine(None, None);
    assert!(lines(&options(), drop).contains("by nftables egress (rule not known"));
}

#[test]
fn the_walk_is_shown_phase_by_phase() {
    let mut drop = drop_event();
    let rule = |chain: &str, number, handle, text: &str| {
        let mut rule = RuleRef::clone(drop_event().rule.as_ref().unwrap());
        (rule.chain, rule.number, rule.handle) = (chain.into(), Some(number), Some(handle));
        rule.text = Some(text.into());
        Arc::new(rule)
    };
    let accepting = rule("in", 1, 4, "iif \"eth0\" accept");
    drop.walk = Some(Arc::new([Phase {
        engine: Engine::Nftables,
        family: Family::Inet,
        table: "t".into(),
        chain: "in".into(),
        priority: 0,
        steps: vec![
            Step {
                rule: Arc::clone(&accepting),
                result: StepResult::Missed {
                    why: "wanted iif eth0, packet came in on eth1".into(),
                },
            },
            Step {
                rule: rule("in", 2, 5, "jump sub"),
                result: StepResult::Matched {
                    verdict: "jump sub".into(),
                },
            },
        ],
        tried: 3,
        verdict: "drop".into(),
    }]));
    drop.nearest_miss = Some(Arc::new(NearestMiss {
        rule: accepting,
        misses: vec!["wanted iif eth0, packet came in on eth1".into()],
    }));
    let plain = lines(&options(), drop.clone());
    assert!(!plain.contains("phase"), "{plain}");
    let verbose = Options {
        verbosity: 1,
        ..options()
    };
    let out = lines(&verbose, drop);
    let below = "\n                    ";
    assert!(
        out.ends_with(&[
            "phase 1: inet t in (priority 0), 3 rules tried: drop",
            "  in rule 1 (handle 4) no match: iif \"eth0\" accept [wanted iif eth0, packet came in on eth1]",
            "  in rule 2 (handle 5) jump sub: jump sub",
            "nearest miss: inet t in rule 1 (handle 4): iif \"eth0\" accept",
            "  wanted iif eth0, packet came in on eth1\n",
        ].join(below)),
        "{out}"
    );
}
