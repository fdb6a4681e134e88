//! A packet in words: `tcp 10.9.0.1:36334 > 10.9.0.2:80 SYN len 60`.

use std::fmt;
use std::net::IpAddr;

use super::{ArpOp, Family, Packet};

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for vlan in &self.vlan {
            write!(f, "vlan {} ", vlan.id)?;
        }
        match self.family {
            Family::Ipv4 | Family::Ipv6 => self.fmt_ip(f)?,
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
}

impl Packet {
    fn fmt_ip(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.proto {
            Some(proto) => write!(f, "{proto}")?,
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
            match icmp.name {
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
