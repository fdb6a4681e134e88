use super::*;
use crate::packet::{Family as PacketFamily, Proto, TcpFlags};

/// The design's example.
pub(crate) fn drop_event() -> DropEvent {
    DropEvent {
        time: "2026-11-22T14:03:41.512345678Z".parse().unwrap(),
        verdict: Verdict::Drop,
        netns: NetnsRef {
            inode: 4_026_532_246,
            name: Some("web".into()),
        },
        engine: Engine::Nftables,
        family: Some(Family::Ip),
        hook: Some(Hook::Input),
        reason: Some("NETFILTER_DROP".into()),
        iif: Some("eth0".into()),
        oif: None,
        mark: 0,
        packet: Packet {
            family: PacketFamily::Ipv4,
            proto: Some(Proto::TCP),
            src: Some([10, 9, 0, 1].into()),
            sport: Some(36334),
            dst: Some([10, 9, 0, 2].into()),
            dport: Some(80),
            len: Some(60),
            flags: Some(TcpFlags(2)),
            ..Packet::default()
        },
        rule: Some(Arc::new(RuleRef {
            family: Family::Inet,
            table: "t".into(),
            chain: "sub".into(),
            base_chain: Some("in".into()),
            number: Some(1),
            handle: Some(3),
            text: Some("tcp dport 80 counter drop comment \"block web\"".into()),
            comment: Some("block web".into()),
            gone: false,
        })),
        policy: None,
        path: Some(Arc::new([PathStep {
            table: "t".into(),
            chain: "in".into(),
            number: Some(2),
            handle: Some(5),
            verdict: "jump sub".into(),
        }])),
        nearest_miss: None,
        walk: None,
        log: Vec::new(),
        why: None,
        evidence: Evidence::exact(EvidenceSource::KernelStack),
        conntrack: Some(Conntrack {
            mark: Some(0),
            zone: Some(0),
            ..Conntrack::stateless(CtState::New)
        }),
        process: None,
        count: 1,
    }
}

fn json(event: &Event) -> String {
    let mut out = Vec::new();
    event.write_json(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The design's example, key by key and in its order.
#[test]
fn drop_is_the_documented_object() {
    let expected = concat!(
        r#"{"v":1,"type":"drop","time":"2026-11-22T14:03:41.512345678Z","verdict":"drop","#,
        r#""netns":{"inode":4026532246,"name":"web"},"#,
        r#""engine":"nftables","family":"ip","hook":"input","reason":"NETFILTER_DROP","#,
        r#""iif":"eth0","oif":null,"#,
        r#""packet":{"family":"ipv4","proto":"tcp","src":"10.9.0.1","sport":36334,"dst":"10.9.0.2","dport":80,"len":60,"flags":"S"},"#,
        r#""rule":{"family":"inet","table":"t","chain":"sub","base_chain":"in","number":1,"handle":3,"text":"tcp dport 80 counter drop comment \"block web\"","comment":"block web"},"#,
        r#""path":[{"table":"t","chain":"in","number":2,"handle":5,"verdict":"jump sub"}],"#,
        r#""evidence":{"source":"kernel-stack","confidence":"exact","candidates":[]},"#,
        r#""conntrack":{"state":"new","status":[],"mark":0,"zone":0},"#,
        r#""process":null,"count":1}"#,
        "\n"
    );
    assert_eq!(json(&Event::Drop(Box::new(drop_event()))), expected);
}

#[test]
fn policy_drop_has_a_null_rule_and_a_policy() {
    let policy = Arc::new(PolicyRef {
        family: Family::Inet,
        table: "t".into(),
        chain: "in".into(),
        rules: Some(9),
        none_matched: None,
    });
    let text = json(&Event::Drop(Box::new(DropEvent {
        rule: None,
        policy: Some(policy),
        ..drop_event()
    })));
    assert!(
        text.contains(
            r#""rule":null,"policy":{"family":"inet","table":"t","chain":"in","rules":9,"none_matched":null},"path""#
        ),
        "{text}"
    );
}

fn logged(verdict: Verdict) -> DropEvent {
    DropEvent {
        verdict,
        rule: None,
        ..drop_event()
    }
}

#[test]
fn what_became_of_a_logged_packet_can_be_unknown() {
    let text = |verdict| json(&Event::Log(Box::new(logged(verdict))));
    let accepted = text(Verdict::Accept);
    assert!(
        accepted.starts_with(r#"{"v":1,"type":"log","#),
        "{accepted}"
    );
    assert!(accepted.contains(r#","verdict":"accept","#), "{accepted}");
    let unknown = text(Verdict::Unknown);
    assert!(unknown.contains(r#","verdict":null,"#), "{unknown}");
}

#[test]
fn every_event_survives_the_round_trip() {
    let time = "2026-11-22T14:03:41.000000001Z".parse().unwrap();
    let netns = NetnsRef {
        inode: 7,
        name: None,
    };
    let mut ambiguous = drop_event();
    let rule = ambiguous.rule.take().unwrap();
    ambiguous.evidence.confidence = Confidence::Ambiguous;
    ambiguous.evidence.candidates = vec![Candidate::Rule(rule.clone())];
    let mut unknown = ambiguous.clone();
    unknown.evidence.confidence = Confidence::Unknown;
    ambiguous.process = Some(Process {
        pid: 12,
        comm: "curl".into(),
        uid: Some(0),
    });
    let events = [
        Event::Drop(Box::new(drop_event())),
        Event::Drop(Box::new(ambiguous)),
        Event::Drop(Box::new(unknown)),
        Event::Log(Box::new(logged(Verdict::Accept))),
        Event::Log(Box::new(logged(Verdict::Unknown))),
        Event::Lost(Lost {
            time,
            source: "ring".into(),
            count: 3,
        }),
        Event::RulesetChange(RulesetChange {
            time,
            netns: netns.clone(),
            generation: 9,
            by: Some(ChangedBy {
                pid: 4,
                comm: "nft".into(),
            }),
        }),
        Event::Summary(Summary {
            written: None,
            conntrack: vec![ConntrackCount {
                netns: netns.clone(),
                entries: 3,
                peak: 4,
                max: Some(4),
                moved: [("drop".into(), 2)].into(),
            }],
            time,
            seen: 6,
            shown: 2,
            filtered: 3,
            aggregated: 0,
            lost: 1,
            other: [("NO_SOCKET".into(), 2)].into(),
            disagreed: 1,
            rules: vec![RuleCount {
                netns,
                engine: Engine::Nftables,
                rule: Some(rule),
                policy: None,
                count: 2,
            }],
            logged: Some(Logged {
                received: 5,
                joined: 2,
                passed: 3,
                ..Logged::default()
            }),
        }),
        Event::Error(ErrorEvent {
            time,
            message: "no".to_owned(),
        }),
    ];
    for event in events {
        let text = json(&event);
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.ends_with('\n'), "{text}");
        assert_eq!(Event::from_json(&text).unwrap(), event, "{text}");
    }
}

#[test]
fn another_version_is_named() {
    let err = Event::from_json(r#"{"v":2,"type":"drop"}"#).unwrap_err();
    assert!(matches!(err, ParseError::Version(2)), "{err}");
}
