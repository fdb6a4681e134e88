//! ip_tables' TRACE lines -> the way of each packet through its rules.
//!
//! A line says which entry of which table a packet has come to, not what became of it: the last line of a packet that was dropped is of
//! the entry that dropped it. Nothing but the packet itself says which lines are of one packet, so a packet begins anew where its lines
//! could not go on: earlier hook, table or number.

use std::collections::VecDeque;

use super::headers::Headers;
use crate::netlink::{
    legacy_trace::{Kind, Line},
    nflog,
};
use crate::xtables::Family;

/// Lines that are kept of one packet.
const LINES: usize = 256;

/// An entry that a packet has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `NF_INET_*`.
    pub hook: u8,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// What the kernel calls it.
    pub kind: Kind,
    /// From 1.
    pub number: u32,
}

impl Entry {
    fn new(hook: u8, line: &Line<'_>) -> Self {
        Self {
            hook,
            table: line.table.to_owned(),
            chain: line.chain.to_owned(),
            kind: line.kind,
            number: line.number,
        }
    }

    /// As the kernel wrote it.
    pub fn line(&self) -> Line<'_> {
        Line {
            table: &self.table,
            chain: &self.chain,
            kind: self.kind,
            number: self.number,
        }
    }
}

/// A packet, and where it has come by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// As of the last line.
    pub headers: Headers,
    /// In order; never empty.
    pub entries: Vec<Entry>,
}

impl Logged {
    /// ip_tables or ip6_tables.
    pub fn family(&self) -> Family {
        match self.headers.version() {
            6 => Family::V6,
            _ => Family::V4,
        }
    }

    /// Whether a packet can come to `next` after what it has come by.
    fn goes_on(&self, next: &Entry) -> bool {
        let Some(last) = self.entries.last() else {
            return true;
        };
        if last.hook != next.hook {
            // PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING
            return matches!((last.hook, next.hook), (0, 1 | 2) | (2 | 3, 4));
        }
        let mut here = self
            .entries
            .iter()
            .rev()
            .take_while(|e| e.hook == next.hook);
        if last.table != next.table {
            return here.all(|entry| entry.table != next.table);
        }
        // A user chain can be called twice.
        let Some(builtin) = builtin(next.hook).filter(|name| *name == next.chain) else {
            return true;
        };
        let before = here.find(|entry| entry.table == next.table && entry.chain == builtin);
        before.is_none_or(|before| before.number < next.number)
    }
}

/// The built-in chain of a hook.
fn builtin(hook: u8) -> Option<&'static str> {
    let names = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    names.get(usize::from(hook)).copied()
}

/// Takes in a logged packet: it goes on with the newest of `packets` that it can be, or is a new one.
///
/// `None`: it is no TRACE line. Otherwise the packet's index.
pub fn feed<T>(
    packets: &mut VecDeque<T>,
    logged: &nflog::Packet<'_>,
    mut get: impl FnMut(&mut T) -> &mut Logged,
    new: impl FnOnce(Logged) -> T,
) -> Option<usize> {
    let line = Line::parse(logged.prefix.as_deref()?)?;
    let headers = Headers::of_packet(logged.payload)?;
    let entry = Entry::new(logged.hook, &line);
    for (index, packet) in packets.iter_mut().enumerate().rev() {
        let packet = get(packet);
        if !packet.headers.is(&headers) {
            continue;
        }
        if packet.goes_on(&entry) && packet.entries.len() < LINES {
            packet.entries.push(entry);
            packet.headers = headers;
            return Some(index);
        }
        break;
    }
    packets.push_back(new(Logged {
        headers,
        entries: vec![entry],
    }));
    Some(packets.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(id: u8, ttl: u8) -> Vec<u8> {
        [
            vec![0x45, 0, 0, 28, 0, id, 0, 0, ttl, 17, 0, 0],
            vec![10, 0, 0, 1, 10, 0, 0, 2],
            vec![0, 1, 0, 2, 0, 8, 0, 0],
        ]
        .concat()
    }

    /// Feeds `hook line` words; gives how many lines each packet has.
    fn ways(lines: &[(u8, u8, &str)]) -> Vec<Vec<String>> {
        let mut packets: VecDeque<Logged> = VecDeque::new();
        for (id, hook, line) in lines {
            let payload = packet(*id, 64 - hook);
            let mut message = crate::netlink::attr::Writer::new();
            message
                .raw(&[2, 0, 0, 0])
                .bytes(1, &[8, 0, *hook, 0])
                .str(10, &format!("TRACE: {line} "))
                .bytes(9, &payload);
            let message = message.finish().unwrap();
            let logged = nflog::decode(&message).unwrap();
            feed(&mut packets, &logged, |p| p, |p| p).unwrap();
        }
        let words = |e: &Entry| format!("{}:{}:{}", e.table, e.chain, e.number);
        let way = |p: &Logged| p.entries.iter().map(words).collect();
        packets.iter().map(way).collect()
    }

    #[test]
    fn lines_of_one_packet_and_of_the_next() {
        let both = [
            (1, 0, "raw:PREROUTING:policy:1"),
            (1, 1, "filter:INPUT:rule:1"),
            (2, 0, "raw:PREROUTING:policy:1"),
            (1, 1, "filter:UC:return:3"),
            (1, 1, "filter:INPUT:policy:3"),
        ];
        let found = ways(&both);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            [
                "raw:PREROUTING:1",
                "filter:INPUT:1",
                "filter:UC:3",
                "filter:INPUT:3"
            ]
        );
    }

    #[test]
    fn twins_are_two_packets() {
        let line = (1, 1, "filter:INPUT:rule:2");
        assert_eq!(ways(&[line, line]).len(), 2);
        let twins = [
            (1, 1, "mangle:INPUT:policy:1"),
            (1, 1, "filter:INPUT:rule:1"),
            (1, 1, "filter:UC:rule:1"),
            (1, 1, "filter:UC:rule:1"),
            (1, 1, "filter:INPUT:rule:5"),
            (1, 1, "mangle:INPUT:policy:1"),
            (1, 1, "filter:INPUT:rule:1"),
        ];
        let lengths: Vec<usize> = ways(&twins).iter().map(Vec::len).collect();
        assert_eq!(lengths, [5, 2]);
        // Back at an earlier hook.
        let again = [
            (1, 2, "filter:FORWARD:rule:1"),
            (1, 4, "nat:POSTROUTING:policy:1"),
            (1, 2, "filter:FORWARD:rule:2"),
        ];
        let lengths: Vec<usize> = ways(&again).iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 1]);
    }
}
