//! Why conntrack calls packets invalid: the kernel says it over NFLOG, with the packet, before any rule can drop it.
//!
//! A reason is the packet's, and the same for all that look like it: so it is not used up by a drop, and where packets with the same
//! headers were called invalid for different reasons, nobody knows whose is which.

use std::{collections::VecDeque, sync::Arc};

use fwtrace_abi::Record;

use super::{
    headers::Headers,
    join::{Between, DISORDER, WAITING},
};
use crate::{conntrack::words, netlink::nflog};

/// A packet that conntrack has called invalid.
#[derive(Debug)]
struct Invalid {
    when: Between,
    headers: Headers,
    reason: Arc<str>,
}

/// The packets that conntrack has called invalid lately.
#[derive(Debug, Default)]
pub struct Reasons {
    recent: VecDeque<Invalid>,
}

impl Reasons {
    /// Takes in a logged packet; false if it is none that conntrack has logged.
    pub fn logged(&mut self, packet: &nflog::Packet<'_>, when: Between) -> bool {
        let Some(reason) = packet.prefix.as_deref().and_then(words::reason) else {
            return false;
        };
        if let Some(headers) = Headers::of_packet(packet.payload) {
            if self.recent.len() >= WAITING {
                self.recent.pop_front();
            }
            self.recent.push_back(Invalid {
                when,
                headers,
                reason: reason.into(),
            });
        }
        true
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.recent.is_empty()
    }

    /// Why the dropped packet is invalid, if it has no connection and that was said of it.
    pub fn of(&self, record: &Record, headers: &Headers) -> Option<Arc<str>> {
        if record.nfct != 0 {
            return None;
        }
        let of_drop = |i: &&Invalid| i.when.fits(record.time) && i.headers.is(headers);
        let mut found = self.recent.iter().filter(of_drop);
        let first = found.next()?;
        found
            .all(|other| other.reason == first.reason)
            .then(|| Arc::clone(&first.reason))
    }

    /// Lets go of what no drop can follow any more: `drop` is the time of the newest one that was looked at.
    pub fn forget(&mut self, drop: u64) {
        self.recent
            .retain(|i| i.when.until.saturating_add(DISORDER) >= drop);
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::ruleset::model::Family;

    /// A TCP packet with this sequence number.
    fn tcp(seq: u8) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([
            0, 1, 0, 80, 0, 0, 0, seq, 0, 0, 0, 0, 0x50, 0x10, 0, 9, 0, 0, 0, 0,
        ]);
        bytes
    }

    fn log(reasons: &mut Reasons, prefix: &str, payload: &[u8], at: u64) -> bool {
        let message = nflog_message(prefix, payload);
        let packet = nflog::decode(&message).unwrap();
        assert_eq!(packet.family, Family::Ip);
        let when = Between {
            since: at,
            until: at + 10,
        };
        reasons.logged(&packet, when)
    }

    fn nflog_message(prefix: &str, payload: &[u8]) -> Vec<u8> {
        let mut writer = crate::netlink::attr::Writer::new();
        writer.raw(&[2, 0, 0, 0]).bytes(1, &[8, 0, 0, 0]);
        writer.bytes(9, payload).str(10, prefix);
        writer.finish().unwrap()
    }

    fn record(time: u64, nfct: u64) -> Record {
        let mut record = Record::new_zeroed();
        (record.time, record.nfct) = (time, nfct);
        record
    }

    #[test]
    fn a_reason_is_joined_by_headers_and_time() {
        let mut reasons = Reasons::default();
        assert!(log(
            &mut reasons,
            "nf_ct_proto_6: invalid new ",
            &tcp(1),
            100
        ));
        assert!(!log(
            &mut reasons,
            "TRACE: raw:PREROUTING:rule:1 ",
            &tcp(2),
            100
        ));
        let (one, two) = (
            Headers::of_packet(&tcp(1)).unwrap(),
            Headers::of_packet(&tcp(2)).unwrap(),
        );
        let of = |time, nfct, headers| reasons.of(&record(time, nfct), headers);
        assert_eq!(of(105, 0, &one).as_deref(), Some("invalid new"));
        // A second drop of the same packet, such as a copy of it.
        assert_eq!(of(106, 0, &one).as_deref(), Some("invalid new"));
        assert_eq!(of(105, 0, &two), None);
        assert_eq!(of(99, 0, &one), None);
        assert_eq!(of(1_000_000_000, 0, &one), None);
        // It has a connection, or is not tracked: it is not invalid.
        assert_eq!(of(105, 7, &one), None);
        reasons.forget(100 + 10 + DISORDER);
        assert!(!reasons.is_empty());
        reasons.forget(100 + 11 + DISORDER);
        assert!(reasons.is_empty());
    }

    #[test]
    fn different_reasons_for_equal_packets_are_none() {
        let mut reasons = Reasons::default();
        let headers = Headers::of_packet(&tcp(1)).unwrap();
        for (prefix, told) in [
            ("nf_ct_proto_6: invalid new ", Some("invalid new")),
            ("nf_ct_proto_6: invalid new ", Some("invalid new")),
            ("nf_ct_proto_6: invalid state ", None),
        ] {
            log(&mut reasons, prefix, &tcp(1), 100);
            let of = reasons.of(&record(105, 0), &headers);
            assert_eq!(of.as_deref(), told);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut reasons = Reasons::default();
        for _ in 0..3 * WAITING {
            log(&mut reasons, "nf_ct_proto_6: invalid new ", &tcp(1), 100);
        }
        assert_eq!(reasons.recent.len(), WAITING);
    }
}
