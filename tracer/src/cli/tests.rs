use std::net::IpAddr;
use std::time::Duration;

use fwtrace_abi::{SIDE_ANY, SIDE_DST, SIDE_SRC, Settings};

use super::*;
use crate::event::Hook;
use crate::extcap::Question;
use crate::output::Format;
use crate::packet::Proto;

/// The live plan of a command line, split at blanks.
fn live(line: &str) -> Live {
    match parse(words(line)) {
        Ok(Plan::Live(live)) => *live,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> Error {
    match parse(words(line)) {
        Err(err) => err,
        Ok(plan) => panic!("{line}: {plan:?}"),
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    std::iter::once("fwtrace").chain(line.split_ascii_whitespace())
}

fn settings(line: &str) -> Settings {
    let mut settings = Settings::NONE;
    live(line).apply(&mut settings, reason).unwrap();
    settings
}

fn reason(name: &str) -> Result<u32, String> {
    match name {
        "NO_SOCKET" => Ok(3),
        "NETFILTER_DROP" => Ok(8),
        _ => Err(format!("no reason '{name}'")),
    }
}

#[test]
fn without_arguments_everything_by_netfilter_here() {
    let live = live("");
    assert_eq!(live.filter, Filter::default());
    assert_eq!(live.filter.reasons, Reasons::Netfilter);
    let Watch::These(namespaces) = &live.watch else {
        panic!("{:?}", live.watch)
    };
    let current = crate::netns::NetNs::current().unwrap();
    assert_eq!(namespaces.len(), 1);
    assert_eq!(namespaces[0].inode(), current.inode());
    assert_eq!((live.count, live.duration), (None, None));
    assert_eq!(live.output.format, Format::Text);
    assert!(live.evidence == Ladder::Best && live.ready_file.is_none());
    assert!(!live.output.quiet && !live.output.numeric && !live.output.show_netns);
    assert_eq!(settings(""), Settings::NONE);
}

#[test]
fn ports() {
    let s = settings("--port 80,8000-8100 --sport 53 --dport https --dport 1");
    assert_eq!(s.port_count, 5);
    let ports: Vec<_> = s.ports[..5]
        .iter()
        .map(|p| (p.first, p.last, p.side))
        .collect();
    assert_eq!(
        ports,
        [
            (80, 80, SIDE_ANY),
            (8000, 8100, SIDE_ANY),
            (53, 53, SIDE_SRC),
            (443, 443, SIDE_DST),
            (1, 1, SIDE_DST)
        ]
    );
}

/// The bytes of a prefix's words, as they stand in memory.
fn bytes(words: [u32; 4]) -> [u8; 16] {
    let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.try_into().unwrap()
}

#[test]
fn addresses_lose_their_host_bits() {
    let s = settings("--host 10.9.0.77/24 --src 10/8,192.0.2.1 --dst 0.0.0.0/0");
    assert_eq!(s.prefix_count, 4);
    let [host, short, whole, any] = [0, 1, 2, 3].map(|i| &s.prefixes[i]);
    assert_eq!(bytes(host.addr)[..5], [10, 9, 0, 0, 0]);
    assert_eq!(bytes(host.mask)[..5], [255, 255, 255, 0, 0]);
    assert_eq!((host.family, host.side), (4, SIDE_ANY));
    assert_eq!(bytes(short.addr)[..4], [10, 0, 0, 0]);
    assert_eq!(bytes(short.mask)[..4], [255, 0, 0, 0]);
    assert_eq!((short.family, short.side), (4, SIDE_SRC));
    assert_eq!(bytes(whole.mask)[..5], [255, 255, 255, 255, 0]);
    assert_eq!((any.mask, any.side), ([0; 4], SIDE_DST));

    let s = settings("--host fd00::1/127");
    let mut mask = [255; 16];
    mask[15] = 254;
    assert_eq!((bytes(s.prefixes[0].mask), s.prefixes[0].family), (mask, 6));
    let addr: IpAddr = "fd00::".parse().unwrap();
    assert_eq!(IpAddr::from(bytes(s.prefixes[0].addr)), addr);
}

#[test]
fn protocol_and_version() {
    assert_eq!(live("--proto tcp").filter.proto, Some(Proto::TCP));
    let s = settings("--proto 253 -6");
    assert_eq!((s.proto_set, s.proto, s.ip_version), (1, 253, 6));
    assert_eq!(settings("--proto 0").proto_set, 1);
    assert_eq!(settings("-4").ip_version, 4);
}

#[test]
fn interfaces() {
    let s = settings("-i lo --iface lo");
    assert_eq!(s.iface_count, 1, "the same one twice is one");
    assert_eq!(s.ifaces[0][..3], *b"lo\0");
    let err = refused("-i no-such-if0").to_string();
    assert!(err.contains("no interface 'no-such-if0'"), "{err}");
    assert!(err.contains("ip link"), "{err}");
}

#[test]
fn reasons() {
    assert_eq!(settings("--reason all").all_reasons, 1);
    let s = settings("--reason no_socket,SKB_DROP_REASON_NETFILTER_DROP");
    assert_eq!((s.reason_count, &s.reasons[..2]), (2, &[3, 8][..]));
    let err = live("--reason NO_SUCH")
        .apply(&mut Settings::NONE.clone(), reason)
        .unwrap_err();
    assert!(
        matches!(&err, Error::Usage(m) if m.contains("'NO_SUCH'")),
        "{err}"
    );
}

#[test]
fn hooks_tables_chains() {
    let filter = live("--hook input,egress --table t --chain in,out").filter;
    assert_eq!(filter.hooks, [Hook::Input, Hook::Egress]);
    assert_eq!(filter.chains, ["in", "out"]);
    assert_eq!(filter.tables[0].name, "t");
    let plan = parse(["fwtrace", "--table", "inet t"]).unwrap();
    let Plan::Live(live) = plan else {
        panic!("{plan:?}")
    };
    assert_eq!(
        live.filter.tables[0].family,
        Some(crate::event::Family::Inet)
    );
}

#[test]
fn namespaces() {
    let own = format!("-N {} -N /proc/self/ns/net", std::process::id());
    assert!(matches!(live(&own).watch, Watch::These(n) if n.len() == 1));
    let all = live("--all-netns");
    assert!(matches!(all.watch, Watch::All));
    assert!(all.output.show_netns);
    assert_eq!(settings("--all-netns").all_netns, 1);
    let err = refused("-N no-such-netns").to_string();
    assert!(err.contains("'no-such-netns'"), "{err}");
}

#[test]
fn stops_and_output() {
    let live = live("-c 3 --duration 5m -j -n -vv --color never --ready-file /r --evidence engine");
    assert_eq!(live.count, Some(3));
    assert_eq!(live.duration, Some(Duration::from_secs(300)));
    assert_eq!(live.output.format, Format::Json);
    assert_eq!(live.output.verbosity, 2);
    assert!(live.output.numeric);
    assert_eq!(live.output.color, anstream::ColorChoice::Never);
    assert_eq!(live.ready_file.unwrap().to_str(), Some("/r"));
    assert_eq!(live.evidence, Ladder::Engine);
}

#[test]
fn traces_are_asked_for_and_bounded() {
    for (line, rate) in [
        ("", None),
        ("--trace", Some(20)),
        ("--trace=5", Some(5)),
        ("--trace=0 --port 80", Some(0)),
        ("--trace --hook ingress,input", Some(20)),
    ] {
        assert_eq!(live(line).trace, rate, "{line}");
    }
    for line in [
        "--trace 5",
        "--trace=-1",
        "--trace=x",
        "--trace --hook ingress",
    ] {
        refused(line);
    }
}

#[test]
fn nflog_groups() {
    let these = |groups: &[u16]| Groups::These(groups.iter().copied().collect());
    for (line, groups) in [
        ("", Groups::Auto),
        ("--nflog auto", Groups::Auto),
        ("--nflog none", Groups::NONE),
        ("--nflog 5", these(&[5])),
        ("--nflog 1,5-7,6", these(&[1, 5, 6, 7])),
        ("--nflog=0,65535", these(&[0, 65535])),
    ] {
        assert_eq!(live(line).nflog, groups, "{line}");
    }
    for line in [
        "--nflog",
        "--nflog x",
        "--nflog 65536",
        "--nflog 7-5",
        "--nflog 1,,2",
        "--nflog 0-65535",
        "--nflog 5,auto",
    ] {
        refused(line);
    }
}

#[test]
fn durations() {
    for (text, milliseconds) in [
        ("30", 30_000),
        ("30s", 30_000),
        ("500ms", 500),
        ("2h", 7_200_000),
    ] {
        let live = live(&format!("--duration {text}"));
        assert_eq!(live.duration, Some(Duration::from_millis(milliseconds)));
    }
}

#[test]
fn subcommands() {
    let plan = parse(words("rules --json -s --table t --chain c")).unwrap();
    let Plan::Rules(rules) = plan else {
        panic!("{plan:?}")
    };
    assert!(rules.json && rules.stateless);
    assert_eq!((rules.tables.len(), rules.chains.len()), (1, 1));
    let plan = parse(words("features --json")).unwrap();
    assert!(matches!(plan, Plan::Features(Features { json: true })));
    let Plan::Demo(demo) = parse(words("demo policy --json")).unwrap() else {
        panic!("no demo")
    };
    assert!(demo.json && !demo.list);
    assert_eq!((demo.scenes.len(), demo.scenes[0].name), (1, "policy"));
    let Plan::Demo(demo) = parse(words("demo --list")).unwrap() else {
        panic!("no demo")
    };
    assert!(demo.list && demo.scenes.len() > 1);
}

/// Each wrong command line is refused with words that name the value.
#[test]
fn wrong_usage() {
    for (line, named) in [
        ("demo nosuch", "no scene 'nosuch'"),
        ("--port 65536", "65536"),
        ("--port http-alt-none", "http-alt-none"),
        ("--port 90-80", "80-90"),
        ("--port", "--port"),
        ("--src 10.0.0.0/33", "33"),
        ("--src 10.0.0", "10.0.0"),
        ("--dst fd00::/129", "129"),
        ("--host example.com", "example.com"),
        ("--host 10.0.0.1/-1", "-1"),
        ("--host 10/", "10/"),
        ("--proto nosuch", "nosuch"),
        ("--proto 256", "256"),
        ("--proto icmp --port 80", "icmp has no ports"),
        ("-4 -6", "-6"),
        ("-6 --src 10.0.0.0/8", "10.0.0.0/8"),
        ("--src 10.0.0.1 --dst fd00::1", "contradicts"),
        ("--hook nosuch", "nosuch"),
        ("-c 0", "0"),
        ("-c many", "many"),
        ("--duration 0", "0"),
        ("--duration 5x", "5x"),
        ("--duration ms", "ms"),
        ("--color sometimes", "sometimes"),
        ("-q -v", "-v"),
        ("-N 1 --all-netns", "--all-netns"),
        ("--port 80 rules", "rules"),
        ("nosuch", "nosuch"),
        ("tcp rules", "tcp rules"),
        ("-d", "EXPRESSION"),
        ("-d tcp and prot 5", "syntax error"),
        ("--nosuch", "--nosuch"),
    ] {
        let err = refused(line);
        let text = err.to_string();
        assert!(text.contains(named), "{line}: {text}");
        match err {
            Error::Clap(err) => assert_eq!(err.exit_code(), 2, "{line}"),
            Error::Usage(_) => {}
            Error::Permission(_) | Error::Lacking(_) => panic!("{line}: {text}"),
        }
    }
}

#[test]
fn expressions() {
    let plan = live("--trace tcp port 80 -v and not src host 10.0.0.1 --json");
    let expression = plan.expression.as_ref().unwrap();
    assert_eq!(expression.text(), "tcp port 80 and not src host 10.0.0.1");
    assert!(plan.output.verbosity == 1 && plan.output.format == Format::Json);
    // What the kernel's side takes of it narrows what is traced, too.
    assert_eq!(plan.filter.proto, Some(Proto::TCP));
    assert_eq!(plan.filter.ports.len(), 1);
    assert!(live("--port 80").expression.is_none());

    let Ok(Plan::Expressed(told)) = parse(words("-4 -d udp and not port 53")) else {
        panic!("no -d")
    };
    let text = told.to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "# in the kernel: udp",
            "# on the captured bytes only: not port 53",
            "# reads the first 64 bytes from the network header on"
        ]
    );
    assert_eq!(lines[3], "(000) ldh      [12]");
}

#[test]
fn wiresharks_flags() {
    let plan = |line: &str| parse(line.split('|').map(str::to_owned));
    let asked = |line: &str| match plan(line) {
        Ok(Plan::Extcap(question)) => question,
        other => panic!("{line}: {other:?}"),
    };
    // Under the name in Wireshark's directory it is the command, under its own it takes it.
    for (line, question) in [
        (
            "/a/fwtrace-extcap|--extcap-interfaces|--extcap-version=4.0",
            Question::Interfaces,
        ),
        ("fwtrace|extcap|--extcap-interfaces", Question::Interfaces),
        (
            "fwtrace-extcap|--extcap-interface|fwtrace|--extcap-dlts",
            Question::LinkTypes,
        ),
        (
            "fwtrace-extcap|--extcap-interface|fwtrace|--extcap-config",
            Question::Config,
        ),
        (
            "fwtrace-extcap|--extcap-interface=fwtrace|--extcap-capture-filter=tcp",
            Question::IsFilterRight,
        ),
        ("fwtrace-extcap", Question::Nothing),
    ] {
        assert_eq!(asked(line), question);
    }
    let line = "fwtrace-extcap|--capture|--extcap-interface|fwtrace|--fifo|/x/pipe|--netns||--filter|port 53|--reason|NO_SOCKET|--trace|--extcap-capture-filter|udp";
    let Ok(Plan::Live(live)) = plan(line) else {
        panic!("{:?}", plan(line))
    };
    assert_eq!(live.expression.unwrap().text(), "(udp) and (port 53)");
    assert_eq!(
        live.filter.reasons,
        Reasons::Names(vec!["NO_SOCKET".into()])
    );
    assert_eq!(
        (live.trace, live.output.format),
        (Some(20), Format::Nothing)
    );
    assert!(live.output.quiet);
    assert_eq!(live.write.unwrap().path, std::path::Path::new("/x/pipe"));
    assert!(plan("fwtrace-extcap|--capture|--extcap-interface|fwtrace").is_err());
    assert!(plan("fwtrace-extcap|--extcap-interface|eth0|--extcap-config").is_err());
}

#[test]
fn version_and_help_are_no_errors() {
    for line in ["--version", "--help", "rules --help"] {
        let Error::Clap(err) = refused(line) else {
            panic!("{line}")
        };
        assert_eq!(err.exit_code(), 0, "{line}");
    }
    let help = refused("--help").to_string();
    assert!(!help.contains("ready-file") && !help.contains("--evidence"));
}

#[test]
fn limits_are_named() {
    let list = |n: u16| (1..=n).map(|p| p.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(settings(&format!("--port {}", list(16))).port_count, 16);
    let err = live(&format!("--port {}", list(17)))
        .apply(&mut Settings::NONE.clone(), reason)
        .unwrap_err();
    assert!(err.to_string().contains("more than 16 ports"), "{err}");
}

fn replay(line: &str) -> Replay {
    match parse(words(line)) {
        Ok(Plan::Replay(replay)) => *replay,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn capture_flags() {
    let written = live("-w x.pcapng -s 96 -C 5 -W 3 --compress zstd");
    assert_eq!(written.output.format, Format::Text);
    let plan = written.write.unwrap();
    assert_eq!(
        (
            plan.path.to_str(),
            plan.snaplen,
            plan.rotation.size,
            plan.rotation.count
        ),
        (Some("x.pcapng"), 96, Some(5_000_000), Some(3))
    );
    assert!(plan.compression.is_some() && plan.rotation.period.is_none());
    for (size, bytes) in [("2k", 2048), ("3M", 3 << 20), ("1g", 1 << 30)] {
        let plan = live(&format!("-w x -C {size}")).write.unwrap();
        assert_eq!(plan.rotation.size, Some(bytes), "{size}");
    }
    assert_eq!(live("-w x -q").output.format, Format::Nothing);
    assert_eq!(live("-w x -q -j").output.format, Format::Json);
    assert_eq!(
        live("-w x -s 0").write.unwrap().snaplen,
        crate::pcapng::SNAPLEN
    );
    let period = live("-w x-%H -G 60").write.unwrap().rotation.period;
    assert_eq!(period, Some(Duration::from_secs(60)));
    // The headers are looked at, however little is kept; more than the ring takes is asked for.
    assert_eq!(settings("-w x -s 1").snaplen, Settings::NONE.snaplen);
    assert!(settings("-w x").wants_whole_packets() && !settings("").wants_whole_packets());
    assert_eq!(settings("-s 1500").snaplen, 1500);
}

#[test]
fn capture_flags_that_contradict_each_other() {
    for (line, said) in [
        ("-w - -j", "both want stdout"),
        ("-w - -C 1", "one stream"),
        ("-w x -W 3", "-W counts files"),
        ("-C 1", "--write"),
        ("-r x -w y", "cannot be used with"),
        ("-r x -N 1", "cannot be used with"),
        ("-w x -s 300000", "262144"),
        ("-w x -C 0", "positive"),
        ("-w x -G 0", "positive"),
    ] {
        let error = refused(line).to_string();
        assert!(error.contains(said), "{line}: {error}");
    }
}

#[test]
fn a_capture_is_read_with_the_same_filters() {
    let all = replay("-r x.pcapng -v -c 5");
    assert!(all.filter.is_none() && all.count == Some(5) && all.output.verbosity == 1);
    // Interfaces are those of the capture.
    let some = replay("-r - -i nowhere0 --reason NO_SOCKET");
    let filter = some.filter.unwrap();
    assert_eq!(filter.ifaces, ["nowhere0"]);

    let drop = crate::event::tests::drop_event();
    for (line, selected) in [
        ("--port 80", true),
        ("--sport 80", false),
        ("--dport 36000-37000", false),
        ("--host 10.9.0.0/24", true),
        ("--src 10.9.0.2", false),
        ("--dst 10.9.0.2 --src 10.9.0.1", true),
        ("--host fd00::/8", false),
        ("--proto tcp -4", true),
        ("--proto udp", false),
        ("-6", false),
        ("-i eth0", true),
        ("-i eth1", false),
        ("--reason NETFILTER_DROP", true),
        ("--reason no_socket", false),
        ("--hook input", true),
        ("--hook output", false),
    ] {
        let filter = replay(&format!("-r x {line}")).filter.unwrap();
        assert_eq!(filter.selects_drop(&drop), selected, "{line}");
    }
}
