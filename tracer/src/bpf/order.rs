//! In which order a hook calls its base chains and tables, as the kernel's own list has it.

use fwtrace_abi::{
    HookList, LIST_OK, LIST_UNREAD, LISTED, LISTED_LEGACY, LISTED_NAT, LISTED_NFT, LISTED_TRACKING,
    Listed,
};

use super::load::{BpfError, Programs};
use crate::{
    eval::order::{Called, Registered},
    kernel::symbols::Symbols,
    netns::NetNs,
};

const PROGRAM: &str = "hook_list";
const MAP: &str = "HOOK_LIST";
// NFPROTO_* (include/uapi/linux/netfilter.h, v6.18).
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// The functions that call base chains and tables of a family.
struct Functions {
    /// Of nf_tables (net/netfilter/nft_chain_filter.c, nft_chain_route.c, nft_chain_nat.c, v6.18).
    nft: [&'static str; 5],
    /// Of ip_tables (net/ipv4/netfilter, net/ipv6/netfilter, v6.18).
    legacy: [&'static str; 2],
    /// That translate addresses, by hook (net/netfilter/nf_nat_proto.c, v6.18).
    nat: [Option<&'static str>; 5],
    /// That begin to track connections, by hook (net/netfilter/nf_conntrack_proto.c, v6.18).
    tracking: [Option<&'static str>; 5],
}

const IPV4: Functions = Functions {
    nft: [
        "nft_do_chain_ipv4",
        "nft_do_chain_inet",
        "nf_route_table_hook4",
        "nf_route_table_inet",
        "nft_nat_do_chain",
    ],
    legacy: ["ipt_do_table", "iptable_mangle_hook"],
    nat: [
        Some("nf_nat_ipv4_pre_routing"),
        Some("nf_nat_ipv4_local_in"),
        None,
        Some("nf_nat_ipv4_local_fn"),
        Some("nf_nat_ipv4_out"),
    ],
    tracking: [
        Some("ipv4_conntrack_in"),
        None,
        None,
        Some("ipv4_conntrack_local"),
        None,
    ],
};

const IPV6: Functions = Functions {
    nft: [
        "nft_do_chain_ipv6",
        "nft_do_chain_inet",
        "nf_route_table_hook6",
        "nf_route_table_inet",
        "nft_nat_do_chain",
    ],
    legacy: ["ip6t_do_table", "ip6table_mangle_hook"],
    nat: [
        Some("nf_nat_ipv6_in"),
        Some("nf_nat_ipv6_local_in"),
        None,
        Some("nf_nat_ipv6_local_fn"),
        Some("nf_nat_ipv6_out"),
    ],
    tracking: [
        Some("ipv6_conntrack_in"),
        None,
        None,
        Some("ipv6_conntrack_local"),
        None,
    ],
};

/// The kernel functions whose addresses [`Order`] looks up.
pub fn functions() -> impl Iterator<Item = &'static str> {
    [IPV4, IPV6].into_iter().flat_map(|family| {
        let others = family.nat.into_iter().chain(family.tracking).flatten();
        family.nft.into_iter().chain(family.legacy).chain(others)
    })
}

/// Reads the lists of hooks.
#[derive(Debug)]
pub struct Order {
    symbols: Symbols,
    loaded: bool,
    /// The kernel refuses the program.
    refused: bool,
}

impl Order {
    /// Loads nothing yet: most rulesets have no chains of one priority.
    pub fn new(symbols: Symbols) -> Self {
        Self {
            symbols,
            loaded: false,
            refused: false,
        }
    }

    /// What these hooks (NFPROTO_*, NF_INET_*) of a namespace call, if the ruleset is of this generation; hooks of which that is not
    /// known are left out.
    fn read(
        &mut self,
        programs: &mut Programs,
        netns: &NetNs,
        hooks: &[(u8, u8)],
        generation: u32,
    ) -> Registered {
        let mut registered = Registered::default();
        if self.refused {
            return registered;
        }
        if !self.loaded {
            if let Err(error) = programs.load_runnable(PROGRAM) {
                log::warn!("{error}: the order of chains with the same priority is not known");
                self.refused = true;
                return registered;
            }
            self.loaded = true;
        }
        for &(pf, hook) in hooks {
            match self.list(programs, netns, (pf, hook)) {
                Ok(Some(list)) if list.before == generation && list.after == generation => {
                    registered.insert((pf, hook), calls(&list));
                }
                Ok(_) => {}
                Err(error) => log::info!("the order of a hook's chains: {error}"),
            }
        }
        registered
    }

    fn list(
        &self,
        programs: &mut Programs,
        netns: &NetNs,
        (pf, hook): (u8, u8),
    ) -> Result<Option<HookList>, OrderError> {
        let family = match pf {
            NFPROTO_IPV4 => IPV4,
            NFPROTO_IPV6 => IPV6,
            _ => return Ok(None),
        };
        let start = |name| self.symbols.range(name).map_or(0, |range| range.start);
        let at = |names: [Option<_>; 5]| {
            let name = names.get(usize::from(hook)).copied().flatten();
            name.map_or(0, start)
        };
        let request = HookList {
            netns: netns.inode(),
            pf: pf.into(),
            hook: hook.into(),
            status: LIST_UNREAD,
            before: 0,
            after: 0,
            count: 0,
            at: 0,
            nft: family.nft.map(start),
            legacy: family.legacy.map(start),
            nat: at(family.nat),
            tracking: at(family.tracking),
            outer: 0,
            list: 0,
            outer_at: 0,
            listed: [Listed::default(); LISTED],
        };
        programs.set_elements(MAP, 0, &[request])?;
        // The program looks at the netns of the thread that runs it.
        netns.run(|| programs.run(PROGRAM, 0, None))??;
        let answer: HookList = programs.element(MAP, 0)?;
        Ok((answer.status == LIST_OK).then_some(answer))
    }
}

/// Why a list could not be read.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error(transparent)]
    Netns(#[from] crate::netns::Error),
    #[error(transparent)]
    Bpf(#[from] BpfError),
}

fn calls(list: &HookList) -> Vec<Called> {
    let listed = list.listed.iter().take(list.count as usize);
    listed
        .filter_map(|listed| match (listed.kind, listed.words) {
            (LISTED_NFT, [table, chain, ..]) => Some(Called::Nft { table, chain }),
            (LISTED_LEGACY, words) => {
                let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
                let name: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
                Some(Called::Legacy {
                    table: String::from_utf8_lossy(&name).into_owned(),
                })
            }
            (LISTED_TRACKING, _) => Some(Called::Tracking),
            (LISTED_NAT, _) => Some(Called::Translation),
            _ => None,
        })
        .collect()
}

/// The lists of one namespace's hooks, to be read when they are needed.
pub struct Lists<'a> {
    /// What reads them.
    pub order: &'a mut Order,
    /// With what.
    pub programs: &'a mut Programs,
    /// Where.
    pub netns: &'a NetNs,
}

impl Lists<'_> {
    /// What these hooks (NFPROTO_*, NF_INET_*) call, if the ruleset is of this generation; hooks of which that is not known are left
    /// out.
    pub fn read(&mut self, hooks: &[(u8, u8)], generation: u32) -> Registered {
        self.order
            .read(self.programs, self.netns, hooks, generation)
    }
}

impl std::fmt::Debug for Lists<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lists").field("netns", self.netns).finish()
    }
}
