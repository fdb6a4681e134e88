//! A packet in words: `tcp 10.9.0.1:36334 > 10.9.0.2:80 SYN len 60`.

use std::fmt;
use std::net::IpAddr;

use super::{ArpOp, Family, Packet};

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_with(f, false)
    }
}

/// A packet in words, with protocols and ICMP types as numbers.
#[derive(Clone, Copy, Debug)]
pub struct Numeric<'a>(pub &'a Packet);

impl fmt::Display for Numeric<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt_with(f, true)
    }
}

impl Packet {
    fn fmt_with(&self, f: &mut fmt::Formatter<'_>, numeric: bool) -> fmt::Result {
        for vlan in &self.vlan {
            write!(f, "vlan {} ", vlan.id)?;
        }
        match self.family {
            Family::Ipv4 | Family::Ipv6 => self.fmt_ip(f, numeric)?,
            Family::Arp => self.fmt_arp(f)?,
            Family::Other => match self.ethertype {
                Some(ethertype) => write!(f, "ethertype {ethertype:#06x}")?,
                None => f.write_str("unknown protocol")?,
            },
        }
        if let Some(len) = self.len {
            write!(f, " len {len}")?;
        }
        if self.truncated {
            f.write_str(" (headers cut short)")?;
        }
        Ok(())
    }

    fn fmt_ip(&self, f: &mut fmt::Formatter<'_>, numeric: bool) -> fmt::Result {
        match self.proto {
            Some(proto) if numeric => write!(f, "proto {}", proto.0)?,
            Some(proto) => match proto.name() {
                Some(name) => f.write_str(name)?,
                None => write!(f, "proto {}", proto.0)?,
            },
            None => f.write_str(self.family.as_str())?,
        }
        if let (Some(src), Some(dst)) = (self.src, self.dst) {
            f.write_str(" ")?;
            fmt_endpoint(f, src, self.sport)?;
            f.write_str(" > ")?;
            fmt_endpoint(f, dst, self.dport)?;
        }
        if let Some(flags) = self.flags {
            f.write_str(" ")?;
            flags.fmt_words(f)?;
        }
        if let Some(icmp) = self.icmp {
            match icmp.name.filter(|_| !numeric) {
                Some(name) => write!(f, " {name}")?,
                None => write!(f, " type {} code {}", icmp.kind, icmp.code)?,
            }
        }
        if let Some(fragment) = &self.fragment {
            let more = if fragment.more { "+" } else { "" };
            write!(f, " frag {}{more}", fragment.offset)?;
        }
        Ok(())
    }

    fn fmt_arp(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("arp")?;
        let (Some(arp), Some(src), Some(dst)) = (&self.arp, self.src, self.dst) else {
            return Ok(());
        };
        match arp.op {
            ArpOp::Request => write!(f, " who-has {dst} tell {src}"),
            ArpOp::Reply => match arp.sender {
                Some(mac) => write!(f, " {src} is-at {mac}"),
                None => write!(f, " reply {src} > {dst}"),
            },
            ArpOp::Other(op) => write!(f, " op {op} {src} > {dst}"),
        }
    }
}

fn fmt_endpoint(f: &mut fmt::Formatter<'_>, addr: IpAddr, port: Option<u16>) -> fmt::Result {
    match (addr, port) {
        (IpAddr::V6(addr), Some(port)) => write!(f, "[{addr}]:{port}"),
        (IpAddr::V4(addr), Some(port)) => write!(f, "{addr}:{port}"),
        (addr, None) => write!(f, "{addr}"),
    }
}
