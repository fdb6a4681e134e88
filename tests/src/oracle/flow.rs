//! Connections that conntrack knows before the packets of a case are sent.

use std::net::IpAddr;

use crate::net::Place;
use crate::oracle::aim::addresses;
use crate::oracle::packet::{Spec, proto};
use crate::oracle::random::Random;

/// Port of R's TCP listener: connections from A to R are real on R's side.
pub const LISTENER: u16 = 4000;
/// Initial sequence numbers of what is not a real socket.
const CLIENT: u32 = 1000;
const SERVER: u32 = 5000;

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// IPv6.
    pub v6: bool,
    /// TCP, UDP or ICMP.
    pub proto: u8,
    /// Who opened it, and from where.
    pub client: (Place, IpAddr, u16),
    /// With whom.
    pub server: (Place, IpAddr, u16),
}

impl Flow {
    /// A connection of its own: `number` is in its client's port.
    pub fn new(random: &mut Random, number: u16) -> Self {
        let (from, to) = random.pick(&[
            (Place::A, Place::B),
            (Place::A, Place::R),
            (Place::R, Place::B),
            (Place::B, Place::A),
        ]);
        let v6 = random.percent(40);
        let mut kind = random.pick(&[proto::TCP, proto::UDP, proto::ICMP]);
        if from == Place::R && kind == proto::TCP {
            // R's stack would reset what it has no socket for.
            kind = proto::UDP;
        }
        let first = |place| addresses(place, v6)[0];
        let port = match (kind, to) {
            (proto::TCP, Place::R) => LISTENER,
            (proto::ICMP, _) => 0,
            _ => random.pick(&[53, 80, 443, 6000]),
        };
        Self {
            v6,
            proto: if kind == proto::ICMP && v6 {
                proto::ICMPV6
            } else {
                kind
            },
            client: (from, first(from), 40_000 + number),
            server: (to, first(to), port),
        }
    }

    /// Who has this address.
    pub fn place_of(&self, address: IpAddr) -> Place {
        if self.client.1 == address {
            self.client.0
        } else {
            self.server.0
        }
    }

    /// Whether R answers by itself.
    fn r_answers(&self) -> bool {
        self.server.0 == Place::R && self.proto != proto::UDP
    }

    /// Turns a packet into one in this direction.
    fn set(&self, spec: &mut Spec, index: usize, reply: bool) {
        let (src, dst) = if reply {
            (&self.server, &self.client)
        } else {
            (&self.client, &self.server)
        };
        spec.v6 = self.v6;
        spec.from = src.0;
        (spec.src, spec.dst) = (src.1, dst.1);
        spec.proto = self.proto;
        (spec.sport, spec.dport) = (src.2, dst.2);
        spec.icmp_id = self.client.2;
        spec.icmp = match (self.v6, reply) {
            (false, false) => (8, 0),
            (false, true) => (0, 0),
            (true, false) => (128, 0),
            (true, true) => (129, 0),
        };
        spec.quoted.clear();
        spec.tcp_options.clear();
        spec.flow = (self.r_answers() && self.proto == proto::TCP && !reply).then_some(index);
    }

    /// Turns a packet into the next one in this direction.
    pub fn next(&self, spec: &mut Spec, index: usize, reply: bool) {
        // R's side of a real connection cannot be forged: its sequence numbers are R's.
        let reply = reply && !(self.r_answers() && self.proto == proto::TCP);
        self.set(spec, index, reply);
        spec.flags = 0x18;
        (spec.seq, spec.ack) = if reply {
            (SERVER + 1, CLIENT + 1)
        } else {
            (CLIENT + 1, SERVER + 1)
        };
        spec.window = 64240;
    }

    /// What opens it: nothing of it must be dropped.
    pub fn opening(&self, index: usize, like: &Spec) -> Vec<Spec> {
        let mut packets = Vec::new();
        let mut add = |reply, flags, seq, ack| {
            let mut spec = like.clone();
            self.set(&mut spec, index, reply);
            (spec.flags, spec.seq, spec.ack) = (flags, seq, ack);
            spec.window = 64240;
            packets.push(spec);
        };
        if self.proto == proto::TCP {
            add(false, 0x02, CLIENT, 0);
            if !self.r_answers() {
                add(true, 0x12, SERVER, CLIENT + 1);
            }
            add(false, 0x10, CLIENT + 1, SERVER + 1);
        } else {
            add(false, 0, 0, 0);
            if !self.r_answers() {
                add(true, 0, 0, 0);
            }
            // UDP is assured only after that.
            add(false, 0, 0, 0);
        }
        packets
    }
}
