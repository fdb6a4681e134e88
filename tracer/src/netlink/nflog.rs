//! NFLOG: packets that the kernel hands to a group's listener, the listener's settings, and legacy TRACE lines.
//!
//! A group has one listener in its network namespace; another is refused with EPERM ([`instances`] tells who holds it). Numbers are
//! big-endian (include/uapi/linux/netfilter/nfnetlink_log.h, net/netfilter/nfnetlink_log.c, v6.18).

use std::borrow::Cow;

use super::{
    attr::{Attr, AttrError, Attrs, Writer},
    socket::{Socket, SocketError, flags, message},
};
use crate::ruleset::model::Family;

/// `NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET`.
pub const NFULNL_MSG_PACKET: u16 = 4 << 8;
/// `NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG`.
pub const NFULNL_MSG_CONFIG: u16 = 4 << 8 | 1;

/// Size of `struct nfgenmsg`.
const NFGENMSG: usize = 4;
/// A module that the request has just loaded makes the kernel ask for the request again (EAGAIN), once.
const ATTEMPTS: usize = 3;

/// What the kernel may be asked to number or to add, for [`Setting::Flags`].
pub mod wants {
    /// Number the group's packets.
    pub const SEQ: u16 = 1;
    /// Number the packets of all groups of the network namespace.
    pub const SEQ_GLOBAL: u16 = 2;
    /// Add the connection. Refused (EOPNOTSUPP) by kernels without CONFIG_NETFILTER_NETLINK_GLUE_CT.
    pub const CONNTRACK: u16 = 4;
}

/// A logged packet, borrowed from the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The hook's family, `NFPROTO_*`.
    pub family: Family,
    /// The group.
    pub group: u16,
    /// EtherType.
    pub protocol: u16,
    /// `NF_INET_*`, or the hook's number in its family.
    pub hook: u8,
    /// The packet's mark; 0 is not sent.
    pub mark: u32,
    /// Seconds and microseconds since 1970, of when it was received; none for packets that this machine makes.
    pub time: Option<(u64, u64)>,
    /// Index of the input interface.
    pub iif: Option<u32>,
    /// Index of the output interface.
    pub oif: Option<u32>,
    /// Index of the input interface's bridge port.
    pub physical_iif: Option<u32>,
    /// Index of the output interface's bridge port.
    pub physical_oif: Option<u32>,
    /// The sender's link-layer address.
    pub hw_address: Option<&'a [u8]>,
    /// The packet from its network header on (families bridge and netdev: from where the hook saw it), as long as the copy range.
    pub payload: &'a [u8],
    /// The rule's prefix.
    pub prefix: Option<Cow<'a, str>>,
    /// User of the local socket that sends the packet.
    pub uid: Option<u32>,
    /// Its group.
    pub gid: Option<u32>,
    /// Number in the group, from 0, if asked for: a gap is a loss.
    pub seq: Option<u32>,
    /// Number in the network namespace, from 1, if asked for.
    pub seq_global: Option<u32>,
    /// Type of the interface, `ARPHRD_*`.
    pub hw_type: Option<u16>,
    /// The link-layer header.
    pub hw_header: Option<&'a [u8]>,
    /// The connection's attributes, as ctnetlink writes them (`CTA_*`).
    pub connection: Option<&'a [u8]>,
    /// `enum ip_conntrack_info`.
    pub connection_info: Option<u32>,
    /// The VLAN tag that the device took out: EtherType and tag control; families bridge and netdev only.
    pub vlan: Option<(u16, u16)>,
    /// The whole link-layer header; families bridge and netdev only.
    pub l2_header: Option<&'a [u8]>,
}

/// Family and resource id of a message's `struct nfgenmsg`.
fn head(payload: &[u8]) -> Result<(Family, u16), AttrError> {
    match payload.first_chunk::<NFGENMSG>() {
        Some(&[family, _, high, low]) => Ok((family.into(), u16::from_be_bytes([high, low]))),
        None => Err(AttrError::Truncated {
            offset: 0,
            length: NFGENMSG,
            left: payload.len(),
        }),
    }
}

/// An attribute of fixed size, as bytes.
fn exactly<'a, const N: usize>(attr: &Attr<'a>) -> Result<&'a [u8; N], AttrError> {
    attr.payload.try_into().map_err(|_| AttrError::Size {
        offset: attr.offset,
        kind: attr.kind,
        length: attr.payload.len(),
        expected: N,
    })
}

/// Decodes the payload of a [`NFULNL_MSG_PACKET`].
///
/// # Errors
/// What is no attribute, has not its size, or a packet without `NFULA_PACKET_HDR`.
pub fn decode(payload: &[u8]) -> Result<Packet<'_>, AttrError> {
    let (family, group) = head(payload)?;
    let mut seen = false;
    let mut packet = Packet {
        family,
        group,
        protocol: 0,
        hook: 0,
        mark: 0,
        time: None,
        iif: None,
        oif: None,
        physical_iif: None,
        physical_oif: None,
        hw_address: None,
        payload: &[],
        prefix: None,
        uid: None,
        gid: None,
        seq: None,
        seq_global: None,
        hw_type: None,
        hw_header: None,
        connection: None,
        connection_info: None,
        vlan: None,
        l2_header: None,
    };
    for attr in Attrs::after(payload, NFGENMSG) {
        let attr = attr?;
        match attr.kind {
            1 => {
                let &[high, low, hook, _] = exactly::<4>(&attr)?;
                packet.protocol = u16::from_be_bytes([high, low]);
                packet.hook = hook;
                seen = true;
            }
            2 => packet.mark = attr.be32()?,
            3 => packet.time = Some(timestamp(exactly(&attr)?)),
            4 => packet.iif = Some(attr.be32()?),
            5 => packet.oif = Some(attr.be32()?),
            6 => packet.physical_iif = Some(attr.be32()?),
            7 => packet.physical_oif = Some(attr.be32()?),
            8 => packet.hw_address = hw_address(exactly(&attr)?),
            9 => packet.payload = attr.payload,
            10 => packet.prefix = Some(prefix(attr.payload)),
            11 => packet.uid = Some(attr.be32()?),
            12 => packet.seq = Some(attr.be32()?),
            13 => packet.seq_global = Some(attr.be32()?),
            14 => packet.gid = Some(attr.be32()?),
            15 => packet.hw_type = Some(attr.be16()?),
            16 => packet.hw_header = Some(attr.payload),
            // 17 is the length of 16.
            18 => packet.connection = Some(attr.payload),
            19 => packet.connection_info = Some(attr.be32()?),
            20 => packet.vlan = vlan(&attr)?,
            21 => packet.l2_header = Some(attr.payload),
            _ => {}
        }
    }
    if seen {
        Ok(packet)
    } else {
        Err(AttrError::Missing { kind: 1 })
    }
}

/// `struct nfulnl_msg_packet_timestamp`.
fn timestamp(bytes: &[u8; 16]) -> (u64, u64) {
    let both = u128::from_be_bytes(*bytes);
    let low = both & u128::from(u64::MAX);
    let word = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    (word(both >> 64), word(low))
}

/// `struct nfulnl_msg_packet_hw`: length, padding, at most 8 bytes of address.
fn hw_address(bytes: &[u8; 12]) -> Option<&[u8]> {
    let (&[high, low, _, _], address) = bytes.split_first_chunk::<4>()?;
    address.get(..usize::from(u16::from_be_bytes([high, low])))
}

/// Up to the first NUL; a prefix may hold any bytes.
fn prefix(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default())
}

/// `NFULA_VLAN_PROTO` 1, `NFULA_VLAN_TCI` 2.
fn vlan(attr: &Attr<'_>) -> Result<Option<(u16, u16)>, AttrError> {
    let (proto, tci) = (attr.nested().find(1)?, attr.nested().find(2)?);
    match (proto, tci) {
        (Some(proto), Some(tci)) => Ok(Some((proto.be16()?, tci.be16()?))),
        _ => Ok(None),
    }
}

/// How much of a packet is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    /// Nothing.
    None,
    /// All but the payload.
    Meta,
    /// The payload up to this many bytes.
    Packet(u32),
}

/// One setting of a group's listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Become the group's listener.
    Bind,
    /// Be it no more; closing the socket does the same.
    Unbind,
    /// What is handed over. Default: the whole packet.
    Copy(Copy),
    /// Size of the kernel's buffer for messages in bytes; a size that it does not like is acknowledged and ignored.
    BufferSize(u32),
    /// Hand packets over after at most this long, in 1/100 s. Default: 1 s.
    Timeout(u32),
    /// Hand packets over when there are this many. Default: 100. A rule can ask for fewer; TRACE asks for 1.
    Threshold(u32),
    /// [`wants`].
    Flags(u16),
}

/// A request to set one thing: a refused setting costs every other in the same message.
///
/// # Errors
/// None that these settings can bring about.
pub fn config(group: u16, setting: Setting, seq: u32) -> Result<Vec<u8>, AttrError> {
    let mut writer = Writer::new();
    let [high, low] = group.to_be_bytes();
    writer.raw(&[0, 0, high, low]);
    match setting {
        Setting::Bind => writer.u8(1, 1),
        Setting::Unbind => writer.u8(1, 2),
        Setting::Copy(copy) => {
            let (mode, range) = match copy {
                Copy::None => (0, 0),
                Copy::Meta => (1, 0),
                Copy::Packet(range) => (2, range),
            };
            // Packed: the range, the mode, a byte of padding.
            let [a, b, c, d] = range.to_be_bytes();
            writer.bytes(2, &[a, b, c, d, mode, 0])
        }
        Setting::BufferSize(bytes) => writer.be32(3, bytes),
        Setting::Timeout(hundredths) => writer.be32(4, hundredths),
        Setting::Threshold(packets) => writer.be32(5, packets),
        Setting::Flags(flags) => writer.be16(6, flags),
    };
    let flags = flags::REQUEST | flags::ACK;
    Ok(message(NFULNL_MSG_CONFIG, flags, seq, &writer.finish()?))
}

/// Why a socket listens to no group.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The kernel or the socket refused it; EPERM (with CAP_NET_ADMIN) and EBUSY: the group has a listener.
    #[error("NFLOG group {group}: {source}")]
    Refused {
        /// The group.
        group: u16,
        /// The answer.
        source: SocketError,
    },
    /// A message could not be built.
    #[error(transparent)]
    Build(#[from] AttrError),
}

/// Makes `socket` the listener of `group`, with these settings; gives those that the kernel refused.
///
/// # Errors
/// The group could not be had at all.
pub fn listen(
    socket: &mut Socket,
    group: u16,
    settings: &[Setting],
) -> Result<Vec<(Setting, SocketError)>, ListenError> {
    if let Err(source) = set(socket, group, Setting::Bind)? {
        return Err(ListenError::Refused { group, source });
    }
    let mut refused = Vec::new();
    for &setting in settings {
        if let Err(error) = set(socket, group, setting)? {
            refused.push((setting, error));
        }
    }
    Ok(refused)
}

fn set(
    socket: &mut Socket,
    group: u16,
    setting: Setting,
) -> Result<Result<(), SocketError>, AttrError> {
    let mut answer = Ok(());
    for _ in 0..ATTEMPTS {
        let seq = socket.next_seq();
        answer = socket.request_ack(&config(group, setting, seq)?);
        match &answer {
            Err(error) if error.errno() == Some(libc::EAGAIN) => {}
            _ => break,
        }
    }
    Ok(answer)
}

/// A listener, as a line of `/proc/net/netfilter/nfnetlink_log` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance {
    /// The group.
    pub group: u16,
    /// The netlink port of its socket; [`super::sockets`] tells whose it is.
    pub port: u32,
    /// Packets that wait to be handed over.
    pub queued: u32,
    /// How much of a packet is handed over.
    pub copy: Copy,
    /// 1/100 s.
    pub timeout: u32,
}

/// The listeners in the text of `/proc/net/netfilter/nfnetlink_log`; lines that are none are left out.
pub fn instances(text: &str) -> Vec<Instance> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let mut number = || words.next()?.parse::<u32>().ok();
            let (group, port, queued) = (number()?, number()?, number()?);
            let (mode, range, timeout) = (number()?, number()?, number()?);
            Some(Instance {
                group: group.try_into().ok()?,
                port,
                queued,
                copy: match mode {
                    0 => Copy::None,
                    1 => Copy::Meta,
                    2 => Copy::Packet(range),
                    _ => return None,
                },
                timeout,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
