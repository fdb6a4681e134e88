//! The names that a listing borrows from the machine: interfaces, protocols, marks, realms, groups, labels, cgroups, the time zone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::Path;

use jiff::tz::TimeZone;

/// Where the cgroup v2 hierarchy is mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Names for the numbers in a ruleset. What has no name is printed as a number.
#[derive(Debug, Clone)]
pub struct Names {
    interfaces: BTreeMap<u32, String>,
    protocols: BTreeMap<u32, String>,
    marks: BTreeMap<u32, String>,
    realms: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
    labels: BTreeMap<u32, String>,
    ip_sets: BTreeMap<u16, String>,
    cgroups: bool,
    zone: TimeZone,
}

impl Default for Names {
    /// No names but those of the protocols that every machine knows; times in UTC.
    fn default() -> Self {
        let none = BTreeMap::new;
        let protocols = WELL_KNOWN
            .iter()
            .map(|&(number, name)| (number, name.to_owned()))
            .collect();
        Self {
            interfaces: none(),
            protocols,
            marks: none(),
            realms: none(),
            groups: none(),
            labels: none(),
            ip_sets: BTreeMap::new(),
            cgroups: false,
            zone: TimeZone::UTC,
        }
    }
}

/// IP protocols for machines without /etc/protocols.
const WELL_KNOWN: &[(u32, &str)] = &[
    (0, "ip"),
    (1, "icmp"),
    (2, "igmp"),
    (4, "ipencap"),
    (6, "tcp"),
    (17, "udp"),
    (33, "dccp"),
    (41, "ipv6"),
    (43, "ipv6-route"),
    (44, "ipv6-frag"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (58, "ipv6-icmp"),
    (59, "ipv6-nonxt"),
    (60, "ipv6-opts"),
    (89, "ospf"),
    (103, "pim"),
    (108, "ipcomp"),
    (112, "vrrp"),
    (132, "sctp"),
    (136, "udplite"),
];

impl Names {
    /// The names of this machine: /etc/protocols, /etc/iproute2, connlabel.conf, cgroups and the time zone. Files that are not there
    /// give no names. Interfaces belong to a network namespace: see [`Names::with_interfaces`].
    pub fn system() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut names = Self {
            marks: parse_iproute(&read("/etc/iproute2/rt_marks")),
            realms: parse_iproute(&read("/etc/iproute2/rt_realms")),
            groups: parse_iproute(&read("/etc/iproute2/group")),
            labels: parse_iproute(&read("/etc/xtables/connlabel.conf")),
            cgroups: true,
            zone: TimeZone::system(),
            ..Self::default()
        };
        let protocols = parse_protocols(&read("/etc/protocols"));
        if !protocols.is_empty() {
            names.protocols = protocols;
        }
        names
    }

    /// The same names with the interfaces of a network namespace, by index.
    #[must_use]
    pub fn with_interfaces(mut self, interfaces: impl IntoIterator<Item = (u32, String)>) -> Self {
        self.interfaces = interfaces.into_iter().collect();
        self
    }

    /// The same names with the sets of ipset of a network namespace, by index.
    #[must_use]
    pub fn with_ip_sets(mut self, sets: impl IntoIterator<Item = (u16, String)>) -> Self {
        self.ip_sets = sets.into_iter().collect();
        self
    }

    pub(crate) fn ip_set(&self, index: u16) -> Option<&str> {
        self.ip_sets.get(&index).map(String::as_str)
    }

    pub(super) fn interface(&self, index: u32) -> Option<&str> {
        self.interfaces.get(&index).map(String::as_str)
    }

    pub(crate) fn protocol(&self, number: u32) -> Option<&str> {
        self.protocols.get(&number).map(String::as_str)
    }

    pub(super) fn mark(&self, mark: u32) -> Option<&str> {
        self.marks.get(&mark).map(String::as_str)
    }

    pub(crate) fn realm(&self, realm: u32) -> Option<&str> {
        self.realms.get(&realm).map(String::as_str)
    }

    pub(crate) fn group(&self, group: u32) -> Option<&str> {
        self.groups.get(&group).map(String::as_str)
    }

    pub(crate) fn label(&self, bit: u32) -> Option<&str> {
        self.labels.get(&bit).map(String::as_str)
    }

    pub(super) fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The path of a cgroup below the mount point, by its inode number.
    pub(super) fn cgroup(&self, inode: u64) -> Option<String> {
        self.cgroups
            .then(|| find_inode(Path::new(CGROUPS), inode))
            .flatten()
    }
}

/// Walks the directories below `directory` for the one with this inode.
fn find_inode(directory: &Path, inode: u64) -> Option<String> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if entry.ino() == inode {
            let below = path.strip_prefix(CGROUPS).unwrap_or(&path);
            return Some(below.to_string_lossy().into_owned());
        }
        if let Some(found) = find_inode(&path, inode) {
            return Some(found);
        }
    }
    None
}

/// /etc/protocols: `name number aliases`. The first name of a number counts.
fn parse_protocols(text: &str) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let (Some(name), Some(number)) = (words.next(), words.next()) else {
            continue;
        };
        if let Ok(number) = number.parse() {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

/// The files of iproute2: `number name`, the number decimal or hexadecimal.
fn parse_iproute(text: &str) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(number), Some(name)) = (words.next(), words.next()) else {
            continue;
        };
        let number = match number.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => number.parse(),
        };
        if let Ok(number) = number {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_machine() {
        let protocols =
            parse_protocols("# x\ntcp\t6\tTCP # y\nipv6-icmp 58 IPv6-ICMP\nbad\nudp 6\n");
        assert_eq!(protocols[&6], "tcp");
        assert_eq!(protocols[&58], "ipv6-icmp");
        assert_eq!(protocols.len(), 2);
        let realms = parse_iproute("#\n0 cosmos\n0x10\tlan # z\n#1 x\n");
        assert_eq!(
            (realms[&0].as_str(), realms[&16].as_str(), realms.len()),
            ("cosmos", "lan", 2)
        );
    }
}
