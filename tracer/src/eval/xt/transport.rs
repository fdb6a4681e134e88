//! Matches on the transport header (net/netfilter/xt_tcpudp.c, xt_sctp.c, xt_multiport.c, xt_esp.c, xt_ipcomp.c, net/ipv4/netfilter/ipt_ah.c,
//! net/ipv6/netfilter/ip6t_mh.c, v6.18).
//!
//! All of them miss on fragments other than the first one, and drop the packet where the header is cut short.

use super::{
    super::{
        field::Field,
        outcome::Words,
        read::{Fields, Reader, Slot},
    },
    Answer, XtField,
    answer::{self, All, Test, cond_span, missing, not, words},
    bytes::packet_bytes,
    load::{FRAGMENT_ONE, HERE, SHORT},
};
use crate::ruleset::expr::PayloadBase;
use crate::xtables::{
    info::{Cond, Span},
    matches::{
        Match,
        icmp::{Icmp, Spi},
        ipv6::Mh,
        sctp::{Sctp, SctpChunkMode, SctpChunks},
        transport::{Multiport, PortSide, Tcp, Udp},
    },
};

/// A match on the transport header.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    slot: Slot,
    /// The ports: what rules and NAT make of them is known of this field.
    ports: Slot,
    /// Where the transport header begins, for what lies behind it.
    offset: Slot,
    /// Where the rule asks for one.
    options: Option<Slot>,
    want: Want,
}

#[derive(Debug, Clone)]
enum Want {
    Tcp(Tcp),
    Udp(Udp),
    Sctp(Sctp),
    Multiport(Multiport),
    Icmp(Icmp),
    Icmp6(Icmp),
    /// ESP: the SPI is the first word.
    Esp(Spi),
    /// AH: the SPI is the second word.
    Ah(Spi),
    /// IPComp: the CPI is the second half of the first word.
    Ipcomp(Spi),
    /// The mobility header: its type is the third byte.
    Mobility(Mh),
}

/// Flags of the TCP header's 14th byte, from the lowest bit.
const FLAGS: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];

fn flags(bits: u8) -> String {
    let set: Vec<&str> = FLAGS
        .iter()
        .enumerate()
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    if set.is_empty() {
        "NONE".to_owned()
    } else {
        set.join(",")
    }
}

/// Whether the value fits; a range of everything that is not turned round always does.
fn within<T: PartialOrd>(cond: &Cond<Span<T>>, value: &T) -> bool {
    cond.want.contains(value) != cond.inverted
}

fn asks(cond: &Cond<Span<u16>>) -> bool {
    cond.inverted || cond.want.min > 0 || cond.want.max < u16::MAX
}

impl Transport {
    /// For those matches that this module has.
    pub(super) fn new(what: &Match, fields: &mut Fields) -> Option<Self> {
        let (need, want) = match what {
            Match::Tcp(want) => (20, Want::Tcp(want.clone())),
            Match::Udp(want) | Match::Udplite(want) => (8, Want::Udp(want.clone())),
            Match::Sctp(want) => (12, Want::Sctp(want.clone())),
            Match::Multiport(want) => (4, Want::Multiport(want.clone())),
            Match::Icmp(want) => (8, Want::Icmp(want.clone())),
            Match::Icmp6(want) => (8, Want::Icmp6(want.clone())),
            Match::Esp(want) => (8, Want::Esp(want.clone())),
            Match::Ah(want) => (12, Want::Ah(want.clone())),
            Match::Ipcomp(want) => (4, Want::Ipcomp(want.clone())),
            Match::Mh(want) => (6, Want::Mobility(want.clone())),
            _ => return None,
        };
        Some(Self {
            slot: fields.slot(Field::Xt(XtField::Transport { need })),
            ports: fields.slot(Field::Payload {
                base: PayloadBase::Transport,
                offset: 0,
                len: 4,
            }),
            offset: fields.slot(Field::Xt(XtField::TransportOffset)),
            options: match &want {
                Want::Tcp(tcp) if tcp.option.want != 0 => {
                    Some(fields.slot(Field::Xt(XtField::TcpOptions)))
                }
                _ => None,
            },
            want,
        })
    }

    /// The header's first 15 bytes as a number, the first byte highest of 120 bits.
    fn header(&self, reader: &mut Reader<'_>) -> Result<u128, Answer> {
        let value = answer::wide(reader, self.slot, &Answer::Drop)?;
        match (value >> 120) as u8 {
            HERE => Ok(value << 8 >> 8),
            FRAGMENT_ONE if matches!(self.want, Want::Tcp(_)) => Err(Answer::Drop),
            SHORT => Err(Answer::Drop),
            _ => Err(Answer::Miss),
        }
    }

    /// Source and destination port, where the header is there.
    fn ports(&self, reader: &mut Reader<'_>) -> Result<(u16, u16), Answer> {
        self.header(reader)?;
        let ports = answer::number(reader, self.ports, 4, &Answer::Miss)? as u32;
        Ok(((ports >> 16) as u16, ports as u16))
    }

    fn port(&self, reader: &mut Reader<'_>, side: PortSide) -> Result<u16, Answer> {
        let (source, destination) = self.ports(reader)?;
        Ok(match side {
            PortSide::Source => source,
            _ => destination,
        })
    }

    /// Whether the ports fit those that are asked for.
    fn ports_fit(&self, want: [&Cond<Span<u16>>; 2], reader: &mut Reader<'_>) -> Test {
        if !want.into_iter().any(asks) {
            return Ok(true);
        }
        let (source, destination) = self.ports(reader)?;
        let [first, second] = want;
        Ok(within(first, &source) && within(second, &destination))
    }

    pub(super) fn test(&self, reader: &mut Reader<'_>) -> Test {
        let header = self.header(reader)?;
        let byte = |at: u32| (header >> (112 - 8 * at)) as u8;
        let word = |at: u32| (header >> (88 - 8 * at)) as u32;
        match &self.want {
            Want::Tcp(want) => {
                let mut all = All::default();
                all.also(self.ports_fit([&want.source, &want.destination], reader))?;
                let hit = byte(13) & want.flags_mask == want.flags;
                all.also(Ok(hit != want.flags_inverted))?;
                if want.option.want != 0 {
                    all.also(self.has_option(want.option, reader))?;
                }
                all.end()
            }
            Want::Udp(want) => self.ports_fit([&want.source, &want.destination], reader),
            Want::Sctp(want) => {
                let mut all = All::default();
                for (cond, side) in [
                    (&want.source, PortSide::Source),
                    (&want.destination, PortSide::Destination),
                ] {
                    let Some(cond) = cond else { continue };
                    let port = self.port(reader, side);
                    all.also(port.map(|port| within(cond, &port)))?;
                }
                if let Some(chunks) = &want.chunks {
                    let test = self.has_chunks(&chunks.want, reader);
                    all.also(test.map(|has| has != chunks.inverted))?;
                }
                all.end()
            }
            Want::Multiport(want) => {
                let (source, destination) = self.ports(reader)?;
                let listed = |port| want.ports.want.iter().any(|span| span.contains(&port));
                let hit = match want.side {
                    PortSide::Source => listed(source),
                    PortSide::Destination => listed(destination),
                    PortSide::Either => listed(source) || listed(destination),
                    PortSide::Other(_) => {
                        return Err(missing("multiport looks at an unknown port"));
                    }
                };
                Ok(hit != want.ports.inverted)
            }
            Want::Icmp(want) => {
                let hit =
                    want.kind == u8::MAX || want.kind == byte(0) && want.code.contains(&byte(1));
                Ok(hit != want.inverted)
            }
            Want::Icmp6(want) => {
                let hit = want.kind == byte(0) && want.code.contains(&byte(1));
                Ok(hit != want.inverted)
            }
            Want::Esp(want) => Ok(within(&want.spi, &word(0))),
            Want::Ah(want) => Ok(within(&want.spi, &word(4))),
            Want::Ipcomp(want) => Ok(within(&want.spi, &(word(0) & 0xffff))),
            // Nothing may follow it (`IPPROTO_NONE`).
            Want::Mobility(_) if byte(0) != 59 => Err(Answer::Drop),
            Want::Mobility(want) => Ok(within(&want.types, &byte(2))),
        }
    }

    /// `tcp_find_option()`.
    fn has_option(&self, option: Cond<u8>, reader: &mut Reader<'_>) -> Test {
        let Some(slot) = self.options else {
            return Ok(true);
        };
        let options = answer::wide(reader, slot, &Answer::Drop)?;
        if (options >> 120) as u8 != HERE {
            return Err(Answer::Drop);
        }
        let options = answer::bytes(reader, Field::Xt(XtField::TcpOptions), Answer::Drop)?;
        let mut rest = options.as_slice().get(1..).unwrap_or_default();
        while let Some(&kind) = rest.first() {
            if kind == option.want {
                return Ok(!option.inverted);
            }
            let step = match rest.get(1) {
                _ if kind < 2 => 1,
                Some(&length) if length > 0 => usize::from(length),
                _ => 1,
            };
            rest = rest.get(step..).unwrap_or_default();
        }
        Ok(option.inverted)
    }

    /// `match_packet()` of xt_sctp.c: `Answer::Drop` where a chunk is cut short.
    fn has_chunks(&self, want: &SctpChunks, reader: &mut Reader<'_>) -> Test {
        let mut at = answer::number(reader, self.offset, 4, &Answer::Drop)? as u32;
        at = at.saturating_add(12);
        let mut left = want.map;
        loop {
            let header = packet_bytes(reader, at, 4)?.ok_or(Answer::Drop)?;
            let &[kind, chunk_flags, high, low] = header.as_slice() else {
                return Err(Answer::Drop);
            };
            let length = u32::from(u16::from_be_bytes([high, low]));
            if length == 0 {
                return Err(Answer::Drop);
            }
            at = at.saturating_add(length.next_multiple_of(4));
            let (word, bit) = (usize::from(kind / 32), 1_u32 << (kind % 32));
            let listed = want.map.get(word).is_some_and(|word| word & bit != 0);
            // Only the first entry of a type counts.
            let fits = want
                .flags
                .iter()
                .find(|flags| flags.chunk == kind)
                .is_none_or(|flags| chunk_flags & flags.mask == flags.flag);
            match want.mode {
                SctpChunkMode::Any if listed && fits => return Ok(true),
                SctpChunkMode::All if listed && fits => {
                    if let Some(word) = left.get_mut(word) {
                        *word &= !bit;
                    }
                }
                SctpChunkMode::Only if !listed || !fits => return Ok(false),
                SctpChunkMode::Other(_) => {
                    return Err(missing("sctp compares chunks in an unknown way"));
                }
                _ => {}
            }
            if at >= packet_length(reader)? {
                break;
            }
        }
        Ok(match want.mode {
            SctpChunkMode::All => left.iter().all(|word| *word == 0),
            SctpChunkMode::Only => true,
            _ => false,
        })
    }

    pub(super) fn words(&self, reader: &mut Reader<'_>) -> Words {
        let header = self.header(reader);
        let byte = |at: u32| {
            header
                .clone()
                .map(|header| (header >> (112 - 8 * at)) as u8)
        };
        let word = |at: u32| {
            header
                .clone()
                .map(|header| (header >> (88 - 8 * at)) as u32)
        };
        match &self.want {
            Want::Tcp(want) => {
                if self.ports_fit([&want.source, &want.destination], reader) != Ok(true) {
                    return self.port_words([&want.source, &want.destination], reader);
                }
                let hit = byte(13)
                    .is_ok_and(|has| (has & want.flags_mask == want.flags) != want.flags_inverted);
                if hit && want.option.want != 0 {
                    let wanted = format!("{}{}", not(want.option.inverted), want.option.want);
                    return words("tcp-option", wanted, "");
                }
                let wanted = format!(
                    "{}{} {}",
                    not(want.flags_inverted),
                    flags(want.flags_mask),
                    flags(want.flags)
                );
                words("tcp-flags", wanted, answer::found(byte(13).map(flags)))
            }
            Want::Udp(want) => self.port_words([&want.source, &want.destination], reader),
            Want::Sctp(want) => {
                for (subject, cond, side) in [
                    ("sport", &want.source, PortSide::Source),
                    ("dport", &want.destination, PortSide::Destination),
                ] {
                    let Some(cond) = cond else { continue };
                    let has = self.port(reader, side);
                    if !has.as_ref().is_ok_and(|has| within(cond, has)) {
                        return words(subject, cond_span(cond), answer::found(has));
                    }
                }
                words("chunk-types", "", "")
            }
            Want::Multiport(want) => {
                let list: Vec<String> = want.ports.want.iter().map(ToString::to_string).collect();
                let wanted = format!("{}{}", not(want.ports.inverted), list.join(","));
                let ports = self.ports(reader);
                let (subject, found) = match want.side {
                    PortSide::Source => ("sports", ports.map(|(port, _)| port.to_string())),
                    PortSide::Destination => ("dports", ports.map(|(_, port)| port.to_string())),
                    _ => ("ports", ports.map(|(a, b)| format!("{a} and {b}"))),
                };
                words(subject, wanted, answer::found(found))
            }
            Want::Icmp(want) | Want::Icmp6(want) => {
                let code = if want.code.min == 0 && want.code.max == u8::MAX {
                    String::new()
                } else {
                    format!("/{}", want.code)
                };
                let wanted = format!("{}{}{code}", not(want.inverted), want.kind);
                let found = match (byte(0), byte(1)) {
                    (Ok(kind), Ok(code)) => format!("{kind}/{code}"),
                    _ => String::new(),
                };
                words("icmp-type", wanted, found)
            }
            Want::Esp(want) => words("espspi", cond_span(&want.spi), answer::found(word(0))),
            Want::Ipcomp(want) => {
                let cpi = word(0).map(|word| word & 0xffff);
                words("ipcompspi", cond_span(&want.spi), answer::found(cpi))
            }
            Want::Mobility(want) => {
                words("mh-type", cond_span(&want.types), answer::found(byte(2)))
            }
            Want::Ah(want) => words("ahspi", cond_span(&want.spi), answer::found(word(4))),
        }
    }
}

impl Transport {
    /// Words for ports that do not fit.
    fn port_words(&self, want: [&Cond<Span<u16>>; 2], reader: &mut Reader<'_>) -> Words {
        let [source, destination] = want;
        let (subject, cond, side) = match self.ports(reader) {
            Ok((_, port)) if asks(destination) && !within(destination, &port) => {
                ("dport", destination, PortSide::Destination)
            }
            Err(_) if asks(destination) => ("dport", destination, PortSide::Destination),
            _ => ("sport", source, PortSide::Source),
        };
        let has = self.port(reader, side);
        words(subject, cond_span(cond), answer::found(has))
    }
}

/// Bytes from the network header to the packet's end.
pub(super) fn packet_length(reader: &mut Reader<'_>) -> Result<u32, Answer> {
    let length = answer::bytes(reader, Field::Xt(XtField::Length), Answer::Miss)?;
    Ok((length.wide() >> 96) as u32)
}
