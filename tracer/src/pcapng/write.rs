//! Events and their packets -> one section of pcapng.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use jiff::Timestamp;

use super::{
    ASIDE, EVENT, Frame, LinkType, Section,
    block::{self, Interface, Packet, Statistics},
};
use crate::{
    event::{DropEvent, Event, Hook},
    output,
};

/// `epb_flags`, bits 0 and 1: the packet came in, or was going out.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// `epb_flags`, bits 2 to 4 by `packet_type`: unicast, broadcast, multicast, promiscuous.
const RECEPTION: [u32; 4] = [1 << 2, 3 << 2, 2 << 2, 4 << 2];
const LOST_ELSEWHERE: &str = "isb_ifdrop and isb_osdrop: lost drops of all interfaces, since which interface a lost drop belonged to is not known";

/// Writes one section. Each block is one call of `out`'s `write_all`.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    snaplen: u32,
    interfaces: HashMap<Key, u32>,
    counts: Vec<Count>,
    /// One block, and one line of JSON.
    block: Vec<u8>,
    json: Vec<u8>,
}

/// An interface is another one under each link type: the header can be gone by the time of the drop.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    netns: u32,
    name: Option<std::sync::Arc<str>>,
    link: LinkType,
}

#[derive(Debug)]
struct Count {
    packets: u64,
    first: u64,
    last: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a section. `snaplen`: bytes of each packet that are written at the most.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn new(out: W, section: &Section, snaplen: u32) -> io::Result<Self> {
        let mut writer = Self {
            out,
            snaplen,
            interfaces: HashMap::new(),
            counts: Vec::new(),
            block: Vec::new(),
            json: Vec::new(),
        };
        block::section(&mut writer.block, section);
        writer.put()?;
        Ok(writer)
    }

    /// Where it writes to.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Ends without statistics.
    pub fn into_out(self) -> W {
        self.out
    }

    /// Writes an event: a drop with `frame`, its packet; anything else as a block of its own.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn event(&mut self, event: &Event, frame: Option<&Frame<'_>>) -> io::Result<()> {
        match (event, frame) {
            (Event::Drop(drop) | Event::Log(drop), Some(frame)) => self.packet(event, drop, frame),
            _ => self.own(EVENT, event),
        }
    }

    /// Writes an event that was told beside the others.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn aside(&mut self, event: &Event) -> io::Result<()> {
        self.own(ASIDE, event)
    }

    /// Writes the statistics, which end the section: `lost` drops were not shown, and so not written.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn statistics(&mut self, lost: u64) -> io::Result<()> {
        let now = nanoseconds(Timestamp::now());
        for index in 0..self.counts.len() {
            let Some(count) = self.counts.get(index) else {
                break;
            };
            // Losses are told once, or a reader that adds up counts them twice.
            let lost = if index == 0 { lost } else { 0 };
            let several = self.counts.len() > 1 && lost > 0;
            let statistics = Statistics {
                interface: u32::try_from(index).unwrap_or(u32::MAX),
                times: [now, count.first, count.last],
                received: count.packets + lost,
                lost,
                delivered: count.packets,
                comment: several.then_some(LOST_ELSEWHERE),
            };
            block::statistics(&mut self.block, &statistics);
            self.put()?;
        }
        Ok(())
    }

    fn packet(&mut self, event: &Event, drop: &DropEvent, frame: &Frame<'_>) -> io::Result<()> {
        let (flags, name) = way(drop);
        let interface = self.interface(
            Key {
                netns: drop.netns.inode,
                name: name.cloned(),
                link: frame.link,
            },
            drop,
        )?;
        let time = nanoseconds(drop.time);
        let reception = match frame.packet_type {
            Some(kind) if flags == INBOUND => RECEPTION.get(usize::from(kind)).copied(),
            _ => None,
        };
        let length = frame.bytes.len().min(self.snaplen as usize);
        let packet = Packet {
            interface,
            time,
            bytes: frame.bytes.get(..length).unwrap_or_default(),
            original_len: frame.original_len,
            flags: flags | reception.unwrap_or(0),
            comment: &output::comment(drop),
            json: line(&mut self.json, event)?,
        };
        block::packet(&mut self.block, &packet);
        self.put()?;
        if let Some(count) = self.counts.get_mut(interface as usize) {
            count.packets += 1;
            count.first = count.first.min(time);
            count.last = count.last.max(time);
        }
        Ok(())
    }

    fn interface(&mut self, key: Key, drop: &DropEvent) -> io::Result<u32> {
        if let Some(number) = self.interfaces.get(&key) {
            return Ok(*number);
        }
        let inode = drop.netns.inode;
        let netns = match &drop.netns.name {
            Some(name) => format!("network namespace {name} ({inode})"),
            None => format!("network namespace {inode}"),
        };
        let description = match key.name {
            Some(_) => netns,
            None => format!("interface not known, {netns}"),
        };
        let interface = Interface {
            link: key.link,
            snaplen: self.snaplen,
            name: key.name.as_deref(),
            description: &description,
        };
        block::interface(&mut self.block, &interface);
        self.put()?;
        let number = u32::try_from(self.counts.len()).unwrap_or(u32::MAX);
        self.counts.push(Count {
            packets: 0,
            first: u64::MAX,
            last: 0,
        });
        self.interfaces.insert(key, number);
        Ok(number)
    }

    fn own(&mut self, kind: &str, event: &Event) -> io::Result<()> {
        let text = format!("{kind}{}\n", line(&mut self.json, event)?);
        block::own(&mut self.block, &text);
        self.put()
    }

    fn put(&mut self) -> io::Result<()> {
        let written = self.out.write_all(&self.block);
        self.block.clear();
        written
    }
}

/// The direction, as `epb_flags` has it, and the interface that the packet was at.
fn way(drop: &DropEvent) -> (u32, Option<&std::sync::Arc<str>>) {
    let (iif, oif) = (drop.iif.as_ref(), drop.oif.as_ref());
    match drop.hook {
        Some(Hook::Output | Hook::Postrouting | Hook::Egress) => (OUTBOUND, oif.or(iif)),
        Some(_) => (INBOUND, iif.or(oif)),
        None if iif.is_some() => (INBOUND, iif),
        None if oif.is_some() => (OUTBOUND, oif),
        None => (0, None),
    }
}

/// The event's JSON without the newline.
fn line<'a>(json: &'a mut Vec<u8>, event: &Event) -> io::Result<&'a str> {
    json.clear();
    event.write_json(&mut *json)?;
    let text = str::from_utf8(json).map_err(io::Error::other)?;
    Ok(text.trim_end())
}

/// Since 1970; what is before or does not fit is 0.
fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}
