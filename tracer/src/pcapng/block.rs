//! Blocks of pcapng, byte by byte: what is known -> bytes. Little-endian, whatever the machine.
//!
//! Types and codes: draft-ietf-opsawg-pcapng-04. Options are in the order in which they are pushed.

use super::LinkType;

/// Section Header Block.
pub(super) const SECTION: u32 = 0x0a0d_0d0a;
/// Interface Description Block.
pub(super) const INTERFACE: u32 = 1;
/// Simple Packet Block: read, never written.
pub(super) const SIMPLE: u32 = 3;
/// Interface Statistics Block.
pub(super) const STATISTICS: u32 = 5;
/// Enhanced Packet Block.
pub(super) const PACKET: u32 = 6;
/// fwtrace's own, in the range for local use. A Custom Block would be one more packet to Wireshark.
pub(super) const OWN: u32 = 0x8000_0bad;

/// The byte-order magic, as the writer's machine has it.
const MAGIC: u32 = 0x1a2b_3c4d;
/// Ticks a second: 10 to the power of this.
const RESOLUTION: u8 = 9;
/// The longest value of an option.
const VALUE_MAX: usize = 0xffff;
/// A custom option's text stands behind four bytes of enterprise number.
pub(super) const CUSTOM_MAX: usize = VALUE_MAX - 4;

/// `opt_comment`, of any block.
pub(super) const COMMENT: u16 = 1;
/// A custom option with text that programs may copy.
pub(super) const CUSTOM_TEXT: u16 = 2988;

/// What wrote a section, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// `shb_hardware`.
    pub hardware: String,
    /// `shb_os`.
    pub os: String,
    /// `shb_userappl`.
    pub application: String,
    /// The run watches several namespaces.
    pub several: bool,
}

/// An interface of a section.
#[derive(Clone, Debug)]
pub(super) struct Interface<'a> {
    pub(super) link: LinkType,
    pub(super) snaplen: u32,
    pub(super) name: Option<&'a str>,
    pub(super) description: &'a str,
}

/// A packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// Number of its interface in the section, from 0.
    pub(super) interface: u32,
    /// Nanoseconds since 1970.
    pub(super) time: u64,
    pub(super) bytes: &'a [u8],
    /// Length of the whole packet, bytes.
    pub(super) original_len: u32,
    /// `epb_flags`.
    pub(super) flags: u32,
    pub(super) comment: &'a str,
    /// The event.
    pub(super) json: &'a str,
}

/// What is known about an interface when its file ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statistics<'a> {
    pub(super) interface: u32,
    /// Nanoseconds since 1970: now, first packet, last packet.
    pub(super) times: [u64; 3],
    pub(super) received: u64,
    pub(super) lost: u64,
    pub(super) delivered: u64,
    pub(super) comment: Option<&'a str>,
}

/// Appends one block to `bytes`.
struct Block<'a> {
    bytes: &'a mut Vec<u8>,
    start: usize,
    options: bool,
}

impl<'a> Block<'a> {
    fn new(bytes: &'a mut Vec<u8>, kind: u32) -> Self {
        let start = bytes.len();
        bytes.extend(kind.to_le_bytes());
        // The length, known at the end.
        bytes.extend([0; 4]);
        Self {
            bytes,
            start,
            options: false,
        }
    }

    fn u16(&mut self, value: u16) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    /// A time or any other number of 64 bits in two halves, the high one first.
    fn time(&mut self, value: u64) {
        self.bytes.extend(halves(value));
    }

    fn padded(&mut self, value: &[u8]) {
        self.bytes.extend(value);
        let pad = value.len().next_multiple_of(4) - value.len();
        self.bytes.extend(std::iter::repeat_n(0, pad));
    }

    /// An option of at most [`VALUE_MAX`] bytes; what is longer is left out.
    fn option(&mut self, code: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len()) else {
            return;
        };
        self.options = true;
        self.u16(code);
        self.u16(length);
        self.padded(value);
    }

    /// An option for people, cut to fit.
    fn text(&mut self, code: u16, value: &str) {
        self.option(code, cut(value, VALUE_MAX).as_bytes());
    }

    /// A custom option with our number, of at most [`CUSTOM_MAX`] bytes.
    fn own_text(&mut self, text: &str) {
        let mut value = super::ENTERPRISE.to_le_bytes().to_vec();
        value.extend(text.as_bytes());
        self.option(CUSTOM_TEXT, &value);
    }

    fn end(mut self) {
        if self.options {
            // opt_endofopt
            self.u32(0);
        }
        let length = u32::try_from(self.bytes.len() - self.start + 4).unwrap_or(u32::MAX);
        self.u32(length);
        let place = self.bytes.get_mut(self.start + 4..self.start + 8);
        if let Some(place) = place {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }
}

fn halves(value: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    let (high, low) = bytes.split_at_mut(4);
    high.copy_from_slice(&((value >> 32) as u32).to_le_bytes());
    low.copy_from_slice(&(value as u32).to_le_bytes());
    bytes
}

/// The longest start of `text` of at most `max` bytes.
pub(super) fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Begins a section.
pub(super) fn section(bytes: &mut Vec<u8>, section: &Section) {
    let mut block = Block::new(bytes, SECTION);
    block.u32(MAGIC);
    block.u16(1);
    block.u16(0);
    // Length of the section: not known beforehand.
    block.bytes.extend((-1_i64).to_le_bytes());
    block.text(2, &section.hardware);
    block.text(3, &section.os);
    block.text(4, &section.application);
    if section.several {
        block.own_text(super::SEVERAL);
    }
    block.end();
}

/// Describes the section's next interface.
pub(super) fn interface(bytes: &mut Vec<u8>, interface: &Interface<'_>) {
    let mut block = Block::new(bytes, INTERFACE);
    block.u16(interface.link.0);
    block.u16(0);
    block.u32(interface.snaplen);
    if let Some(name) = interface.name {
        block.text(2, name);
    }
    block.text(3, interface.description);
    block.option(9, &[RESOLUTION]);
    block.end();
}

/// Appends a packet.
pub(super) fn packet(bytes: &mut Vec<u8>, packet: &Packet<'_>) {
    let mut block = Block::new(bytes, PACKET);
    block.u32(packet.interface);
    block.time(packet.time);
    block.u32(u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX));
    block.u32(packet.original_len);
    block.padded(packet.bytes);
    block.text(COMMENT, packet.comment);
    block.option(2, &packet.flags.to_le_bytes());
    // An option holds 64 KiB, and the way through a large ruleset can be longer.
    let mut rest = packet.json;
    while !rest.is_empty() {
        let piece = cut(rest, CUSTOM_MAX);
        block.own_text(piece);
        rest = rest.get(piece.len()..).unwrap_or_default();
    }
    block.end();
}

/// Appends an interface's statistics.
pub(super) fn statistics(bytes: &mut Vec<u8>, statistics: &Statistics<'_>) {
    let mut block = Block::new(bytes, STATISTICS);
    block.u32(statistics.interface);
    let [now, first, last] = statistics.times;
    block.time(now);
    if let Some(comment) = statistics.comment {
        block.text(COMMENT, comment);
    }
    block.option(2, &halves(first));
    block.option(3, &halves(last));
    // isb_ifrecv, isb_ifdrop, isb_osdrop, isb_usrdeliv
    for (code, count) in [
        (4, statistics.received),
        (5, statistics.lost),
        (7, statistics.lost),
        (8, statistics.delivered),
    ] {
        block.option(code, &count.to_le_bytes());
    }
    block.end();
}

/// Appends a block of our own with this text, laid out as a Custom Block is.
pub(super) fn own(bytes: &mut Vec<u8>, text: &str) {
    let mut block = Block::new(bytes, OWN);
    block.u32(super::ENTERPRISE);
    block.padded(text.as_bytes());
    block.end();
}
