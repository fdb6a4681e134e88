//! IPv6 extension headers and the options of TCP, IP and SCTP, by the names nft 1.0.6 has for them.

use super::types::{Kind, Order, Type};

/// `NFT_EXTHDR_OP_*`.
pub(super) mod op {
    pub(in super::super) const IPV6: u32 = 0;
    pub(in super::super) const TCP: u32 = 1;
    pub(in super::super) const IPV4: u32 = 2;
    pub(in super::super) const SCTP: u32 = 3;
    pub(in super::super) const DCCP: u32 = 4;
}

/// A load from an extension header or option, or a write to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exthdr {
    pub(super) op: u32,
    pub(super) kind: u8,
    /// Bits.
    pub(super) offset: u32,
    /// Bits.
    pub(super) len: u32,
    /// Whether it is about the header being there at all (`NFT_EXTHDR_F_PRESENT`).
    pub(super) present: bool,
}

/// A field: name, type, offset and length in bits.
type Field = (&'static str, Type, u32, u32);
/// A header: name and fields.
type Header = (&'static str, &'static [Field]);

use Type::{InetProto, Integer};

const HOP_BY_HOP: &[Field] = &[("nexthdr", InetProto, 0, 8), ("hdrlength", Integer, 8, 8)];

/// The headers for a number; several kinds of routing header share one.
fn headers(op: u32, kind: u8) -> &'static [Header] {
    match op {
        op::IPV6 => ipv6(kind),
        op::TCP => tcp(kind),
        op::IPV4 => ipv4(kind),
        op::SCTP => sctp(kind),
        _ => &[],
    }
}

fn ipv6(kind: u8) -> &'static [Header] {
    match kind {
        0 => &[("hbh", HOP_BY_HOP)],
        43 => &[
            (
                "rt",
                &[
                    ("nexthdr", InetProto, 0, 8),
                    ("hdrlength", Integer, 8, 8),
                    ("type", Integer, 16, 8),
                    ("seg-left", Integer, 24, 8),
                ],
            ),
            (
                "srh",
                &[
                    ("last-entry", Integer, 32, 8),
                    ("flags", Integer, 40, 8),
                    ("tag", Integer, 48, 16),
                    ("sid[1]", Type::Ip6, 64, 128),
                    ("sid[2]", Type::Ip6, 192, 128),
                ],
            ),
            ("rt0", &[("reserved", Integer, 32, 32)]),
        ],
        44 => &[(
            "frag",
            &[
                ("nexthdr", InetProto, 0, 8),
                ("reserved", Integer, 8, 8),
                ("frag-off", Integer, 16, 13),
                ("reserved2", Integer, 29, 2),
                ("more-fragments", Integer, 31, 1),
                ("id", Integer, 32, 32),
            ],
        )],
        60 => &[("dst", HOP_BY_HOP)],
        135 => &[(
            "mh",
            &[
                ("nexthdr", InetProto, 0, 8),
                ("hdrlength", Integer, 8, 8),
                ("type", Type::Mobility, 16, 8),
                ("reserved", Integer, 24, 8),
                ("checksum", Integer, 32, 16),
            ],
        )],
        _ => &[],
    }
}

const KIND: Field = ("kind", Integer, 0, 8);
const LENGTH: Field = ("length", Integer, 8, 8);

fn tcp(kind: u8) -> &'static [Header] {
    match kind {
        0 => &[("eol", &[KIND])],
        1 => &[("nop", &[KIND])],
        2 => &[("maxseg", &[KIND, LENGTH, ("size", Integer, 16, 16)])],
        3 => &[("window", &[KIND, LENGTH, ("count", Integer, 16, 8)])],
        4 => &[("sack-perm", &[KIND, LENGTH])],
        5 => &[
            (
                "sack",
                &[
                    KIND,
                    LENGTH,
                    ("left", Integer, 16, 32),
                    ("right", Integer, 48, 32),
                ],
            ),
            (
                "sack1",
                &[("left", Integer, 80, 32), ("right", Integer, 112, 32)],
            ),
            (
                "sack2",
                &[("left", Integer, 144, 32), ("right", Integer, 176, 32)],
            ),
            (
                "sack3",
                &[("left", Integer, 208, 32), ("right", Integer, 240, 32)],
            ),
        ],
        8 => &[(
            "timestamp",
            &[
                KIND,
                LENGTH,
                ("tsval", Integer, 16, 32),
                ("tsecr", Integer, 48, 32),
            ],
        )],
        19 => &[("md5sig", &[KIND, LENGTH])],
        30 => &[("mptcp", &[KIND, LENGTH, ("subtype", Integer, 16, 4)])],
        34 => &[("fastopen", &[KIND, LENGTH])],
        _ => &[],
    }
}

const ROUTE: &[Field] = &[
    ("type", Integer, 0, 8),
    ("length", Integer, 8, 8),
    ("ptr", Integer, 16, 8),
    ("addr", Integer, 24, 32),
];

fn ipv4(kind: u8) -> &'static [Header] {
    match kind {
        7 => &[("rr", ROUTE)],
        131 => &[("lsrr", ROUTE)],
        137 => &[("ssrr", ROUTE)],
        148 => &[(
            "ra",
            &[
                ("type", Integer, 0, 8),
                ("length", Integer, 8, 8),
                ("value", Integer, 16, 16),
            ],
        )],
        _ => &[],
    }
}

const TYPE: Field = ("type", Integer, 0, 8);
const FLAGS: Field = ("flags", Integer, 8, 8);
const LEN: Field = ("length", Integer, 16, 16);
const CHUNK: &[Field] = &[TYPE, FLAGS, LEN];
const INIT: &[Field] = &[
    TYPE,
    FLAGS,
    LEN,
    ("init-tag", Integer, 32, 32),
    ("a-rwnd", Integer, 64, 32),
    ("num-outbound-streams", Integer, 96, 16),
    ("num-inbound-streams", Integer, 112, 16),
    ("initial-tsn", Integer, 128, 32),
];

fn sctp(kind: u8) -> &'static [Header] {
    match kind {
        0 => &[(
            "data",
            &[
                TYPE,
                FLAGS,
                LEN,
                ("tsn", Integer, 32, 32),
                ("stream", Integer, 64, 16),
                ("ssn", Integer, 80, 16),
                ("ppid", Integer, 96, 32),
            ],
        )],
        1 => &[("init", INIT)],
        2 => &[("init-ack", INIT)],
        3 => &[(
            "sack",
            &[
                TYPE,
                FLAGS,
                LEN,
                ("cum-tsn-ack", Integer, 32, 32),
                ("a-rwnd", Integer, 64, 32),
                ("num-gap-ack-blocks", Integer, 96, 16),
                ("num-dup-tsns", Integer, 112, 16),
            ],
        )],
        4 => &[("heartbeat", CHUNK)],
        5 => &[("heartbeat-ack", CHUNK)],
        6 => &[("abort", CHUNK)],
        7 => &[(
            "shutdown",
            &[TYPE, FLAGS, LEN, ("cum-tsn-ack", Integer, 32, 32)],
        )],
        8 => &[("shutdown-ack", CHUNK)],
        9 => &[("error", CHUNK)],
        10 => &[("cookie-echo", CHUNK)],
        11 => &[("cookie-ack", CHUNK)],
        12 => &[("ecne", &[TYPE, FLAGS, LEN, ("lowest-tsn", Integer, 32, 32)])],
        13 => &[("cwr", &[TYPE, FLAGS, LEN, ("lowest-tsn", Integer, 32, 32)])],
        14 => &[("shutdown-complete", CHUNK)],
        128 => &[(
            "asconf-ack",
            &[TYPE, FLAGS, LEN, ("seqno", Integer, 32, 32)],
        )],
        192 => &[(
            "forward-tsn",
            &[TYPE, FLAGS, LEN, ("new-cum-tsn", Integer, 32, 32)],
        )],
        193 => &[("asconf", &[TYPE, FLAGS, LEN, ("seqno", Integer, 32, 32)])],
        _ => &[],
    }
}

impl Exthdr {
    /// The header and field at this place.
    fn field(&self) -> Option<(&'static str, &'static Field)> {
        headers(self.op, self.kind)
            .iter()
            .find_map(|(name, fields)| {
                let found = fields
                    .iter()
                    .find(|field| field.2 == self.offset && field.3 == self.len)?;
                Some((*name, found))
            })
    }

    /// The part of it that a mask of one run of bits leaves, if that is a field. `run` is the run's first bit and length.
    pub(super) fn trim(&self, run: (u32, u32)) -> Option<Self> {
        if self.present || self.field().is_some() {
            return None;
        }
        let part = Self {
            offset: self.offset + run.0,
            len: run.1,
            ..self.clone()
        };
        part.field().is_some().then_some(part)
    }

    pub(super) fn kind(&self) -> Kind {
        let ty = match self.field() {
            _ if self.present => Type::Boolean,
            Some((_, field)) => field.1,
            None => Type::Integer,
        };
        Kind::new(ty, Order::Big, self.len)
    }

    /// As nft writes it.
    pub(super) fn text(&self) -> String {
        let name = headers(self.op, self.kind).first().map(|header| header.0);
        let prefix = match self.op {
            op::TCP => "tcp option ",
            op::IPV4 => "ip option ",
            op::SCTP => "sctp chunk ",
            op::DCCP => "dccp option ",
            _ => "",
        };
        if self.present {
            let prefix = if self.op == op::IPV6 {
                "exthdr "
            } else {
                prefix
            };
            return match name {
                Some(name) => format!("{prefix}{name}"),
                None => format!("{prefix}{}", self.kind),
            };
        }
        match self.field() {
            Some((name, field)) => format!("{prefix}{name} {}", field.0),
            None if self.op == op::IPV6 => {
                format!("exthdr @{},{},{}", self.kind, self.offset, self.len)
            }
            None => format!("{prefix}@{},{},{}", self.kind, self.offset, self.len),
        }
    }

    /// From nft's numbers in the userdata of `typeof` sets: number of the header and of the field.
    pub(super) fn from_typeof(desc: u32, index: u32, op: u32) -> Option<Self> {
        // nft counts the fields of IP options and IPv6 extension headers from 1, others from 0.
        let (kind, header, index) = if op == op::IPV6 {
            let (kind, header) = match desc {
                1 => (0, 0),
                2 => (43, 0),
                5 => (43, 1),
                6 => (44, 0),
                7 => (60, 0),
                8 => (135, 0),
                _ => return None,
            };
            (kind, header, index.checked_sub(1)?)
        } else {
            match (op, u8::try_from(desc).ok()?, index) {
                // Type, length, value, pointer, address: no option has all of them.
                (op::IPV4, kind, index) => {
                    (kind, 0, index.checked_sub(if index < 4 { 1 } else { 2 })?)
                }
                (op::TCP, kind @ 5, index @ 4..) => (kind, (index as usize - 2) / 2, index % 2),
                (_, kind, index) => (kind, 0, index),
            }
        };
        let field = headers(op, kind)
            .get(header)?
            .1
            .get(usize::try_from(index).ok()?)?;
        Some(Self {
            op,
            kind,
            offset: field.2,
            len: field.3,
            present: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exthdr(op: u32, kind: u8, offset: u32, len: u32, present: bool) -> Exthdr {
        Exthdr {
            op,
            kind,
            offset,
            len,
            present,
        }
    }

    #[test]
    fn headers_and_options_by_name() {
        assert_eq!(
            exthdr(op::TCP, 2, 16, 16, false).text(),
            "tcp option maxseg size"
        );
        assert_eq!(
            exthdr(op::TCP, 5, 80, 32, false).text(),
            "tcp option sack1 left"
        );
        assert_eq!(
            exthdr(op::TCP, 255, 8, 8, false).text(),
            "tcp option @255,8,8"
        );
        assert_eq!(exthdr(op::TCP, 200, 0, 8, true).text(), "tcp option 200");
        assert_eq!(exthdr(op::IPV6, 44, 0, 8, true).text(), "exthdr frag");
        assert_eq!(exthdr(op::IPV6, 77, 0, 8, false).text(), "exthdr @77,0,8");
        let trimmed = exthdr(op::IPV6, 44, 16, 16, false).trim((0, 13)).unwrap();
        assert_eq!(trimmed.text(), "frag frag-off");
        assert!(exthdr(op::IPV6, 44, 16, 16, false).trim((0, 12)).is_none());
    }
}
