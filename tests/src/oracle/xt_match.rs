//! Matches of iptables rules, each with what it wants of a packet.

use crate::net::Place;
use crate::oracle::aim::{Hook, PORTS, Wish, addresses};
use crate::oracle::nft_match::{Match, plain};
use crate::oracle::packet::{Cast, Ext, proto};
use crate::oracle::random::Random;

/// What the matches of a rule have in common.
#[derive(Clone, Copy, Debug)]
pub struct Flavour {
    /// Hook of the chain.
    pub hook: Hook,
    /// ip6tables.
    pub v6: bool,
    /// `-p`.
    pub l4: Option<u8>,
    /// Whether conntrack can be matched: not in the raw table.
    pub ct: bool,
    /// Whether state that nobody outside knows may be matched.
    pub state: bool,
}

/// `-p`, as it must stand first.
pub fn protocol(flavour: Flavour) -> Match {
    match flavour.l4 {
        None => plain("", []),
        Some(number) => {
            let name = match number {
                proto::TCP => "tcp",
                proto::UDP => "udp",
                proto::ICMP => "icmp",
                proto::ICMPV6 => "ipv6-icmp",
                proto::SCTP => "sctp",
                proto::UDPLITE => "udplite",
                _ => return plain(format!("-p {number}"), [Wish::Proto(number)]),
            };
            plain(format!("-p {name}"), [Wish::Proto(number)])
        }
    }
}

/// A random match.
pub fn any(random: &mut Random, flavour: Flavour) -> Match {
    loop {
        let kind = random.weighted(&[
            (25, 0),
            (30, 1),
            (12, 2),
            (if flavour.ct { 14 } else { 0 }, 3),
            (18, 4),
            (5, 5),
            (if flavour.state { 6 } else { 0 }, 6),
        ]);
        let found = match kind {
            0 => Some(address(random, flavour)),
            1 => transport(random, flavour),
            2 => Some(interface(random, flavour)),
            3 => Some(conntrack(random, flavour)),
            4 => header(random, flavour),
            5 => content(random, flavour),
            _ => Some(state(random)),
        };
        if let Some(found) = found {
            return found;
        }
    }
}

fn not(random: &mut Random) -> &'static str {
    if random.percent(18) { "! " } else { "" }
}

fn address(random: &mut Random, flavour: Flavour) -> Match {
    let source = random.percent(60);
    let place = match (flavour.hook, source) {
        (Hook::Output, true) | (Hook::Input, false) => Place::R,
        (_, true) => random.pick(&[Place::A, Place::A, Place::B]),
        (_, false) => random.pick(&[Place::B, Place::B, Place::A, Place::R]),
    };
    let all = addresses(place, flavour.v6);
    let (a, b) = (random.pick(&all), random.pick(&all));
    let wish = |a| vec![if source { Wish::Src(a) } else { Wish::Dst(a) }];
    let not = not(random);
    match random.below(5) {
        0 => {
            let kind = if source { "src" } else { "dst" };
            plain(
                format!("-m iprange {not}--{kind}-range {}-{}", a.min(b), a.max(b)),
                wish(a),
            )
        }
        1 => {
            let length = if flavour.v6 {
                random.pick(&[64, 120, 33])
            } else {
                random.pick(&[24, 16, 31, 9])
            };
            plain(
                format!("{not}-{} {a}/{length}", if source { "s" } else { "d" }),
                wish(a),
            )
        }
        2 if !flavour.v6 => plain(
            format!("{not}-{} {a}/255.0.0.255", if source { "s" } else { "d" }),
            wish(a),
        ),
        _ => plain(
            format!("{not}-{} {a}", if source { "s" } else { "d" }),
            wish(a),
        ),
    }
}

fn transport(random: &mut Random, flavour: Flavour) -> Option<Match> {
    let l4 = flavour.l4?;
    let not = not(random);
    let port = random.pick(&PORTS);
    Some(match l4 {
        proto::TCP if random.percent(40) => match random.below(7) {
            0 => plain(format!("-m tcp {not}--syn"), [Wish::Flags(2)]),
            1 => plain(
                format!("-m tcp {not}--tcp-flags FIN,SYN,RST,ACK SYN"),
                [Wish::Flags(2)],
            ),
            2 => plain("-m tcp --tcp-flags ALL SYN,ACK", [Wish::Flags(0x12)]),
            3 => plain(
                format!("-m tcp {not}--tcp-flags ALL NONE"),
                [Wish::Flags(0)],
            ),
            4 => plain(
                format!("-m tcp {not}--tcp-option {}", random.pick(&[2, 4, 8])),
                [Wish::TcpOptions(vec![2, 4, 5, 0xb4])],
            ),
            5 => plain(
                format!(
                    "-m tcpmss {not}--mss {}",
                    random.pick(&["1460", "1000:1500", "1:500"])
                ),
                [Wish::Flags(2), Wish::TcpOptions(vec![2, 4, 5, 0xb4])],
            ),
            _ => plain("-m tcp --tcp-flags SYN,RST RST", [Wish::Flags(4)]),
        },
        proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE => {
            let name = match l4 {
                proto::TCP => "tcp",
                proto::UDP => "udp",
                proto::SCTP => "sctp",
                _ => "multiport",
            };
            let source = random.percent(25);
            let wish = if source {
                Wish::Sport(port)
            } else {
                Wish::Dport(port)
            };
            let side = if source { "s" } else { "d" };
            let text = match random.below(6) {
                0 => format!("-m multiport {not}--{side}ports {port},9000:9010,7"),
                1 => format!("-m multiport {not}--ports {port},{}", random.pick(&PORTS)),
                _ if name == "multiport" => format!("-m multiport {not}--{side}ports {port}"),
                2 => format!(
                    "-m {name} {not}--{side}port {}:{}",
                    port.saturating_sub(2),
                    port + 3
                ),
                3 => format!("-m {name} --{side}port :{port}"),
                _ => format!("-m {name} {not}--{side}port {port}"),
            };
            plain(text, [wish])
        }
        proto::ICMP => {
            let (text, wish) = random.pick(&[
                ("8", (8, 0)),
                ("3/1", (3, 1)),
                ("0", (0, 0)),
                ("3", (3, 4)),
                ("any", (8, 0)),
            ]);
            plain(
                format!("-m icmp {not}--icmp-type {text}"),
                [Wish::Icmp(wish.0, wish.1)],
            )
        }
        proto::ICMPV6 => {
            let (text, wish) = random.pick(&[
                ("128", (128, 0)),
                ("1/4", (1, 4)),
                ("129", (129, 0)),
                ("1", (1, 0)),
            ]);
            plain(
                format!("-m icmp6 {not}--icmpv6-type {text}"),
                [Wish::Icmp(wish.0, wish.1)],
            )
        }
        50 => plain(format!("-m esp {not}--espspi 100:4294967295"), []),
        _ => return None,
    })
}

fn interface(random: &mut Random, flavour: Flavour) -> Match {
    let side = random.pick(&[(Place::A, "r0"), (Place::B, "r1")]);
    let receives = matches!(flavour.hook, Hook::Prerouting | Hook::Input | Hook::Forward);
    let not = not(random);
    if receives && (flavour.hook != Hook::Forward || random.percent(50)) {
        let name = if random.percent(20) { "r+" } else { side.1 };
        return plain(format!("{not}-i {name}"), [Wish::From(side.0)]);
    }
    let name = if random.percent(20) { "r+" } else { side.1 };
    plain(format!("{not}-o {name}"), [Wish::To(side.0)])
}

fn conntrack(random: &mut Random, flavour: Flavour) -> Match {
    let not = not(random);
    let a = addresses(Place::A, flavour.v6)[0];
    match random.below(11) {
        0 | 1 => plain(
            format!("-m conntrack {not}--ctstate ESTABLISHED,RELATED"),
            [Wish::Established],
        ),
        2 => plain(
            format!(
                "-m state {not}--state {}",
                random.pick(&["ESTABLISHED", "NEW", "RELATED,NEW"])
            ),
            [Wish::Established],
        ),
        3 => plain("-m conntrack --ctstate INVALID", [Wish::Invalid]),
        4 => plain(
            format!(
                "-m conntrack {not}--ctstate {}",
                random.pick(&[
                    "NEW",
                    "RELATED",
                    "UNTRACKED",
                    "NEW,UNTRACKED",
                    "SNAT",
                    "DNAT"
                ])
            ),
            [Wish::Related],
        ),
        5 => plain(
            format!(
                "-m conntrack {not}--ctproto {}",
                random.pick(&["tcp", "udp"])
            ),
            [],
        ),
        6 => plain(format!("-m conntrack {not}--ctorigsrc {a}"), [Wish::Src(a)]),
        7 => plain(
            format!(
                "-m conntrack {not}--ctstatus {}",
                random.pick(&["ASSURED", "SEEN_REPLY", "CONFIRMED", "NONE"])
            ),
            [Wish::Established],
        ),
        8 => plain(
            format!(
                "-m conntrack --ctdir {}",
                random.pick(&["ORIGINAL", "REPLY"])
            ),
            [Wish::Established],
        ),
        9 => plain(
            format!(
                "-m conntrack {not}--ctorigdstport {}",
                random.pick(&["53", "80:443", "6000"])
            ),
            [Wish::Dport(53)],
        ),
        _ => plain(
            format!(
                "-m connmark {not}--mark {}",
                random.pick(&["0x10", "0x20/0xf0", "0"])
            ),
            [Wish::Established],
        ),
    }
}

fn header(random: &mut Random, flavour: Flavour) -> Option<Match> {
    let not = not(random);
    let v6 = flavour.v6;
    let exts = |number| {
        Wish::Ext(Ext {
            number,
            body: vec![1, 4, 0, 0, 0, 0],
        })
    };
    Some(match random.below(17) {
        0 => {
            let length = random.from(40, 300);
            plain(
                format!("-m length {not}--length {length}:{}", length + 10),
                [Wish::Length(length)],
            )
        }
        1 | 2 => {
            let ttl = random.pick(&[1, 63, 64, 128]);
            let key = if v6 { "-m hl --hl" } else { "-m ttl --ttl" };
            plain(
                format!("{key}-{} {ttl}", random.pick(&["eq", "lt", "gt"])),
                [Wish::Ttl(ttl)],
            )
        }
        3 => plain(
            format!(
                "-m dscp {not}--dscp {}",
                random.pick(&["0x2e", "0x04", "0x00"])
            ),
            [Wish::Tos(0xb8)],
        ),
        4 => plain(format!("-m tos {not}--tos 0x10/0x3f"), [Wish::Tos(0x10)]),
        5 => {
            let (name, cast) = random.pick(&[
                ("unicast", Cast::Host),
                ("broadcast", Cast::Broadcast),
                ("multicast", Cast::Multicast),
            ]);
            plain(
                format!("-m pkttype {not}--pkt-type {name}"),
                [Wish::Cast(cast)],
            )
        }
        6 | 7 => {
            let text = random.pick(&[
                "--dst-type LOCAL",
                if v6 {
                    "--dst-type MULTICAST"
                } else {
                    "--dst-type BROADCAST"
                },
                "--src-type UNICAST",
                "! --dst-type LOCAL",
                "--src-type LOCAL",
                "--dst-type UNICAST",
            ]);
            plain(format!("-m addrtype {text}"), [])
        }
        8 | 9 => {
            let mark = random.pick(&[1, 2, 0x10]);
            plain(
                format!(
                    "-m mark {not}--mark {mark:#x}{}",
                    random.pick(&["", "/0xff", "/0x3"])
                ),
                [Wish::Mark(mark)],
            )
        }
        10 if matches!(flavour.hook, Hook::Prerouting | Hook::Input | Hook::Forward) => plain(
            format!("-m mac {not}--mac-source 02:00:00:00:0a:00"),
            [Wish::From(Place::A)],
        ),
        // The socket may be that of another process than the one that runs, or none: state.
        11 if flavour.hook == Hook::Output => {
            let key = random.pick(&[
                "uid-owner 0",
                "uid-owner 1000",
                "uid-owner 0-500",
                "gid-owner 0",
            ]);
            stateful(&format!("-m owner {not}--{key}"))
        }
        13 if v6 => {
            let headers = random.pick(&["dst --soft", "hop-by-hop --soft", "prot", "frag,prot"]);
            plain(format!("-m ipv6header {not}--header {headers}"), [exts(60)])
        }
        13 => plain(format!("{not}-f"), [Wish::Fragment(3, false)]),
        14 if v6 => {
            let which = random.pick(&["--fragmore", "--fraglast", "--fragfirst", ""]);
            plain(format!("-m frag {which}"), [Wish::Fragment(0, true)])
        }
        14 => plain("-m u32 --u32 \"6&0xFF=0x11\"", [Wish::Proto(proto::UDP)]),
        15 if v6 => {
            let (text, number) = random.pick(&[
                ("-m hbh", 0),
                ("-m hbh --hbh-opts 1:4", 0),
                ("-m dst --dst-len 8", 60),
                ("-m dst --dst-opts 1", 60),
                ("-m rt --rt-segsleft 0", 43),
            ]);
            plain(text, [exts(number)])
        }
        15 => plain(
            format!(
                "-m u32 {not}--u32 \"0>>22&0x3C@0&0xFFFF={:#x}\"",
                random.pick(&PORTS)
            ),
            [],
        ),
        16 => plain("-m comment --comment \"some words\"", []),
        _ => return None,
    })
}

fn content(random: &mut Random, flavour: Flavour) -> Option<Match> {
    let not = not(random);
    Some(match random.below(4) {
        0 => plain(
            format!(
                "-m string {not}--string \"fwtrace\" --algo {}",
                random.pick(&["bm", "kmp"])
            ),
            [Wish::Payload(b"..fwtrace..".to_vec())],
        ),
        1 => plain(
            "-m string --hex-string \"|6677 74|r\" --algo bm --from 20 --to 60",
            [Wish::Payload(b"fwtrace".to_vec())],
        ),
        2 => plain(
            "-m string --string \"FWTRACE\" --algo bm --icase",
            [Wish::Payload(b"fwtrace".to_vec())],
        ),
        3 if flavour.hook == Hook::Prerouting => plain(
            format!("-m rpfilter {}", random.pick(&["--invert", "--loose"])),
            [],
        ),
        _ => return None,
    })
}

fn state(random: &mut Random) -> Match {
    let text = random.pick(&[
        "-m limit --limit 5/sec --limit-burst 3",
        "-m statistic --mode nth --every 3 --packet 0",
        "-m statistic --mode random --probability 0.5",
        "-m hashlimit --hashlimit-upto 3/sec --hashlimit-burst 2 --hashlimit-mode srcip --hashlimit-name oracle",
        "-m recent --name oracle --set",
        "-m recent --name oracle --rcheck --seconds 60 --hitcount 2",
        "-m quota --quota 300",
        "-m connlimit --connlimit-above 2",
        "-m time --timestart 00:00 --timestop 12:00",
    ]);
    stateful(text)
}

fn stateful(text: &str) -> Match {
    let mut found = plain(text, []);
    found.stateful = true;
    found
}
