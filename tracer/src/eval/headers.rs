//! Where the packet's headers are, as nf_tables finds them before it walks a chain (`nft_set_pktinfo_*()`, v6.18).

use super::{
    field::{Reason, Value},
    packet::Packet,
};

/// Bytes beyond what was captured.
pub(super) const NOT_CAPTURED: Reason = Reason::missing("these bytes were not captured");

/// Why bytes cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    /// The packet ends before them, or there is no such header.
    End,
    /// They were not captured.
    NotCaptured,
}

impl From<Gap> for Value {
    fn from(gap: Gap) -> Self {
        match gap {
            Gap::End => Self::Break,
            Gap::NotCaptured => Self::Unknown(NOT_CAPTURED),
        }
    }
}

/// NFPROTO_* (include/uapi/linux/netfilter.h, v6.18).
pub(super) const INET: u8 = 1;
pub(super) const IPV4: u8 = 2;
pub(super) const NETDEV: u8 = 5;
pub(super) const BRIDGE: u8 = 7;
pub(super) const IPV6: u8 = 10;

/// EtherTypes.
pub(super) const ETH_IPV4: u16 = 0x0800;
pub(super) const ETH_IPV6: u16 = 0x86dd;

/// IP protocol numbers.
pub(super) const TCP: u8 = 6;
pub(super) const ICMPV6: u8 = 58;
pub(super) const UDP: u8 = 17;
pub(super) const DCCP: u8 = 33;
pub(super) const SCTP: u8 = 132;

/// IPv6 next-header numbers that `ipv6_ext_hdr()` (net/ipv6/exthdrs_core.c) knows.
const HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTH: u8 = 51;
const NONE: u8 = 59;
const DEST: u8 = 60;

/// The transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transport {
    /// IP protocol.
    pub(super) proto: u8,
    /// Where it starts, counted from the network header.
    pub(super) offset: u32,
    /// Not 0 in all fragments but the first.
    pub(super) fragment: u16,
}

impl<'a> Packet<'a> {
    /// `len` bytes, counted from the network header.
    pub(super) fn network(&self, offset: u32, len: u32) -> Result<&'a [u8], Gap> {
        let end = offset.checked_add(len).ok_or(Gap::End)?;
        if end > self.len {
            return Err(Gap::End);
        }
        self.captured(self.l2_len + offset as usize, len)
    }

    /// `len` bytes, counted from the link-layer header.
    pub(super) fn link(&self, offset: u32, len: u32) -> Result<&'a [u8], Gap> {
        if self.l2_len == 0
            || u64::from(offset) + u64::from(len) > self.l2_len as u64 + u64::from(self.len)
        {
            return Err(Gap::End);
        }
        self.captured(offset as usize, len)
    }

    fn captured(&self, offset: usize, len: u32) -> Result<&'a [u8], Gap> {
        offset
            .checked_add(len as usize)
            .and_then(|end| self.bytes.get(offset..end))
            .ok_or(Gap::NotCaptured)
    }

    fn byte(&self, offset: u32) -> Result<u8, Gap> {
        self.network(offset, 1).map(|bytes| bytes[0])
    }

    pub(super) fn be16(&self, offset: u32) -> Result<u16, Gap> {
        self.network(offset, 2)
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// The family that rules see (`nft_pf()`).
    pub(super) fn family(&self) -> u8 {
        match (self.pf, self.protocol) {
            (INET, ETH_IPV4) => IPV4,
            (INET, ETH_IPV6) => IPV6,
            (pf, _) => pf,
        }
    }

    /// The transport header; an end where nf_tables sets no `NFT_PKTINFO_L4PROTO`.
    pub(super) fn transport(&self) -> Result<Transport, Gap> {
        match (self.family(), self.protocol) {
            (IPV4, _) => self.transport4(false),
            (IPV6, _) => self.transport6(false),
            (NETDEV | BRIDGE, ETH_IPV4) => self.transport4(true),
            (NETDEV | BRIDGE, ETH_IPV6) => self.transport6(true),
            _ => Err(Gap::End),
        }
    }

    fn transport4(&self, validate: bool) -> Result<Transport, Gap> {
        let first = self.byte(0)?;
        let offset = u32::from(first & 0xf) * 4;
        if validate {
            let total = u32::from(self.be16(2)?);
            if first >> 4 != 4 || offset < 20 || self.len < total || total < offset {
                return Err(Gap::End);
            }
        }
        Ok(Transport {
            proto: self.byte(9)?,
            offset,
            fragment: self.be16(6)? & 0x1fff,
        })
    }

    fn transport6(&self, validate: bool) -> Result<Transport, Gap> {
        if validate && (self.byte(0)? >> 4 != 6 || u32::from(self.be16(4)?) + 40 > self.len) {
            return Err(Gap::End);
        }
        let transport = self.find(None)?;
        if transport.offset > u32::from(u16::MAX) {
            return Err(Gap::End);
        }
        Ok(transport)
    }

    /// `ipv6_find_hdr()` (net/ipv6/exthdrs_core.c, v6.18): the header of this number, or, without one, the first that is no extension
    /// header (an authentication header counts as none, as nf_tables asks for it).
    pub(super) fn find(&self, target: Option<u8>) -> Result<Transport, Gap> {
        let mut next = self.byte(6)?;
        let mut start: u32 = 40;
        loop {
            let found = target == Some(next);
            if !matches!(next, HOP | ROUTING | FRAGMENT | AUTH | DEST) {
                if target.is_none() || found {
                    break;
                }
                return Err(Gap::End);
            }
            let header = self.network(start, 2)?;
            let (after, len) = (header[0], u32::from(header[1]));
            let step = match next {
                ROUTING => {
                    self.network(start, 4)?;
                    (len + 1) << 3
                }
                FRAGMENT => {
                    let fragment = self.be16(start + 2)? & !7;
                    if fragment != 0 {
                        let extension = matches!(after, HOP | ROUTING | FRAGMENT | AUTH | DEST);
                        if target.is_none() && (!extension || after == NONE) {
                            return Ok(Transport {
                                proto: after,
                                offset: 0,
                                fragment,
                            });
                        }
                        if !found {
                            return Err(Gap::End);
                        }
                        return Ok(Transport {
                            proto: next,
                            offset: start,
                            fragment,
                        });
                    }
                    8
                }
                AUTH if target.is_none() => break,
                AUTH => (len + 2) << 2,
                _ => (len + 1) << 3,
            };
            if found {
                break;
            }
            next = after;
            start = start.checked_add(step).ok_or(Gap::End)?;
        }
        Ok(Transport {
            proto: next,
            offset: start,
            fragment: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, rest.len() as u8, next, 64];
        bytes.extend([0; 32]);
        bytes.extend(rest);
        bytes
    }

    fn transport(bytes: &[u8], len: usize) -> Result<Transport, Gap> {
        Packet {
            bytes,
            len: len as u32,
            pf: IPV6,
            protocol: ETH_IPV6,
            ..Packet::default()
        }
        .transport()
    }

    #[test]
    fn extension_headers_are_skipped() {
        let bytes = packet6(
            HOP,
            &[
                DEST, 0, 0, 0, 0, 0, 0, 0, TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        );
        let found = transport(&bytes, bytes.len()).unwrap();
        assert_eq!((found.proto, found.offset, found.fragment), (TCP, 64, 0));
        // Cut in the middle of the chain of headers: not known; ended there: not there.
        assert_eq!(transport(&bytes[..48], bytes.len()), Err(Gap::NotCaptured));
        assert_eq!(transport(&bytes, 48), Err(Gap::End));
    }

    #[test]
    fn later_fragments_have_a_protocol_and_no_header() {
        let later = packet6(FRAGMENT, &[UDP, 0, 0x05, 0xa9, 0, 0, 0, 1, 1, 2, 3, 4]);
        let found = transport(&later, later.len()).unwrap();
        assert_eq!((found.proto, found.offset, found.fragment), (UDP, 0, 0x5a8));
        let first = packet6(FRAGMENT, &[UDP, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4]);
        let found = transport(&first, first.len()).unwrap();
        assert_eq!((found.proto, found.offset, found.fragment), (UDP, 48, 0));
        // A later fragment whose first next header is an extension header has no transport header to be found.
        let odd = packet6(FRAGMENT, &[DEST, 0, 0x05, 0xa8, 0, 0, 0, 1]);
        assert_eq!(transport(&odd, odd.len()), Err(Gap::End));
    }

    #[test]
    fn an_authentication_header_is_where_the_search_ends() {
        let bytes = packet6(AUTH, &[TCP, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let found = transport(&bytes, bytes.len()).unwrap();
        assert_eq!((found.proto, found.offset), (AUTH, 40));
    }

    #[test]
    fn ipv4_is_validated_where_the_stack_has_not_done_so() {
        let mut bytes = [0; 28];
        bytes[0] = 0x45;
        bytes[3] = 40;
        bytes[9] = UDP;
        let mut packet = Packet {
            bytes: &bytes,
            len: 28,
            pf: IPV4,
            protocol: ETH_IPV4,
            ..Packet::default()
        };
        assert_eq!(packet.transport().unwrap().proto, UDP);
        packet.pf = NETDEV;
        assert_eq!(packet.transport(), Err(Gap::End));
    }
}
