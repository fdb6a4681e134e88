//! Captures of any origin -> events and packets, with the offset of what cannot be read.
//!
//! pcapng and pcap, of either byte order, and both compressed with Zstandard. A block is read as a whole before it is looked
//! into, so that nothing in it can lead astray what follows.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::Arc,
};

use jiff::Timestamp;
use pcap_parser::{
    Block, PcapHeader, PcapNGOption, parse_block_be, parse_block_le, parse_pcap_header,
    traits::PcapNGPacketBlock as _,
};

use super::{ASIDE, ENTERPRISE, EVENT, LinkType, block};
use crate::{
    event::{Event, PacketEvent},
    packet::{Capture, Packet},
};

/// Longest block or packet that is read, bytes: more than anybody writes.
const BLOCK_MAX: u32 = 64 << 20;
/// What a Zstandard frame begins with (RFC 8878, 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The byte-order magic in a big-endian section.
const BIG_ENDIAN: [u8; 4] = [0x1a, 0x2b, 0x3c, 0x4d];
const LITTLE_ENDIAN: [u8; 4] = [0x4d, 0x3c, 0x2b, 0x1a];
/// Header of a pcap file, and of a packet in it.
const PCAP_HEADER: usize = 24;
const PCAP_RECORD: usize = 16;
const NANO: i128 = 1_000_000_000;

/// A capture cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is none.
    #[error("this is no capture file: {0}")]
    NoCapture(&'static str),
    /// It ends in the middle of something.
    #[error("cut short: the {what} at offset {offset} is not whole; everything before it is shown")]
    CutShort {
        /// Where that begins, bytes from the start of the (decompressed) file.
        offset: u64,
        /// What.
        what: &'static str,
    },
    /// It is not as the format wants it.
    #[error("malformed at offset {offset}: {why}; everything before it is shown")]
    Malformed {
        /// Where the block or packet begins, bytes from the start of the (decompressed) file.
        offset: u64,
        /// What is wrong with it.
        why: String,
    },
    /// The file system, or the decompressor.
    #[error("cannot read on at offset {offset}: {source}")]
    Io {
        /// Bytes that were read.
        offset: u64,
        /// What it said.
        source: io::Error,
    },
}

/// A packet as a capture holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// What `bytes` begins with.
    pub link: LinkType,
    /// As far as it was captured.
    pub bytes: Vec<u8>,
    /// Length of the whole packet, bytes.
    pub original_len: u32,
}

/// Something in a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An event, with its packet if it is a drop or a packet.
    Event(Box<Event>, Option<Captured>),
    /// An event that was told on stderr only.
    Aside(Box<Event>),
}

/// Reads a capture from its start to its end.
#[derive(Debug)]
pub struct Reader<R: Read> {
    input: Input<R>,
    format: Format,
    interfaces: Vec<Interface>,
    several: bool,
}

#[derive(Debug)]
enum Format {
    /// The section's byte order.
    Pcapng {
        big_endian: bool,
    },
    Pcap(PcapHeader),
}

#[derive(Debug)]
struct Interface {
    link: LinkType,
    name: Option<Arc<str>>,
    snaplen: u32,
    /// Ticks a second.
    resolution: i128,
    /// Seconds to add.
    offset: i64,
}

/// Bytes, and how many were read.
struct Input<R: Read> {
    bytes: Source<R>,
    offset: u64,
}

impl<R: Read> std::fmt::Debug for Input<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

enum Source<R: Read> {
    Plain(BufReader<R>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(bytes) => bytes.read(to),
            Self::Zstd(bytes) => bytes.read(to),
        }
    }
}

impl<R: Read> Input<R> {
    /// Reads as many bytes as there are, up to `length`, behind those that are in `to`.
    fn fill(&mut self, to: &mut Vec<u8>, length: usize) -> io::Result<usize> {
        let limit = u64::try_from(length).unwrap_or(u64::MAX);
        // Grows with what is there, not with what a header promises.
        let read = match (&mut self.bytes).take(limit).read_to_end(to) {
            // The frame of a file that was cut short.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            other => other?,
        };
        self.offset += u64::try_from(read).unwrap_or(0);
        Ok(read)
    }
}

impl<R: Read> Reader<R> {
    /// Looks at what `input` begins with.
    ///
    /// # Errors
    /// It is no capture, or cannot be read.
    pub fn new(input: R) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Io { offset: 0, source };
        let mut plain = BufReader::new(input);
        let start = plain.fill_buf().map_err(failed)?;
        let bytes = if start.starts_with(&GZIP_MAGIC) {
            return Err(ReadError::NoCapture(
                "it is compressed with gzip; pipe it: zcat FILE | fwtrace -r -",
            ));
        } else if start.starts_with(&ZSTD_MAGIC) {
            Source::Zstd(zstd::Decoder::with_buffer(plain).map_err(failed)?)
        } else {
            Source::Plain(plain)
        };
        let mut reader = Self {
            input: Input { bytes, offset: 0 },
            format: Format::Pcapng { big_endian: false },
            interfaces: Vec::new(),
            several: false,
        };
        let mut header = Vec::new();
        let fill = |reader: &mut Self, header: &mut Vec<u8>, length| {
            reader.input.fill(header, length).map_err(failed)
        };
        fill(&mut reader, &mut header, 8)?;
        if header.is_empty() {
            return Err(ReadError::NoCapture("it is empty"));
        }
        if header.starts_with(&block::SECTION.to_le_bytes()) {
            reader.section(header, 0)?;
            return Ok(reader);
        }
        fill(&mut reader, &mut header, PCAP_HEADER - 8)?;
        let header = match parse_pcap_header(&header) {
            Ok((_, header)) if !header.is_modified_format() => header,
            Err(nom) if nom.is_incomplete() => {
                return Err(ReadError::CutShort {
                    offset: 0,
                    what: "file header",
                });
            }
            _ => {
                return Err(ReadError::NoCapture(
                    "it begins like neither pcapng nor pcap; `file FILE` may know what it is",
                ));
            }
        };
        let resolution = if header.is_nanosecond_precision() {
            NANO
        } else {
            NANO / 1000
        };
        reader.interfaces.push(Interface {
            // The upper bits say how long a checksum behind each frame is.
            link: LinkType((header.network.0 & 0xffff) as u16),
            name: None,
            snaplen: header.snaplen,
            resolution,
            offset: 0,
        });
        reader.format = Format::Pcap(header);
        Ok(reader)
    }

    /// Whether the run that wrote it watched several namespaces, as far as was read.
    #[must_use]
    pub fn several(&self) -> bool {
        self.several
    }

    /// The next event or packet; `None` at the end.
    ///
    /// # Errors
    /// See [`ReadError`]. There is no way to go on behind one.
    pub fn next_item(&mut self) -> Result<Option<Item>, ReadError> {
        match &self.format {
            Format::Pcap(header) => {
                let big_endian = header.is_bigendian();
                self.record(big_endian)
            }
            Format::Pcapng { .. } => loop {
                let offset = self.input.offset;
                let mut header = Vec::new();
                let what = "block";
                match self.fill(&mut header, 8, offset)? {
                    0 => return Ok(None),
                    8 => {}
                    _ => return Err(ReadError::CutShort { offset, what }),
                }
                if let Some(item) = self.block(header, offset)? {
                    return Ok(Some(item));
                }
            },
        }
    }

    fn fill(&mut self, to: &mut Vec<u8>, length: usize, offset: u64) -> Result<usize, ReadError> {
        let filled = self.input.fill(to, length);
        filled.map_err(|source| ReadError::Io { offset, source })
    }

    /// A packet of a pcap file.
    fn record(&mut self, big_endian: bool) -> Result<Option<Item>, ReadError> {
        let offset = self.input.offset;
        let cut_short = ReadError::CutShort {
            offset,
            what: "packet",
        };
        let mut record = Vec::new();
        match self.fill(&mut record, PCAP_RECORD, offset)? {
            0 => return Ok(None),
            PCAP_RECORD => {}
            _ => return Err(cut_short),
        }
        let mut fields = record
            .chunks_exact(4)
            .map(|field| number(field, big_endian));
        let mut field = || fields.next().unwrap_or(0);
        let (seconds, fraction, captured, original_len) = (field(), field(), field(), field());
        if captured > BLOCK_MAX {
            return Err(malformed(offset, format!("a packet of {captured} bytes")));
        }
        let mut bytes = Vec::new();
        let length = usize::try_from(captured).unwrap_or(usize::MAX);
        if self.fill(&mut bytes, length, offset)? < length {
            return Err(cut_short);
        }
        let Some(interface) = self.interfaces.first() else {
            return Ok(None);
        };
        let ticks = i128::from(seconds) * interface.resolution + i128::from(fraction);
        let time = interface.time(ticks, offset)?;
        let captured = Captured {
            link: interface.link,
            bytes,
            original_len,
        };
        Ok(Some(packet(interface, time, captured)))
    }

    /// A section header, whose first 8 bytes are in `bytes`.
    fn section(&mut self, mut bytes: Vec<u8>, offset: u64) -> Result<(), ReadError> {
        let what = "section header";
        if self.fill(&mut bytes, 4, offset)? < 4 {
            return Err(ReadError::CutShort { offset, what });
        }
        let big_endian = match bytes.get(8..12) {
            Some(magic) if magic == BIG_ENDIAN => true,
            Some(magic) if magic == LITTLE_ENDIAN => false,
            _ => return Err(malformed(offset, "a section header without byte order")),
        };
        self.format = Format::Pcapng { big_endian };
        self.interfaces.clear();
        let bytes = self.rest(bytes, big_endian, offset, what)?;
        let Some(Block::SectionHeader(section)) = parse(&bytes, big_endian) else {
            return Err(malformed(offset, "a section header that cannot be read"));
        };
        if section.major_version != 1 {
            let version = section.major_version;
            return Err(malformed(
                offset,
                format!("a section of pcapng version {version}; version 1 is known"),
            ));
        }
        self.several |= custom_text(&section.options, big_endian) == super::SEVERAL;
        Ok(())
    }

    /// Reads what is missing of a block, and checks its lengths.
    fn rest(
        &mut self,
        mut bytes: Vec<u8>,
        big_endian: bool,
        offset: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, ReadError> {
        let length = bytes
            .get(4..8)
            .map_or(0, |length| number(length, big_endian));
        if length < 12 || length % 4 != 0 || length > BLOCK_MAX {
            return Err(malformed(offset, format!("a {what} of {length} bytes")));
        }
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        let missing = whole.saturating_sub(bytes.len());
        if self.fill(&mut bytes, missing, offset)? < missing {
            return Err(ReadError::CutShort { offset, what });
        }
        let again = bytes.last_chunk::<4>();
        if again.is_none_or(|again| number(again, big_endian) != length) {
            return Err(malformed(
                offset,
                format!("a {what} whose two lengths differ"),
            ));
        }
        Ok(bytes)
    }

    /// A block, whose first 8 bytes are in `bytes`; `None`: nothing to show.
    fn block(&mut self, bytes: Vec<u8>, offset: u64) -> Result<Option<Item>, ReadError> {
        if bytes.starts_with(&block::SECTION.to_le_bytes()) {
            self.section(bytes, offset)?;
            return Ok(None);
        }
        let big_endian = matches!(self.format, Format::Pcapng { big_endian: true });
        let kind = bytes.get(..4).map_or(0, |kind| number(kind, big_endian));
        let bytes = self.rest(bytes, big_endian, offset, "block")?;
        match kind {
            block::INTERFACE | block::PACKET | block::SIMPLE => {}
            block::OWN => return Ok(own(&bytes, big_endian, offset)),
            _ => return Ok(None),
        }
        match parse(&bytes, big_endian) {
            Some(Block::InterfaceDescription(described)) => {
                let link = LinkType((described.linktype.0 & 0xffff) as u16);
                let name = described.if_name().and_then(Result::ok).map(Arc::from);
                let resolution = resolution(described.if_tsresol).ok_or_else(|| {
                    malformed(offset, "an interface whose time is finer than can be told")
                })?;
                self.interfaces.push(Interface {
                    link,
                    name,
                    snaplen: described.snaplen,
                    resolution,
                    offset: time_offset(&described.options, big_endian),
                });
                Ok(None)
            }
            Some(Block::EnhancedPacket(block)) => {
                let interface = usize::try_from(block.if_id).ok();
                let interface = interface.and_then(|number| self.interfaces.get(number));
                let interface = interface.ok_or_else(|| {
                    malformed(
                        offset,
                        format!(
                            "a packet of interface {}, which was not described",
                            block.if_id
                        ),
                    )
                })?;
                let ticks = i128::from(block.ts_high) << 32 | i128::from(block.ts_low);
                let captured = Captured {
                    link: interface.link,
                    bytes: block.packet_data().to_vec(),
                    original_len: block.origlen,
                };
                let json = custom_text(&block.options, big_endian);
                match attributed(&json, offset) {
                    Some(event) => Ok(Some(Item::Event(Box::new(event), Some(captured)))),
                    None => {
                        let time = interface.time(ticks, offset)?;
                        Ok(Some(packet(interface, time, captured)))
                    }
                }
            }
            Some(Block::SimplePacket(block)) => {
                let Some(interface) = self.interfaces.first() else {
                    return Err(malformed(
                        offset,
                        "a packet before the description of its interface",
                    ));
                };
                let mut bytes = block.packet_data();
                if let Ok(snaplen @ 1..) = usize::try_from(interface.snaplen) {
                    bytes = bytes.get(..snaplen).unwrap_or(bytes);
                }
                let captured = Captured {
                    link: interface.link,
                    bytes: bytes.to_vec(),
                    original_len: block.origlen,
                };
                // It has none.
                let time = Timestamp::UNIX_EPOCH;
                Ok(Some(packet(interface, time, captured)))
            }
            _ => Err(malformed(
                offset,
                format!("a block of type {kind} that cannot be read"),
            )),
        }
    }
}

impl Interface {
    fn time(&self, ticks: i128, offset: u64) -> Result<Timestamp, ReadError> {
        let nanoseconds = ticks
            .checked_mul(NANO)
            .map(|scaled| scaled / self.resolution)
            .and_then(|time| time.checked_add(i128::from(self.offset) * NANO));
        let time = nanoseconds.and_then(|time| Timestamp::from_nanosecond(time).ok());
        time.ok_or_else(|| malformed(offset, "a packet of a time that is no time"))
    }
}

fn malformed(offset: u64, why: impl Into<String>) -> ReadError {
    ReadError::Malformed {
        offset,
        why: why.into(),
    }
}

/// The first four bytes of `bytes`.
fn number(bytes: &[u8], big_endian: bool) -> u32 {
    let bytes = bytes.first_chunk().copied().unwrap_or_default();
    if big_endian {
        u32::from_be_bytes(bytes)
    } else {
        u32::from_le_bytes(bytes)
    }
}

fn parse(bytes: &[u8], big_endian: bool) -> Option<Block<'_>> {
    let parsed = if big_endian {
        parse_block_be(bytes)
    } else {
        parse_block_le(bytes)
    };
    parsed.ok().map(|(_, block)| block)
}

/// Ticks a second, by `if_tsresol`: a power of 10, or with the highest bit of 2.
fn resolution(code: u8) -> Option<i128> {
    let exponent = u32::from(code & 0x7f);
    match code & 0x80 {
        0 if exponent <= 30 => 10_i128.checked_pow(exponent),
        0x80 if exponent <= 90 => 2_i128.checked_pow(exponent),
        _ => None,
    }
}

/// `if_tsoffset`, seconds.
fn time_offset(options: &[PcapNGOption<'_>], big_endian: bool) -> i64 {
    let option = options.iter().find(|option| option.code.0 == 14);
    let bytes = option.and_then(|option| option.as_bytes().ok());
    let bytes = bytes.and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    bytes.map_or(0, |bytes| {
        if big_endian {
            i64::from_be_bytes(bytes)
        } else {
            i64::from_le_bytes(bytes)
        }
    })
}

/// The text of all custom options that carry our number.
fn custom_text(options: &[PcapNGOption<'_>], big_endian: bool) -> String {
    let ours = options.iter().filter_map(|option| {
        if option.code.0 != block::CUSTOM_TEXT {
            return None;
        }
        let (enterprise, text) = option.as_bytes().ok()?.split_at_checked(4)?;
        let ours = number(enterprise, big_endian) == ENTERPRISE;
        ours.then(|| str::from_utf8(text).ok()).flatten()
    });
    ours.collect()
}

/// The event of a packet, if the text is one.
fn attributed(json: &str, offset: u64) -> Option<Event> {
    if json.is_empty() {
        return None;
    }
    match Event::from_json(json) {
        Ok(event @ (Event::Drop(_) | Event::Log(_))) => Some(event),
        Ok(_) => None,
        Err(error) => {
            log::warn!(
                "the packet at offset {offset} has an attribution that cannot be read: {error}"
            );
            None
        }
    }
}

/// What a block of our own says.
fn own(bytes: &[u8], big_endian: bool, offset: u64) -> Option<Item> {
    let body = bytes.get(8..bytes.len().checked_sub(4)?)?;
    let (enterprise, text) = body.split_at_checked(4)?;
    if number(enterprise, big_endian) != ENTERPRISE {
        return None;
    }
    let text = str::from_utf8(text).ok()?.trim_end_matches(['\0', '\n']);
    let (json, aside) = match text.strip_prefix(EVENT) {
        Some(json) => (json, false),
        None => (text.strip_prefix(ASIDE)?, true),
    };
    match Event::from_json(json) {
        Ok(event) if aside => Some(Item::Aside(Box::new(event))),
        Ok(event) => Some(Item::Event(Box::new(event), None)),
        Err(error) => {
            log::warn!("the block at offset {offset} cannot be read: {error}");
            None
        }
    }
}

/// A packet of which nothing else is known.
fn packet(interface: &Interface, time: Timestamp, captured: Captured) -> Item {
    let event = PacketEvent {
        time,
        verdict: None,
        rule: None,
        interface: interface.name.clone(),
        packet: decode(&captured),
    };
    Item::Event(Box::new(Event::Packet(Box::new(event))), Some(captured))
}

/// What the bytes say, whatever they begin with.
fn decode(captured: &Captured) -> Packet {
    let bytes = captured.bytes.as_slice();
    let ip = |bytes: &[u8]| match bytes.first().map(|first| first >> 4) {
        Some(4) => 0x0800,
        Some(6) => 0x86dd,
        _ => 0,
    };
    let be16 = |at: usize| {
        let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
        field.map_or(0, |field| u16::from_be_bytes(*field))
    };
    // Length of the link's header, and the EtherType behind it.
    let (header, ethertype) = match captured.link {
        LinkType::ETHERNET => (14, be16(12)),
        LinkType::LINUX_SLL => (16, be16(14)),
        LinkType::LINUX_SLL2 => (20, be16(0)),
        // A family in the byte order of the machine that wrote it, then an IP header.
        LinkType::NULL | LinkType::LOOP => (4, ip(bytes.get(4..).unwrap_or_default())),
        LinkType::RAW | LinkType::IPV4 | LinkType::IPV6 => (0, ip(bytes)),
        _ => (0, 0),
    };
    let capture = Capture {
        bytes: bytes.get(header..).unwrap_or_default(),
        ethertype,
        wire_len: captured
            .original_len
            .saturating_sub(u32::try_from(header).unwrap_or(0)),
        vlan: None,
    };
    capture.packet()
}
