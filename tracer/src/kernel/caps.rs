//! Capabilities this process has and lacks (capabilities(7)).

use caps::{CapSet, Capability, CapsHashSet};

/// What a live run does, and the capability each step takes: any one of those listed.
const NEEDS: &[(&[Capability], &str)] = &[
    (
        &[Capability::CAP_BPF, Capability::CAP_SYS_ADMIN],
        "to load BPF programs",
    ),
    (
        &[Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN],
        "to attach them to the kernel's packet drops",
    ),
    (
        &[Capability::CAP_NET_ADMIN],
        "to read the firewall's ruleset",
    ),
    (
        &[Capability::CAP_SYS_ADMIN],
        "to calibrate in a network namespace of its own, and to enter others",
    ),
    (
        &[Capability::CAP_SYSLOG],
        "to read the addresses of kernel functions",
    ),
];

/// A capability that is not in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its name; where one of several will do, the least of them.
    pub capability: Capability,
    /// What it is needed for.
    pub what_for: &'static str,
}

/// What a live run lacks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CapsError {
    /// Capabilities that are not in effect.
    #[error("missing {}; run it with sudo", list(.0))]
    Missing(Vec<Need>),
    /// The kernel did not tell.
    #[error("cannot read this process's capabilities: {0}")]
    Unreadable(#[from] caps::errors::CapsError),
}

fn list(needs: &[Need]) -> String {
    needs
        .iter()
        .map(|need| format!("{} ({})", need.capability, need.what_for))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Checks that this thread has what a live run takes.
///
/// # Errors
/// [`CapsError::Missing`] names each capability that is not in effect, and what it is for.
pub fn check_live_run() -> Result<(), CapsError> {
    let missing = missing_from(&effective()?);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(CapsError::Missing(missing))
    }
}

/// Checks that this thread has what listening to logged packets takes.
///
/// # Errors
/// As [`check_live_run`].
pub fn check_listening() -> Result<(), CapsError> {
    let needed = Need {
        capability: Capability::CAP_NET_ADMIN,
        what_for: "to listen to NFLOG groups and to read the firewall's ruleset",
    };
    match effective()?.contains(&needed.capability) {
        true => Ok(()),
        false => Err(CapsError::Missing(vec![needed])),
    }
}

/// Whether this process is in a user namespace that is not the machine's own: its capabilities count there only.
pub fn in_user_namespace() -> bool {
    // All ids onto themselves, in the first one (user_namespaces(7)).
    let own = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !own.is_empty() && own.split_ascii_whitespace().ne(["0", "0", "4294967295"])
}

/// The capabilities in effect for this thread.
///
/// # Errors
/// When the kernel does not tell.
pub fn effective() -> Result<CapsHashSet, CapsError> {
    Ok(caps::read(None, CapSet::Effective)?)
}

/// What a live run lacks, given the capabilities in effect.
pub fn missing_from(effective: &CapsHashSet) -> Vec<Need> {
    NEEDS
        .iter()
        .filter(|(any, _)| !any.iter().any(|capability| effective.contains(capability)))
        .filter_map(|&(any, what_for)| {
            any.first().map(|&capability| Need {
                capability,
                what_for,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(effective: &[Capability]) -> Vec<Capability> {
        let effective = effective.iter().copied().collect();
        missing_from(&effective)
            .iter()
            .map(|need| need.capability)
            .collect()
    }

    #[test]
    fn nothing_is_enough_for_nothing() {
        use Capability as C;
        assert_eq!(
            missing(&[]),
            [
                C::CAP_BPF,
                C::CAP_PERFMON,
                C::CAP_NET_ADMIN,
                C::CAP_SYS_ADMIN,
                C::CAP_SYSLOG
            ]
        );
    }

    #[test]
    fn sys_admin_stands_in_for_bpf_and_perfmon_only() {
        use Capability as C;
        assert_eq!(
            missing(&[C::CAP_SYS_ADMIN]),
            [C::CAP_NET_ADMIN, C::CAP_SYSLOG]
        );
        assert_eq!(
            missing(&[C::CAP_BPF, C::CAP_PERFMON, C::CAP_NET_ADMIN, C::CAP_SYSLOG]),
            [C::CAP_SYS_ADMIN]
        );
        assert_eq!(
            missing(&[C::CAP_SYS_ADMIN, C::CAP_NET_ADMIN, C::CAP_SYSLOG]),
            []
        );
    }

    #[test]
    fn the_message_names_capability_purpose_and_next_step() {
        let message = CapsError::Missing(missing_from(
            &[Capability::CAP_SYS_ADMIN, Capability::CAP_SYSLOG]
                .into_iter()
                .collect(),
        ))
        .to_string();
        assert_eq!(
            message,
            "missing CAP_NET_ADMIN (to read the firewall's ruleset); run it with sudo"
        );
    }

    #[test]
    fn reads_its_own() {
        // CapEff of /proc, read the other way.
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .unwrap();
        let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
        let effective = effective().unwrap();
        for capability in caps::all() {
            assert_eq!(
                effective.contains(&capability),
                mask & capability.bitmask() != 0,
                "{capability}"
            );
        }
    }
}
