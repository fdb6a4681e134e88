//! ipsets: what their elements are, by the index that the `set` match and the `SET` target of xtables keep.
//!
//! Message layouts: include/uapi/linux/netfilter/ipset/ip_set.h and net/netfilter/ipset/, v6.18. Numbers are in network byte order.
//! Changes of a set are not announced by anything: what was read is of the moment of the reading.

use std::net::IpAddr;

use thiserror::Error;

use super::{
    attr::{Attr, AttrError, Attrs, Writer},
    socket::{Protocol, Socket, SocketError, flags, message},
};
use crate::netns::NetNs;

/// `NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_LIST`.
const LIST: u16 = 6 << 8 | 7;
/// `IPSET_PROTOCOL`, since 4.17: lists with it give the index.
const PROTOCOL: u8 = 7;
/// Size of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// `IPSET_FLAG_LIST_HEADER`: no elements.
const HEADERS_ONLY: u32 = 1 << 2;

/// Attributes of the message itself (`IPSET_ATTR_*`).
mod outer {
    pub(super) const PROTOCOL: u16 = 1;
    pub(super) const SETNAME: u16 = 2;
    pub(super) const TYPENAME: u16 = 3;
    pub(super) const REVISION: u16 = 4;
    pub(super) const FAMILY: u16 = 5;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const DATA: u16 = 7;
    pub(super) const ADT: u16 = 8;
    pub(super) const INDEX: u16 = 11;
}

/// `enum ipset_cadt_flags`, as masks.
mod cadt {
    pub(super) const PHYSDEV: u32 = 1 << 1;
    pub(super) const NOMATCH: u32 = 1 << 2;
    pub(super) const WITH_COUNTERS: u32 = 1 << 3;
    pub(super) const IFACE_WILDCARD: u32 = 1 << 7;
}

/// Why the sets could not be read.
#[derive(Debug, Error)]
pub enum IpsetError {
    /// The socket, or the kernel's answer.
    #[error("ipset: {0}")]
    Socket(#[from] SocketError),
    /// A message is malformed.
    #[error("ipset: {0}")]
    Attr(#[from] AttrError),
}

/// A set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpSet {
    /// Its name.
    pub name: String,
    /// What matches and targets know it by; `None` if the kernel does not tell it.
    pub index: Option<u16>,
    /// Its type: `hash:ip`, `list:set`, ...
    pub kind: String,
    /// `NFPROTO_*` of its addresses: 2, 10, or 0 for types without addresses.
    pub family: u8,
    /// Revision of the type.
    pub revision: u8,
    /// What it was created with.
    pub header: Header,
    /// Its elements. In a `list:set` their order matters, elsewhere it means nothing.
    pub entries: Vec<Entry>,
    /// How many elements could not be read.
    pub broken: usize,
}

/// What a set was created with, as far as a test of an element needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// `netmask`: addresses are cut to so many bits.
    pub netmask: Option<u8>,
    /// `bitmask`, since 6.2: addresses are cut with it.
    pub bitmask: Option<IpAddr>,
    /// `markmask` of `hash:ip,mark`.
    pub markmask: Option<u32>,
    /// `range` of a bitmap of addresses.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// `range` of a bitmap of ports.
    pub ports: Option<(u16, u16)>,
    /// Default timeout in seconds; elements of a set without one last.
    pub timeout: Option<u32>,
    /// Elements have counters.
    pub counters: bool,
}

/// An element; which fields there are depends on the set's type.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// First address.
    pub ip: Option<IpAddr>,
    /// Its prefix length, of a network.
    pub cidr: Option<u8>,
    /// Second address.
    pub ip2: Option<IpAddr>,
    /// Its prefix length, of a network.
    pub cidr2: Option<u8>,
    /// IP protocol of the port.
    pub proto: Option<u8>,
    /// Port; for ICMP `type << 8 | code`.
    pub port: Option<u16>,
    /// MAC address.
    pub mac: Option<[u8; 6]>,
    /// Interface.
    pub iface: Option<String>,
    /// The interface is a port of a bridge.
    pub physdev: bool,
    /// The interface is the start of a name.
    pub wildcard: bool,
    /// Packet mark.
    pub mark: Option<u32>,
    /// The name of a set, in a `list:set`.
    pub member: Option<String>,
    /// An exception: what it covers is not in the set.
    pub nomatch: bool,
    /// Seconds left; `None` or 0 for ever.
    pub timeout: Option<u32>,
    /// Packets that hit it.
    pub packets: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// Comment.
    pub comment: Option<String>,
}

/// Reads all sets of the socket's network namespace with their elements. Nothing at all if the kernel knows no sets.
///
/// The kernel loads its module `ip_set` for the question if it has one: ask only where a rule names a set. `socket` must be a
/// [`Protocol::Netfilter`] one without multicast groups. Needs CAP_NET_ADMIN.
pub fn read_sets(socket: &mut Socket) -> Result<Vec<IpSet>, IpsetError> {
    list(socket, 0)
}

/// The index and name of each set, as [`read_sets`] has them.
pub fn read_names(socket: &mut Socket) -> Result<Vec<(u16, String)>, IpsetError> {
    let sets = list(socket, HEADERS_ONLY)?.into_iter();
    let named = sets.filter_map(|set| Some((set.index?, set.name)));
    Ok(named.collect())
}

/// [`read_names`] of a namespace; what cannot be read is logged, and rules then have the index.
pub fn names_in(netns: &NetNs) -> Vec<(u16, String)> {
    let socket = Socket::open_in(netns.as_fd(), Protocol::Netfilter, &[]);
    let named = socket
        .map_err(IpsetError::from)
        .and_then(|mut socket| read_names(&mut socket));
    named.unwrap_or_else(|error| {
        log::warn!("{netns}: the names of sets are not known: {error}");
        Vec::new()
    })
}

fn list(socket: &mut Socket, list_flags: u32) -> Result<Vec<IpSet>, IpsetError> {
    let body = Writer::new()
        // NFPROTO_IPV4, as ipset itself says: the kernel does not look at it.
        .raw(&[2, 0, 0, 0])
        .u8(outer::PROTOCOL, PROTOCOL)
        .be32(outer::FLAGS, list_flags)
        .finish()?;
    let request = message(LIST, flags::REQUEST | flags::DUMP, socket.next_seq(), &body);
    let mut sets = Vec::new();
    let mut failure = None;
    let answer = socket.query(&request, |message| {
        if message.kind == LIST
            && let Err(error) = decode_list(message.payload, &mut sets)
        {
            failure.get_or_insert(error);
        }
    });
    match (answer, failure) {
        // No such subsystem (`nfnetlink_rcv_msg()`).
        (Err(error), _) if matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        (Err(error), _) => Err(error.into()),
        (Ok(()), Some(error)) => Err(error.into()),
        (Ok(()), None) => Ok(sets),
    }
}

/// Decodes one message of a list into `sets`: a set comes in one message or more, the first of which has its type.
///
/// Errors: the set's name cannot be read. A broken element is counted in [`IpSet::broken`].
pub fn decode_list(payload: &[u8], sets: &mut Vec<IpSet>) -> Result<(), AttrError> {
    let attrs = || Attrs::after(payload, NFGENMSG);
    let name = attrs()
        .find(outer::SETNAME)?
        .ok_or(AttrError::Missing {
            kind: outer::SETNAME,
        })?
        .str()?;
    if sets.last().is_none_or(|set| set.name != name) {
        sets.push(IpSet {
            name: name.to_owned(),
            ..IpSet::default()
        });
    }
    let Some(set) = sets.last_mut() else {
        return Ok(());
    };
    for attr in attrs() {
        let attr = attr?;
        match attr.kind {
            outer::TYPENAME => set.kind = attr.str()?.to_owned(),
            outer::REVISION => set.revision = attr.u8()?,
            outer::FAMILY => set.family = attr.u8()?,
            outer::INDEX => set.index = Some(attr.be16()?),
            outer::DATA => set.header = header(attr)?,
            outer::ADT => {
                for item in attr.nested() {
                    match item.and_then(|item| entry(item)) {
                        Ok(entry) => set.entries.push(entry),
                        Err(_) => set.broken += 1,
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn header(nest: Attr<'_>) -> Result<Header, AttrError> {
    let mut header = Header::default();
    let (mut from, mut to) = (None, None);
    let (mut port_from, mut port_to) = (None, None);
    for attr in nest.nested() {
        let attr = attr?;
        match attr.kind {
            1 => from = Some(address(attr)?),
            2 => to = Some(address(attr)?),
            4 => port_from = Some(attr.be16()?),
            5 => port_to = Some(attr.be16()?),
            6 => header.timeout = Some(attr.be32()?),
            8 => header.counters = attr.be32()? & cadt::WITH_COUNTERS != 0,
            11 => header.markmask = Some(attr.be32()?),
            12 => header.bitmask = Some(address(attr)?),
            20 => header.netmask = Some(attr.u8()?),
            _ => {}
        }
    }
    header.addresses = from.zip(to);
    header.ports = port_from.zip(port_to);
    Ok(header)
}

fn entry(nest: Attr<'_>) -> Result<Entry, AttrError> {
    let mut entry = Entry::default();
    for attr in nest.nested() {
        let attr = attr?;
        match attr.kind {
            1 => entry.ip = Some(address(attr)?),
            3 => entry.cidr = Some(attr.u8()?),
            4 => entry.port = Some(attr.be16()?),
            6 => entry.timeout = Some(attr.be32()?),
            7 => entry.proto = Some(attr.u8()?),
            8 => {
                let flags = attr.be32()?;
                entry.physdev = flags & cadt::PHYSDEV != 0;
                entry.nomatch = flags & cadt::NOMATCH != 0;
                entry.wildcard = flags & cadt::IFACE_WILDCARD != 0;
            }
            10 => entry.mark = Some(attr.be32()?),
            17 => {
                entry.mac = Some(attr.payload.try_into().map_err(|_| AttrError::Size {
                    offset: attr.offset,
                    kind: attr.kind,
                    length: attr.payload.len(),
                    expected: 6,
                })?);
            }
            18 => entry.member = Some(attr.str()?.to_owned()),
            20 => entry.ip2 = Some(address(attr)?),
            21 => entry.cidr2 = Some(attr.u8()?),
            23 => entry.iface = Some(attr.str()?.to_owned()),
            24 => entry.bytes = Some(attr.be64()?),
            25 => entry.packets = Some(attr.be64()?),
            26 => entry.comment = Some(attr.str()?.to_owned()),
            _ => {}
        }
    }
    Ok(entry)
}

/// `IPSET_ATTR_IPADDR_IPV4` (1) or `_IPV6` (2) in a nest.
fn address(nest: Attr<'_>) -> Result<IpAddr, AttrError> {
    let missing = AttrError::Missing { kind: nest.kind };
    let attr = nest.nested().next().ok_or(missing)??;
    let size = |expected| AttrError::Size {
        offset: attr.offset,
        kind: attr.kind,
        length: attr.payload.len(),
        expected,
    };
    match attr.kind {
        1 => <[u8; 4]>::try_from(attr.payload)
            .map(IpAddr::from)
            .map_err(|_| size(4)),
        2 => <[u8; 16]>::try_from(attr.payload)
            .map(IpAddr::from)
            .map_err(|_| size(16)),
        _ => Err(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(&[2, 0, 0, 0]).u8(outer::PROTOCOL, 7);
        fill(&mut writer);
        writer.finish().unwrap()
    }

    fn v4(writer: &mut Writer, kind: u16, ip: [u8; 4]) {
        writer.nest(kind, |w| {
            w.bytes(1, &ip);
        });
    }

    #[test]
    fn a_set_over_two_messages() {
        let first = list(|w| {
            w.str(outer::SETNAME, "blocked")
                .be16(outer::INDEX, 3)
                .str(outer::TYPENAME, "hash:ip,port,net")
                .u8(outer::FAMILY, 2)
                .u8(outer::REVISION, 7)
                .nest(outer::DATA, |w| {
                    w.be32(6, 600).be32(8, cadt::WITH_COUNTERS);
                })
                .nest(outer::ADT, |w| {
                    w.nest(outer::DATA, |w| {
                        v4(w, 1, [10, 0, 0, 1]);
                        v4(w, 20, [10, 9, 0, 0]);
                        w.u8(21, 16).be16(4, 53).u8(7, 17).be32(6, 17);
                        w.be64(24, 84).be64(25, 1).str(26, "dns");
                    });
                });
        });
        let second = list(|w| {
            w.str(outer::SETNAME, "blocked")
                .be16(outer::INDEX, 3)
                .nest(outer::ADT, |w| {
                    w.nest(outer::DATA, |w| {
                        w.nest(1, |w| {
                            w.bytes(2, &[0xfd; 16]);
                        })
                        .be32(8, cadt::NOMATCH);
                    });
                    // An address of three bytes.
                    w.nest(outer::DATA, |w| {
                        w.nest(1, |w| {
                            w.bytes(1, &[1, 2, 3]);
                        });
                    });
                });
        });
        let mut sets = Vec::new();
        decode_list(&first, &mut sets).unwrap();
        decode_list(&second, &mut sets).unwrap();
        let [set] = sets.as_slice() else {
            panic!("{sets:?}")
        };
        assert_eq!(
            (set.index, set.kind.as_str()),
            (Some(3), "hash:ip,port,net")
        );
        assert_eq!((set.family, set.revision, set.broken), (2, 7, 1));
        assert_eq!((set.header.timeout, set.header.counters), (Some(600), true));
        assert_eq!(
            set.entries[0],
            Entry {
                ip: Some([10, 0, 0, 1].into()),
                ip2: Some([10, 9, 0, 0].into()),
                cidr2: Some(16),
                port: Some(53),
                proto: Some(17),
                timeout: Some(17),
                bytes: Some(84),
                packets: Some(1),
                comment: Some("dns".into()),
                ..Entry::default()
            }
        );
        assert_eq!(set.entries[1].ip, Some([0xfd_u8; 16].into()));
        assert!(set.entries[1].nomatch);
    }

    #[test]
    fn a_message_without_a_name_is_an_error() {
        let message = list(|w| {
            w.str(outer::TYPENAME, "hash:ip");
        });
        let missing = AttrError::Missing {
            kind: outer::SETNAME,
        };
        assert_eq!(decode_list(&message, &mut Vec::new()), Err(missing));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut message = list(|w| { w.str(outer::SETNAME, "s"); });
            message.extend(&bytes);
            let _ = decode_list(&message, &mut Vec::new());
            let _ = decode_list(&bytes, &mut Vec::new());
            let nested = list(|w| {
                w.str(outer::SETNAME, "s").nest(outer::ADT, |w| {
                    w.bytes(outer::DATA, &bytes);
                });
            });
            let _ = decode_list(&nested, &mut Vec::new());
        }
    }
}
