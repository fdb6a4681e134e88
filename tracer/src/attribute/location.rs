//! Code addresses: which engine freed the packet, in which hook.

use std::{cell::RefCell, collections::HashMap, ops::Range, sync::Arc};

use fwtrace_abi::{SITE_POLICY, SITE_RULE, Site};

use super::{NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_NETDEV};
use crate::{
    event::DecidedBy,
    kernel::{
        hooks,
        symbols::{self, Symbols},
    },
};

/// `NF_INET_PRE_ROUTING`: the one hook of IP that comes before routing.
const PREROUTING: u8 = 0;
/// `NF_NETDEV_INGRESS`.
const INGRESS: u8 = 0;

/// What is known of the kernel's code.
pub struct Locations {
    nft_do_chain: Option<Range<u64>>,
    callers: Symbols,
    sites: Vec<Site>,
    /// Each location is looked up in kallsyms once: there are few.
    seen: RefCell<HashMap<u64, Option<Arc<str>>>>,
}

impl Locations {
    /// `symbols` must have been asked for `nft_do_chain` and [`hooks::caller_names`]; `sites` are what
    /// calibration has learnt.
    pub fn new(symbols: Symbols, sites: &[Site]) -> Self {
        Self {
            nft_do_chain: symbols.range("nft_do_chain"),
            callers: symbols,
            sites: sites.to_vec(),
            seen: RefCell::default(),
        }
    }

    /// Whether nf_tables frees packets in its interpreter, where that can be told from other drops.
    pub(super) fn drops_in_place(&self) -> bool {
        !self.sites.is_empty()
    }

    /// Whether `location` is in nf_tables' interpreter.
    pub(super) fn is_nftables(&self, location: u64) -> bool {
        self.nft_do_chain
            .as_ref()
            .is_some_and(|range| range.contains(&location))
    }

    /// Whether a rule or a policy drops at `location`.
    pub(super) fn decided_by(&self, location: u64) -> Option<DecidedBy> {
        let site = self.sites.iter().find(|site| site.location == location)?;
        match site.kind {
            SITE_RULE => Some(DecidedBy::Rule),
            SITE_POLICY => Some(DecidedBy::Policy),
            _ => None,
        }
    }

    /// `function+0xoffset`.
    pub(super) fn symbol(&self, location: u64) -> Option<Arc<str>> {
        self.seen
            .borrow_mut()
            .entry(location)
            .or_insert_with(|| symbols::describe(location).map(Into::into))
            .clone()
    }

    /// Family and hook of the innermost caller of a hook among the return addresses in `stack`, of those that can have had the packet if
    /// there are any. `routed`: whether it has a route, if that tells before routing from after it. Frames hold what earlier calls have
    /// left there, too: return addresses of a hook that the packet before came to.
    pub(super) fn hook(&self, stack: &[u64], routed: Option<bool>) -> Option<(u8, u8)> {
        let callers: Vec<&str> = stack
            .iter()
            .filter_map(|&word| self.callers.find(word))
            .map(|(name, _)| name)
            .collect();
        let mut hooks = (0..callers.len())
            .filter_map(|from| hooks::hook_of_stack(callers.iter().skip(from).copied()));
        let innermost = hooks.next()?;
        let possible = |&(pf, hook): &(u8, u8)| match (pf, hook) {
            (NFPROTO_IPV4 | NFPROTO_IPV6, PREROUTING) | (NFPROTO_NETDEV, INGRESS) => {
                routed != Some(true)
            }
            (NFPROTO_IPV4 | NFPROTO_IPV6, _) | (NFPROTO_NETDEV, _) => routed != Some(false),
            _ => true,
        };
        let found = std::iter::once(innermost).chain(hooks).find(possible);
        found.or(Some(innermost))
    }
}
