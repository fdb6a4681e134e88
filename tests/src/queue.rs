//! Packets that a rule hands to user space, and that go on when the test says so.

use anyhow::{Context, Result, ensure};
use fwtrace::netlink::attr::{Attrs, Writer};
use fwtrace::netlink::socket::{Protocol, Socket, flags, message};

use crate::netns::Netns;
use crate::wait_until;

/// `NFNL_SUBSYS_QUEUE << 8`, and the messages `NFQNL_MSG_PACKET`, `NFQNL_MSG_VERDICT`, `NFQNL_MSG_CONFIG`
/// (include/uapi/linux/netfilter/nfnetlink_queue.h, v6.18).
const PACKET: u16 = 3 << 8;
const VERDICT: u16 = 3 << 8 | 1;
const CONFIG: u16 = 3 << 8 | 2;
const NF_ACCEPT: u32 = 1;

/// The packets of one queue.
#[derive(Debug)]
pub struct Queue {
    socket: Socket,
    number: u16,
}

impl Queue {
    /// Listens to queue `number` of the namespace.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open(ns: &Netns, number: u16) -> Result<Self> {
        let mut socket = ns.run(|| Socket::open(Protocol::Netfilter, &[]))?;
        let [high, low] = number.to_be_bytes();
        // NFQA_CFG_CMD: NFQNL_CFG_CMD_BIND.
        let mut bind = Writer::new();
        bind.raw(&[0, 0, high, low]).bytes(1, &[1, 0, 0, 2]);
        let seq = socket.next_seq();
        socket.request_ack(&message(
            CONFIG,
            flags::REQUEST | flags::ACK,
            seq,
            &bind.finish()?,
        ))?;
        // NFQA_CFG_PARAMS: whole packets, NFQNL_COPY_PACKET.
        let mut copy = Writer::new();
        copy.raw(&[0, 0, high, low]).bytes(2, &[0, 0, 255, 255, 2]);
        let seq = socket.next_seq();
        socket.request_ack(&message(
            CONFIG,
            flags::REQUEST | flags::ACK,
            seq,
            &copy.finish()?,
        ))?;
        Ok(Self { socket, number })
    }

    /// Waits until so many packets are held; their ids, in order.
    ///
    /// # Errors
    /// They do not come.
    pub fn held(&mut self, count: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let socket = &mut self.socket;
        let came = wait_until(|| {
            while let Ok(Some(messages)) = socket.recv() {
                for message in messages.flatten().filter(|m| m.kind == PACKET) {
                    // NFQA_PACKET_HDR: the id first.
                    let header = Attrs::after(message.payload, 4).find(1).ok().flatten();
                    let id = header.and_then(|header| header.payload.first_chunk().copied());
                    ids.extend(id.map(u32::from_be_bytes));
                }
            }
            ids.len() >= count
        });
        ensure!(came, "{} of {count} packets are held", ids.len());
        Ok(ids)
    }

    /// Lets a packet go on.
    ///
    /// # Errors
    /// It is not held.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        let [high, low] = self.number.to_be_bytes();
        let mut verdict = Writer::new();
        verdict.raw(&[0, 0, high, low]);
        verdict.bytes(2, &[NF_ACCEPT.to_be_bytes(), id.to_be_bytes()].concat());
        let seq = self.socket.next_seq();
        let request = message(
            VERDICT,
            flags::REQUEST | flags::ACK,
            seq,
            &verdict.finish()?,
        );
        let done = self.socket.request_ack(&request);
        done.with_context(|| format!("packet {id}"))
    }
}
