//! What A sends.

use crate::packets::{Ip, R0, icmp, sctp, tcp, udp};

const MSS_1460: [u8; 4] = [2, 4, 5, 0xb4];

/// Addresses: A, B, R towards A, R towards B, a stranger, a group.
pub(crate) struct Addresses {
    pub(crate) a: &'static str,
    pub(crate) b: &'static str,
    r0: &'static str,
    pub(crate) r1: &'static str,
    stranger: &'static str,
    group: &'static str,
}

pub(crate) const V4: Addresses = Addresses {
    a: "10.1.0.1",
    b: "10.2.0.1",
    r0: "10.1.0.2",
    r1: "10.2.0.2",
    stranger: "10.77.0.9",
    group: "224.0.0.9",
};
pub(crate) const V6: Addresses = Addresses {
    a: "fd01::1",
    b: "fd02::1",
    r0: "fd01::2",
    r1: "fd02::2",
    stranger: "fd77::9",
    group: "ff02::9",
};

/// What A sends: a name, the packet, and the frame's destination.
pub(crate) fn corpus(v6: bool) -> Vec<(&'static str, Ip, [u8; 6])> {
    let at = if v6 { &V6 } else { &V4 };
    let ping = if v6 { (58, 128, 1) } else { (1, 8, 3) };
    let to_b = |proto, body| Ip::new(at.a, at.b, proto, body);
    let syn = || tcp((1500, 80), 2, &MSS_1460, b"");
    let mut long = vec![b'.'; 300];
    long[250..256].copy_from_slice(b"needle");
    let mut all = vec![
        ("syn", to_b(6, syn())),
        ("syn without options", to_b(6, tcp((1500, 80), 2, &[], b""))),
        (
            "syn, small mss",
            to_b(6, tcp((3000, 443), 2, &[1, 1, 1, 1, 2, 4, 2, 0], b"")),
        ),
        (
            "ack with needle",
            to_b(6, tcp((80, 1500), 0x10, &[], b"a needle in hay")),
        ),
        (
            "ack with NeEdLe",
            to_b(6, tcp((1999, 22), 0x18, &[], b"a NeEdLe in hay")),
        ),
        (
            "flags none",
            to_b(6, tcp((2001, 85), 0, &[], &[0, 1, 0xff])),
        ),
        ("cwr and ece", to_b(6, tcp((1500, 80), 0xc2, &[], b""))),
        (
            "options that end in the middle",
            to_b(6, tcp((1500, 80), 2, &[1, 1, 8, 90], b"")),
        ),
        (
            "option of length 0",
            to_b(6, tcp((1500, 80), 2, &[9, 0, 2, 4, 5, 0xb4, 3, 3], b"")),
        ),
        ("dns", to_b(17, udp((5000, 53), b"query"))),
        ("udp high", to_b(17, udp((5001, 9999), &long))),
        ("udp of 1500 bytes", to_b(17, udp((5000, 60), &[7; 1400]))),
        ("ping", to_b(ping.0, icmp(ping.1, 0))),
        (
            "unreachable",
            to_b(ping.0, icmp(ping.2, if v6 { 4 } else { 1 })),
        ),
        (
            "sctp init",
            to_b(132, sctp((9899, 9899), &[(1, 0, &[0; 16])])),
        ),
        (
            "sctp data and sack",
            to_b(132, sctp((5, 9899), &[(0, 3, &[0; 13]), (3, 0, &[0; 12])])),
        ),
        ("sctp data", to_b(132, sctp((5, 6), &[(0, 3, &[0; 13])]))),
        (
            "sctp data without flags",
            to_b(132, sctp((5, 6), &[(0, 0, &[0; 13])])),
        ),
        ("esp", to_b(50, vec![0, 0, 1, 1, 0, 0, 0, 1, 9, 9])),
        (
            "esp, other spi",
            to_b(50, vec![0, 0, 9, 1, 0, 0, 0, 1, 9, 9]),
        ),
        ("gre", to_b(47, vec![0, 0, 8, 0, 1, 2, 3, 4])),
        (
            "expedited",
            to_b(17, udp((5000, 53), b"")).with(|ip| ip.tos = 0xb8),
        ),
        (
            "low delay, ect 1",
            to_b(17, udp((5000, 53), b"")).with(|ip| ip.tos = 0x11),
        ),
        ("ttl 5", to_b(6, syn()).with(|ip| ip.ttl = 5)),
        ("ttl 200", to_b(6, syn()).with(|ip| ip.ttl = 200)),
        ("to r", Ip::new(at.a, at.r0, 17, udp((5000, 53), b""))),
        ("to r's other side", Ip::new(at.a, at.r1, 6, syn())),
        (
            "from nowhere",
            Ip::new(at.stranger, at.b, 17, udp((5000, 53), b"")),
        ),
        (
            "from b's network",
            Ip::new(at.b, at.r0, 17, udp((5000, 53), b"")),
        ),
        ("from r itself", Ip::new(at.r0, at.b, 6, syn())),
        (
            "to a group",
            Ip::new(at.a, at.group, 17, udp((5000, 53), b"")),
        ),
    ];
    if v6 {
        all.extend([
            (
                "hop-by-hop",
                to_b(6, syn()).extended(&[(0, &[0, 1, 4, 0, 0, 0, 0])]),
            ),
            (
                "options and routing",
                to_b(17, udp((5000, 53), b""))
                    .extended(&[(60, &[0, 1, 4, 0, 0, 0, 0]), (43, &[0, 0, 0, 0, 0, 0, 0])]),
            ),
            (
                "first fragment",
                to_b(6, syn()).extended(&[(44, &[0, 0, 1, 0, 0, 0, 9])]),
            ),
            (
                "later fragment",
                to_b(6, tcp((80, 80), 2, &[], b"")).extended(&[(44, &[0, 0, 8, 0, 0, 0, 9])]),
            ),
            ("no next header", to_b(59, vec![])),
            (
                "later fragment of an extension header",
                to_b(60, vec![6, 0, 1, 4, 0, 0, 0, 0]).extended(&[(44, &[0, 0, 8, 0, 0, 0, 9])]),
            ),
            ("options that are cut", to_b(60, vec![6])),
            (
                "router alert",
                to_b(6, syn()).extended(&[(0, &[0, 5, 2, 0, 0, 1, 0])]),
            ),
            (
                "padding before a router alert",
                to_b(6, syn()).extended(&[(0, &[0, 0, 0, 5, 2, 0, 0])]),
            ),
            (
                "a router alert before padding of single bytes",
                to_b(6, syn()).extended(&[(0, &[0, 5, 2, 0, 0, 0, 0])]),
            ),
            (
                "two rows of options",
                to_b(6, syn()).extended(&[(0, &[1, 30, 5, 9, 9, 9, 9, 9, 1, 5, 0, 0, 0, 0, 0])]),
            ),
            (
                "many options",
                to_b(6, syn()).extended(&[(60, &{
                    let mut body = [0; 71];
                    (body[0], body[1], body[2]) = (8, 30, 66);
                    body
                })]),
            ),
            (
                "options of both kinds",
                to_b(6, syn())
                    .extended(&[(0, &[0, 1, 4, 0, 0, 0, 0]), (60, &[0, 1, 4, 0, 0, 0, 0])]),
            ),
            (
                "a route of two",
                to_b(6, syn()).extended(&[(43, &{
                    let mut body = [0; 39];
                    (body[0], body[2]) = (4, 1);
                    (body[7], body[8], body[22]) = (0xfd, 3, 1);
                    (body[23], body[24], body[38]) = (0xfd, 3, 2);
                    body
                })]),
            ),
            (
                "a route of one, reserved bits",
                to_b(6, syn()).extended(&[(43, &{
                    let mut body = [0; 23];
                    (body[0], body[2], body[5]) = (2, 3, 1);
                    (body[7], body[8], body[22]) = (0xfd, 3, 1);
                    body
                })]),
            ),
            (
                "a route of another type",
                to_b(6, syn()).extended(&[(43, &[0, 4, 0, 0, 0, 0, 0])]),
            ),
            (
                "last fragment with reserved bits",
                to_b(6, syn()).extended(&[(44, &[1, 1, 0xc6, 0, 0, 0, 9])]),
            ),
            ("a fragment header that is cut", to_b(44, vec![6, 0, 0])),
            ("a routing header that is cut", to_b(43, vec![6, 0, 0])),
            (
                "ah",
                to_b(47, vec![0, 0, 8, 0, 1, 2, 3, 4])
                    .extended(&[(51, &[2, 0, 0, 0, 0, 3, 0xe8, 0, 0, 0, 1, 0, 0, 0, 0])]),
            ),
            (
                "ah with reserved bits",
                to_b(47, vec![0, 0, 8, 0, 1, 2, 3, 4])
                    .extended(&[(51, &[2, 0, 7, 0, 0, 3, 0xe8, 0, 0, 0, 1, 0, 0, 0, 0])]),
            ),
            ("binding update", to_b(135, vec![59, 0, 5, 0, 0, 0, 0, 0])),
            ("binding refresh", to_b(135, vec![59, 0, 0, 0, 0, 0, 0, 0])),
            (
                "mobility with something behind it",
                to_b(135, vec![6, 0, 5, 0, 0, 0, 0, 0]),
            ),
            ("mobility that is cut", to_b(135, vec![59, 0, 5, 0])),
            ("ipcomp", to_b(108, vec![6, 0, 0, 5, 1, 2, 3, 4])),
            ("ipcomp that is cut", to_b(108, vec![6, 0])),
        ]);
    } else {
        all.extend([
            (
                "to a broadcast address",
                Ip::new(at.a, "10.1.0.255", 17, udp((5000, 53), b"")),
            ),
            (
                "to everybody",
                Ip::new(at.a, "255.255.255.255", 17, udp((5000, 53), b"")),
            ),
            (
                "options of ip",
                to_b(6, syn()).with(|ip| ip.options = vec![1, 1, 1, 1, 1, 1, 1, 0]),
            ),
            (
                "first fragment",
                to_b(6, syn()).with(|ip| ip.fragment = 0x2000),
            ),
            (
                "later fragment",
                to_b(6, syn()).with(|ip| ip.fragment = 185),
            ),
            (
                "later fragment of udp",
                to_b(17, udp((5000, 53), b"")).with(|ip| ip.fragment = 0x2000 | 185),
            ),
            (
                "fragment eight bytes in, udp",
                to_b(17, udp((5000, 53), b"")).with(|ip| ip.fragment = 1),
            ),
            (
                "fragment eight bytes in",
                to_b(6, syn()).with(|ip| ip.fragment = 1),
            ),
            (
                "later fragment of esp",
                to_b(50, vec![0; 16]).with(|ip| ip.fragment = 185),
            ),
            (
                "ah",
                to_b(51, vec![6, 4, 0, 0, 0, 0, 3, 0xe8, 0, 0, 0, 1, 0, 0, 0, 0]),
            ),
        ]);
    }
    all.extend([
        ("tcp of 12 bytes", to_b(6, syn()[..12].to_vec())),
        ("tcp of 4 bytes", to_b(6, syn()[..4].to_vec())),
        ("tcp of nothing", to_b(6, vec![])),
        ("tcp with a header too short", {
            let mut segment = syn();
            segment[12] = 0x40;
            to_b(6, segment)
        }),
        ("tcp with a header too long", {
            let mut segment = syn();
            segment[12] = 0xf0;
            to_b(6, segment)
        }),
        ("udp of 6 bytes", to_b(17, vec![0x13, 0x88, 0, 53, 0, 6])),
        ("sctp of 8 bytes", to_b(132, vec![0; 8])),
        ("sctp without chunks", to_b(132, sctp((9899, 9899), &[]))),
        (
            "sctp with a chunk of length 0",
            to_b(132, {
                let mut packet = sctp((9899, 9899), &[]);
                packet.extend([9, 0, 0, 0]);
                packet
            }),
        ),
        ("icmp of 4 bytes", to_b(ping.0, vec![ping.1, 0, 0, 0])),
        ("esp of 4 bytes", to_b(50, vec![0, 0, 1, 1])),
    ]);
    let mut framed: Vec<_> = all.into_iter().map(|(name, ip)| (name, ip, R0)).collect();
    framed.push((
        "in a broadcast frame",
        to_b(17, udp((5000, 53), b"")),
        [0xff; 6],
    ));
    framed
}
