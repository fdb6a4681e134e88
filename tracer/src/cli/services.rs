//! Service names, from /etc/services alone: nothing is looked up over the network.

/// Names that a machine without /etc/services knows too.
const COMMON: &[(&str, u16)] = &[
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("domain", 53),
    ("http", 80),
    ("ntp", 123),
    ("imap", 143),
    ("snmp", 161),
    ("ldap", 389),
    ("https", 443),
    ("imaps", 993),
];

/// The port of the service called `name`.
pub(super) fn port(name: &str) -> Option<u16> {
    let services = std::fs::read_to_string("/etc/services").unwrap_or_default();
    find(&services, name).or_else(|| COMMON.iter().find(|s| s.0 == name).map(|s| s.1))
}

/// Reads `services(5)`: name, port/protocol, aliases; `#` starts a comment.
fn find(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let (service, port) = (words.next()?, words.next()?);
        if service != name && !words.any(|alias| alias == name) {
            return None;
        }
        port.split('/').next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_aliases_and_comments() {
        let services = "# none\nhttp\t80/tcp\t\twww # WorldWideWeb HTTP\n\nbroken\nx y/tcp\n";
        assert_eq!(find(services, "http"), Some(80));
        assert_eq!(find(services, "www"), Some(80));
        assert_eq!(find(services, "WorldWideWeb"), None);
        assert_eq!(find(services, "x"), None);
        assert_eq!(port("https"), Some(443));
    }
}
