//! The filter as the BPF program takes it.

use std::fmt::Display;
use std::net::IpAddr;

use fwtrace_abi::{
    IFACES, IFNAMSIZ, PORTS, PREFIXES, PortRange, Prefix, REASONS, SIDE_ANY, SIDE_DST, SIDE_SRC,
    Settings,
};

use super::plan::{Filter, Live, Reasons, Side, Watch};
use super::values::{mask4, mask6};
use super::{Error, PrefixMatch};

impl Live {
    /// Writes the conditions that the kernel evaluates into `settings`, and nothing else of it.
    /// `reason` gives the running kernel's number of a drop reason (`NO_SOCKET`), or says why not.
    ///
    /// # Errors
    /// [`Error::Usage`]: a list is longer than the kernel side holds, or there is no such reason.
    pub fn apply<E: Display>(
        &self,
        settings: &mut Settings,
        reason: impl Fn(&str) -> Result<u32, E>,
    ) -> Result<(), Error> {
        let asked = match (&self.write, self.snaplen) {
            (Some(plan), _) => plan.snaplen,
            (None, asked) => asked.unwrap_or(0),
        };
        // The headers are looked at, however little is kept.
        settings.snaplen = asked.max(settings.snaplen);
        settings.all_netns = u32::from(matches!(self.watch, Watch::All));
        self.filter.apply(settings, reason)
    }
}

impl Filter {
    fn apply<E: Display>(
        &self,
        settings: &mut Settings,
        reason: impl Fn(&str) -> Result<u32, E>,
    ) -> Result<(), Error> {
        let ports = self.ports.iter().map(|p| PortRange {
            first: p.ports.first,
            last: p.ports.last,
            side: side(p.side),
        });
        settings.port_count = fill(&mut settings.ports, ports, "ports and port ranges", PORTS)?;
        let prefixes = self.prefixes.iter().map(prefix);
        settings.prefix_count = fill(
            &mut settings.prefixes,
            prefixes,
            "addresses and prefixes",
            PREFIXES,
        )?;
        let ifaces = self.ifaces.iter().map(|name| {
            let mut padded = [0; IFNAMSIZ];
            // The kernel's own names fit, with their NUL.
            for (to, from) in padded.iter_mut().zip(name.bytes().take(IFNAMSIZ - 1)) {
                *to = from;
            }
            padded
        });
        settings.iface_count = fill(&mut settings.ifaces, ifaces, "interfaces", IFACES)?;

        settings.ip_version = self.ip_version.map_or(0, u32::from);
        settings.proto_set = u32::from(self.proto.is_some());
        settings.proto = self.proto.map_or(0, |proto| u32::from(proto.0));

        settings.all_reasons = u32::from(self.reasons == Reasons::All);
        settings.reason_count = 0;
        if let Reasons::Names(names) = &self.reasons {
            let numbers: Result<Vec<u32>, Error> = names
                .iter()
                .map(|name| reason(name).map_err(|err| Error::usage(format!("--reason: {err}"))))
                .collect();
            settings.reason_count = fill(
                &mut settings.reasons,
                numbers?.into_iter(),
                "drop reasons",
                REASONS,
            )?;
        }
        Ok(())
    }
}

/// Puts `items` into the first of `slots`, and says how many; one too many names `what`.
fn fill<T>(
    slots: &mut [T],
    items: impl Iterator<Item = T>,
    what: &str,
    limit: usize,
) -> Result<u32, Error> {
    let mut count = 0;
    let mut free = slots.iter_mut();
    for item in items {
        let Some(slot) = free.next() else {
            return Err(Error::usage(format!(
                "more than {limit} {what}: the filter holds {limit}; use ranges or prefixes, or leave some out"
            )));
        };
        *slot = item;
        count += 1;
    }
    Ok(count)
}

fn side(side: Side) -> u32 {
    match side {
        Side::Any => SIDE_ANY,
        Side::Src => SIDE_SRC,
        Side::Dst => SIDE_DST,
    }
}

fn prefix(matched: &PrefixMatch) -> Prefix {
    let len = matched.prefix.len;
    let (addr, mask) = match matched.prefix.addr {
        IpAddr::V4(addr) => (
            in_front(&addr.octets()),
            in_front(&mask4(len).to_be_bytes()),
        ),
        IpAddr::V6(addr) => (addr.octets(), mask6(len).to_be_bytes()),
    };
    Prefix {
        addr: words(addr),
        mask: words(mask),
        family: u32::from(matched.version()),
        side: side(matched.side),
    }
}

/// An IPv4 address where the kernel side looks for it.
fn in_front(v4: &[u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(v4);
    bytes
}

/// Words of the bytes' order, as the packet has them.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        if let Ok(chunk) = chunk.try_into() {
            *word = u32::from_ne_bytes(chunk);
        }
    }
    words
}
