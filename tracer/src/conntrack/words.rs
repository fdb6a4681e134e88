//! What the kernel says of a packet that it calls invalid, and what that means.

/// The reason in a message of `nf_l4proto_log_invalid()` (net/netfilter/nf_conntrack_proto.c, v6.18), `nf_ct_proto_6: invalid new `;
/// `None`: it is no such message.
pub fn reason(prefix: &str) -> Option<&str> {
    let rest = prefix.strip_prefix("nf_ct_proto_")?;
    let (protocol, reason) = rest.split_once(": ")?;
    protocol.parse::<u8>().ok()?;
    let reason = reason.trim();
    (!reason.is_empty()).then_some(reason)
}

/// Not the kernel's words: it says nothing of such packets (`tcp_new()`, net/netfilter/nf_conntrack_proto_tcp.c, v6.18).
pub const NOT_PICKED_UP: &str = "not picked up, net.netfilter.nf_conntrack_tcp_loose is 0";

/// What such a reason means, where that takes more words; by how it begins (net/netfilter/nf_conntrack_proto_tcp.c, _udp.c, _icmp.c,
/// _icmpv6.c, _sctp.c, v6.18).
const MEANINGS: [(&str, &str); 17] = [
    (
        NOT_PICKED_UP,
        "mid-stream packet, its SYN was never seen here",
    ),
    (
        "invalid new",
        "mid-stream packet, its SYN was never seen here",
    ),
    (
        "invalid tcp flag combination",
        "no TCP sends these flags together",
    ),
    (
        "SEQ is over",
        "out of window: more than the receiver has said it takes",
    ),
    (
        "SEQ is under",
        "out of window: data that has been acknowledged already",
    ),
    (
        "ACK is over",
        "out of window: acknowledges data that was never seen here",
    ),
    (
        "ACK is under",
        "out of window: acknowledges what was acknowledged long ago",
    ),
    (
        "ignored ACK under",
        "out of window: acknowledges what was acknowledged long ago",
    ),
    (
        "ignored SEQ over",
        "out of window: more than the receiver has said it takes",
    ),
    (
        "invalid rst",
        "its sequence number is not the one that the other side waits for",
    ),
    ("invalid syn", "a SYN within a connection that is open"),
    (
        "invalid state",
        "a packet that the state of its connection does not allow",
    ),
    (
        "invalid packet ignored in state",
        "a packet that the state of its connection does not allow",
    ),
    ("short packet", "cut short within its header"),
    (
        "truncated/malformed packet",
        "its header states more than there is",
    ),
    ("bad checksum", "its checksum is wrong"),
    ("bad tcp checksum", "its checksum is wrong"),
];

/// The meaning of a [`reason`], if it takes more words than it has.
pub fn meaning(reason: &str) -> Option<&'static str> {
    let found = MEANINGS.iter().find(|(begin, _)| reason.starts_with(begin));
    found.map(|(_, meaning)| *meaning)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_of_the_kernel() {
        assert_eq!(reason("nf_ct_proto_6: invalid new "), Some("invalid new"));
        let window =
            "nf_ct_proto_6: SEQ is over upper bound 1234 (over the window of the receiver) ";
        let window = reason(window).unwrap();
        assert_eq!(
            window,
            "SEQ is over upper bound 1234 (over the window of the receiver)"
        );
        assert!(meaning(window).unwrap().starts_with("out of window"));
        assert_eq!(meaning("something new"), None);
        for other in [
            "TRACE: filter:INPUT:rule:2 ",
            "nf_ct_proto_6: ",
            "nf_ct_proto_tcp: invalid new ",
            "nf_ct_proto_6",
            "dropped ",
        ] {
            assert_eq!(reason(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,60}") {
            let _ = reason(&text).map(meaning);
            let _ = reason(&format!("nf_ct_proto_{text}"));
        }
    }
}
